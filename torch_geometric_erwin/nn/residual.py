r"""Sums of rows, and the module that takes them or makes them.

On a GPU both are one kernel if calling the module is what its class says.
"""

from torch import Tensor
from torch.nn import RMSNorm

from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.ops import residual
from torch_geometric_erwin.utils.checks import is_plain


def add_norm(x: Tensor, y: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    r"""A sum and its norm.

    Args:
        x: The rows.
        y: What is added to them.
        norm: The norm.

    Shapes:
        - **x** and **y:** :math:`(N, C)`; **output:** two of :math:`(N, C)`.

    Example:
        >>> import torch
        >>> total, out = add_norm(torch.ones(1, 2), torch.ones(1, 2), RMSNorm(2))
        >>> total.tolist(), out.detach().round(decimals=3).tolist()
        ([[2.0, 2.0]], [[1.0, 1.0]])
    """
    weight = norm.weight
    if (
        is_plain(norm, RMSNorm)
        and weight is not None
        and x.shape == y.shape
        and x.shape[1:] == weight.shape
        and residual.serves(x, y, weight)
    ):
        return residual.add_norm(x, y, weight, norm.eps)
    total = x + y
    return total, norm(total)


def add_linear(x: Tensor, y: Tensor, linear: Linear) -> Tensor:
    r"""Rows, and a linear map of a few columns added to them.

    Args:
        x: The rows.
        y: The columns.
        linear: The map.

    Shapes:
        - **x:** :math:`(N, C)`; **y:** :math:`(N, D)`; **output:** :math:`(N, C)`.

    Example:
        >>> import torch
        >>> add_linear(torch.ones(2, 3), torch.ones(2, 1), Linear(1, 3)).shape
        torch.Size([2, 3])
    """
    y, weight, bias = y.to(x.dtype), linear.weight, linear.bias
    if (
        is_plain(linear, Linear)
        and bias is not None
        and x.shape[1:] + y.shape[1:] == weight.shape
        and residual.serves(x, y, weight)
    ):
        return residual.add_linear(x, y, weight, bias)
    return x + linear(y)
