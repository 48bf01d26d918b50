r"""The operator ``erwin::ball_tree``: builds the trees of a batch of clouds."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.utils.checks import check_finite, check_ptr

torch.library.define(
    "erwin::ball_tree",
    "(Tensor pos, Tensor ptr, int[] ball_sizes, int[] strides, float rotate, "
    "str layout) -> Tensor[]",
)


@lru_cache(maxsize=16)
def rotation_matrix(degrees: float, dim: int) -> Tensor:
    r"""The rotation of the second tree; row vectors are multiplied from the right.

    The product over the coordinate planes :math:`(i, j)`, :math:`i < j`, in
    lexicographic order, of the plane rotation by :math:`(-1)^{i + j + 1}` times the
    angle: in 2-D the rotation by the angle, in 3-D :math:`R_z R_y R_x` with three equal
    Euler angles, as in the `Erwin <https://arxiv.org/abs/2502.17019>`_ reference
    implementation, and the same rule in any other dimension. A line has no rotation:
    in 1-D the result is the identity. It is cached: copy it before you change it.

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
    rotation = torch.eye(dim, dtype=torch.float64)
    for i in range(dim):
        for j in range(i + 1, dim):
            turn = -s if (i + j) % 2 == 0 else s
            left, right = rotation[:, i].clone(), rotation[:, j].clone()
            rotation[:, i] = left * c + right * turn
            rotation[:, j] = right * c - left * turn
    return rotation


@torch.library.impl("erwin::ball_tree", "CPU")
def _ball_tree_cpu(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    pos, ptr = pos.contiguous(), ptr.contiguous()
    check_finite(pos)
    check_ptr(ptr, pos.size(0), pos.device, values=False)
    config = _native.layout(ball_sizes, strides, layout)
    clouds, levels, dim = ptr.numel() - 1, len(ball_sizes), pos.size(1)
    dtype = _native.DTYPES[pos.dtype]
    cloud_args = (ptr.data_ptr(), clouds)

    rows, balls = ptr.new_empty(clouds, levels), ptr.new_empty(clouds, levels)
    try:
        _native.call(
            "erwin_tree_sizes", config, *cloud_args, rows.data_ptr(), balls.data_ptr()
        )
    except RuntimeError:
        check_ptr(ptr, pos.size(0), pos.device)  # says what is wrong with the values
        raise
    num_rows, num_balls = rows.sum(0).tolist(), balls.sum(0).tolist()
    perfect = layout == "perfect"
    if (int(ptr[-1]) if perfect else num_rows[0]) != pos.size(0):
        check_ptr(ptr, pos.size(0), pos.device)
    ball_len = [ptr.new_empty(n) for n in num_balls]
    group_len = [ptr.new_empty(n) for n in num_rows[1:]]
    _native.call(
        "erwin_tree_tables",
        config,
        *cloud_args,
        _native.pointers(ball_len),
        _native.pointers(group_len),
    )

    perm = ptr.new_empty(num_rows[0])
    mask = ptr.new_empty(num_rows[0] if perfect else 0, dtype=torch.bool)
    perm_rot = [ptr.new_empty(n) for n in num_rows] if rotate else []
    rotation = rotation_matrix(rotate, dim).to(pos.dtype) if rotate else None
    size = _native.size_of(
        "erwin_tree_workspace", config, dtype, *cloud_args, pos.size(1)
    )
    workspace = torch.empty(size, dtype=torch.uint8)
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
        mask.data_ptr() if perfect else None,
        _native.pointers(perm_rot),
    )
    return [perm, rows, mask, *ball_len, *group_len, *perm_rot]


@torch.library.register_fake("erwin::ball_tree")
def _ball_tree_fake(
    pos: Tensor,
    ptr: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    rotate: float,
    layout: str,
) -> list[Tensor]:
    # Sizes follow from the values of ptr: symbols that only the run resolves.
    size = torch.library.get_ctx().new_dynamic_size
    perfect = layout == "perfect"
    num_rows = [size() if perfect else pos.size(0)] + [size() for _ in strides]
    perm = ptr.new_empty(num_rows[0])
    rows = ptr.new_empty(ptr.size(0) - 1, len(ball_sizes))
    mask = ptr.new_empty(num_rows[0] if perfect else 0, dtype=torch.bool)
    ball_len = [ptr.new_empty(size()) for _ in ball_sizes]
    group_len = [ptr.new_empty(n) for n in num_rows[1:]]
    perm_rot = [ptr.new_empty(n) for n in num_rows] if rotate else []
    return [perm, rows, mask, *ball_len, *group_len, *perm_rot]
