r"""Batching rules of the operators for :func:`torch.vmap`.

The clouds of all samples are handed to the operator as one batch of clouds. All samples
share the offsets, and with them all sizes; only the order of rows differs.
"""

from typing import Any, Optional

import torch
from torch import Tensor

import torch_geometric_erwin.ops.ball_tree
import torch_geometric_erwin.ops.neighbors  # noqa: F401  (both register the operators)


def _as_clouds(
    samples: int, dims: tuple[Any, ...], pos: Tensor, ptr: Tensor, name: str = "ptr"
) -> tuple[Tensor, Tensor]:
    # Returns the positions of all samples, one after the other, and their offsets.
    if dims[1] is not None:
        raise ValueError(f"'{name}' must be the same for all samples of a vmap")
    if dims[0] is None:
        pos = pos.expand(samples, *pos.shape)
    else:
        pos = pos.movedim(dims[0], 0)
    points = pos.size(1)
    start = torch.arange(samples, device=ptr.device)[:, None] * points
    ptr = torch.cat([(start + ptr[:-1]).flatten(), ptr.new_tensor([samples * points])])
    return pos.flatten(0, 1), ptr


def _ball_tree(
    info: Any, dims: tuple[Any, ...], pos: Tensor, ptr: Tensor, *config: Any
) -> tuple[list[Tensor], list[Any]]:
    samples, levels = info.batch_size, len(config[0])
    pos, ptr = _as_clouds(samples, dims, pos, ptr)
    perm, *tables = torch.ops.erwin.ball_tree(pos, ptr, *config)
    # All samples have the same tables, so those of the first are returned.
    fixed = 2 * levels + 1
    rotated = tables[fixed:]
    shared = [table[: table.size(0) // samples] for table in tables[:fixed]]
    batched = [t.view(samples, t.size(0) // samples) for t in (perm, *rotated)]
    dims = (0, *[None] * len(shared), *[0] * len(rotated))
    return [batched[0], *shared, *batched[1:]], [*dims]


def _ball_tree_order(
    info: Any,
    dims: tuple[Any, ...],
    pos: Tensor,
    ptr: Tensor,
    num_rows: list[int],
    *config: Any,
) -> tuple[list[Tensor], list[Any]]:
    samples = info.batch_size
    pos, ptr = _as_clouds(samples, dims, pos, ptr)
    total = [samples * rows for rows in num_rows]
    perm, mask, *rotated = torch.ops.erwin.ball_tree_order(pos, ptr, total, *config)
    batched = [t.view(samples, t.size(0) // samples) for t in (perm, *rotated)]
    mask = mask[: mask.size(0) // samples]
    return [batched[0], mask, *batched[1:]], [0, None, *[0] * len(rotated)]


def _knn(
    info: Any,
    dims: tuple[Any, ...],
    pos: Tensor,
    ptr: Tensor,
    perm: Tensor,
    *args: Any,
) -> tuple[Tensor, int]:
    samples = info.batch_size
    pos, ptr = _as_clouds(samples, dims, pos, ptr)
    perm = _as_orders(samples, dims[2], perm)
    edge_index = torch.ops.erwin.knn(pos, ptr, perm, *args)
    edges = edge_index.view(2, samples, edge_index.size(1) // samples)
    first = torch.arange(samples, device=pos.device) * (pos.size(0) // samples)
    return edges - first[:, None], 1


def _cross_knn(
    info: Any,
    dims: tuple[Any, ...],
    x: Tensor,
    ptr_x: Tensor,
    perm_x: Tensor,
    ball_sizes: list[int],
    strides: list[int],
    y: Tensor,
    ptr_y: Tensor,
    perm_y: Tensor,
    k: int,
) -> tuple[Tensor, int]:
    samples = info.batch_size
    x, ptr_x = _as_clouds(samples, dims[:2], x, ptr_x, "ptr_x")
    y, ptr_y = _as_clouds(samples, dims[5:7], y, ptr_y, "ptr_y")
    perm_x = _as_orders(samples, dims[2], perm_x)
    perm_y = _as_orders(samples, dims[7], perm_y)
    first_args = (x, ptr_x, perm_x, ball_sizes, strides)
    edge_index = torch.ops.erwin.cross_knn(*first_args, y, ptr_y, perm_y, k)
    edges = edge_index.view(2, samples, edge_index.size(1) // samples)
    points = edges.new_tensor([y.size(0) // samples, x.size(0) // samples])
    first = torch.arange(samples, device=x.device) * points[:, None]
    return edges - first[:, :, None], 1


def _as_orders(samples: int, dim: Optional[int], perm: Tensor) -> Tensor:
    # Entries of an order are counted in their own cloud, so they stay as they are.
    perm = perm.expand(samples, -1) if dim is None else perm.movedim(dim, 0)
    return perm.flatten()


def _radius(*_: Any) -> None:
    raise ValueError(
        "samples of a vmap have different numbers of neighbours within a radius; find "
        "the edges outside of it, or use 'knn_graph' or 'knn'"
    )


torch.library.register_vmap("erwin::ball_tree", _ball_tree)
torch.library.register_vmap("erwin::ball_tree_order", _ball_tree_order)
torch.library.register_vmap("erwin::knn", _knn)
torch.library.register_vmap("erwin::radius", _radius)
torch.library.register_vmap("erwin::cross_knn", _cross_knn)
torch.library.register_vmap("erwin::cross_radius", _radius)
