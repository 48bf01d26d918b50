r"""The operator ``erwin::gate``: the gate of a feed-forward layer on a GPU.

One kernel, and one for the gradient, that keep nothing but their input; PyTorch takes
two and four, and keeps the open gate too. Compiled code fuses the formula itself.
"""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops import triton
from torch_geometric_erwin.ops.contract import implement, register_fake
from torch_geometric_erwin.ops.second_order import differentiable_grads

torch.library.define("erwin::gate", "(Tensor x) -> Tensor")
torch.library.define("erwin::gate_backward", "(Tensor grad, Tensor x) -> Tensor")
_ROWS = "float32|bfloat16|float16 [..., 2H]"


def silu_gate(x: Tensor) -> Tensor:
    r"""``SiLU(a) * b`` of the halves of every row, differentiable to any order.

    Args:
        x: The rows :math:`(a, b)`.

    Shapes:
        - **x:** :math:`(*, 2H)`; **output:** :math:`(*, H)`.

    Example:
        >>> silu_gate(torch.tensor([[0.0, 100.0, 5.0, 2.0]])).tolist()
        [[0.0, 200.0]]
    """
    if not _is_served(x):
        return _plain(x)
    return torch.ops.erwin.gate(x)


def _plain(x: Tensor) -> Tensor:
    opening, value = x.chunk(2, dim=-1)
    return F.silu(opening) * value


def _is_served(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.numel() >= triton.SMALL
        and triton.serves(x)
    )


@implement("erwin::gate", "CUDA", x=_ROWS)
def _gate_cuda(x: Tensor) -> Tensor:
    return triton.launch("gate", "forward", x, x)


@implement("erwin::gate_backward", "CUDA", grad="x [..., H]", x=_ROWS)
def _gate_backward_cuda(grad: Tensor, x: Tensor) -> Tensor:
    return triton.launch("gate", "backward", x, grad, x)


@register_fake("erwin::gate")
def _gate_fake(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.size(-1) // 2)


@register_fake("erwin::gate_backward")
def _gate_backward_fake(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Optional[Tensor]:
    (x,) = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return torch.ops.erwin.gate_backward(grad, x)
    # The gradient will be differentiated in its turn.
    return differentiable_grads(_plain, (x,), (True,), grad)[0]


torch.library.register_autograd("erwin::gate", _backward, setup_context=_setup_context)
