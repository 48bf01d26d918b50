r"""A warning if the order of a tree does not suit the positions."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torch_geometric_erwin.utils.checks import HALF, has_memory

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree

# Clouds of fewer nodes are not looked at: chance can put a few nodes into any order.
_LEAST = 64
# With more coordinates not either: no order brings all of them together.
_MOST_AXES = 8
# How many pairs of rows are looked at in a cloud, enough to tell order from chance.
_PAIRS = 1024


def warn_of_order(tree: "Tree", pos: Tensor, stacklevel: int = 3) -> None:
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
    if tree.perm.size(0) < _LEAST or pos.size(1) > _MOST_AXES:
        return
    pos = pos.detach()
    found = _roughness(tree, pos)
    # Of nodes in random order it is about one.
    if not (found > 0.5).any():
        return
    best = _roughness(tree.update(pos), pos)
    lost = found - best > 0.5 * np.maximum(1 - best, 0.2)
    if lost.any():
        cloud = lost.argmax()
        warnings.warn(
            f"the tree of cloud {cloud} does not suit its positions: 'pos' was "
            "replaced or its rows were shuffled after 'BallTree', or the nodes have "
            "moved far; apply 'BallTree' again, or use 'tree.update(pos)'",
            stacklevel=stacklevel,
        )


def _roughness(tree: "Tree", pos: Tensor) -> np.ndarray:
    # Per cloud, the sum of squared distances between rows that are next to each other,
    # over the sum that is expected in random order. Zero for small clouds.
    lengths = tree.level[:, 0].resolve_neg().numpy()
    found = np.zeros(len(lengths))
    clouds = np.flatnonzero(lengths >= _LEAST)
    if len(clouds) == 0:
        return found
    steps = np.maximum(1, lengths[clouds] // _PAIRS)
    counts = (lengths[clouds] - 1) // steps
    ends = counts.cumsum()
    place = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    first = (lengths.cumsum() - lengths)[clouds]
    rows = np.repeat(first, counts) + place * np.repeat(steps, counts)
    start = np.repeat(tree.node_ptr.resolve_neg().numpy()[clouds], counts)
    perm = tree.perm.resolve_neg().numpy()
    # By NumPy, which starts no threads. It has no bfloat16.
    values = (pos.float() if pos.dtype in HALF else pos).resolve_neg().numpy()
    a, b = values[perm[[rows, rows + 1]] + start].astype(np.float64)

    def per_cloud(rows: np.ndarray) -> np.ndarray:
        return np.add.reduceat(rows, ends - counts)

    middle = np.repeat(per_cloud(a + b) / (2 * counts[:, None]), counts, axis=0)
    spread = per_cloud(np.square(a - middle) + np.square(b - middle)).sum(1)
    rough = per_cloud(np.square(a - b)).sum(1)
    found[clouds] = np.divide(
        rough, spread, out=np.zeros(len(clouds)), where=spread > 0
    )
    return found
