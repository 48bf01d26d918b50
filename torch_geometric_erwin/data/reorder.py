r"""Sorting the nodes of data, with everything that belongs to them or names them."""

from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import BaseStorage, EdgeStorage, NodeStorage
from torch_geometric.typing import SparseTensor, TensorFrame
from torch_geometric.utils import is_sparse

from torch_geometric_erwin.data.attributes import (
    Attribute,
    Attributes,
    map_attributes,
    names_ends,
)
from torch_geometric_erwin.data.storage import is_collated, record_slices
from torch_geometric_erwin.tree.reading import (
    Nodes,
    check_nodes,
    local_nodes,
    num_nodes,
    store_ptr,
)
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_floating,
    check_ptr,
    check_shape,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import put_rows, segment_ids

#: The attribute with the number that every node had, in its cloud, before sorting.
ORIGINAL = "original_node"


def reorder_nodes(
    data: Union[Data, HeteroData, Batch], store: NodeStorage, order: Tensor
) -> None:
    r"""Sorts the nodes of a store, every attribute with an entry per node, and the
    node numbers in :obj:`edge_index`, :obj:`face` and every other attribute that names
    nodes of the store. Edges and faces keep their order.

    What belongs to nodes, and what names nodes, is decided as PyG decides it when it
    collates data, see :class:`~torch_geometric_erwin.data.attributes.Attributes`.

    :obj:`original_node` keeps the numbers from before the first sorting; nodes that
    were sampled from sorted data keep those that they had in the whole.

    Args:
        data: The data or batch that owns the store.
        store: The node store.
        order: The node in every place, such that clouds stay where they are.

    Shapes:
        - **order:** :math:`(N)`.

    Raises:
        ValueError: If :obj:`original_node` is there and does not number the nodes, or
            :obj:`adj` is a dense matrix.

    Example:
        >>> data = Data(pos=torch.rand(3, 1), edge_index=torch.tensor([[0], [1]]))
        >>> reorder_nodes(data, data.stores[0], torch.tensor([2, 0, 1]))
        >>> data.edge_index.tolist(), data.original_node.tolist()
        ([[1], [2]], [2, 0, 1])
    """
    ptr = store_ptr(store)
    own = local_nodes(store, ptr)
    if store.get(ORIGINAL) is None:
        store[ORIGINAL] = own
        if is_collated(data):
            ends = [0, own.size(0)] if ptr is None else ptr.cpu()
            slices = torch.as_tensor(ends)
            zeros = torch.zeros(len(slices) - 1)
            record_slices(data, store, {ORIGINAL: slices}, {ORIGINAL: zeros})
    else:
        _check_original(store)
    place = put_rows(torch.arange(order.size(0), device=order.device), order, len(own))

    rules = Attributes(data, store)

    def moved(own: Attribute) -> Any:
        value = own.value
        if isinstance(value, list) and _is_list_of_lists(store, value):
            assert ptr is not None
            return _sorted_lists(value, order, ptr)
        kind, axis = rules.owner(own)
        if kind == "node":
            _refuse_all_pairs(own, rules.sizes)
        if order.size(0) > 0 and rules.names_nodes(own):
            value = _renumbered(own.name, value, (place, place))
        return _sorted(value, order, axis) if kind == "node" else value

    store.update(rules.map(moved))
    if isinstance(data, HeteroData):
        for edges in data.edge_stores:
            kinds = tuple(
                place if kind == store._key else None for kind in edges._key[::2]
            )
            if any(p is not None for p in kinds):
                _renumber_ends(data, edges, kinds)


def _refuse_all_pairs(own: Attribute, sizes: dict[str, int]) -> None:
    # A dense matrix of this name has nodes along both axes, of which PyG knows one.
    pairs = isinstance(own.value, Tensor) and "adj" in own.name and own.value.dim() > 1
    if pairs and own.value.size(1) * sizes["graph"] == sizes["node"] > 0:
        raise ValueError(
            f"'{own.name}' of shape {[*own.value.shape]} is a dense matrix of pairs of "
            "nodes, of which only the rows would be sorted: use 'edge_index' or a "
            "sparse tensor, and make it dense after the transform"
        )


def _renumber_ends(
    data: HeteroData, store: EdgeStorage, places: tuple[Optional[Tensor], ...]
) -> None:
    def moved(own: Attribute) -> Any:
        if not names_ends(data, store, own):
            return own.value
        return _renumbered(own.name, own.value, places)

    store.update(map_attributes(data, store, moved))


def to_original(x: Tensor, data: Nodes) -> Tensor:
    r"""Brings entries of nodes that ``BallTree(..., reorder=True)`` sorted back into
    the order that they had before.

    Args:
        x: An entry per node, in the order of the data, such as the output of a model.
        data: The data, a batch of it, or one node store of heterogeneous data.

    Shapes:
        - **x** and **output:** :math:`(N, *)`.

    Raises:
        ValueError: If the data was not sorted, or there are not as many entries as
            nodes.

    Example:
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> data = Data(pos=torch.rand(9, 2), number=torch.arange(9))
        >>> data = BallTree(ball_sizes=4, reorder=True)(data)
        >>> to_original(data.number, data)
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8])
    """
    check_nodes("data", data)
    original = getattr(data, ORIGINAL, None)
    if original is None:
        raise ValueError(
            f"the data has no '{ORIGINAL}': its nodes were not sorted by "
            "BallTree(..., reorder=True)"
        )
    check_tensor("x", x)
    if x.is_floating_point():
        check_floating("x", x)
    ptr, pos = store_ptr(data), data.pos
    if ptr is not None:
        check_ptr(ptr, pos.size(0), pos.device, is_readable(pos))
    _check_original(data)
    _check_whole(data, ptr)
    check_shape("x", x, (original.size(0),))
    check_devices(x=x, pos=data.pos, original_node=original)
    place = original.long()
    if ptr is not None:
        place = place + ptr[segment_ids(ptr.diff(), place.size(0))]
    return put_rows(x, place, place.size(0))


def _is_list_of_lists(store: BaseStorage, value: Any) -> bool:
    # In a batch, lists and arrays are not joined: there is one for every cloud.
    ptr = store_ptr(store)
    if ptr is None or len(value) != ptr.size(0) - 1:
        return False
    kinds = (list, tuple, np.ndarray)
    return all(
        isinstance(own, kinds) and len(own) == size
        for own, size in zip(value, ptr.diff().tolist())
    )


def _sorted(value: Any, order: Tensor, axis: int) -> Any:
    if isinstance(value, Tensor) and is_sparse(value):
        return _like(value.to_sparse_coo().index_select(0, order), value)
    if isinstance(value, Tensor):
        return value.index_select(axis, order.to(value.device))
    if isinstance(value, np.ndarray):
        return np.take(value, order.cpu().numpy(), axis=axis)
    if isinstance(value, TensorFrame):
        return value[order.to(value.device)]
    return type(value)(value[i] for i in order.tolist())


def _sorted_lists(value: list[Any], order: Tensor, ptr: Tensor) -> list[Any]:
    parts = zip(value, order.split(ptr.diff().tolist()), ptr.tolist())
    return [_sorted(own, rows - start, 0) for own, rows, start in parts]


def _renumbered(
    name: str, value: Tensor, places: tuple[Optional[Tensor], ...]
) -> Tensor:
    # Replaces numbers of nodes by the places of these nodes. Of two kinds of numbers,
    # the first row has those of the first kind.
    if isinstance(value, SparseTensor):
        raise TypeError(
            f"'{name}' is a SparseTensor of torch-sparse, whose nodes cannot be "
            "sorted: use 'edge_index', or a sparse tensor of PyTorch"
        )
    if is_sparse(value):
        coo = value.to_sparse_coo().coalesce()
        # The rows of a transposed matrix are the targets.
        turned = places if name == "adj" else tuple(reversed(places))
        ends = _renumbered(name, coo.indices(), turned)
        moved = torch.sparse_coo_tensor(
            ends, coo.values(), coo.shape, check_invariants=True
        )
        return _like(moved.coalesce(), value)
    numbers = value.as_tensor() if isinstance(value, EdgeIndex) else value
    if places[0] is places[-1]:
        assert places[0] is not None
        out = _taken(name, places[0], numbers)
    else:
        rows = zip(numbers, places)
        out = torch.stack([r if p is None else _taken(name, p, r) for r, p in rows])
    if not isinstance(value, EdgeIndex):
        return out
    # It is no longer sorted, as nodes have other numbers.
    return EdgeIndex(
        out, sparse_size=value.sparse_size(), is_undirected=value.is_undirected
    )


def _like(moved: Tensor, value: Tensor) -> Tensor:
    # In the layout of another sparse tensor.
    if value.layout == torch.sparse_csr:
        return moved.to_sparse_csr()
    return moved.to_sparse_csc() if value.layout == torch.sparse_csc else moved


def _taken(name: str, place: Tensor, numbers: Tensor) -> Tensor:
    # Negative numbers stand for no node.
    known = numbers >= 0
    if is_readable(numbers) and numbers.numel() > 0:
        most = int(numbers.max())
        if most >= place.size(0):
            raise ValueError(
                f"'{name}' names node {most} of only {place.size(0)} nodes: if nodes "
                "were removed, remove it too; if it does not name nodes, rename it, as "
                "PyG takes what has 'index' in its name for numbers of nodes"
            )
    taken = place.to(numbers.device)[torch.where(known, numbers, 0).long()]
    return torch.where(known, taken.to(numbers.dtype), numbers)


def _check_original(nodes: Nodes) -> None:
    original, count = nodes[ORIGINAL], nodes.pos.size(0)
    is_tensor = isinstance(original, Tensor)
    dtypes = (torch.int32, torch.int64)
    if not is_tensor or original.dtype not in dtypes or original.shape != (count,):
        found = f"'{type(original).__name__}'"
        if is_tensor:
            found = f"{original.dtype} of shape {[*original.shape]}"
        raise ValueError(
            f"'{ORIGINAL}' must number the {count} nodes as they were before "
            f"'BallTree' sorted them (got {found}): rename an attribute of your own"
        )


def _check_whole(nodes: Nodes, ptr: Optional[Tensor]) -> None:
    original = nodes[ORIGINAL]
    if not is_readable(original):
        return
    sizes = num_nodes(nodes, ptr)
    cloud = segment_ids(sizes, original.size(0))
    found = original + (sizes.cumsum(0) - sizes)[cloud]
    if not torch.equal(found.sort().values, torch.arange(original.size(0))):
        raise ValueError(
            f"'{ORIGINAL}' must have the number of each node once, counted in its own "
            "cloud: nodes were added, removed or moved to another cloud after "
            "'BallTree' sorted them"
        )
