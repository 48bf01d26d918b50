r"""Building ball trees."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Optional, Union

import torch
from torch import Tensor

from torch_geometric_erwin.ops import ball_tree as ops
from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.order import TIES, coordinate_order
from torch_geometric_erwin.tree.partition import runs_of
from torch_geometric_erwin.tree.tree import Tree
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_flag,
    check_pos,
    check_ptr,
    given_ptr,
)
from torch_geometric_erwin.utils.rows import segment_ids


def ball_tree(
    pos: Tensor,
    batch: Optional[Tensor] = None,
    *,
    ptr: Optional[Tensor] = None,
    ball_sizes: Union[int, Sequence[int]],
    strides: Union[int, Sequence[int]] = (),
    rotate: float = 45.0,
    layout: str = "balanced",
    runs: Sequence[Sequence[int]] = (),
    ties: str = "index",
    validate: bool = False,
) -> Tree:
    r"""Builds the ball trees of a batch of clouds, as in `"Erwin: A Tree-based
    Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_.

    Every cloud is split by count along its widest axis, recursively, down to single
    points. The result is the same on every thread count and device, and does not depend
    on the other clouds of the batch.

    The tree is built on the device of the positions. If the offsets are on a GPU, the
    call reads them and waits for the GPU; it reads nothing else from there. Where it
    must not wait, pass offsets on the host, or call :meth:`Tree.update` if points of a
    tree moved.

    Args:
        pos: The node positions; float64 ones are compared as float64, others as
            float32.
        batch: The cloud of every node, ascending, as :obj:`batch.batch` of a PyG batch.
            The tree has clouds up to the last one that it names; if clouds after that
            are empty, use :obj:`ptr`. (default: one cloud)
        ptr: The row offsets of the clouds, as :obj:`batch.ptr`, in place of
            :obj:`batch`.
        ball_sizes: The largest number of rows in a ball, one value or one per level.
        strides: The number of rows that each coarsening pools.
        rotate: The angle of the second tree, in degrees; zero for none.
        layout: :obj:`"balanced"` or :obj:`"perfect"`, see :class:`TreeConfig`.
        runs: Further sizes of runs, per level, see :class:`TreeConfig`.
        ties: What orders points with equal coordinates on the split axis:
            :obj:`"index"`, or :obj:`"coordinates"` to compare the other axes first, so
            that the order of the input has no effect even on grids, where many points
            have equal coordinates.
        validate: Whether to check on a GPU too that positions are finite and offsets
            ascend, which waits for the GPU. On the CPU both are always checked.

    Shapes:
        - **pos:** :math:`(N, D)` with any :math:`D \geq 1`, in any unit of length.
        - **batch:** :math:`(N)`, int64.
        - **ptr:** :math:`(G + 1)`, int64.

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If an argument is malformed, or a position is not finite.

    Example:
        >>> pos = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
        >>> ball_tree(pos, ball_sizes=2).perm
        tensor([3, 1, 2, 0])
    """
    check_flag("validate", validate)
    ptr = given_ptr(batch, ptr, pos)
    if isinstance(runs, (list, tuple)) and len(runs) == 0:
        config = _config_of(ball_sizes, strides, rotate, layout)
    else:
        config = TreeConfig(ball_sizes, strides, rotate, layout, runs)
    return build_tree(pos, ptr, config, ties, validate)


def _config_of(
    ball_sizes: Union[int, Sequence[int]],
    strides: Union[int, Sequence[int]],
    rotate: float,
    layout: str,
) -> TreeConfig:
    if not torch.compiler.is_compiling():
        with suppress(TypeError):  # an argument is wrong, or not hashable
            return _cached(_hashable(ball_sizes), _hashable(strides), rotate, layout)
    return TreeConfig(ball_sizes, strides, rotate, layout)


def _hashable(numbers: Union[int, Sequence[int]]) -> object:
    # Types are part of the key, because 2, 2.0 and True are equal but only 2 is a size.
    if not isinstance(numbers, (list, tuple)):
        return numbers, type(numbers)
    return tuple(numbers), tuple(map(type, numbers))


# Cached, because to check the arguments takes as long as to build small trees.
@lru_cache(maxsize=64, typed=True)
def _cached(ball_sizes: Any, strides: Any, rotate: float, layout: str) -> TreeConfig:
    return TreeConfig(ball_sizes[0], strides[0], rotate, layout)


def build_tree(
    pos: Tensor,
    ptr: Optional[Tensor],
    config: TreeConfig,
    ties: str = "index",
    validate: bool = False,
) -> Tree:
    r"""Builds the trees of a configuration; see :func:`ball_tree`.

    Args:
        pos: The node positions.
        ptr: The row offsets of the clouds, or :obj:`None` for one cloud.
        config: The configuration.
        ties: What orders points with equal coordinates.
        validate: Whether to check values on a GPU too.
    """
    check_choice("ties", ties, TIES)
    if isinstance(pos, Tensor) and pos.is_meta:
        raise ValueError("'pos' is on meta, where it has no values")
    # On the CPU the operator checks values. It names the wrong row if ties have put the
    # rows in another order, so values are then checked here.
    values = validate or ties == "coordinates"
    pos = check_pos(pos, values)
    device = pos.device
    # If positions are on a GPU, offsets may be there or on the host.
    on_host = not isinstance(ptr, Tensor) or ptr.device.type == "cpu"
    home = torch.device("cpu") if on_host else device
    ptr = check_ptr(ptr, pos.size(0), home, values)
    if device.type not in ("cpu", "cuda"):
        pos, ptr = pos.cpu(), ptr.cpu()
    order = coordinate_order(pos, ptr) if ties == "coordinates" else None
    tensors = ops.ball_tree(
        pos if order is None else pos[order],
        ptr,
        config.ball_sizes,
        config.strides,
        config.rotate,
        config.layout,
    )
    perm, level, mask, *tables = tensors
    if order is not None:
        start = ptr.to(pos.device)[segment_ids(level[:, 0], perm.size(0))]
        perm = order[perm + start] - start
    levels = config.num_levels
    runs: tuple[tuple[Tensor, ...], ...] = ()
    if config.runs:
        host = ptr.cpu().resolve_neg().contiguous()  # native code reads its memory
        runs = runs_of(host, pos.size(0), config)
    tree = Tree(
        perm,
        ptr if ptr.device == pos.device else ptr.to(pos.device),
        level,
        ball_len=tuple(tables[:levels]),
        group_len=tuple(tables[levels : 2 * levels - 1]),
        perm_rot=tuple(tables[2 * levels - 1 :]),
        mask=mask if config.layout == "perfect" else None,
        runs=tuple(tuple(t.to(pos.device) for t in lengths) for lengths in runs),
        config=config,
    )
    return tree if pos.device == device else tree.to(device)
