"""The ball tree from its definition, in plain Python: recursive, cloud by cloud."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log2, prod
from typing import NamedTuple

import numpy as np


class Node(NamedTuple):
    """A subtree: the rows of level 0 below it, and none or two children."""

    rows: int
    children: "tuple[Node, ...]" = ()


@dataclass
class Arrays:
    """The contents of `torch_geometric_erwin.Tree`, as lists and arrays."""

    perm: np.ndarray
    level: np.ndarray
    ball_len: list[list[int]]
    group_len: list[list[int]]
    perm_rot: list[np.ndarray]
    mask: np.ndarray


def left_part(k: int) -> int:
    h = ceil(log2(k))
    if k == 2:
        return 1
    return 2 ** (h - 1) if k >= 3 * 2 ** (h - 2) else 2 ** (h - 2)


def balanced(n: int, ball_size: int, strides: Sequence[int]) -> Node:
    """Splits n points into balls of level 0, then into smaller and smaller groups."""
    size = prod(strides)
    blocks = -(-n // size)
    # Balls hold whole blocks. A block that is larger than a ball is split separately.
    balls = -(-blocks // max(1, ball_size // size))
    return _between_balls(n, blocks, balls, tuple(strides))


def _between_balls(n: int, blocks: int, balls: int, strides: tuple[int, ...]) -> Node:
    if balls <= 1:
        return _inside_ball(n, strides)
    k = left_part(balls)
    q = (blocks * k + balls // 2) // balls
    left = prod(strides) * q
    return Node(
        n,
        (
            _between_balls(left, q, k, strides),
            _between_balls(n - left, blocks - q, balls - k, strides),
        ),
    )


def _inside_ball(n: int, strides: tuple[int, ...]) -> Node:
    if n <= 1:
        return Node(n)
    unit = prod(strides)
    parts = -(-n // unit)
    if parts == 1:
        return _inside_ball(n, strides[:-1])
    left = left_part(parts) * unit
    return Node(n, (_inside_ball(left, strides), _inside_ball(n - left, strides)))


def perfect(slots: int) -> Node:
    """Halves the slots, whose number is a power of two."""
    if slots <= 1:
        return Node(slots)
    return Node(slots, (perfect(slots // 2), perfect(slots // 2)))


def maximal(node: Node, fits) -> list[Node]:
    """The largest subtrees that fit, from left to right."""
    if node.rows == 0:
        return []
    if fits(node.rows):
        return [node]
    return [part for child in node.children for part in maximal(child, fits)]


def order(pos: np.ndarray, ids: list[int], axes: Sequence[int] = ()) -> list[int]:
    """Sorts ids along their widest axis; ties are broken by `axes`, then by index."""
    extent = [pos[ids, axis].max() - pos[ids, axis].min() for axis in range(len(pos.T))]
    widest = extent.index(max(extent))
    return sorted(ids, key=lambda i: (pos[i, widest], *(pos[i, a] for a in axes), i))


def arrange(node: Node, pos: np.ndarray, ids: list[int], axes=()) -> list[int]:
    """The points of a subtree in tree order."""
    if not node.children:
        return ids
    ids = order(pos, ids, axes)
    left, right = node.children
    return [
        *arrange(left, pos, ids[: left.rows], axes),
        *arrange(right, pos, ids[left.rows :], axes),
    ]


def arrange_slots(node: Node, pos: np.ndarray, ids: list[int], axes=()) -> list[int]:
    """Like `arrange`, for the perfect layout: a single point fills both slots."""
    if not node.children:
        return ids
    if len(ids) == 1:
        return ids * 2
    ids, half = order(pos, ids, axes), len(ids) // 2
    left, right = node.children
    return [
        *arrange_slots(left, pos, ids[:half], axes),
        *arrange_slots(right, pos, ids[half:], axes),
    ]


def arrange_balls(
    node: Node, pos: np.ndarray, ids: list[int], span: int, ball_size: int
) -> list[int]:
    """The rows of a level in the order of its rotated tree, split down to its balls.

    The tree is split like the main one, with sizes counted in rows of this level.
    """
    if -(-node.rows // span) <= ball_size:
        return sorted(ids)
    ids, left = order(pos, ids), node.children[0].rows // span
    return [
        *arrange_balls(node.children[0], pos, ids[:left], span, ball_size),
        *arrange_balls(node.children[1], pos, ids[left:], span, ball_size),
    ]


def centroids(pos: np.ndarray, group_len: list[int]) -> np.ndarray:
    """Means of groups: sums the rows in order and divides once."""
    out, start = np.empty((len(group_len), len(pos.T)), pos.dtype), 0
    for group, length in enumerate(group_len):
        total = pos[start].copy()
        for row in pos[start + 1 : start + length]:
            total += row
        out[group] = total / pos.dtype.type(length)
        start += length
    return out


def rotated(pos: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """`pos @ rotation` in the dtype of pos, with every product and sum rounded."""
    rotation = rotation.astype(pos.dtype)
    out = np.empty_like(pos)
    for j in range(len(pos.T)):
        total = pos[:, 0] * rotation[0, j]
        for i in range(1, len(pos.T)):
            total = total + pos[:, i] * rotation[i, j]
        out[:, j] = total
    return out


def cloud_tree(
    pos: np.ndarray,
    ball_sizes: Sequence[int],
    strides: Sequence[int],
    rotation: np.ndarray | None,
    layout: str,
    ties: str,
) -> Arrays:
    n, ids = len(pos), list(range(len(pos)))
    axes = range(len(pos.T)) if ties == "coordinates" else ()
    if layout == "balanced":
        root = balanced(n, ball_sizes[0], strides)
        perm = arrange(root, pos, ids, axes)
    else:
        root = perfect(2 ** ceil(log2(n)) if n else 0)
        perm = arrange_slots(root, pos, ids, axes)
    spans = [prod(strides[:l]) for l in range(len(ball_sizes))]
    ball_len, perm_rot = [], []
    for size, span in zip(ball_sizes, spans):
        balls = maximal(root, lambda rows, b=size, s=span: -(-rows // s) <= b)
        ball_len.append([-(-ball.rows // span) for ball in balls])
    group_len = [
        [-(-group.rows // fine) for group in maximal(root, lambda r, s=span: r <= s)]
        for fine, span in pairwise(spans)
    ]
    if rotation is not None:
        rows = pos[perm]
        for l, (size, span) in enumerate(zip(ball_sizes, spans)):
            rows = rows if l == 0 else centroids(rows, group_len[l - 1])
            ids = list(range(len(rows)))
            ids = arrange_balls(root, rotated(rows, rotation), ids, span, size)
            perm_rot.append(np.array(ids, int))
    return Arrays(
        np.array(perm, int),
        np.array([[root.rows, *map(len, group_len)]]),
        ball_len,
        group_len,
        perm_rot,
        np.array([i == 0 or perm[i] != perm[i - 1] for i in range(len(perm))], bool),
    )


def ball_tree(
    pos: np.ndarray,
    ptr: Sequence[int],
    ball_sizes: Sequence[int],
    strides: Sequence[int] = (),
    rotation: np.ndarray | None = None,
    layout: str = "balanced",
    ties: str = "index",
) -> Arrays:
    """The trees of a batch; `rotation` is the matrix of the second tree."""
    trees = [
        cloud_tree(pos[a:b], ball_sizes, strides, rotation, layout, ties)
        for a, b in pairwise(ptr)
    ]
    levels = range(len(ball_sizes))

    def joined(name: str, l: int) -> list[int]:
        return [value for tree in trees for value in getattr(tree, name)[l]]

    return Arrays(
        np.array([p for tree in trees for p in tree.perm], int),
        np.array([row for tree in trees for row in tree.level], int).reshape(
            -1, len(ball_sizes)
        ),
        [joined("ball_len", l) for l in levels],
        [joined("group_len", l - 1) for l in levels[1:]],
        [np.array(joined("perm_rot", l), int) for l in levels if rotation is not None],
        np.array([m for tree in trees for m in tree.mask], bool),
    )
