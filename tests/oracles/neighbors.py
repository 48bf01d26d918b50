"""Neighbour lists by comparing every point with every other, one cloud at a time."""

from itertools import pairwise

import numpy as np


def squared_distances(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Squared distances in the dtype of the points, summed axis by axis."""
    total = np.zeros((len(queries), len(points)), points.dtype)
    for axis in range(points.shape[1]):
        difference = queries[:, None, axis] - points[None, :, axis]
        total += difference * difference
    return total


def knn(pos: np.ndarray, ptr: list[int], k: int, loop: bool) -> list[list[int]]:
    """The sources of every target, nearest first."""
    return _search(pos, ptr, pos, ptr, np.inf, k, loop)


def radius(
    pos: np.ndarray, ptr: list[int], r: float, cap: int | None, loop: bool
) -> list[list[int]]:
    """The sources of every target, nearest first."""
    limit = pos.dtype.type(r) * pos.dtype.type(r)
    return _search(pos, ptr, pos, ptr, limit, cap, loop)


def cross_knn(
    x: np.ndarray, ptr_x: list[int], y: np.ndarray, ptr_y: list[int], k: int
) -> list[list[int]]:
    """The points of `x` near every point of `y`, nearest first."""
    return _search(x, ptr_x, y, ptr_y, np.inf, k, True)


def cross_radius(
    x: np.ndarray,
    ptr_x: list[int],
    y: np.ndarray,
    ptr_y: list[int],
    r: float,
    cap: int | None,
) -> list[list[int]]:
    """The points of `x` near every point of `y`, nearest first."""
    limit = x.dtype.type(r) * x.dtype.type(r)
    return _search(x, ptr_x, y, ptr_y, limit, cap, True)


def _search(x, ptr_x, y, ptr_y, limit, most, loop) -> list[list[int]]:
    sources = []
    for (start, stop), (first, last) in zip(
        pairwise(ptr_x), pairwise(ptr_y), strict=True
    ):
        distances = squared_distances(y[first:last], x[start:stop])
        for i, row in enumerate(distances):
            # A stable sort leaves equal distances in the order of their index.
            order = np.argsort(row, kind="stable")
            near = order[(row[order] <= limit) & (loop | (order != i))]
            sources.append((start + near[:most]).tolist())
    return sources


def edges(sources: list[list[int]]) -> np.ndarray:
    """Rows (source, target) of the lists of every target."""
    pairs = [(s, t) for t, near in enumerate(sources) for s in near]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
