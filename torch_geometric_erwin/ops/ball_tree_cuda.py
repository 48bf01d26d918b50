r"""The operators of :mod:`.ball_tree` for CUDA tensors.

To launch the builder, the host needs only bounds of sizes. It waits for the device only
if it has to copy offsets from there.
"""

import warnings
from ctypes import byref
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops.ball_tree import (
    TAKES,
    empty_order,
    rotation_matrix,
    sizes_of,
    tables_of,
)
from torch_geometric_erwin.ops.contract import check_tree, implement
from torch_geometric_erwin.ops.registry import Functions, Registry

MAX_DIM = 8  # ERWIN_DEVICE_MAX_DIM
_LARGEST = 2**30  # the most points of a cloud, as on the host


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"ball trees of CUDA tensors are built on the CPU: {reason}", stacklevel=2
    )


def why_no_kernels(device: torch.device) -> str:
    r"""Says why the native kernels cannot run on a device; empty if they can."""
    if device.type != "cuda":
        return f"it runs on CUDA devices (got {device.type})"
    if not _native.library().erwin_has_cuda():
        return "torch_geometric_erwin was installed where no CUDA compiler was found"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, needed is 8.0"
    return ""


def _why_not(pos: Tensor, *args: Any) -> str:
    if pos.size(1) > MAX_DIM:
        return f"positions have {pos.size(1)} coordinates, the GPU takes {MAX_DIM}"
    return why_no_kernels(pos.device)


def _run(registry: Registry, *args: Any) -> list[Tensor]:
    name = registry.choose(*args)
    if name == "host":
        _warn(registry["cuda"].why_not(*args))
    return registry[name].run(*args)


def order(
    context: _native.Context,
    pos: Tensor,
    ptr: Tensor,
    num_rows: list[int],
    max_points: int,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    r"""Builds trees on the device of a context.

    Args:
        context: The context of a GPU or, in tests, of the emulator with host tensors.
        pos: The node positions.
        ptr: The row offsets of the clouds, on the device.
        num_rows: The number of rows of every level, or a larger one; the order of rows
            that do not exist is zero.
        max_points: The number of points of the largest cloud, or a larger one.
        ball_sizes: The largest number of rows in a ball, per level.
        strides: The number of rows that each coarsening pools.
        rotate: The angle of the second tree, in degrees; zero for none.
        layout: The layout of the tree.
    """
    pos, ptr = pos.contiguous(), ptr.contiguous()
    config, dtype = _native.layout(ball_sizes, strides, layout), pos.dtype
    dim, points = pos.size(1), pos.size(0)
    bounds = _native.TreeBounds(
        ptr.numel() - 1,
        points,
        min(max_points, points, _LARGEST),
        (_native.c_int64 * _native.MAX_LEVELS)(*num_rows),
    )
    shape = (context, config, _native.DTYPES[dtype])
    size = _native.size_of(
        "erwin_tree_device_workspace", *shape, dim, byref(bounds), int(rotate != 0)
    )
    workspace = pos.new_empty(size, dtype=torch.uint8)
    tensors = empty_order(pos, num_rows, rotate, layout)
    perm, mask, *perm_rot = tensors
    rotation = rotation_matrix(rotate, dim).to(dtype) if rotate else None
    with torch.cuda.device_of(pos):
        _native.call(
            "erwin_tree_build_device",
            *shape,
            pos.data_ptr(),
            ptr.data_ptr(),
            dim,
            byref(bounds),
            None if rotation is None else rotation.data_ptr(),
            workspace.data_ptr(),
            size,
            perm.data_ptr(),
            mask.data_ptr() if layout == "perfect" else None,
            _native.pointers(perm_rot),
        )
    return tensors


@implement("erwin::ball_tree_order", "CUDA", **TAKES, max_points=0)
def _ball_tree_order_cuda(
    pos: Tensor,
    ptr: Tensor,
    num_rows: list[int],
    max_points: int,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    check_tree(ball_sizes, strides, layout, rotate)
    if len(num_rows) != len(ball_sizes):
        raise ValueError(
            f"'num_rows' must have a number for each of {len(ball_sizes)} levels (got "
            f"{num_rows})"
        )
    args = (num_rows, max_points, ball_sizes, strides, rotate, layout)
    return _run(ORDER, pos, ptr, *args)


def _order_on_device(
    pos: Tensor, ptr: Tensor, num_rows: list[int], max_points: int, *config: Any
) -> list[Tensor]:
    ptr = ptr.to(pos.device, non_blocking=True)
    if max_points < pos.size(0):  # the kernels skip larger clouds
        fits = (ptr.diff() <= max_points).all()
        torch._assert_async(fits, "a cloud has more points than 'max_points'")
    return order(_native.context(pos), pos, ptr, num_rows, max_points, *config)


def _order_on_host(
    pos: Tensor,
    ptr: Tensor,
    num_rows: list[int],
    max_points: int,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    # The builder for the host needs exact sizes. The results are padded to the bounds.
    host = ptr.cpu()
    points = int(host[-1])
    _, exact, _ = sizes_of(host, points, ball_sizes, strides, layout)
    args = (max_points, ball_sizes, strides, rotate, layout)
    tensors = torch.ops.erwin.ball_tree_order(pos[:points].cpu(), host, exact, *args)
    sizes = [num_rows[0], num_rows[0] if layout == "perfect" else 0, *num_rows]
    return [pad(t, (0, n - t.numel())).to(pos.device) for t, n in zip(tensors, sizes)]


@implement("erwin::ball_tree", "CUDA", **TAKES)
def _ball_tree_cuda(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    check_tree(ball_sizes, strides, layout, rotate)
    return _run(BUILD, pos, ptr, ball_sizes, strides, rotate, layout)


def _build_on_host(pos: Tensor, ptr: Tensor, *config: Any) -> list[Tensor]:
    tensors = torch.ops.erwin.ball_tree(pos.cpu(), ptr.cpu(), *config)
    return [t.to(pos.device) for t in tensors]


def _build_on_device(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    config = (ball_sizes, strides, layout)
    host = ptr.cpu().contiguous()
    rows, num_rows, num_balls = sizes_of(host, pos.size(0), *config)
    max_points = int(host.diff().max()) if host.numel() > 1 else 0
    perm, mask, *perm_rot = order(
        _native.context(pos),
        pos,
        ptr.to(pos.device, non_blocking=True),
        num_rows,
        max_points,
        *(ball_sizes, strides, rotate, layout),
    )
    # The host computes the tables while the device builds the order.
    ball_len, _ = tables_of(host, [], num_balls, *config)
    level, *ball_len = to_device([rows, *ball_len], pos.device)
    group_len = [
        group_lengths(level[:, l], level[:, l + 1], num_rows[l + 1], strides[l])
        for l in range(len(strides))
    ]
    return [perm, level, mask, *ball_len, *group_len, *perm_rot]


#: In order of preference, the fastest first.
BUILD = Registry(
    "ball_tree",
    cuda=Functions(_build_on_device, _why_not),
    host=Functions(_build_on_host),
)
ORDER = Registry(
    "ball_tree_order",
    cuda=Functions(_order_on_device, _why_not),
    host=Functions(_order_on_host),
)


def group_lengths(rows: Tensor, pooled: Tensor, size: int, stride: int) -> Tensor:
    r"""Returns the number of children of every pooled row.

    It follows from the rows of every cloud on two levels: each pooled row has a full
    group, except the last one of a cloud, which has the rest.
    """
    lengths = torch.full((size,), stride, dtype=torch.int64, device=rows.device)
    if size == 0:
        return lengths
    last = (pooled.cumsum(0) - 1).clamp(min=0)
    rest = torch.where(pooled > 0, rows - (pooled - 1) * stride, stride)
    return lengths.scatter_reduce(0, last, rest, "amin")


def to_device(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    r"""Moves int64 tensors to a device in one copy."""
    sizes = [t.numel() for t in tensors]
    packed = torch.cat([t.flatten() for t in tensors]).to(device, non_blocking=True)
    starts = accumulate(sizes, initial=0)
    return [
        packed[start : start + size].view(t.shape).clone()
        for t, size, start in zip(tensors, sizes, starts)
    ]
