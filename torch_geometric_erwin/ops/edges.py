r"""The operator ``erwin::group``, which groups edges by node with a stable sort."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from torch_geometric_erwin import _native
from torch_geometric_erwin.ops.contract import Takes, implement, register_fake

torch.library.define("erwin::group", "(Tensor key, SymInt groups) -> (Tensor, Tensor)")
_TAKES: Takes = {"key": "int64 [E]", "groups": 0}


def check_nodes(index: Tensor, num_nodes: int) -> None:
    r"""Checks that the nodes of edges exist.

    Args:
        index: One row of an :obj:`edge_index`.
        num_nodes: The number of nodes :math:`N`.

    Shapes:
        - **index:** :math:`(E)`.

    Raises:
        ValueError: If a node does not exist. Values on a CUDA device are not read:
            an assertion fails on the device instead, as when PyTorch indexes a tensor.

    Example:
        >>> check_nodes(torch.tensor([0, 3]), 3)
        Traceback (most recent call last):
        ValueError: 'edge_index' must name nodes from 0 to 2 (got 3)
    """
    if index.numel() == 0:
        return
    if index.is_cuda:
        within = ((index >= 0) & (index < num_nodes)).all()
        torch._assert_async(within, "'edge_index' names a node that is not there")
        return
    low, high = (int(end) for end in index.aminmax())
    if low < 0 or high >= num_nodes:
        node = low if low < 0 else high
        raise ValueError(
            f"'edge_index' must name nodes from 0 to {num_nodes - 1} (got {node})"
        )


@implement("erwin::group", "CPU", **_TAKES)
def _group_cpu(key: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    key = key.contiguous()
    check_nodes(key, groups)
    ptr, order = key.new_empty(groups + 1), torch.empty_like(key)
    sizes = (key.numel(), groups)
    _native.call(
        "erwin_group", key.data_ptr(), *sizes, ptr.data_ptr(), order.data_ptr()
    )
    return ptr, order


def sorted_groups(key: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    r"""Computes ``erwin::group`` by PyTorch's own operators, without reading a value.

    Args:
        key: The group of every element.
        groups: The number of groups.

    Shapes:
        - **key:** :math:`(E)`; **output:** offsets of the groups :math:`(G + 1)`, and
          :math:`(E)` elements, those of a group in ascending order.

    Example:
        >>> sorted_groups(torch.tensor([2, 0, 2]), 3)
        (tensor([0, 1, 1, 3]), tensor([1, 0, 2]))
    """
    if groups < 2**31:  # a radix sort of narrower keys takes less time
        key = key.to(torch.int32)
    ordered, order = key.sort(stable=True)
    bounds = torch.arange(groups + 1, dtype=key.dtype, device=key.device)
    return torch.searchsorted(ordered, bounds), order


@implement("erwin::group", "CUDA", **_TAKES)
def _group_cuda(key: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    check_nodes(key, groups)
    return sorted_groups(key, groups)


@register_fake("erwin::group")
def _group_fake(key: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return key.new_empty(groups + 1), torch.empty_like(key)


class EdgeGroups(NamedTuple):
    r"""Edges grouped by node.

    Those at node :obj:`i` are :obj:`order[ptr[i] : ptr[i + 1]]`, in ascending order.
    """

    ptr: Tensor  # [N + 1]
    order: Tensor  # [E]


class Edges:
    r"""Edges that several layers share, grouped by node when a layer first needs it.

    Args:
        edge_index: The edges.
        num_nodes: The number of nodes :math:`N`.

    Shapes:
        - **edge_index:** :math:`(2, E)`, int64, in any order.

    Example:
        >>> edges = Edges(torch.tensor([[0, 1, 2], [2, 0, 2]]), num_nodes=3)
        >>> edges.by(1)
        EdgeGroups(ptr=tensor([0, 1, 1, 3]), order=tensor([1, 0, 2]))
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        self.edge_index = edge_index
        self.num_nodes = num_nodes
        self._groups: list[Optional[EdgeGroups]] = [None, None]

    def by(self, end: int) -> EdgeGroups:
        r"""Returns the edges grouped by the nodes in row :obj:`end` of `edge_index`.

        Raises:
            ValueError: If an edge names a node that does not exist.
        """
        groups = self._groups[end]
        if groups is None:
            key = self.edge_index[end]
            groups = EdgeGroups(*torch.ops.erwin.group(key, self.num_nodes))
            self._groups[end] = groups
        return groups
