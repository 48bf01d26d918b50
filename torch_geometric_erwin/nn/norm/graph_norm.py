r"""Normalisation over the rows of every cloud."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import Parameter

from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_finite_number,
    check_int,
    check_ptr,
    check_rows,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import read_rows, segment_ids


class GraphNorm(torch.nn.Module):
    r"""Normalisation over every cloud from `"GraphNorm: A Principled Approach to
    Accelerating Graph Neural Network Training" <https://arxiv.org/abs/2009.03294>`_.

    .. math::
        x'_i = \gamma \, \frac{x_i - \alpha \, \mu}{\sqrt{\mathrm{mean}_j
        (x_j - \alpha \, \mu)^2 + \epsilon}} + \beta

    with the mean :math:`\mu` of the cloud and learnable factors :math:`\alpha`.
    Training and evaluation are the same, and no cloud depends on another. A cloud of
    one row would lose all information if its mean were subtracted. Nothing is
    subtracted from it, and it is divided by the root mean square of its features.

    Args:
        num_features: The number of features :math:`C`.
        eps: The number :math:`\epsilon` that is added to the variance.

    Shapes:
        - **x:** :math:`(N, C)`; **ptr:** :math:`(G + 1)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> norm = GraphNorm(4)
        >>> norm(torch.rand(5, 4), torch.tensor([0, 3, 5])).shape
        torch.Size([5, 4])
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features = check_int("num_features", num_features, 1)
        self.eps = check_finite_number("eps", eps, 0)
        self.weight = Parameter(torch.empty(num_features))
        self.bias = Parameter(torch.empty(num_features))
        self.mean_scale = Parameter(torch.empty(num_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)
        torch.nn.init.ones_(self.mean_scale)

    def forward(self, x: Tensor, ptr: Optional[Tensor] = None) -> Tensor:
        r"""Runs the forward pass; without offsets the rows are one cloud."""
        check_tensor("x", x)
        num_rows = x.size(0) if x.dim() > 0 else 0
        check_rows("x", x, num_rows, self.num_features)
        check_devices(x=x, weights=self.weight)
        ptr = check_ptr(ptr, num_rows, x.device, values=is_readable(x))
        # Half precision is normalised in float32, as torch's own norms do.
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        count = ptr.diff()
        cloud = segment_ids(count, num_rows)
        size = count.clamp(min=1).to(rows.dtype)[:, None]
        alone = (count == 1)[cloud][:, None]

        def mean(values: Tensor) -> Tensor:
            total = values.new_zeros(count.size(0), values.size(1))
            return read_rows(total.index_add(0, cloud, values) / size, cloud)

        out = rows - torch.where(alone, 0, self.mean_scale * mean(rows))
        square = out.square()
        variance = torch.where(alone, square.mean(1, keepdim=True), mean(square))
        out = self.weight * out * (variance + self.eps).rsqrt() + self.bias
        return out.to(x.dtype)

    def on_level(self, x: Tensor, level: Level) -> Tensor:
        r"""Runs the forward pass over the clouds of a level."""
        check_level("level", level)
        check_rows("x", x, level.num_rows, self.num_features)
        check_devices(x=x, level=level.pos)
        return self(x, level.ptr)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.num_features})"
