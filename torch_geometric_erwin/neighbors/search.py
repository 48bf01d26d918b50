r"""What all searches have in common: checks of positions, and a tree to search in."""

from typing import Any, Optional

import torch
from torch import Tensor

import torch_geometric_erwin.ops.vmap  # noqa: F401  (registers the operators too)
from torch_geometric_erwin.ops.ball_tree_cuda import why_no_kernels
from torch_geometric_erwin.ops.neighbors import BALL_SIZE
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.tree import check_tree
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_pos,
    check_ptr,
    check_tensor,
    given_ptr,
    reads_values,
)

#: The largest number of neighbours that may be asked for; a large one means all.
MANY = 2**63 - 1


def tree_args(
    pos: Tensor,
    batch: Optional[Tensor],
    ptr: Optional[Tensor],
    tree: Optional[Tree],
    suffix: str = "",
) -> tuple[Any, ...]:
    r"""Returns what the operators take: positions, offsets and a tree.

    Args:
        pos: The positions, which are float32 or float64.
        batch: The cloud of every point, or :obj:`None`.
        ptr: The row offsets of the clouds, or :obj:`None`.
        tree: A tree of the positions; without one, a tree is built.
        suffix: What follows :obj:`batch` and :obj:`ptr` in the arguments' names.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If the clouds are malformed, or the tree is for other points.
    """
    if tree is not None:
        check_tree("tree", tree)
    num_clouds = 0
    if tree is not None and batch is not None:
        check_tensor("node_ptr", tree.node_ptr)
        num_clouds = tree.node_ptr.size(0) - 1
    ptr = given_ptr(batch, ptr, pos, num_clouds, suffix)
    # Values of offsets on a GPU are checked by the operators, which copy them to the
    # host anyway.
    on_host = pos.device.type == "cpu"
    if tree is None or ptr is not None:
        given = check_ptr(ptr, pos.size(0), pos.device, on_host, f"ptr{suffix}")
    if tree is None:
        return pos, given, order_of(pos, given), [BALL_SIZE], []
    config = tree.config
    if config.layout != "balanced":
        raise ValueError(
            f"'tree' must have layout='balanced' (got '{config.layout}'); without a "
            "tree, one is built for the search"
        )
    if ptr is None:
        check_tensor("node_ptr", tree.node_ptr)
        check_devices(pos=pos, tree=tree.node_ptr)
    values = on_host and not torch.compiler.is_compiling()
    tree.validate(pos.size(0), config, ptr, values)
    return (
        pos,
        tree.node_ptr if ptr is None else ptr,
        tree.perm,
        [*config.ball_sizes],
        [*config.strides],
    )


def cross_args(
    x: Tensor,
    y: Tensor,
    batch_x: Optional[Tensor],
    batch_y: Optional[Tensor],
    ptr_x: Optional[Tensor],
    ptr_y: Optional[Tensor],
    tree: Optional[Tree],
    names: tuple[str, str] = ("x", "y"),
) -> tuple[Any, ...]:
    r"""Returns what the operators for two sets take: points and tree of both.

    Args:
        x: The positions in which neighbours are searched.
        y: The positions whose neighbours are searched.
        batch_x: The cloud of every point of `x`, or :obj:`None`.
        batch_y: The cloud of every point of `y`, or :obj:`None`.
        ptr_x: The row offsets of the clouds of `x`, or :obj:`None`.
        ptr_y: The row offsets of the clouds of `y`, or :obj:`None`.
        tree: A tree of `x`; without one, a tree is built.
        names: The names of the positions, for messages.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If an argument is malformed, or the arguments do not fit.
    """
    x, y = _check_positions(x, y, names)
    given_x = given_ptr(batch_x, ptr_x, x, suffix="_x")
    given_y = given_ptr(batch_y, ptr_y, y, suffix="_y")
    on_host = x.device.type == "cpu"
    for name, pos, ptr in (("ptr_x", x, given_x), ("ptr_y", y, given_y)):
        if ptr is not None:
            check_ptr(ptr, pos.size(0), pos.device, on_host, name)
    known = given_x
    if tree is not None:
        check_tree("tree", tree)
        check_tensor("node_ptr", tree.node_ptr)
        known = tree.node_ptr
    # An assignment does not tell how many clouds at the end are empty.
    most = max(1 if ptr is None else ptr.size(0) - 1 for ptr in (known, given_y))
    if batch_x is not None and given_x is not None:
        given_x = _with_empty_clouds(given_x, most)
    if batch_y is not None and given_y is not None:
        given_y = _with_empty_clouds(given_y, most)
    search = tree_args(x, None, given_x, tree, "_x")
    given_y = check_ptr(given_y, y.size(0), y.device, False, "ptr_y")
    clouds_x, clouds_y = search[1].size(0) - 1, given_y.size(0) - 1
    if clouds_x != clouds_y:
        raise ValueError(
            f"'{names[0]}' has {clouds_x} clouds, '{names[1]}' has {clouds_y}: both "
            "must have as many, by 'batch_x' and 'batch_y' or 'ptr_x' and 'ptr_y'"
        )
    return *search, y, given_y, order_of(y, given_y)


def _with_empty_clouds(ptr: Tensor, clouds: int) -> Tensor:
    # Adds clouds without points at the end, where there are less.
    return torch.cat([ptr, ptr[-1:].expand(max(0, clouds + 1 - ptr.size(0)))])


def _check_positions(
    x: Tensor, y: Tensor, names: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    both = dict(zip(names, (x, y)))
    for name, pos in both.items():
        check_tensor(name, pos)
    check_devices(**both)
    dtypes = x.dtype, y.dtype
    # On the CPU, values are checked here, because the operators that build trees have
    # another name for them.
    values = x.device.type == "cpu"
    x, y = (check_pos(pos, values, name) for name, pos in both.items())
    of = f"'{names[0]}' and '{names[1]}' must have the same"
    if dtypes[0] != dtypes[1]:
        raise TypeError(f"{of} dtype (got {dtypes[0]} and {dtypes[1]})")
    if x.size(1) != y.size(1):
        raise ValueError(
            f"{of} number of coordinates (got {x.size(1)} and {y.size(1)})"
        )
    both = dict(zip(names, (x, y)))
    check_place(**both)
    check_extent(**both)
    return x, y


def order_of(pos: Tensor, ptr: Tensor) -> Tensor:
    r"""Returns the order of a new tree, with balls of :data:`BALL_SIZE` points.

    Args:
        pos: The positions.
        ptr: The row offsets of the clouds.
    """
    return torch.ops.erwin.ball_tree(pos, ptr, [BALL_SIZE], [], 0.0, "balanced")[0]


def check_place(**positions: Tensor) -> None:
    r"""Checks that positions are where a search can run.

    Args:
        **positions: The positions by their names, all on one device.

    Raises:
        ValueError: If no search can run on the device.
    """
    if torch.compiler.is_compiling():
        return
    name, pos = next(iter(positions.items()))
    kind, where = pos.device.type, "the CPU or a CUDA device"
    if kind == "cuda":
        reason = why_no_kernels(pos.device)
        if not reason:
            return
        where = f"the CPU: {reason}"
    if kind != "cpu":
        raise ValueError(
            f"'{name}' must be on {where} (got {kind}); search in the transform, or "
            "copy the positions"
        )


def check_extent(**positions: Tensor) -> None:
    r"""Checks that squared distances between any of the positions do not overflow.

    Positions that are not finite are left to the operators, which name the row.

    Args:
        **positions: The positions by their names, of one dtype and dimension.

    Raises:
        ValueError: If they extend too far.
    """
    if torch.compiler.is_compiling():
        return
    some = [pos for pos in positions.values() if pos.size(0) > 0]
    if not some:
        return
    # The extent over all axes together takes less time, and nearly always fits.
    if len(some) == 1 and _fits(some[0]):
        return
    corners = torch.cat([torch.stack(torch.aminmax(pos, dim=0)) for pos in some])
    extent = _too_far(corners)
    if extent is not None:
        names = " and ".join(f"'{name}'" for name in positions)
        verb = "has" if len(positions) == 1 else "have"
        raise ValueError(
            f"{names} {verb} an extent of {extent:.3g}, whose square (times "
            f"{corners.size(1)} axes) overflows {corners.dtype}; the positions must be "
            "rescaled"
        )


@reads_values
def _fits(pos: Tensor) -> bool:
    return _is_small(_extent(*torch.aminmax(pos)), pos)


@reads_values
def _too_far(corners: Tensor) -> Optional[float]:
    low, high = torch.aminmax(corners, dim=0)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        return None
    extent = _extent(low, high)
    return None if _is_small(extent, corners) else extent


def _is_small(extent: float, pos: Tensor) -> bool:
    return pos.size(1) * extent * extent <= torch.finfo(pos.dtype).max


def _extent(low: Tensor, high: Tensor) -> float:
    return float((high.double() - low.double()).max())
