r"""The operators ``erwin::add_norm`` and ``erwin::add_linear``: sums of rows on a GPU.

What a block does between its large products is bound by memory, or by launching. Here a
sum and what follows it are one kernel, which writes the dtype that the next product
reads. Compiled code fuses the formulas itself.
"""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops import triton
from torch_geometric_erwin.ops.contract import implement, register_fake

_CHANNELS = 2048  # that a program can hold
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ANY = "float32|bfloat16|float16"

# The sum, its norm, and the scale of every row.
torch.library.define(
    "erwin::add_norm",
    "(Tensor x, Tensor y, Tensor weight, float eps, ScalarType dtype) "
    "-> (Tensor, Tensor, Tensor)",
)
# The gradient of both terms, in float32, and that of the weight.
torch.library.define(
    "erwin::add_norm_backward",
    "(Tensor grad_total, Tensor grad, Tensor total, Tensor scale, Tensor weight) "
    "-> (Tensor, Tensor)",
)
torch.library.define(
    "erwin::add_linear",
    "(Tensor x, Tensor y, Tensor weight, Tensor bias, ScalarType dtype) -> Tensor",
)


def serves(x: Tensor, y: Tensor, weight: Tensor) -> bool:
    r"""Whether the operators here can take rows, what is added to them and a weight.

    Shapes are the caller's to check.

    Example:
        >>> serves(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))
        False
    """
    return (
        not torch.compiler.is_compiling()
        and x.device == y.device == weight.device
        and x.dtype == torch.float32
        and x.dim() == y.dim() == 2
        and x.size(0) == y.size(0)
        and x.size(1) <= _CHANNELS
        and x.numel() >= triton.SMALL
        and y.dtype in _DTYPES
        and triton.serves(x, y, weight)
    )


def add_norm(
    x: Tensor, y: Tensor, weight: Tensor, eps: Optional[float]
) -> tuple[Tensor, Tensor]:
    r"""A sum and its RMS norm, in the dtype of autocast.

    Args:
        x: The rows.
        y: What is added to them.
        weight: The weight of the norm.
        eps: What is added to the mean square, by default that of :obj:`x`'s dtype.

    Shapes:
        - **x** and **y:** :math:`(N, C)`; **weight:** :math:`(C)`; **output:** two of
          :math:`(N, C)`.
    """
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return torch.ops.erwin.add_norm(x, y, weight, eps, _dtype(x))[:2]


def add_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""``x + y @ weight.T + bias`` for few columns, in the dtype of autocast.

    Args:
        x: The rows.
        y: The columns.
        weight: The weight.
        bias: The bias.

    Shapes:
        - **x:** :math:`(N, C)`; **y:** :math:`(N, D)`; **weight:** :math:`(C, D)`;
          **bias:** :math:`(C)`; **output:** :math:`(N, C)`.
    """
    return torch.ops.erwin.add_linear(x, y, weight, bias, _dtype(x))


def _dtype(x: Tensor) -> torch.dtype:
    # Of the products that read the result.
    enabled = torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if enabled else x.dtype


@implement(
    *("erwin::add_norm", "CUDA"),
    x="float32 [N, C]",
    y=f"{_ANY} [N, C]",
    weight=f"{_ANY} [C]",
)
def _add_norm_cuda(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return triton.launch("residual", "add_norm", x, x, *args)


@implement(
    *("erwin::add_norm_backward", "CUDA"),
    grad_total="float32 [N, C]",
    grad=f"{_ANY} [N, C]",
    total="float32 [N, C]",
    scale="float32 [N]",
    weight=f"{_ANY} [C]",
)
def _add_norm_backward_cuda(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return triton.launch("residual", "add_norm_backward", grad, grad, *args)


@implement(
    *("erwin::add_linear", "CUDA"),
    x="float32 [N, C]",
    y=f"{_ANY} [N, D]",
    weight=f"{_ANY} [C, D]",
    bias=f"{_ANY} [C]",
)
def _add_linear_cuda(x: Tensor, *args: Any) -> Tensor:
    return triton.launch("residual", "add_linear", x, x, *args)


@register_fake("erwin::add_norm")
def _add_norm_fake(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    shape = x.shape
    return x.new_empty(shape), x.new_empty(shape, dtype=dtype), x.new_empty(shape[0])


@register_fake("erwin::add_norm_backward")
def _add_norm_backward_fake(
    grad_total: Tensor, grad: Tensor, total: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


@register_fake("erwin::add_linear")
def _add_linear_fake(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, _, weight, ctx.eps, _ = inputs
    total, _, scale = output
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, scale, weight)


def _norm_backward(
    ctx: Any, grad_total: Optional[Tensor], grad: Optional[Tensor], _: None
) -> tuple[Optional[Tensor], ...]:
    total, scale, weight = ctx.saved_tensors
    if grad is None:
        return grad_total, grad_total, None, None, None
    if grad_total is None:
        grad_total = torch.zeros_like(total)
    if torch.is_grad_enabled():  # the gradient will be differentiated in its turn
        grads = _norm_gradient(grad_total, grad, total, weight, ctx.eps)
    else:
        args = (grad_total, grad, total, scale, weight)
        grads = torch.ops.erwin.add_norm_backward(*args)
    # Autograd gives each the dtype of its input.
    return grads[0], grads[0], grads[1], None, None


def _norm_gradient(
    grad_total: Tensor, grad: Tensor, total: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    grad, scale = grad.to(total.dtype), (total.square().mean(1, True) + eps).rsqrt()
    unit, weighted = total * scale, grad * weight
    along = unit * (weighted * unit).mean(1, True)
    return grad_total + scale * (weighted - along), (grad * unit).sum(0)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
    y, weight = ctx.saved_tensors
    grad_y = grad.to(weight.dtype) @ weight if ctx.needs_input_grad[1] else None
    # The bias is one more column, of ones. Autograd gives each the dtype of its input.
    both = grad.t() @ F.pad(y, (0, 1), value=1.0).to(grad.dtype)
    return grad, grad_y, both[:, :-1], both[:, -1], None


torch.library.register_autograd(
    "erwin::add_norm", _norm_backward, setup_context=_norm_context
)
torch.library.register_autograd(
    "erwin::add_linear", _linear_backward, setup_context=_linear_context
)
