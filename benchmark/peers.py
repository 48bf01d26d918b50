r"""Other packages, each with a loader that fails if it is not installed.

A loader imports its package and returns the function that is timed.
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.inputs import Clouds, Pair
from benchmark.runner import UnavailableError


def balltree_erwin() -> Callable[[Clouds], Any]:
    r"""The original's tree, parallel over clouds: order and mask."""
    import balltree

    return lambda c: balltree.build_balltree(c.pos, c.batch)


def balltree_erwin_rotated(
    ball_sizes: list[int], strides: list[int], rotate: float
) -> Callable[[Clouds], Any]:
    r"""The original's tree and the rotated ones of all levels."""
    import balltree

    return lambda c: balltree.build_balltree_with_rotations(
        c.pos, c.batch, strides, ball_sizes, rotate
    )


def sklearn_ball_tree() -> Callable[[Clouds], Any]:
    r"""scikit-learn's ball tree, one per cloud; it uses one thread."""
    from sklearn.neighbors import BallTree

    return lambda c: [BallTree(pos, leaf_size=2) for pos in _per_cloud(c)]


def scipy_tree() -> Callable[[Clouds], Any]:
    r"""SciPy's k-d tree with leaves of two points, one per cloud, on one thread."""
    from scipy.spatial import cKDTree

    return lambda c: [cKDTree(pos, leafsize=2) for pos in _per_cloud(c)]


def scipy_knn(k: int, radius: float = np.inf) -> Callable[[Clouds], Tensor]:
    r"""SciPy's k-d tree, built and then searched by all threads for the k nearest
    neighbours within the radius.
    """
    from scipy.spatial import cKDTree

    def run(c: Clouds) -> Tensor:
        source = []
        for pos, first in zip(_per_cloud(c), c.ptr.tolist()):
            options = {
                "distance_upper_bound": radius,
                "workers": torch.get_num_threads(),
            }
            _, near = cKDTree(pos).query(pos, k + 1, **options)
            source.append(near[:, 1:].reshape(-1) + first)  # without the point itself
        target = torch.arange(len(c.pos)).repeat_interleave(k)
        return torch.stack([torch.from_numpy(np.concatenate(source)), target])

    return run


def scipy_radius(radius: float) -> Callable[[Clouds], Tensor]:
    r"""SciPy's k-d tree, built and searched for the pairs within a distance.

    ``query_pairs`` uses one thread, and is still faster than the parallel
    ``query_ball_point``, which returns lists of numbers.
    """
    from scipy.spatial import cKDTree

    def run(c: Clouds) -> Tensor:
        edges = []
        for pos, first in zip(_per_cloud(c), c.ptr.tolist()):
            pairs = cKDTree(pos).query_pairs(radius, output_type="ndarray") + first
            edges += [pairs.T, pairs.T[::-1]]
        return torch.from_numpy(np.concatenate(edges, axis=1))

    return run


def _torch_cluster() -> Any:
    with warnings.catch_warnings():  # PyG warns that it does not need torch-cluster
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch_cluster
    return torch_cluster


def torch_cluster_knn(k: int) -> Callable[[Clouds], Tensor]:
    r"""torch-cluster's search by nanoflann."""
    package = _torch_cluster()
    return lambda c: package.knn_graph(
        c.pos, k, c.batch, num_workers=torch.get_num_threads()
    )


def torch_cluster_radius(radius: float, most: int) -> Callable[[Clouds], Tensor]:
    r"""torch-cluster's search by nanoflann; every node gets ``most`` edges at most."""
    package = _torch_cluster()
    return lambda c: package.radius_graph(
        c.pos,
        radius,
        c.batch,
        max_num_neighbors=most,
        num_workers=torch.get_num_threads(),
    )


def scipy_cross_knn(k: int) -> Callable[[Pair], Tensor]:
    r"""SciPy's k-d tree, built and then searched by all threads for the k nearest
    points of every point of another set.
    """
    from scipy.spatial import cKDTree

    def near(pos: np.ndarray, others: np.ndarray) -> np.ndarray:
        workers = torch.get_num_threads()
        return cKDTree(pos).query(others, k, workers=workers)[1]

    return lambda p: _nearest_of_each(p, lambda *c: torch.from_numpy(near(*c)))


def scipy_cross_radius(radius: float) -> Callable[[Pair], Tensor]:
    r"""SciPy's k-d trees of both sets, built and searched for the pairs within a
    distance.

    ``sparse_distance_matrix`` uses one thread, and is still faster than the parallel
    ``query_ball_point``, which returns lists of numbers.
    """
    from scipy.spatial import cKDTree

    def run(p: Pair) -> Tensor:
        edges = []
        for (pos, first), (others, start) in zip(*map(_places, p[:2])):
            found = cKDTree(others).sparse_distance_matrix(
                cKDTree(pos), radius, output_type="ndarray"
            )
            edges.append(np.stack([found["i"] + start, found["j"] + first]))
        return torch.from_numpy(np.concatenate(edges, axis=1))

    return run


def pyg_cross_knn(k: int) -> Callable[[Pair], Tensor]:
    r"""PyG's function, if its backend is installed."""
    _need_pyg_lib()
    from torch_geometric.nn import knn

    return lambda p: knn(*_both(p), k, p.points.batch, p.queries.batch)


def pyg_interpolate(k: int) -> Callable[[Pair], Tensor]:
    r"""PyG's function, if its backend is installed."""
    _need_pyg_lib()
    from torch_geometric.nn import knn_interpolate

    return lambda p: knn_interpolate(
        p.x, *_both(p), p.points.batch, p.queries.batch, k=k
    )


def _need_pyg_lib() -> None:
    from torch_geometric.typing import WITH_KNN

    if not WITH_KNN:
        raise UnavailableError("PyG's searches need pyg-lib 0.6 or newer")


def torch_cluster_cross_knn(k: int) -> Callable[[Pair], Tensor]:
    r"""torch-cluster's search by nanoflann in another set."""
    package = _torch_cluster()
    return lambda p: package.knn(
        *_both(p),
        k,
        p.points.batch,
        p.queries.batch,
        num_workers=torch.get_num_threads(),
    )


def torch_cluster_cross_radius(radius: float, most: int) -> Callable[[Pair], Tensor]:
    r"""torch-cluster's search by nanoflann for ``most`` neighbours at most."""
    package = _torch_cluster()
    return lambda p: package.radius(
        *(*_both(p), radius, p.points.batch, p.queries.batch),
        max_num_neighbors=most,
        num_workers=torch.get_num_threads(),
    )


def cdist_cross_knn(k: int) -> Callable[[Pair], Tensor]:
    r"""All distances between the two sets of a cloud, and the smallest ones."""

    def near(pos: np.ndarray, others: np.ndarray) -> Tensor:
        # By products of matrices, distances of close points would be inexact.
        mode = "donot_use_mm_for_euclid_dist"
        both = torch.from_numpy(others), torch.from_numpy(pos)
        return torch.cdist(*both, compute_mode=mode).topk(k, largest=False).indices

    return lambda p: _nearest_of_each(p, near)


def interpolated(k: int, search: Callable[[Pair], Tensor]) -> Callable[[Pair], Tensor]:
    r"""PyG's formula for interpolation, with another search.

    Args:
        k: The number of neighbours.
        search: Returns :obj:`k` edges of every query, in their order.
    """

    def run(p: Pair) -> Tensor:
        near = search(p)[1].view(-1, k)
        offset = p.points.pos[near] - p.queries.pos[:, None]
        weight = 1.0 / offset.square().sum(-1, keepdim=True).clamp(min=1e-16)
        return (p.x[near] * weight).sum(1) / weight.sum(1)

    return run


def _nearest_of_each(
    p: Pair, near: Callable[[np.ndarray, np.ndarray], Tensor]
) -> Tensor:
    # Edges of every query to what `near` finds in its cloud, as many for each.
    found = [
        near(pos, others) + first
        for (pos, first), (others, _) in zip(*map(_places, p[:2]))
    ]
    rows = torch.cat(found)  # [M, k]
    to = torch.arange(rows.size(0)).repeat_interleave(rows.size(1))
    return torch.stack([to, rows.flatten()])


def _both(p: Pair) -> tuple[Tensor, Tensor]:
    return p.points.pos, p.queries.pos


def _places(c: Clouds) -> list[tuple[np.ndarray, int]]:
    # The positions of every cloud, and its first row.
    return [*zip(_per_cloud(c), c.ptr.tolist())]


def _per_cloud(c: Clouds) -> list[np.ndarray]:
    pos = c.pos.numpy()
    return [pos[a:b] for a, b in pairwise(c.ptr.tolist())]
