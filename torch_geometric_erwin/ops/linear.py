r"""The operator ``erwin::linear``: a float32 matrix product on a CPU, by oneDNN.

PyTorch leaves it to the BLAS that it was built with: in its x86 wheels MKL, which has
no AVX-512 code for processors other than Intel's. oneDNN, in the same wheels, has.
"""

import platform
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.contract import implement, register_fake

# oneDNN takes 10 µs to start: a BLAS is faster below this many multiplications.
_SMALL = 1 << 20


def has_onednn() -> bool:
    r"""Whether this build of PyTorch brings oneDNN's matrix product for x86."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


_HAS_ONEDNN = has_onednn()


def serves(*tensors: Optional[Tensor]) -> bool:
    r"""Whether the operators here can take a layer's input and weights.

    Example:
        >>> serves(torch.rand(2, 3, dtype=torch.float64))
        False
    """
    return (
        _HAS_ONEDNN
        and not torch.is_autocast_enabled("cpu")
        and all(
            t is None or (t.device.type == "cpu" and t.dtype == torch.float32)
            for t in tensors
        )
        and not dispatch.why_not(*tensors)
    )


def is_small(x: Tensor, weight: Tensor) -> bool:
    r"""Whether a product takes less time than to choose how; not asked while a graph is
    traced, which serves all sizes.

    Example:
        >>> is_small(torch.rand(2, 3), torch.rand(4, 3))
        True
    """
    return not torch.compiler.is_compiling() and x.numel() * weight.size(0) < _SMALL


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    r"""``x @ weight.T + bias``, differentiable to any order.

    Args:
        x: The rows.
        weight: The weight.
        bias: The bias.

    Shapes:
        - **x:** :math:`(*, C)`; **weight:** :math:`(C', C)`; **bias:** :math:`(C')`;
          **output:** :math:`(*, C')`.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    if is_small(x, weight) or not serves(x, weight, bias):
        return F.linear(x, weight, bias)
    if x.dim() == 2:
        return torch.ops.erwin.linear(x, weight, bias)
    out = torch.ops.erwin.linear(x.reshape(-1, x.size(-1)), weight, bias)
    return out.view(*x.shape[:-1], weight.size(0))


def product(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    post: str = "none",
    factor: Optional[Tensor] = None,
) -> Tensor:
    r"""``x @ weight.T + bias``, then :obj:`post` or a factor, in one pass."""
    op, x, weight = torch.ops.mkldnn._linear_pointwise, _dense(x), _dense(weight)
    bias = None if bias is None else bias.contiguous()  # its stride would be ignored
    if factor is not None:
        return op.binary(x, factor, weight, bias, "mul")
    return op(x, weight, bias, post, [], "")


def _dense(matrix: Tensor) -> Tensor:
    # oneDNN is a hundred times slower where neither rows nor columns are contiguous,
    # such as those of an expanded tensor.
    stride = matrix.stride()
    return matrix if 1 in stride and 0 not in stride else matrix.contiguous()


torch.library.define(
    "erwin::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
)


@implement(
    *("erwin::linear", "CPU"),
    x="float32 [N, C]",
    weight="float32 [M, C]",
    bias="float32 [M]",
)
def _linear_cpu(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    if x.numel() * weight.size(0) < _SMALL:
        return F.linear(x, weight, bias)
    return product(x, weight, bias)


@register_fake("erwin::linear")
def _linear_fake(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Optional[Tensor]], output: Tensor
) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
    x, weight = ctx.saved_tensors
    op = torch.ops.erwin.linear
    grad_x = op(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
    grad_weight = None
    if ctx.needs_input_grad[1]:
        # oneDNN copies its first argument, here the smaller one.
        if grad.size(1) <= x.size(1):
            grad_weight = op(grad.t(), x.t(), None)
        else:
            grad_weight = op(x.t(), grad.t(), None).t()
    grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias


torch.library.register_autograd(
    "erwin::linear", _backward, setup_context=_setup_context
)
