r"""Random clouds; every seed gives other ones."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from torch_geometric_erwin import Tree, knn_graph

KINDS = ("uniform", "clustered")


class Clouds(NamedTuple):
    r"""Positions of a batch of clouds of one size."""

    pos: Tensor  # [G n, D], float32
    ptr: Tensor  # [G + 1]
    batch: Tensor  # [G n]
    tree: Optional[Tree] = None  # a tree that was built before


class Graphs(NamedTuple):
    r"""A batch of clouds with features and edges."""

    x: Tensor  # [G n, C]
    pos: Tensor
    ptr: Tensor
    batch: Tensor
    edge_index: Tensor  # [2, E]


class Pair(NamedTuple):
    r"""Points with features, and the points of another set, in as many clouds."""

    points: Clouds
    queries: Clouds
    x: Tensor  # [G n, C], features of the points


def clouds(
    num: int, size: int, dim: int = 3, kind: str = "uniform", seed: int = 0
) -> Clouds:
    r"""Clouds of points in the unit cube, or in clusters of very different extents.

    Args:
        num: The number of clouds.
        size: The points of a cloud.
        dim: The number of coordinates.
        kind: One of :data:`KINDS`.
        seed: Makes the same clouds again.
    """
    generator = torch.Generator().manual_seed(seed)
    n = num * size
    pos = torch.rand(n, dim, generator=generator)
    if kind == "clustered":
        number = 1 + n // 256
        centre = torch.rand(number, dim, generator=generator)
        extent = 10 ** (-0.5 - 1.5 * torch.rand(number, 1, generator=generator))
        member = torch.randint(number, (n,), generator=generator)
        noise = torch.randn(n, dim, generator=generator)
        pos = centre[member] + extent[member] * noise
    ptr = torch.arange(num + 1) * size
    return Clouds(pos, ptr, torch.arange(num).repeat_interleave(size))


def graphs(
    num: int,
    size: int,
    channels: int,
    neighbors: int = 16,
    seed: int = 0,
) -> Graphs:
    r"""Uniform clouds, features, and the graph of nearest neighbours.

    Args:
        num: The number of clouds.
        size: The points of a cloud.
        channels: The number of features.
        neighbors: The number of edges into every node.
        seed: Makes the same graphs again.
    """
    pos, ptr, batch, _ = clouds(num, size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num * size, channels, generator=generator)
    return Graphs(x, pos, ptr, batch, knn_graph(pos, neighbors, ptr=ptr))


def pair(num: int, size: int, queries: int, channels: int, seed: int = 0) -> Pair:
    r"""Uniform clouds with features, and others in the same places.

    Args:
        num: The number of clouds of each.
        size: The points of a cloud.
        queries: The points of a cloud of the other set.
        channels: The number of features.
        seed: Makes the same ones again.
    """
    points, others = (
        clouds(num, n, seed=2 * seed + i) for i, n in enumerate((size, queries))
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num * size, channels, generator=generator)
    return Pair(points, others, x)
