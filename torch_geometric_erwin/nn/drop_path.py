r"""Stochastic depth: leaving out a branch of a block at random."""

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_floating,
    check_probability,
    check_tensor,
)


class DropPath(Module):
    r"""Stochastic depth from `"Deep Networks with Stochastic Depth"
    <https://arxiv.org/abs/1603.09382>`_: in training, a branch is left out for all rows
    of a cloud with probability :obj:`p`, and multiplied by :math:`1 / (1 - p)`
    otherwise.

    Args:
        p: The probability.

    Shapes:
        - **x:** :math:`(N, C)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If the probability is not in :math:`[0, 1)`.

    Example:
        >>> level = Level.build(torch.rand(3, 2), torch.tensor([3]), ball_size=4)
        >>> DropPath(0.5).eval()(torch.ones(3, 1), level).flatten().tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = check_probability("p", p)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        r"""Runs the forward pass of the module."""
        if not self.training or self.p == 0:
            return x
        check_level("level", level)
        check_tensor("x", x)
        check_floating("x", x)
        if x.dim() != 2 or x.size(0) != level.num_rows:
            raise ValueError(
                f"'x' must have shape [{level.num_rows}, C] (got {[*x.shape]})"
            )
        check_devices(x=x, level=level.pos)
        keep = torch.rand(level.num_clouds, device=x.device) >= self.p
        return x * (keep.to(x.dtype) / (1 - self.p))[level.batch][:, None]

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.p})"
