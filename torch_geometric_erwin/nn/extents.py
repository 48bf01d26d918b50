r"""Whether the extents of balls suit the initial weights."""

from typing import Optional

import torch
from torch import Tensor

from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.utils.checks import has_memory, reads_values, unwrapped

#: Extents of balls, in the unit of the weights, for which there is no warning.
ORDINARY = (0.01, 100.0)


def far_extent(level: Level) -> Optional[float]:
    r"""Returns the median extent of the balls, if it is far from one.

    It is :obj:`None` for ordinary extents, if no ball has an extent, and on a GPU, for
    whose values it would have to wait. Compiled code must not call it, because it reads
    values.

    Args:
        level: The level.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.tensor([[0.0], [2e4]])
        >>> (level,) = ball_tree(pos, ball_sizes=2).levels(pos)
        >>> far_extent(level)
        10000.0
    """
    if level.offset.device.type != "cpu":
        return None
    # A cheap look first. Large balls dominate it, single points make it smaller.
    extent = root_mean_square(level.offset)
    if extent == 0 or ORDINARY[0] <= extent <= ORDINARY[1]:
        return None
    if unwrapped(level.offset) is level.offset:
        extents = level.extent.detach()
        extent = float(extents[extents > 0].median())
        if ORDINARY[0] <= extent <= ORDINARY[1]:
            return None
    return extent


def root_mean_square(rows: Tensor) -> float:
    r"""Returns the root mean square length of the rows; zero where there are none.

    Args:
        rows: The rows, also under transforms of :obj:`torch.func`.

    Example:
        >>> root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
        5.0
    """
    lengths = []

    @reads_values
    def measure(rows: Tensor) -> None:
        if rows.size(0) > 0 and has_memory(rows):
            length = torch.linalg.vector_norm(rows, dtype=torch.float64)
            lengths.append(float(length) / rows.size(0) ** 0.5)

    measure(rows.detach())
    return lengths[0] if lengths else 0.0
