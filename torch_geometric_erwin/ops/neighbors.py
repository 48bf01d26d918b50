r"""The operators of exact search with a tree.

``erwin::knn`` and ``erwin::radius`` find the neighbours of the tree's own points,
``erwin::cross_knn`` and ``erwin::cross_radius`` those of other points, the queries.
The first two return sources (neighbours) before targets, the others queries before
their neighbours, as functions of PyG do.
"""

import ctypes
from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops.contract import (
    check_tree,
    implement,
    register_fake,
)
from torch_geometric_erwin.utils.checks import check_finite, check_ptr

# The ball size of the order of the queries, and of trees that are built for a
# search. On the CPU the search descends to nodes of at most 16 points
# (csrc/cpu/search.h), which balls of 16 points fill; balls of 8 to 12 points were 10 to
# 40 % slower in 3-D. On a GPU it descends to nodes of at most 32 points, which are two
# balls.
BALL_SIZE = 16

_CLOUDS = "Tensor pos, Tensor ptr, Tensor perm, int[] ball_sizes, int[] strides"
_PAIR = (
    "Tensor x, Tensor ptr_x, Tensor perm_x, int[] ball_sizes, int[] strides, "
    "Tensor y, Tensor ptr_y, Tensor perm_y"
)
torch.library.define("erwin::knn", f"({_CLOUDS}, int k, bool loop) -> Tensor")
torch.library.define(
    "erwin::radius", f"({_CLOUDS}, float radius, int cap, bool loop) -> Tensor"
)
torch.library.define("erwin::cross_knn", f"({_PAIR}, int k) -> Tensor")
torch.library.define(
    "erwin::cross_radius", f"({_PAIR}, float radius, int cap) -> Tensor"
)
_TAKES = {
    "pos": "float32|float64 [N, D]",
    "ptr": "int64 [G+1] anywhere",
    "perm": "int64 [N]",
}
_TAKES_PAIR = {
    "x": "float32|float64 [N, D]",
    "ptr_x": "int64 [G+1] anywhere",
    "perm_x": "int64 [N]",
    "y": "x [M, D]",
    "ptr_y": "int64 [G+1] anywhere",
    "perm_y": "int64 [M]",
}


class _Points:
    r"""Points with the order of a tree, in a form that native code reads."""

    def __init__(
        self,
        pos: Tensor,
        ptr: Tensor,
        perm: Tensor,
        ball_sizes: list[int],
        strides: list[int],
        names: tuple[str, str] = ("pos", "ptr"),
    ) -> None:
        if pos.device.type == "cpu":  # the kernels check positions on a GPU
            check_finite(pos, names[0])
        check_tree(ball_sizes, strides)
        # The host needs the offsets to know how many edges there will be.
        self.ptr = ptr.cpu().contiguous()
        check_ptr(self.ptr, pos.size(0), self.ptr.device, name=names[1])
        self.name, self.pos, self.perm = names[0], pos.contiguous(), perm.contiguous()
        self.layout = _native.layout(ball_sizes, strides, "balanced")

    def sizes(self) -> Tensor:
        return self.ptr.diff()


class _Search:
    r"""The arguments that the native searches share; keeps their memory alive."""

    def __init__(self, points: _Points, queries: Optional[_Points] = None) -> None:
        self.points, self.queries = points, queries
        pos = points.pos
        context, dtype, dim = (
            _native.context(pos),
            _native.DTYPES[pos.dtype],
            pos.size(1),
        )
        clouds = (points.ptr.data_ptr(), points.ptr.size(0) - 1)
        others = None
        if queries is not None:
            tensors = (queries.pos, queries.ptr, queries.perm)
            memory = (tensor.data_ptr() for tensor in tensors)
            others = _native.Queries(ctypes.pointer(queries.layout), *memory)
        size = _native.size_of(
            "erwin_neighbors_workspace",
            *(context, points.layout, dtype, *clouds, dim, others),
        )
        self.workspace = torch.empty(size, dtype=torch.uint8, device=pos.device)
        self.first_args = (
            *(context, points.layout, dtype, pos.data_ptr(), *clouds, dim),
            *(points.perm.data_ptr(), others, None),
        )

    @property
    def ptr(self) -> Tensor:
        r"""The offsets of the points whose neighbours are searched."""
        return (self.queries or self.points).ptr

    def call(self, name: str, scalars: tuple[Any, ...], *results: Any) -> None:
        workspace = (self.workspace.data_ptr(), self.workspace.size(0))
        results = tuple(x.data_ptr() if isinstance(x, Tensor) else x for x in results)
        with torch.cuda.device_of(self.workspace):
            _native.call(name, *self.first_args, *scalars, *workspace, *results)

    def check(self, name: str, *numbers: Tensor) -> list[int]:
        r"""Reads numbers that a call has computed, and checks that it was valid.

        A GPU finds invalid arguments while it runs, so this waits for it.
        """
        if self.workspace.device.type == "cpu":
            return [int(number) for number in numbers]
        fault = self.workspace[:4].view(torch.int32)
        *values, faulty = torch.cat([*(n.view(1) for n in numbers), fault]).tolist()
        if faulty:
            for points in (self.points, self.queries):
                if points is not None:
                    check_finite(points.pos, points.name)
            raise RuntimeError(f"{name}: invalid argument")
        return values

    def knn(self, k: int, loop: bool, degree: Tensor) -> Tensor:
        r"""Returns the edges, where every query of a cloud has `degree` of them."""
        edges = int((self.ptr.diff() * degree).sum())
        edge_index = self.points.perm.new_empty(2, edges)
        self.call("erwin_knn", (k, loop), *self._rows(edge_index))
        self.check("erwin_knn")
        return edge_index

    def radius(self, radius: float, cap: int, loop: bool) -> Tensor:
        r"""Returns the edges."""
        scalars, perm = (radius, cap, loop), self.points.perm
        degree = perm.new_empty(int(self.ptr[-1]))
        with _native.found() as found:
            self.call("erwin_radius_count", scalars, degree, found)
            (num_edges,) = self.check("erwin_radius_count", degree.sum())
            edge_index = perm.new_empty(2, num_edges)
            rows = self._rows(edge_index)
            self.call("erwin_radius_fill", scalars, degree, found, *rows)
        return edge_index

    def _rows(self, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        # Returns where the neighbours and the queries go.
        first, second = edge_index
        return (first, second) if self.queries is None else (second, first)


@implement("erwin::knn", "CPU", **_TAKES, k=1)
@implement("erwin::knn", "CUDA", **_TAKES, k=1)
def _knn(
    pos: Tensor,
    ptr: Tensor,
    perm: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    k: int,
    loop: bool,
) -> Tensor:
    points = _Points(pos, ptr, perm, ball_sizes, strides)
    others = points.sizes() - (0 if loop else 1)
    return _Search(points).knn(k, loop, others.clamp(min=0, max=k))


@implement("erwin::cross_knn", "CPU", **_TAKES_PAIR, k=1)
@implement("erwin::cross_knn", "CUDA", **_TAKES_PAIR, k=1)
def _cross_knn(
    x: Tensor,
    ptr_x: Tensor,
    perm_x: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    y: Tensor,
    ptr_y: Tensor,
    perm_y: Tensor,
    k: int,
) -> Tensor:
    points = _Points(x, ptr_x, perm_x, ball_sizes, strides, ("x", "ptr_x"))
    queries = _Points(y, ptr_y, perm_y, [BALL_SIZE], [], ("y", "ptr_y"))
    return _Search(points, queries).knn(k, True, points.sizes().clamp(max=k))


@implement("erwin::radius", "CPU", **_TAKES, radius=0, cap=-1)
@implement("erwin::radius", "CUDA", **_TAKES, radius=0, cap=-1)
def _radius(
    pos: Tensor,
    ptr: Tensor,
    perm: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    radius: float,
    cap: int,
    loop: bool,
) -> Tensor:
    points = _Points(pos, ptr, perm, ball_sizes, strides)
    return _Search(points).radius(radius, cap, loop)


@implement("erwin::cross_radius", "CPU", **_TAKES_PAIR, radius=0, cap=-1)
@implement("erwin::cross_radius", "CUDA", **_TAKES_PAIR, radius=0, cap=-1)
def _cross_radius(
    x: Tensor,
    ptr_x: Tensor,
    perm_x: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    y: Tensor,
    ptr_y: Tensor,
    perm_y: Tensor,
    radius: float,
    cap: int,
) -> Tensor:
    points = _Points(x, ptr_x, perm_x, ball_sizes, strides, ("x", "ptr_x"))
    queries = _Points(y, ptr_y, perm_y, [BALL_SIZE], [], ("y", "ptr_y"))
    return _Search(points, queries).radius(radius, cap, True)


def _edges_fake(
    pos: Tensor, ptr: Tensor, perm: Tensor, ball_sizes: list[int], *args: Any
) -> Tensor:
    return perm.new_empty(2, torch.library.get_ctx().new_dynamic_size())


for _name in ("knn", "radius", "cross_knn", "cross_radius"):
    register_fake(f"erwin::{_name}")(_edges_fake)
