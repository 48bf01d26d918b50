r"""The operators ``erwin::knn`` and ``erwin::radius``: exact search with a tree."""

from typing import Any

import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops.contract import (
    check_tree,
    implement,
    register_fake,
)
from torch_geometric_erwin.utils.checks import check_finite, check_ptr

_CLOUDS = "Tensor pos, Tensor ptr, Tensor perm, int[] ball_sizes, int[] strides"
torch.library.define("erwin::knn", f"({_CLOUDS}, int k, bool loop) -> Tensor")
torch.library.define(
    "erwin::radius", f"({_CLOUDS}, float radius, int cap, bool loop) -> Tensor"
)
_TAKES = {
    "pos": "float32|float64 [N, D]",
    "ptr": "int64 [G+1] anywhere",
    "perm": "int64 [N]",
}


class _Search:
    r"""The arguments that the native searches share; keeps their memory alive."""

    def __init__(
        self,
        pos: Tensor,
        ptr: Tensor,
        perm: Tensor,
        ball_sizes: list[int],
        strides: list[int],
    ) -> None:
        if pos.device.type == "cpu":  # the kernels check positions on a GPU
            check_finite(pos)
        check_tree(ball_sizes, strides)
        # The host needs the offsets to know how many edges there will be.
        self.ptr = ptr.cpu().contiguous()
        check_ptr(self.ptr, pos.size(0), self.ptr.device)
        self.tensors = (pos.contiguous(), perm.contiguous())
        pos, perm = self.tensors
        config = _native.layout(ball_sizes, strides, "balanced")
        dtype, dim = _native.DTYPES[pos.dtype], pos.size(1)
        clouds = (self.ptr.data_ptr(), self.ptr.size(0) - 1)
        context = _native.context(pos)
        size = _native.size_of(
            "erwin_neighbors_workspace", context, config, dtype, *clouds, dim
        )
        self.workspace = torch.empty(size, dtype=torch.uint8, device=pos.device)
        self.first_args = (
            *(context, config, dtype, pos.data_ptr(), *clouds, dim),
            *(perm.data_ptr(), None),
        )

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
            check_finite(self.tensors[0])
            raise RuntimeError(f"{name}: invalid argument")
        return values


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
    search = _Search(pos, ptr, perm, ball_sizes, strides)
    points = search.ptr.diff()
    degree = (points if loop else points - 1).clamp(min=0, max=k)
    edge_index = ptr.new_empty(2, int((points * degree).sum()))
    search.call("erwin_knn", (k, loop), *edge_index)
    search.check("erwin_knn")
    return edge_index


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
    search = _Search(pos, ptr, perm, ball_sizes, strides)
    scalars, degree = (radius, cap, loop), ptr.new_empty(pos.size(0))
    with _native.found() as found:
        search.call("erwin_radius_count", scalars, degree, found)
        (num_edges,) = search.check("erwin_radius_count", degree.sum())
        edge_index = ptr.new_empty(2, num_edges)
        search.call("erwin_radius_fill", scalars, degree, found, *edge_index)
    return edge_index


def _edges_fake(
    pos: Tensor, ptr: Tensor, perm: Tensor, ball_sizes: list[int], *args: Any
) -> Tensor:
    return ptr.new_empty(2, torch.library.get_ctx().new_dynamic_size())


register_fake("erwin::knn")(_edges_fake)
register_fake("erwin::radius")(_edges_fake)
