r"""What the attributes of data belong to, and which of them name nodes.

PyG decides this when it collates: :meth:`Data.__cat_dim__` is the axis of an
attribute's entries, :meth:`Data.__inc__` tells that its values are numbers of nodes,
and a batch records how its clouds divide every attribute. Sorting and padding go by the
same rules.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import BaseStorage, EdgeStorage, NodeStorage
from torch_geometric.typing import SparseTensor, TensorFrame
from torch_geometric.utils import is_sparse

from torch_geometric_erwin.tree.reading import store_ptr


class Attribute(NamedTuple):
    r"""An attribute of a store, or a part of one that PyG collates by itself: a value
    of a mapping, or a tensor of a list.

    Args:
        path: The name of the attribute, followed by the keys of the part.
        value: The value.
        slices: How the clouds of a batch divide it, if the batch has recorded it.
        incs: What was added to the values of every cloud, in the same way.
    """

    path: tuple[str, ...]
    value: Any
    slices: Any = None
    incs: Any = None

    @property
    def name(self) -> str:
        r"""The name by which PyG knows it: the innermost key."""
        return self.path[-1]


class Attributes:
    r"""The attributes of a node store, or of homogeneous data.

    Args:
        data: The data or batch that owns the store.
        store: The store, which has positions.
    """

    #: The number of nodes, clouds and edges, if there are edges.
    sizes: dict[str, int]

    def __init__(
        self, data: Union[Data, HeteroData, Batch], store: NodeStorage
    ) -> None:
        self.data, self.store = data, store
        ptr, key = store_ptr(store), _edge_key(store)
        clouds = 1 if ptr is None else ptr.size(0) - 1
        self.sizes = {"node": store["pos"].size(0), "graph": clouds}
        if key is not None:
            self.sizes["edge"] = _num_edges(data, store, key)
        # How clouds divide their nodes, themselves and their edges, as far as a batch
        # has recorded it.
        slices = _records(data, store, "_slice_dict")
        edges = slices.get(key) if key in _OF_EDGES else None
        self._divided = {
            "node": _listed(slices.get("pos")),
            "graph": list(range(clouds + 1)),
            "edge": _listed(edges),
        }
        self._is_batch = len(slices) > 0

    def map(self, function: Callable[[Attribute], Any]) -> dict[str, Any]:
        r"""Returns what a function makes of every attribute, by name.

        Args:
            function: A function of an attribute, that returns its new value.
        """
        return map_attributes(self.data, self.store, function, self.sizes["node"])

    def owner(self, attribute: Attribute) -> tuple[Optional[str], int]:
        r"""Returns whether an attribute has an entry per :obj:`"node"`, :obj:`"edge"`
        or :obj:`"graph"`, or :obj:`None` if there is none for either, and the axis of
        these entries.

        The slices of a batch decide. Where there are none, or the same ones, lengths
        decide; and where these agree too, as in PyG, an attribute with :obj:`edge` in
        its name is of the edges, any other of the nodes, or else of the clouds.

        Args:
            attribute: The attribute.

        Example:
            >>> data = Data(pos=torch.rand(3, 2), y=torch.rand(1))
            >>> rules = Attributes(data, data.stores[0])
            >>> [rules.owner(Attribute((n,), data[n])) for n in ("pos", "y")]
            [('node', 0), ('graph', 0)]
        """
        name, value = attribute.name, attribute.value
        if name == "face" or self.is_ptr(attribute):
            return None, 0
        axis, size = self._entries(name, value)
        if size is None:
            return None, 0
        leader = self._leader(attribute, size)
        if leader is not None:
            return self.owner(leader)[0], axis
        fits = [kind for kind, own in self.sizes.items() if own == size]
        divided = _listed(attribute.slices)
        if divided is not None:
            same = [kind for kind in fits if self._divided[kind] == divided]
            if same:
                fits = same
            elif divided[-1] == size:  # it was not replaced since then
                fits = [kind for kind in fits if self._divided[kind] is None]
        if "edge" in name:
            if "edge" in fits:
                return "edge", axis
            if "index" in name and len(value.shape) > 1:  # columns of pairs of nodes
                fits = [kind for kind in fits if kind != "node"]
        return (fits[0] if fits else None), axis

    def names_nodes(self, attribute: Attribute) -> bool:
        r"""Whether the values of an attribute are numbers of nodes of the store: that
        is so if collating adds the number of nodes to them.

        Args:
            attribute: The attribute.

        Raises:
            ValueError: If parts of it are numbers of other nodes.

        Example:
            >>> data = Data(pos=torch.rand(3, 2), face=torch.tensor([[0], [1], [2]]))
            >>> rules = Attributes(data, data.stores[0])
            >>> [rules.names_nodes(Attribute((n,), data[n])) for n in ("pos", "face")]
            [False, True]
        """
        name, value = attribute.name, attribute.value
        if self.is_ptr(attribute) or "batch" in name or self.followed(attribute):
            return False  # they number rows and clouds
        if isinstance(value, SparseTensor):  # one that names no nodes is refused too
            return True
        if not isinstance(value, Tensor):
            return False
        if is_sparse(value):
            return _is_adjacency(name)
        if not _is_integer(value):
            return False
        count = self.sizes["node"]
        if count == 0:  # the number that is added, zero, tells nothing
            return "index" in name or name == "face"
        step = self.data.__inc__(name, value, self.store)
        if isinstance(step, Tensor) and step.numel() != 1:
            if count not in step:
                return False
            raise ValueError(
                f"'{name}' must number nodes of one kind: '__inc__' of the data adds "
                f"{step.flatten().tolist()}, not one number; use HeteroData"
            )
        if int(step) != count:
            return False
        # A batch has the numbers that were added to each cloud: the nodes before it.
        incs, ends = _listed(attribute.incs), self._divided["node"]
        if incs is None or ends is None or len(incs) != len(ends) - 1:
            return True
        return incs == ends[:-1]

    def attribute(self, *path: str) -> Attribute:
        r"""Returns the attribute, or the part of one, that keys lead to.

        Args:
            path: The name of the attribute, followed by the keys of the part.
        """
        value: Any = self.store
        slices: Any = _records(self.data, self.store, "_slice_dict")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
            slices = slices.get(key) if isinstance(slices, Mapping) else None
        return Attribute(path, value, slices)

    def followed(self, attribute: Attribute) -> Optional[Attribute]:
        r"""Returns the attribute :obj:`x` that :obj:`x_batch` or :obj:`x_ptr` divides
        among the clouds, which PyG makes for :obj:`follow_batch=["x"]`.

        Args:
            attribute: The attribute.
        """
        name, *keys = attribute.path
        for end in ("_batch", "_ptr"):
            stem = name.removesuffix(end)
            if stem != name and stem in self.store:
                return self.attribute(stem, *keys)
        return None

    def is_ptr(self, attribute: Attribute) -> bool:
        r"""Whether an attribute has the offsets of clouds: :obj:`ptr`, or the
        :obj:`x_ptr` that PyG makes for :obj:`follow_batch=["x"]`.

        Args:
            attribute: The attribute.
        """
        name = attribute.path[0]
        if not name.endswith("_ptr") or attribute.slices is not None:
            return name == "ptr"  # slices divide what clouds had themselves
        return self._is_batch or self.followed(attribute) is not None

    def _entries(self, name: str, value: Any) -> tuple[int, Optional[int]]:
        # The axis of the entries of an attribute, and their number.
        if isinstance(value, (list, tuple, TensorFrame)):
            return 0, len(value)
        if not isinstance(value, (Tensor, np.ndarray)) or value.ndim == 0:
            return 0, None
        axis = self.data.__cat_dim__(name, value, self.store)
        if axis is None and self._is_batch:  # PyG stacks those of clouds
            axis = 0
        if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
            return 0, None
        return axis % value.ndim, value.shape[axis]

    def _leader(self, attribute: Attribute, size: int) -> Optional[Attribute]:
        # The attribute whose entries are divided like those of another: 'x' of
        # 'x_batch', 'edge_label_index' of 'edge_label'.
        followed = self.followed(attribute)
        if followed is not None:
            return followed
        name = f"{attribute.name}_index"
        index = self.store.get(name)
        if len(attribute.path) > 1 or not isinstance(index, Tensor):
            return None
        return self.attribute(name) if index.shape[-1:] == (size,) else None


def map_attributes(
    data: Union[Data, HeteroData, Batch],
    store: BaseStorage,
    function: Callable[[Attribute], Any],
    num_nodes: Optional[int] = None,
) -> dict[str, Any]:
    r"""Returns what a function makes of every attribute of a store, by name. Mappings,
    and lists of tensors, are taken apart as PyG does it when it collates.

    Args:
        data: The data or batch that owns the store.
        store: The store.
        function: A function of an attribute, that returns its new value.
        num_nodes: The number of nodes of the store: a list of as many tensors has one
            per node, and stays whole.

    Example:
        >>> data = Data(x=1, parts={"y": 2})
        >>> map_attributes(data, data.stores[0], lambda a: (a.path, a.value))
        {'x': (('x',), 1), 'parts': {'y': (('parts', 'y'), 2)}}
    """

    def mapped(own: Attribute) -> Any:
        path, value, slices, incs = own
        if isinstance(value, Mapping):
            return {
                key: mapped(
                    Attribute((*path, str(key)), part, _at(slices, key), _at(incs, key))
                )
                for key, part in value.items()
            }
        if not _are_tensors(value) or isinstance(slices, Tensor):
            return function(own)
        if slices is None and len(value) == num_nodes:
            return function(own)
        return type(value)(
            mapped(Attribute(path, part, _at(slices, i), _at(incs, i)))
            for i, part in enumerate(value)
        )

    slices, incs = (_records(data, store, n) for n in ("_slice_dict", "_inc_dict"))
    return {
        name: mapped(Attribute((name,), value, slices.get(name), incs.get(name)))
        for name, value in store.items()
    }


def names_ends(
    data: Union[HeteroData, Batch], store: EdgeStorage, attribute: Attribute
) -> bool:
    r"""Whether an attribute of the edges between two types of nodes has the numbers of
    both ends: that is so if collating adds two numbers of nodes to it.

    Args:
        data: The data or batch that owns the store.
        store: The store of the edges.
        attribute: The attribute.

    Example:
        >>> data = HeteroData()
        >>> data["a", "to", "b"].edge_index = ends = torch.tensor([[0], [1]])
        >>> names_ends(data, data["a", "to", "b"], Attribute(("edge_index",), ends))
        True
    """
    name, value = attribute.name, attribute.value
    if isinstance(value, SparseTensor):
        return _is_adjacency(name)
    if not isinstance(value, Tensor):
        return False
    if is_sparse(value):
        return _is_adjacency(name)
    if "batch" in name or not _is_integer(value):
        return False
    if value.dim() < 2 or value.size(0) != 2:
        return False
    if "index" in name:  # PyG's own rule, which needs the numbers of nodes
        return True
    step = data.__inc__(name, value, store)
    return isinstance(step, Tensor) and step.numel() == 2


def _is_adjacency(name: str) -> bool:
    # Whether PyG takes a sparse matrix of this name for one of edges.
    return "adj" in name or "edge_index" in name


def _is_integer(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex()) and (
        value.dtype != torch.bool
    )


def _are_tensors(value: Any) -> bool:
    kinds = (Tensor, SparseTensor)
    return isinstance(value, (list, tuple)) and any(isinstance(v, kinds) for v in value)


def _at(records: Any, key: Any) -> Any:
    # The record of a part of an attribute.
    if isinstance(records, Mapping):
        return records.get(key)
    known = isinstance(records, list) and key < len(records)
    return records[key] if known else None


def _listed(record: Any) -> Optional[list[int]]:
    # The numbers of a record that PyG made. It is on the CPU; from one on a GPU, which
    # was made later, nothing is read.
    if not isinstance(record, Tensor) or not record.is_cpu or record.numel() == 0:
        return None
    numbers = record.tolist()
    while isinstance(numbers[0], list):
        numbers = [number for row in numbers for number in row]
    return numbers


def _records(
    data: Union[Data, HeteroData, Batch], store: BaseStorage, name: str
) -> dict[str, Any]:
    # What a batch has recorded of the attributes of a store.
    records = getattr(data.stores[0], name, None) or {}
    return records if store._key is None else records.get(store._key, {})


_OF_EDGES = ("edge_index", "edge_attr", "edge_weight", "edge_type", "e_id")


def _edge_key(store: BaseStorage) -> Optional[str]:
    # The attribute by which PyG counts edges. It would also count any other with "edge"
    # in its name: the edges of data without edges would be its knowledge.
    if isinstance(store, EdgeStorage):
        for name in (*_OF_EDGES, "adj", "adj_t"):
            value = store.get(name)
            if isinstance(value, (Tensor, SparseTensor)) and value.dim() > 0:
                return name
    return None


def _num_edges(
    data: Union[Data, HeteroData, Batch], store: BaseStorage, name: str
) -> int:
    value = store[name]
    if is_sparse(value):
        return store.num_edges
    return value.size(data.__cat_dim__(name, value, store))
