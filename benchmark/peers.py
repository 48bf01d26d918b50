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

from benchmark.inputs import Clouds


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


def scipy_cross_knn(k: int) -> Callable[[Clouds, Tensor, Tensor], Tensor]:
    r"""SciPy's k-d tree, built and then searched by all threads for the k nearest
    points of every point of another set.
    """
    from scipy.spatial import cKDTree

    def run(c: Clouds, y: Tensor, ptr_y: Tensor) -> Tensor:
        near = []
        for pos, first, here in zip(_per_cloud(c), c.ptr.tolist(), pairwise(ptr_y)):
            workers = torch.get_num_threads()
            _, found = cKDTree(pos).query(y[slice(*here)].numpy(), k, workers=workers)
            near.append(found.reshape(-1) + first)
        to = torch.arange(len(y)).repeat_interleave(k)
        return torch.stack([to, torch.from_numpy(np.concatenate(near))])

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


def _per_cloud(c: Clouds) -> list[np.ndarray]:
    pos = c.pos.numpy()
    return [pos[a:b] for a, b in pairwise(c.ptr.tolist())]
