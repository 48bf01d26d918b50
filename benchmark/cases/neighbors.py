r"""Searching neighbours."""

from collections.abc import Callable, Iterator
from functools import partial
from math import pi

import numpy as np
from torch import Tensor

from benchmark import peers
from benchmark.inputs import Clouds, clouds
from benchmark.runner import Case, Run, Workload
from torch_geometric_erwin import ball_tree, knn_graph, radius_graph

_K, _DEGREE = 16, 30


def _with_tree(num: int, size: int, seed: int) -> Clouds:
    # With the tree that a model of five levels needs anyway.
    c = clouds(num, size, seed=seed)
    tree = ball_tree(c.pos, ptr=c.ptr, ball_sizes=[128] * 5, strides=[2] * 4)
    return c._replace(tree=tree)


def same_edges(c: Clouds, expected: Tensor, actual: Tensor) -> None:
    r"""Checks that both found the same edges, in any order.

    SciPy computes distances in float64. So a few edges may differ, between points
    that have equal distances in float32.
    """
    both = [(e[1] * len(c.pos) + e[0]).numpy() for e in (expected, actual)]
    # Neither lists an edge twice, so an edge that occurs twice here is in both.
    ordered = np.sort(np.concatenate(both))
    shared = int((ordered[1:] == ordered[:-1]).sum())
    differing = len(ordered) - 2 * shared
    assert differing <= 1e-5 * len(ordered), f"{differing} edges differ"


def _workload(num: int, size: int, kind: str) -> Workload:
    # For _DEGREE neighbours inside the cloud; points at its border have fewer.
    radius = (_DEGREE / (4 / 3 * pi * size)) ** (1 / 3)
    ours: Callable[[Clouds, bool], Tensor]
    implementations: dict[str, Callable[[], Run]]
    if kind == "knn":
        implementations = {
            "scipy cKDTree": partial(peers.scipy_knn, _K),
            "torch-cluster": partial(peers.torch_cluster_knn, _K),
        }

        def ours(c: Clouds, given: bool) -> Tensor:
            return knn_graph(c.pos, _K, ptr=c.ptr, tree=c.tree if given else None)

    elif kind == "capped":
        implementations = {
            "scipy cKDTree": partial(peers.scipy_knn, _K, 10 * radius),
            "ours, knn": lambda: lambda c: knn_graph(c.pos, _K, ptr=c.ptr),
        }

        def ours(c: Clouds, given: bool) -> Tensor:
            tree = c.tree if given else None
            return radius_graph(
                c.pos, 10 * radius, ptr=c.ptr, max_num_neighbors=_K, tree=tree
            )

    else:
        implementations = {
            "scipy cKDTree": partial(peers.scipy_radius, radius),
            "torch-cluster": partial(peers.torch_cluster_radius, radius, 8 * _DEGREE),
        }

        def ours(c: Clouds, given: bool) -> Tensor:
            return radius_graph(
                c.pos, radius, ptr=c.ptr, tree=c.tree if given else None
            )

    # torch-cluster uses one thread per cloud: ten seconds for a million points.
    if size > 100_000:
        implementations.pop("torch-cluster", None)
    implementations["ours"] = lambda: partial(ours, given=False)
    implementations["ours, tree given"] = lambda: partial(ours, given=True)
    return Workload(
        f"{num} x {size:,}, {kind}",
        partial(_with_tree, num, size),
        implementations,
        "scipy cKDTree",
        same_edges,
        {"clouds": num, "points": num * size, "kind": kind},
    )


def neighbors(size: str) -> Iterator[Workload]:
    r"""The 16 nearest, all within a radius that holds 30 on average, and the 16 nearest
    within ten times that radius.
    """
    batches = {"tiny": [(2, 200)], "quick": [(16, 4096)]}.get(
        size, [(16, 4096), (1, 100_000), (1, 1_000_000)]
    )
    for kind in ("knn", "radius", "capped"):
        for num, n in batches:
            yield _workload(num, n, kind)


CASES = [
    Case(
        "neighbors",
        "Neighbour search, tree included: 16 nearest, all within a radius, and the 16 "
        "nearest within ten times that radius",
        neighbors,
        serial=True,
    )
]
