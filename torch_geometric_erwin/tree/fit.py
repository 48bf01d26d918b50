r"""A warning if the order of a tree does not suit the positions."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_geometric_erwin.utils.checks import has_memory
from torch_geometric_erwin.utils.rows import segment_ids

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree

# Clouds of fewer nodes are not looked at: chance can put a few nodes into any order.
_LEAST = 16


def warn_of_order(tree: "Tree", pos: Tensor, stacklevel: int = 4) -> None:
    r"""Warns if the nodes of a cloud are not where they were when its tree was built.

    If the positions were replaced, or their rows shuffled, rows next to each other in
    the tree are no longer near. The tree that would be built now is compared with, so
    that there is no warning while nodes move a little, nor after :meth:`Tree.update`.
    Only on a CPU, because it would have to wait for a GPU.

    Args:
        tree: The tree.
        pos: The node positions, which have been checked, as the tree has been.
        stacklevel: How many calls above this one the warning names.

    Shapes:
        - **pos:** :math:`(N, D)`.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.arange(32.0)[:, None]
        >>> tree = ball_tree(pos, ball_sizes=8)
        >>> warn_of_order(tree, pos + 0.1)
    """
    if torch.compiler.is_compiling() or pos.device.type != "cpu":
        return
    if torch._C._are_functorch_transforms_active() or not has_memory(pos):
        return
    if tree.perm.size(0) < _LEAST:
        return
    pos = pos.detach()
    found = _roughness(tree, pos)
    # Of nodes in random order it is about one.
    if not bool((found > 0.5).any()) or not bool(torch.isfinite(pos).all()):
        return
    best = _roughness(tree.update(pos), pos)
    lost = found - best > 0.5 * (1 - best)
    if bool(lost.any()):
        cloud = int(lost.nonzero()[0])
        warnings.warn(
            f"the tree of cloud {cloud} does not suit its positions: 'pos' was "
            "replaced or its rows were shuffled after 'BallTree', or the nodes have "
            "moved far; apply 'BallTree' again, or use 'tree.update(pos)'",
            stacklevel=stacklevel,
        )


def _roughness(tree: "Tree", pos: Tensor) -> Tensor:
    # Per cloud, the sum of squared distances between rows that are next to each other,
    # over the sum that is expected in random order. Zero for small clouds.
    rows = pos[tree.global_perm()].double()
    clouds, lengths = tree.level.size(0), tree.level[:, 0]
    cloud = segment_ids(lengths, rows.size(0))

    def per_cloud(values: Tensor, index: Tensor) -> Tensor:
        return values.new_zeros(clouds, *values.shape[1:]).index_add(0, index, values)

    centre = per_cloud(rows, cloud) / lengths.clamp(min=1)[:, None]
    spread = per_cloud((rows - centre[cloud]).square().sum(1), cloud)
    steps = rows.diff(dim=0).square().sum(1)
    inside = cloud[1:] == cloud[:-1]
    steps = per_cloud(torch.where(inside, steps, 0), cloud[1:])
    known = (lengths >= _LEAST) & (spread > 0)
    return torch.where(known, steps / torch.where(known, 2 * spread, 1), 0)
