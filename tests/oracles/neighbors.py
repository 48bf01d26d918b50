"""Neighbour lists by comparing every point with every other, one cloud at a time."""

from itertools import pairwise

import numpy as np


def squared_distances(points: np.ndarray) -> np.ndarray:
    """Squared distances in the dtype of the points, summed axis by axis."""
    total = np.zeros((len(points), len(points)), points.dtype)
    for axis in range(points.shape[1]):
        difference = points[:, None, axis] - points[None, :, axis]
        total += difference * difference
    return total


def knn(pos: np.ndarray, ptr: list[int], k: int, loop: bool) -> list[list[int]]:
    """The sources of every target, nearest first."""
    return _search(pos, ptr, np.inf, k, loop)


def radius(
    pos: np.ndarray, ptr: list[int], r: float, cap: int | None, loop: bool
) -> list[list[int]]:
    """The sources of every target, nearest first."""
    limit = pos.dtype.type(r) * pos.dtype.type(r)
    return _search(pos, ptr, limit, cap, loop)


def _search(pos, ptr, limit, most, loop) -> list[list[int]]:
    sources = []
    for start, stop in pairwise(ptr):
        distances = squared_distances(pos[start:stop])
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
