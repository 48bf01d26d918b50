r"""A gated feed-forward layer, which the operators ``erwin::swiglu`` compute on CPUs.

They take the rows in portions that are so small that hidden features stay in the cache,
and never allocate the hidden features of all rows. The backward pass computes the
hidden features again.
"""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops.contract import implement, register_fake
from torch_geometric_erwin.ops.linear import is_small, product, why_not
from torch_geometric_erwin.ops.registry import Functions, Registry
from torch_geometric_erwin.ops.second_order import differentiable_grads

# The number of hidden features of a portion (4 MB in float32), and the least number of
# rows: with fewer, a matrix product is less efficient.
_PORTION, _MIN_ROWS = 1 << 20, 512


def swiglu(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    r"""Computes ``W_3 (SiLU(W_1 x) * W_2 x)`` with biases, differentiable to any order.

    Args:
        x: The rows.
        weight_in: The weights :math:`W_1` and :math:`W_2`, one above the other.
        bias_in: Their biases.
        weight_out: The weight :math:`W_3`.
        bias_out: Its bias.

    Shapes:
        - **x:** :math:`(*, C)`; **weight_in:** :math:`(2H, C)`; **bias_in:**
          :math:`(2H)`; **weight_out:** :math:`(C, H)`; **bias_out:** :math:`(C)`;
          **output:** :math:`(*, C)`.

    Example:
        >>> weights = torch.rand(16, 4), torch.rand(16), torch.rand(4, 8), torch.rand(4)
        >>> swiglu(torch.rand(3, 4), *weights).shape
        torch.Size([3, 4])
    """
    weights = (weight_in, bias_in, weight_out, bias_out)
    if is_small(x, weight_in):  # as in `linear`
        return _plain(x, *weights)
    return SWIGLU[SWIGLU.choose(x, *weights)].run(x, *weights)


def _by_portions(x: Tensor, *weights: Tensor) -> Tensor:
    return torch.ops.erwin.swiglu(x.reshape(-1, x.size(-1)), *weights).view(x.shape)


def _plain(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    gate, value = F.linear(x, weight_in, bias_in).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * value, weight_out, bias_out)


#: In order of preference, the fastest first.
SWIGLU = Registry(
    "swiglu", onednn=Functions(_by_portions, why_not), torch=Functions(_plain)
)

_WEIGHTS = "Tensor weight_in, Tensor bias_in, Tensor weight_out"
torch.library.define(
    "erwin::swiglu", f"(Tensor x, {_WEIGHTS}, Tensor bias_out) -> Tensor"
)
torch.library.define(
    "erwin::swiglu_backward",
    f"(Tensor grad, Tensor x, {_WEIGHTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_TAKES = {
    "x": "float32 [N, C]",
    "weight_in": "float32 [2H, C]",
    "bias_in": "float32 [2H]",
    "weight_out": "float32 [C, H]",
}


def _portions(x: Tensor, width: int) -> list[slice]:
    rows = max(_MIN_ROWS, _PORTION // width)
    # Portions are equal, because a short last one would be less efficient.
    count = max(1, -(-x.size(0) // rows))
    rows = max(1, -(-x.size(0) // count))
    return [slice(first, first + rows) for first in range(0, x.size(0), rows)]


@implement("erwin::swiglu", "CPU", **_TAKES, bias_out="float32 [C]")
def _swiglu_cpu(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    hidden = weight_out.size(1)
    weight_gate, weight_value = weight_in[:hidden], weight_in[hidden:]
    bias_gate, bias_value = bias_in[:hidden], bias_in[hidden:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for rows in _portions(x, hidden):
        part = x[rows]
        gate = product(part, weight_gate, bias_gate, "swish")
        active = product(part, weight_value, bias_value, factor=gate)
        out[rows] = product(active, weight_out, bias_out)
    return out


@register_fake("erwin::swiglu")
def _swiglu_fake(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@implement("erwin::swiglu_backward", "CPU", grad="float32 [N, C]", **_TAKES)
def _swiglu_backward_cpu(
    grad: Tensor, x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor
) -> tuple[Tensor, ...]:
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    # In the memory order of the products that are added to them below, because sums of
    # transposed tensors are slow.
    grad_in, grad_out = (
        torch.zeros_like(weight_in.t(), memory_format=torch.contiguous_format),
        torch.zeros_like(weight_out),
    )
    grad_bias = torch.zeros_like(bias_in)
    for rows in _portions(x, bias_in.size(0)):
        part, grad_part = x[rows], grad[rows]
        inner = product(part, weight_in, bias_in)
        gate, value = inner.chunk(2, dim=-1)
        open_gate = F.silu(gate)
        grad_out += product(grad_part.t(), (open_gate * value).t())
        grad_active = product(grad_part, weight_out.t())
        grad_gate = grad_active * value
        # The gradients of the hidden features overwrite them in `inner`.
        torch.mul(grad_active, open_gate, out=value)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=gate)
        grad_x[rows] = product(inner, weight_in.t())
        grad_in += product(part.t(), inner.t())
        grad_bias += inner.sum(0)
    return grad_x, grad_in.t(), grad_bias, grad_out, grad.sum(0)


@register_fake("erwin::swiglu_backward")
def _swiglu_backward_fake(
    grad: Tensor, x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor
) -> tuple[Tensor, ...]:
    likes = (x, weight_in.t(), bias_in, weight_out)
    grad_x, grad_in, *grads = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in likes
    )
    return grad_x, grad_in.t(), *grads, x.new_empty(x.size(1))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
    if not torch.is_grad_enabled():
        return torch.ops.erwin.swiglu_backward(grad, *ctx.saved_tensors[:-1])
    # The gradient will be differentiated again.
    return differentiable_grads(_plain, ctx.saved_tensors, ctx.needs_input_grad, grad)


torch.library.register_autograd(
    "erwin::swiglu", _backward, setup_context=_setup_context
)
