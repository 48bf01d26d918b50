r"""The operator ``erwin::linear``: a float32 matrix product on a CPU, by oneDNN.

PyTorch itself uses the BLAS that it was built with. In its x86 wheels this is MKL,
which has AVX-512 code only for Intel's processors. oneDNN is in the same wheels, and
has such code for all.
"""

import platform
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.contract import implement, register_fake
from torch_geometric_erwin.ops.registry import Functions, Registry

# oneDNN takes 10 µs to start, so a BLAS is faster below this many multiplications.
_SMALL = 1 << 20


def has_onednn() -> bool:
    r"""Whether this build of PyTorch has oneDNN's matrix product for x86."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


_HAS_ONEDNN = has_onednn()


def why_not(x: Tensor, weight: Tensor, *others: Optional[Tensor]) -> str:
    r"""Says why oneDNN does not serve a layer; empty if it does.

    Args:
        x: The rows.
        weight: The first weight.
        *others: Further weights, or :obj:`None` for those that the layer lacks.

    Example:
        >>> why_not(torch.rand(2000, 30), torch.rand(40, 30).double())
        'it serves float32 (got torch.float64)'
    """
    if is_small(x, weight):
        return "a product this small is done before oneDNN has started"
    if not _HAS_ONEDNN:
        return "this build of PyTorch has no oneDNN for x86"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the dtype of products"
    for tensor in (x, weight, *others):
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"it runs on the CPU (got {tensor.device.type})"
        if tensor.dtype != torch.float32:
            return f"it serves float32 (got {tensor.dtype})"
    return dispatch.why_not(x, weight, *others)


def is_small(x: Tensor, weight: Tensor) -> bool:
    r"""Whether a product is so small that PyTorch computes it without further checks.

    The checks of :func:`why_not` would take longer than the product itself. While a
    graph is traced no product counts as small, because one graph serves all sizes.

    Example:
        >>> is_small(torch.rand(2, 3), torch.rand(4, 3))
        True
    """
    return not torch.compiler.is_compiling() and x.numel() * weight.size(0) < _SMALL


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    r"""Computes ``x @ weight.T + bias``, differentiable to any order.

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
    if is_small(x, weight):  # first, because it saves the time of all other checks
        return F.linear(x, weight, bias)
    return LINEAR[LINEAR.choose(x, weight, bias)].run(x, weight, bias)


def _by_rows(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    if x.dim() == 2:
        return torch.ops.erwin.linear(x, weight, bias)
    out = torch.ops.erwin.linear(x.reshape(-1, x.size(-1)), weight, bias)
    return out.view(*x.shape[:-1], weight.size(0))


#: In order of preference, the fastest first.
LINEAR = Registry(
    "linear", onednn=Functions(_by_rows, why_not), torch=Functions(F.linear)
)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    post: str = "none",
    factor: Optional[Tensor] = None,
) -> Tensor:
    r"""Computes ``x @ weight.T + bias``, then :obj:`post` or a factor, in one pass."""
    op, x, weight = torch.ops.mkldnn._linear_pointwise, _dense(x), _dense(weight)
    bias = None if bias is None else bias.contiguous()  # oneDNN ignores its stride
    if factor is not None:
        return op.binary(x, factor, weight, bias, "mul")
    return op(x, weight, bias, post, [], "")


def _dense(matrix: Tensor) -> Tensor:
    # oneDNN is a hundred times slower if neither rows nor columns are contiguous, as in
    # an expanded tensor.
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
        # oneDNN copies its first argument, so the smaller one is put first.
        if grad.size(1) <= x.size(1):
            grad_weight = op(grad.t(), x.t(), None)
        else:
            grad_weight = op(x.t(), grad.t(), None).t()
    grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias


torch.library.register_autograd(
    "erwin::linear", _backward, setup_context=_setup_context
)
