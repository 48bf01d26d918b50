r"""The operator ``erwin::ball_tree``: builds the trees of a batch of clouds."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Union

import numpy as np
import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops import dispatch
from torch_geometric_erwin.ops.contract import (
    check_tree,
    implement,
    register_fake,
)
from torch_geometric_erwin.utils.checks import check_finite, check_ptr

torch.library.define(
    "erwin::ball_tree",
    "(Tensor pos, Tensor ptr, int[] ball_sizes, int[] strides, float rotate, "
    "str layout) -> Tensor[]",
)


# Computes the order of rows alone, for a tree whose tables are known from the sizes of
# the clouds. No cloud may have more than `max_points` points.
torch.library.define(
    "erwin::ball_tree_order",
    "(Tensor pos, Tensor ptr, SymInt[] num_rows, SymInt max_points, int[] ball_sizes, "
    "int[] strides, float rotate, str layout) -> Tensor[]",
)
#: The contract of both operators, for their tensors.
TAKES = {"pos": "float32|float64 [N, D]", "ptr": "int64 [G+1] anywhere"}


@lru_cache(maxsize=16)
def rotation_matrix(degrees: float, dim: int) -> Tensor:
    r"""Returns the rotation of the second tree, for row vectors on its left.

    It is the product over the coordinate planes :math:`(i, j)`, :math:`i < j`, in
    lexicographic order, of the plane rotation by :math:`(-1)^{i + j + 1}` times the
    angle. In 2-D this is the rotation by the angle. In 3-D it is :math:`R_z R_y R_x`
    with three equal Euler angles, as in the `Erwin
    <https://arxiv.org/abs/2502.17019>`_ reference implementation. In 1-D it is the
    identity. The result is cached: copy it before you change it.

    Args:
        degrees: The angle, in degrees.
        dim: The number of coordinates :math:`D`.

    Shapes:
        - **output:** :math:`(D, D)`, float64.

    Example:
        >>> rotation_matrix(90.0, 2).round().tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Planes with the same sum i + j have no axis in common, so their rotations are
    # applied together. For planes with a common axis, the order of their sums is the
    # lexicographic one, so the bits of the result are the same.
    axes = np.eye(dim)  # the columns of the result
    for total in range(1, 2 * dim - 2):
        turn = -s if total % 2 == 0 else s
        first, last = max(0, total - dim + 1), (total + 1) // 2
        left, right = axes[first:last], axes[total - first : total - last : -1]
        from_left, from_right = left * turn, right * turn
        left *= c
        left += from_right
        right *= c
        right -= from_left
    return torch.from_numpy(axes.T.copy())


@lru_cache(maxsize=16)
def _rotation(degrees: float, dim: int, dtype: torch.dtype) -> Tensor:
    return rotation_matrix(degrees, dim).to(dtype)


def sizes_of(
    ptr: Tensor, num_points: int, ball_sizes: list[int], strides: list[int], layout: str
) -> tuple[Tensor, list[int], list[int]]:
    r"""Computes the rows of every cloud on every level, and all rows and balls of each.

    Args:
        ptr: The row offsets of the clouds, on the host.
        num_points: The last offset that is expected.
        ball_sizes: The largest number of rows in a ball, per level.
        strides: The number of rows that each coarsening pools.
        layout: The layout of the tree.

    Raises:
        ValueError: If the offsets are malformed.
    """
    config = _native.layout(ball_sizes, strides, layout)
    rows = ptr.new_empty(ptr.size(0) - 1, len(ball_sizes))
    try:
        num_rows, num_balls = _native.tree_sizes(config, ptr, rows)
    except RuntimeError:
        check_ptr(ptr, num_points, ptr.device)  # raises an error that says more
        raise
    if (int(ptr[-1]) if layout == "perfect" else num_rows[0]) != num_points:
        check_ptr(ptr, num_points, ptr.device)
    return rows, num_rows, num_balls


def tables_of(
    ptr: Tensor,
    num_rows: list[int],
    num_balls: list[int],
    ball_sizes: list[int],
    strides: list[int],
    layout: str,
) -> tuple[list[Tensor], list[Tensor]]:
    r"""Computes the lengths of balls and of pooling groups, on the host."""
    ball_len = [ptr.new_empty(n) for n in num_balls]
    group_len = [ptr.new_empty(n) for n in num_rows[1:]]
    _native.call(
        "erwin_tree_tables",
        _native.layout(ball_sizes, strides, layout),
        *(ptr.data_ptr(), ptr.size(0) - 1),
        *(_native.pointers(ball_len), _native.pointers(group_len)),
    )
    return ball_len, group_len


def empty_order(
    pos: Tensor,
    num_rows: Sequence[Union[int, torch.SymInt]],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    r"""Allocates the tensors of the order of rows: perm, mask and perm_rot.

    Args:
        pos: The node positions, whose device is used.
        num_rows: The number of rows of every level.
        rotate: The angle of the second tree; zero for none.
        layout: The layout of the tree; without repeated points the mask is empty.
    """
    empty = partial(pos.new_empty, dtype=torch.int64)
    masked = num_rows[0] if layout == "perfect" else 0
    perm_rot = [empty((n,)) for n in num_rows] if rotate else []
    return [
        empty((num_rows[0],)),
        pos.new_empty((masked,), dtype=torch.bool),
        *perm_rot,
    ]


@implement("erwin::ball_tree", "CPU", **TAKES)
def _ball_tree_cpu(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    check_tree(ball_sizes, strides, layout, rotate)
    pos, ptr = pos.contiguous(), ptr.contiguous()
    _check_finite(pos)
    config = (ball_sizes, strides, layout)
    rows, num_rows, num_balls = sizes_of(ptr, pos.size(0), *config)
    ball_len, group_len = tables_of(ptr, num_rows, num_balls, *config)
    perm, mask, *perm_rot = _order(pos, ptr, num_rows, *config, rotate)
    return [perm, rows, mask, *ball_len, *group_len, *perm_rot]


def ball_tree(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: Sequence[int],
    strides: Sequence[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    r"""Calls the operator, or directly its kernel for the CPU where that is the same.

    Args:
        pos: The node positions, as :func:`check_pos` returns them.
        ptr: The row offsets of the clouds, as :func:`check_ptr` returns them.
        ball_sizes: The largest number of rows in a ball, per level.
        strides: The number of rows that each coarsening pools.
        rotate: The angle of the second tree, in degrees; zero for none.
        layout: The layout of the tree.

    Example:
        >>> args = torch.tensor([[1.0], [0.0]]), torch.tensor([0, 2]), [2], [], 0.0
        >>> ball_tree(*args, "balanced")[0]
        tensor([1, 0])
    """
    args = (pos, ptr, ball_sizes, strides, rotate, layout)
    if pos.is_cpu and ptr.is_cpu and dispatch.is_eager(pos, ptr):
        return _ball_tree_cpu(*args)
    return torch.ops.erwin.ball_tree(*args)


def _check_finite(pos: Tensor) -> None:
    # `check_finite` takes any tensor. Positions here are contiguous and on the host, so
    # the native check alone is faster.
    if not _native.is_finite(pos):
        check_finite(pos)  # raises an error that names the row


def _order(
    pos: Tensor,
    ptr: Tensor,
    num_rows: list[int],
    ball_sizes: list[int],
    strides: list[int],
    layout: str,
    rotate: float,
) -> list[Tensor]:
    config = _native.layout(ball_sizes, strides, layout)
    dtype, dim = _native.DTYPES[pos.dtype], pos.size(1)
    cloud_args = (ptr.data_ptr(), ptr.numel() - 1)
    perm, mask, *perm_rot = tensors = empty_order(pos, num_rows, rotate, layout)
    rotation = _rotation(rotate, dim, pos.dtype) if rotate else None
    size = _native.size_of("erwin_tree_workspace", config, dtype, *cloud_args, dim)
    workspace = _native.workspace(size)
    _native.call(
        "erwin_tree_build",
        _native.context(pos),
        config,
        dtype,
        pos.data_ptr(),
        *cloud_args,
        dim,
        None if rotation is None else rotation.data_ptr(),
        workspace.data_ptr(),
        size,
        perm.data_ptr(),
        mask.data_ptr() if layout == "perfect" else None,
        _native.pointers(perm_rot),
    )
    return tensors


@implement("erwin::ball_tree_order", "CPU", **TAKES, max_points=0)
def _ball_tree_order_cpu(
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
    pos, ptr = pos.contiguous(), ptr.contiguous()
    _check_finite(pos)
    _, expected, _ = sizes_of(ptr, pos.size(0), ball_sizes, strides, layout)
    if num_rows != expected:
        raise ValueError(
            f"clouds of these sizes have {expected} rows on the levels of a tree (got "
            f"{num_rows})"
        )
    largest = max(ptr.diff().tolist(), default=0)
    if largest > max_points:
        raise ValueError(
            f"'max_points' must be at least {largest}, the points of the largest cloud "
            f"(got {max_points})"
        )
    return _order(pos, ptr, num_rows, ball_sizes, strides, layout, rotate)


@register_fake("erwin::ball_tree")
def _ball_tree_fake(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    # Sizes depend on the values of ptr, so they are symbols without a value here.
    size = torch.library.get_ctx().new_dynamic_size
    num_rows = [size() if layout == "perfect" else pos.size(0)]
    num_rows += [size() for _ in strides]
    # By `pos`, because offsets may be on another device.
    empty = partial(pos.new_empty, dtype=torch.int64)
    perm, mask, *perm_rot = empty_order(pos, num_rows, rotate, layout)
    rows = empty((ptr.size(0) - 1, len(ball_sizes)))
    ball_len = [empty((size(),)) for _ in ball_sizes]
    group_len = [empty((n,)) for n in num_rows[1:]]
    return [perm, rows, mask, *ball_len, *group_len, *perm_rot]


@register_fake("erwin::ball_tree_order")
def _ball_tree_order_fake(
    pos: Tensor,
    ptr: Tensor,
    num_rows: list[int],
    max_points: int,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    return empty_order(pos, num_rows, rotate, layout)
