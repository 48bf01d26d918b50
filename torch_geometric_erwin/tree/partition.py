r"""How clouds are divided into balls, groups and runs.

A cloud is split by the number of its points, not by their positions. All lengths
therefore follow from the sizes of the clouds and the configuration.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_geometric_erwin.ops.ball_tree import sizes_of, tables_of
from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.utils.rows import segment_ids

Tensors = tuple[Tensor, ...]


class Partition(NamedTuple):
    r"""The lengths of clouds, balls, groups and runs of a tree.

    Shapes:
        - **level:** :math:`(G, L + 1)`, the number of rows of every cloud;
          **ball_len:** :math:`(K_l)` per level; **group_len:** :math:`(N_{l+1})` per
          coarsening; **runs:** per level, a tensor for every size of
          :attr:`TreeConfig.runs`.
    """

    level: Tensor
    ball_len: Tensors
    group_len: Tensors
    runs: tuple[Tensors, ...]

    @classmethod
    def of(cls, ptr: Tensor, num_points: int, config: TreeConfig) -> "Partition":
        r"""Computes the partition of clouds on the host.

        Args:
            ptr: The row offsets of the clouds, on the host.
            num_points: The last offset.
            config: The configuration.

        Raises:
            ValueError: If the offsets are malformed.

        Example:
            >>> config = TreeConfig([4, 4], [2], runs=[[2], []])
            >>> partition = Partition.of(torch.tensor([0, 7]), 7, config)
            >>> partition.ball_len[0].tolist(), partition.runs[0][0].tolist()
            ([4, 3], [2, 2, 2, 1])
        """
        args = ([*config.ball_sizes], [*config.strides], config.layout)
        level, num_rows, num_balls = sizes_of(ptr, num_points, *args)
        ball_len, group_len = tables_of(ptr, num_rows, num_balls, *args)
        return cls(
            level, tuple(ball_len), tuple(group_len), runs_of(ptr, num_points, config)
        )

    def padded(
        self, config: TreeConfig, points: int, num_nodes: int, num_clouds: int
    ) -> "Partition":
        r"""Adds clouds up to sizes that follow from :math:`N`, :math:`G` and the
        configuration, see :meth:`Tree.pad`.

        The first added cloud holds all rows that are missing, further ones are empty.
        No value is read.

        Args:
            config: The configuration.
            points: The number of nodes before padding.
            num_nodes: The number of nodes :math:`N` after padding.
            num_clouds: The number of clouds :math:`G` after padding.

        Raises:
            ValueError: If there are more nodes, clouds or balls.
        """
        rows, balls = config.padded_sizes(num_nodes, num_clouds)
        levels = range(config.num_levels)
        clouds = self.level.size(0)
        if clouds >= num_clouds:
            raise ValueError(
                f"'num_clouds' must be above {clouds}, the clouds there are (got "
                f"{num_clouds})"
            )
        if points > num_nodes:
            raise ValueError(
                f"'num_nodes' must be at least {points}, the nodes there are (got "
                f"{num_nodes})"
            )
        present = [points, *(lengths.size(0) for lengths in self.group_len)]
        missing = [rows[l] - present[l] for l in levels]
        counts = [self.level.new_full((1,), count) for count in missing]
        added = pad(torch.stack(counts, 1), (0, 0, 0, num_clouds - clouds - 1))

        def filled(lengths: Tensor, count: int, size: int, l: int) -> Tensor:
            needed = lengths.size(0) - (-missing[l] // size)
            if needed > count:
                raise ValueError(
                    f"level {l} needs {needed} runs of {size} rows, above the {count} "
                    f"of a batch of {num_clouds} clouds: raise 'num_clouds'"
                )
            # The added runs: first full ones, then a partially filled one, then empty
            # ones.
            places = torch.arange(count - lengths.size(0), device=lengths.device)
            more = (missing[l] - places * size).clamp(0, size)
            return torch.cat([lengths, more.to(lengths.dtype)])

        return Partition(
            torch.cat([self.level, added]),
            tuple(
                filled(t, balls[l], config.ball_sizes[l], l)
                for l, t in enumerate(self.ball_len)
            ),
            tuple(
                filled(t, rows[l + 1], config.strides[l], l)
                for l, t in enumerate(self.group_len)
            ),
            tuple(
                tuple(
                    filled(t, config.padded_runs(l, m, rows[l], num_clouds), m, l)
                    for m, t in zip(config.runs_of(l), tensors)
                )
                for l, tensors in enumerate(self.runs)
            ),
        )


def runs_of(ptr: Tensor, num_points: int, config: TreeConfig) -> tuple[Tensors, ...]:
    r"""Computes the lengths of the runs of :attr:`TreeConfig.runs`.

    A run is a node of the main tree that is as large as possible with at most the given
    number of rows, as a ball is. So the lengths for each size are those of the balls of
    a level that is inserted behind the given one with a stride of 1.

    Args:
        ptr: The row offsets of the clouds, on the host.
        num_points: The last offset.
        config: The configuration.
    """
    if not config.runs:
        return ()

    def run(l: int, size: int) -> Tensor:
        sizes, strides = [*config.ball_sizes], [*config.strides]
        sizes.insert(l + 1, size)
        strides.insert(l, 1)
        args = (sizes, strides, config.layout)
        _, num_rows, num_balls = sizes_of(ptr, num_points, *args)
        return tables_of(ptr, num_rows, num_balls, *args)[0][l + 1]

    return tuple(
        tuple(run(l, size) for size in sizes) for l, sizes in enumerate(config.runs)
    )


def group_lengths(level: Tensor, l: int, stride: int, num_rows: int) -> Tensor:
    r"""Returns the number of children of every pooled row.

    All groups of a cloud but the last one are full.

    Args:
        level: The number of rows of every cloud on every level.
        l: The level that is pooled.
        stride: The number of rows that are pooled.
        num_rows: The number of pooled rows, of all clouds.

    Shapes:
        - **level:** :math:`(G, L + 1)`; **output:** :math:`(N_{l+1})`.

    Example:
        >>> group_lengths(torch.tensor([[7, 4], [2, 1]]), 0, 2, 5).tolist()
        [2, 2, 2, 1, 2]
    """
    children, rows = level[:, l], level[:, l + 1]
    cloud = segment_ids(rows, num_rows)
    place = torch.arange(num_rows, device=level.device) - (rows.cumsum(0) - rows)[cloud]
    return (children[cloud] - place * stride).clamp(0, stride)


def difference(tables: Partition, right: Partition) -> str:
    r"""Describes the first place where tables differ from the right ones.

    The text is empty if they do not differ.

    Args:
        tables: The tables, on the host.
        right: The tables that follow from the sizes of the clouds.
    """
    # By NumPy, which uses no threads: PyTorch's do not exist in a forked process.
    wrong = np.argwhere(tables.level.numpy() != right.level.numpy())
    if len(wrong) > 0:
        i, l = wrong[0]
        rows_of = f"{tables.level[i, l]} rows on level {l} of cloud {i}"
        return f"'level' has {rows_of}, not {right.level[i, l]}"
    for (name, table), (_, expected) in zip(_named(tables), _named(right)):
        if table.size(0) != expected.size(0):
            sizes = table.size(0), expected.size(0)
            return f"'{name}' has {sizes[0]} entries, expected {sizes[1]}"
        places = np.flatnonzero(table.numpy() != expected.numpy())
        if len(places) > 0:
            i = places[0]
            return f"'{name}' has {table[i]} at {i}, expected {expected[i]}"
    return ""


def has_other_lengths(tables: Partition, right: Partition) -> bool:
    r"""Whether a table has more or fewer entries than the right one.

    Args:
        tables: The tables.
        right: The tables that follow from the sizes of the clouds.
    """
    pairs = zip(_named(tables), _named(right))
    return any(table.size(0) != other.size(0) for (_, table), (_, other) in pairs)


def _named(tables: Partition) -> list[tuple[str, Tensor]]:
    return [
        *((f"ball_len_{l}", t) for l, t in enumerate(tables.ball_len)),
        *((f"group_len_{l}", t) for l, t in enumerate(tables.group_len)),
        *((f"runs_{l}", t) for l, level in enumerate(tables.runs) for t in level),
    ]
