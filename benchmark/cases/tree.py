r"""Building trees."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmark import peers
from benchmark.inputs import Clouds, clouds
from benchmark.runner import Case, Run, Workload, steady_seconds
from torch_geometric_erwin import Tree, _native, ball_tree
from torch_geometric_erwin.ops.ball_tree import rotation_matrix

_BALL = 128
_LEVELS: dict[str, Any] = {
    "ball_sizes": [_BALL] * 5,
    "strides": [2] * 4,
    "rotate": 45.0,
}


def _ours(**config: Any) -> Run:
    return lambda c: ball_tree(c.pos, ptr=c.ptr, **config)


def _ours_order() -> Run:
    # The operator that `ball_tree` calls: only the order of points, no tables of
    # lengths.
    op = torch.ops.erwin.ball_tree
    return lambda c: op(c.pos, c.ptr, [_BALL], [], 0.0, "balanced")[0]


def _order(c: Clouds, output: Any) -> np.ndarray:
    # The node in every row, from the result of any builder.
    if isinstance(output, Tree):
        return output.global_perm().numpy()
    if isinstance(output, torch.Tensor):
        return (output + c.ptr[c.batch]).numpy()
    if isinstance(output, tuple):
        order, mask = (torch.as_tensor(part) for part in output[:2])
        return order[mask].numpy()
    first = zip(output, c.ptr.tolist())
    if _is_scipy(output):
        return np.concatenate([tree.indices + start for tree, start in first])
    return np.concatenate([tree.get_arrays()[1] + start for tree, start in first])


def _is_scipy(output: Any) -> bool:
    return isinstance(output, list) and hasattr(output[0], "indices")


def same_balls(c: Clouds, expected: Any, actual: Any) -> None:
    r"""Checks that builders agree: with a power of two points, balls are the same.

    All builders split by count along the widest axis. For other sizes they split at
    other places, and SciPy also does if coordinates are equal. Then only the extents of
    neighbouring rows must be similar.
    """
    a, b = (_order(c, output) for output in (expected, actual))
    assert np.array_equal(np.sort(b), np.arange(len(c.pos))), "points are missing"
    size = len(c.pos) // (len(c.ptr) - 1)
    if size & (size - 1) == 0 and not _is_scipy(actual):
        width = min(_BALL, size // 4)
        a, b = (np.sort(order.reshape(-1, width)) for order in (a, b))
        # For a million points in float32 some coordinates are equal by chance, and
        # either point may come first.
        differing = float((a != b).any(1).mean())
        assert differing < 0.01, f"{100 * differing:.0f} % of the balls differ"
    else:
        ratio = _extent(c, b) / _extent(c, a)
        assert 0.6 < ratio < 1.6, f"rows are {ratio:.2f} times as far apart"


def _extent(c: Clouds, order: np.ndarray) -> float:
    # The median extent of 8 consecutive rows.
    rows = c.pos.numpy()[order[: len(order) // 8 * 8]].reshape(-1, 8, c.pos.size(1))
    return float(np.median(np.ptp(rows, axis=1).max(1)))


def same_rotated(c: Clouds, expected: Any, actual: Any) -> None:
    r"""Compares the main tree, and the numbers of rows of the rotated trees."""
    same_balls(c, expected, actual)
    rotated = [
        [len(t) for t in (o.perm_rot if isinstance(o, Tree) else o[2])]
        for o in (expected, actual)
    ]
    size = len(c.pos) // (len(c.ptr) - 1)
    if size & (size - 1) == 0:
        assert rotated[0] == rotated[1], f"{rotated[0]} and {rotated[1]} rows"


def _workload(
    num: int, size: int, dim: int = 3, kind: str = "uniform", all_peers: bool = True
) -> Workload:
    implementations: dict[str, Callable[[], Run]] = {
        "balltree-erwin": peers.balltree_erwin,
        "scikit-learn BallTree": peers.sklearn_ball_tree,
        "scipy cKDTree": peers.scipy_tree,
        "ours": partial(_ours, ball_sizes=_BALL, strides=[2] * 4, rotate=0.0),
        "ours, order only": _ours_order,
    }
    if not all_peers:
        implementations = {n: implementations[n] for n in ("balltree-erwin", "ours")}
    return Workload(
        f"{num} x {size:,} {kind} {dim}-D",
        lambda seed: clouds(num, size, dim, kind, seed),
        implementations,
        "balltree-erwin",
        same_balls,
        {"clouds": num, "points": num * size, "dim": dim, "kind": kind},
    )


def tree(size: str) -> Iterator[Workload]:
    r"""Sizes of a training batch and of one large cloud."""
    batches = {
        "tiny": [(3, 256), (1, 300)],
        "quick": [(16, 4096), (1, 100_000)],
        "full": [(16, 1024), (16, 4096), (16, 16_384), (1, 100_000), (1, 1_000_000)],
    }[size]
    for num, n in batches:
        yield _workload(num, n)
        if num > 1 or size == "full":
            yield _workload(num, n, kind="clustered")
    yield _workload(*batches[0], dim=2)
    yield _workload(*batches[-1], dim=2)


def tree_rotated(size: str) -> Iterator[Workload]:
    r"""The trees of all levels of a model, including the rotated ones."""
    batches = {
        "tiny": [(2, 4096)],
        "quick": [(16, 4096)],
        "full": [(16, 4096), (16, 16_384), (1, 131_072), (1, 1_048_576)],
    }[size]
    for num, n in batches:
        yield Workload(
            f"{num} x {n:,}",
            partial(_clouds, num, n),
            {
                "balltree-erwin": partial(peers.balltree_erwin_rotated, **_LEVELS),
                "ours": partial(_ours, **_LEVELS),
            },
            "balltree-erwin",
            same_rotated,
            {"clouds": num, "points": num * n, "dim": 3, "kind": "uniform"},
        )


def _clouds(num: int, size: int, seed: int) -> Clouds:
    return clouds(num, size, seed=seed)


def tree_scaling(size: str) -> Iterator[Workload]:
    r"""One cloud of more and more points."""
    points = {
        "tiny": [64, 300],
        "quick": [1000, 10_000, 100_000],
        "full": [10**3, 10**4, 10**5, 10**6, 10**7],
    }[size]
    for n in points:
        yield _workload(1, n, all_peers=n <= 10**6)


class _Kernels:
    r"""The native calls of a build and nothing else: their arguments are prepared when
    an input is first seen.
    """

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.seen: Any = None

    def __call__(self, c: Clouds) -> torch.Tensor:
        if c is not self.seen:
            self.seen, self.calls = c, self.prepared(c)
        for function, args in self.calls:
            assert function(*args) == 0
        return self.tree.perm

    def prepared(self, c: Clouds) -> list[tuple[Any, tuple[Any, ...]]]:
        # The calls overwrite the tensors of an existing tree.
        self.tree = tree = ball_tree(c.pos, ptr=c.ptr, **self.config)
        config, dim = tree.config, c.pos.size(1)
        layout = _native.layout(config.ball_sizes, config.strides, config.layout)
        clouds = (c.ptr.data_ptr(), c.ptr.numel() - 1)
        size = _native.size_of("erwin_tree_workspace", layout, 0, *clouds, dim)
        rotation = rotation_matrix(config.rotate, dim).float()
        number = torch.empty(2 * _native.MAX_LEVELS, dtype=torch.int64)
        tables = map(_native.pointers, (tree.ball_len, tree.group_len))
        workspace, context = _native.workspace(size), _native.context(c.pos)
        self.kept = (rotation, number, workspace)
        level, perm = tree.level.data_ptr(), tree.perm.data_ptr()
        calls = {
            "is_finite": (0, c.pos.data_ptr(), c.pos.numel(), number.data_ptr()),
            "tree_sizes": (layout, *clouds, level, number.data_ptr()),
            "tree_tables": (layout, *clouds, *tables),
            "tree_workspace": (layout, 0, *clouds, dim, number.data_ptr()),
            "tree_build": (
                *(context, layout, 0, c.pos.data_ptr(), *clouds, dim),
                rotation.data_ptr() if config.rotate else None,
                *(workspace.data_ptr(), size, perm, None),
                _native.pointers(tree.perm_rot),
            ),
        }
        library = _native.library()
        return [(getattr(library, f"erwin_{n}"), args) for n, args in calls.items()]


def tree_call(size: str) -> Iterator[Workload]:
    r"""The time of a public call in addition to its kernels, for small clouds."""
    num, n = (3, 256) if size == "tiny" else (16, 1024)
    for name, config in (
        ("one level", {"ball_sizes": _BALL, "strides": [], "rotate": 0.0}),
        ("five levels", {**_LEVELS, "rotate": 0.0}),
        ("five rotated levels", _LEVELS),
    ):
        yield Workload(
            f"{num} x {n:,}, {name}",
            partial(_clouds, num, n),
            {"kernels": partial(_Kernels, **config), "ours": partial(_ours, **config)},
            "kernels",
            same_balls,
            {"clouds": num, "points": num * n, "dim": 3, "kind": "uniform"},
            seconds=steady_seconds,
        )


def tree_contention(size: str) -> Iterator[Workload]:
    r"""Two processes build trees at the same time, like two trainings."""
    num, n = (2, 256) if size == "tiny" else (16, 4096)
    yield _workload(num, n, all_peers=False)


CASES = [
    Case("tree", "Building the ball trees of a batch", tree, serial=True),
    Case(
        "tree_rotated",
        "Building the trees of five levels and their rotated trees",
        tree_rotated,
        serial=True,
    ),
    Case(
        "tree_scaling",
        "Building the tree of one cloud",
        tree_scaling,
        serial=True,
        plot="scaling",
    ),
    Case(
        "tree_call",
        "Building trees: the public call, and its native work alone",
        tree_call,
        serial=True,
    ),
    Case(
        "tree_contention",
        "Building trees beside a second process that does the same",
        tree_contention,
        measures=("contention",),
    ),
]
