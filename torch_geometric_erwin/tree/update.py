r"""The tree of nodes that moved."""

from dataclasses import replace
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor
from torch.nn.functional import pad

import torch_geometric_erwin.ops.ball_tree_cuda  # noqa: F401  (registers the operators)
from torch_geometric_erwin.utils.checks import check_int, check_pos

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree


def updated(tree: "Tree", pos: Tensor, max_points: Optional[int] = None) -> "Tree":
    r"""Builds a tree again for positions that moved; see :meth:`Tree.update`.

    Args:
        tree: The tree.
        pos: The new positions of the same nodes.
        max_points: An upper bound of the points of a cloud. (default: the number of
            nodes)

    Shapes:
        - **pos:** :math:`(N, D)`.

    Raises:
        ValueError: If there are more or fewer positions than nodes, or a cloud has more
            points than :obj:`max_points`.
    """
    pos = check_pos(pos, values=False)
    if pos.device != tree.level.device:
        raise ValueError(
            f"'pos' is on {pos.device}, the tree is on {tree.level.device}"
        )
    if tree.mask is None and pos.size(0) != tree.perm.size(0):
        raise ValueError(
            f"'pos' must have a row for each of the tree's {tree.perm.size(0)} "
            f"nodes (got {pos.size(0)})"
        )
    if max_points is None:
        max_points = pos.size(0)
    else:
        max_points = check_int("max_points", max_points, 0)
    if tree.real is not None and tree.level.device.type == "cpu":
        # The builder for the host needs exact sizes, so it gets the real clouds.
        clouds, points = int(tree.real.sum()), int(tree.level[tree.real, 0].sum())
        ptr, levels = tree.node_ptr[: clouds + 1], tree.level[:clouds].sum(0)
        order = _build(tree, pos[:points], ptr, levels.tolist(), max_points)
        perm, mask, *perm_rot = (_filled(tree, t) for t in order)
    else:
        rows = [tree.num_rows(l) for l in range(tree.config.num_levels)]
        order = _build(tree, pos, tree.node_ptr, rows, max_points)
        perm, mask, *perm_rot = order
    return replace(
        tree,
        perm=added_in_order(tree, perm, 0),
        perm_rot=tuple(added_in_order(tree, t, l) for l, t in enumerate(perm_rot)),
        mask=None if tree.mask is None else mask,
        edges=(),
        edge_means=(),
        edge_code=None,
    )


def _build(
    tree: "Tree", pos: Tensor, ptr: Tensor, rows: list[int], max_points: int
) -> list[Tensor]:
    config = tree.config
    args = (config.ball_sizes, config.strides, config.rotate, config.layout)
    return torch.ops.erwin.ball_tree_order(pos, ptr, rows, max_points, *args)


def _filled(tree: "Tree", perm: Tensor) -> Tensor:
    return pad(perm, (0, max(0, tree.perm.size(0) - perm.size(0))))


def added_in_order(tree: "Tree", perm: Tensor, level: int) -> Tensor:
    r"""Returns the order of a level that a builder found, in which the rows that
    padding added keep their own order: a tree that is built for the added cloud has
    fewer rows than padding gave it.

    Args:
        tree: The tree.
        perm: The order, with at least as many rows as the level.
        level: The level.

    Shapes:
        - **output:** :math:`(N_l)`.
    """
    real = tree.real_rows(level)
    if real is None:
        return perm
    return torch.where(real, perm[: real.size(0)], (~real).cumsum(0) - 1)
