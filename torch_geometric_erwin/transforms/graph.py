r"""Transforms that attach a graph by exact neighbour search."""

from abc import abstractmethod
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import EdgeStorage, NodeStorage
from torch_geometric.transforms import BaseTransform
from torch_geometric.typing import EdgeType
from torch_geometric.utils import to_undirected

from torch_geometric_erwin.data.storage import is_collated, record_slices
from torch_geometric_erwin.neighbors import (
    FLOWS,
    MANY,
    knn,
    knn_graph,
    radius,
    radius_graph,
)
from torch_geometric_erwin.tree.reading import store_ptr
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_edge_type,
    check_flag,
    check_int,
    check_radius,
    check_tensor,
)


class _TreeGraph(BaseTransform):
    # What both transforms have in common. A class derived from it finds the edges among
    # the nodes of one type, and from the nodes of one type to their neighbours of
    # another.

    loop: bool
    flow: str
    edge_type: Optional[EdgeType]
    force_undirected = False

    @abstractmethod
    def _among(self, pos: Tensor, ptr: Optional[Tensor]) -> Tensor: ...

    @abstractmethod
    def _between(self, x: Tensor, y: Tensor, clouds: dict[str, Any]) -> Tensor: ...

    def forward(
        self, data: Union[Data, HeteroData, Batch]
    ) -> Union[Data, HeteroData, Batch]:
        r"""Attaches the graph to a shallow copy of the data."""
        name = self.__class__.__name__
        if isinstance(data, HeteroData):
            for edge_type in self._edge_types(data):
                ends = data[edge_type[0]], data[edge_type[2]]
                edge_index = self._edges(*ends, edge_type[0] == edge_type[2])
                _attach(data, data[edge_type], edge_index, *ends)
            return data
        if not isinstance(data, Data):
            raise TypeError(
                f"'{name}' works on Data, HeteroData and batches of them, 'data' must "
                f"be one (got '{type(data).__name__}')"
            )
        if self.edge_type is not None:
            raise TypeError(
                f"'edge_type' is for HeteroData, 'data' must be such (got "
                f"'{type(data).__name__}')"
            )
        if data.pos is None:
            raise ValueError(f"'{name}' needs node positions: 'data.pos' is missing")
        store = data.stores[0]
        _attach(data, store, self._edges(data, data, True), data, data)
        return data

    def _edge_types(self, data: HeteroData) -> list[EdgeType]:
        name, given = self.__class__.__name__, self.edge_type
        if given is None:
            types = [s._key for s in data.node_stores if s.get("pos") is not None]
            if not types:
                raise ValueError(
                    f"'{name}' needs node positions: 'pos' is missing in 'data', for "
                    f"every type of nodes (got {data.node_types})"
                )
            return [(kind, "to", kind) for kind in types]
        for kind in (given[0], given[2]):
            if kind not in data.node_types:
                raise ValueError(
                    f"'edge_type' must be between types of nodes of 'data', which are "
                    f"{data.node_types} (got '{kind}')"
                )
            if data[kind].get("pos") is None:
                raise ValueError(
                    f"'{name}' needs node positions: 'pos' of '{kind}' is missing in "
                    "'data'"
                )
        return [given]

    def _edges(
        self,
        source: Union[Data, NodeStorage],
        target: Union[Data, NodeStorage],
        within: bool,
    ) -> Tensor:
        if within:
            edge_index = self._among(source["pos"], store_ptr(source))
            if self.force_undirected:
                num_nodes = source["pos"].size(0)
                edge_index = to_undirected(edge_index, num_nodes=num_nodes)
            return edge_index
        # By the flow, every target has sources as neighbours, or the other way round.
        forward = self.flow == "source_to_target"
        x, y = (source, target) if forward else (target, source)
        clouds = {**_clouds(x, "x"), **_clouds(y, "y")}
        edge_index = self._between(x["pos"], y["pos"], clouds)
        return edge_index.flip(0) if forward else edge_index

    def _of_type(self) -> str:
        # What the representation says about the type of edges.
        return "" if self.edge_type is None else f", edge_type={self.edge_type}"


@functional_transform("tree_knn_graph")
class TreeKNNGraph(_TreeGraph):
    r"""Creates the k-NN graph of the node positions :obj:`data.pos` by
    :func:`~torch_geometric_erwin.neighbors.knn_graph` (functional name:
    :obj:`tree_knn_graph`).

    It sets :obj:`data.edge_index` and removes :obj:`data.edge_attr`, as
    :class:`torch_geometric.transforms.KNNGraph` does, without its optional
    dependencies. It works on :class:`~torch_geometric.data.Data`,
    :class:`~torch_geometric.data.HeteroData` and batches of them, whose clouds stay
    apart. In :class:`~torch_geometric.data.HeteroData`, every type of nodes with
    positions gets edges :obj:`(type, "to", type)`, or edges of one type are made
    between two types of nodes.

    Args:
        k: The number of neighbours.
        loop: Whether a node is its own neighbour.
        force_undirected: Whether every edge gets its reverse; edges are then sorted by
            the first row of :obj:`edge_index`.
        flow: :obj:`"source_to_target"`, where every target has :obj:`k` sources, or
            :obj:`"target_to_source"`, where every source has :obj:`k` targets.
        edge_type: The type of edges to make in
            :class:`~torch_geometric.data.HeteroData`, such as
            :obj:`("atom", "near", "grid")`, by which every node of type :obj:`"grid"`
            gets edges from its nearest nodes of type :obj:`"atom"`.

    Raises:
        TypeError: If an argument has another type, or the data is of another kind.
        ValueError: If an argument is out of range, there are no positions, or one is
            not finite; if :obj:`loop` or :obj:`force_undirected` is set for two types
            of nodes.

    Example:
        >>> data = TreeKNNGraph(k=1)(Data(pos=torch.tensor([[0.0], [1.0], [3.0]])))
        >>> data.edge_index
        tensor([[1, 0, 1],
                [0, 1, 2]])
        >>> data = HeteroData()
        >>> data["atom"].pos = torch.tensor([[0.0], [1.0], [3.0]])
        >>> data["grid"].pos = torch.tensor([[0.0], [2.5]])
        >>> data = TreeKNNGraph(k=1, edge_type=("atom", "near", "grid"))(data)
        >>> data["atom", "near", "grid"].edge_index
        tensor([[0, 2],
                [0, 1]])
    """

    def __init__(
        self,
        k: int = 6,
        loop: bool = False,
        force_undirected: bool = False,
        flow: str = "source_to_target",
        edge_type: Optional[EdgeType] = None,
    ) -> None:
        check_choice("flow", flow, FLOWS)
        self.k = check_int("k", k, 1, maximum=MANY)
        self.loop = check_flag("loop", loop)
        self.force_undirected = check_flag("force_undirected", force_undirected)
        self.flow = flow
        self.edge_type = _check_edge_type(
            edge_type, loop=self.loop, force_undirected=self.force_undirected
        )

    def _among(self, pos: Tensor, ptr: Optional[Tensor]) -> Tensor:
        return knn_graph(pos, self.k, loop=self.loop, flow=self.flow, ptr=ptr)

    def _between(self, x: Tensor, y: Tensor, clouds: dict[str, Any]) -> Tensor:
        return knn(x, y, self.k, **clouds)

    def __repr__(self) -> str:
        # With all arguments: PyG compares texts to see if a `pre_transform` changed.
        return (
            f"{self.__class__.__name__}(k={self.k}, loop={self.loop}, "
            f"force_undirected={self.force_undirected}, flow='{self.flow}'"
            f"{self._of_type()})"
        )


@functional_transform("tree_radius_graph")
class TreeRadiusGraph(_TreeGraph):
    r"""Creates the graph of all nodes within a distance, from the node positions
    :obj:`data.pos`, by :func:`~torch_geometric_erwin.neighbors.radius_graph`
    (functional name: :obj:`tree_radius_graph`).

    It sets :obj:`data.edge_index` and removes :obj:`data.edge_attr`, as
    :class:`torch_geometric.transforms.RadiusGraph` does, without its optional
    dependencies and without a limit on the neighbours unless one is given. It works on
    :class:`~torch_geometric.data.Data`, :class:`~torch_geometric.data.HeteroData` and
    batches of them, as :class:`TreeKNNGraph` does.

    Args:
        r: The distance, in the unit of the positions.
        loop: Whether a node is its own neighbour.
        max_num_neighbors: Keeps this many of a node's neighbours, the nearest ones.
            (default: all)
        flow: :obj:`"source_to_target"` or :obj:`"target_to_source"`.
        edge_type: The type of edges to make in
            :class:`~torch_geometric.data.HeteroData`, such as
            :obj:`("atom", "near", "grid")`.

    Raises:
        TypeError: If an argument has another type, or the data is of another kind.
        ValueError: If an argument is out of range, there are no positions, or one is
            not finite; if :obj:`loop` is set for two types of nodes.

    Example:
        >>> data = Data(pos=torch.tensor([[0.0], [1.0], [3.0]]))
        >>> TreeRadiusGraph(r=1.0)(data).edge_index
        tensor([[1, 0],
                [0, 1]])
    """

    def __init__(
        self,
        r: float,
        loop: bool = False,
        max_num_neighbors: Optional[int] = None,
        flow: str = "source_to_target",
        edge_type: Optional[EdgeType] = None,
    ) -> None:
        check_choice("flow", flow, FLOWS)
        if max_num_neighbors is not None:
            max_num_neighbors = check_int(
                "max_num_neighbors", max_num_neighbors, 1, maximum=MANY
            )
        self.r = check_radius(r)
        self.loop = check_flag("loop", loop)
        self.max_num_neighbors = max_num_neighbors
        self.flow = flow
        self.edge_type = _check_edge_type(edge_type, loop=self.loop)

    def _among(self, pos: Tensor, ptr: Optional[Tensor]) -> Tensor:
        limit = self.max_num_neighbors
        return radius_graph(pos, self.r, None, self.loop, limit, self.flow, ptr=ptr)

    def _between(self, x: Tensor, y: Tensor, clouds: dict[str, Any]) -> Tensor:
        limit = self.max_num_neighbors
        return radius(x, y, self.r, max_num_neighbors=limit, **clouds)

    def __repr__(self) -> str:
        # With all arguments: PyG compares texts to see if a `pre_transform` changed.
        return (
            f"{self.__class__.__name__}(r={self.r}, loop={self.loop}, "
            f"max_num_neighbors={self.max_num_neighbors}, flow='{self.flow}'"
            f"{self._of_type()})"
        )


def _check_edge_type(
    edge_type: Optional[EdgeType], **one_type_only: bool
) -> Optional[EdgeType]:
    if edge_type is None:
        return None
    edge_type = check_edge_type("edge_type", edge_type)
    for name, is_set in one_type_only.items():
        if is_set and edge_type[0] != edge_type[2]:
            raise ValueError(
                f"'{name}' needs edges among nodes of one type (got "
                f"'edge_type={edge_type}')"
            )
    return edge_type


def _clouds(nodes: NodeStorage, suffix: str) -> dict[str, Optional[Tensor]]:
    # An assignment alone does not tell how many clouds at the end are empty; the search
    # finds out from the other nodes.
    for name in ("ptr", "batch"):
        if nodes.get(name) is not None:
            check_tensor(name, nodes[name])
            return {f"{name}_{suffix}": nodes[name]}
    return {}


def _attach(
    data: Union[Data, HeteroData, Batch],
    store: EdgeStorage,
    edge_index: Tensor,
    source: Union[Data, NodeStorage],
    target: Union[Data, NodeStorage],
) -> None:
    store["edge_index"], store["edge_attr"] = edge_index, None
    ptr, target_ptr = store_ptr(source), store_ptr(target)
    if ptr is None or target_ptr is None or not is_collated(data):
        return
    # The cloud of every edge, counted from 1. `searchsorted` warns if it has to copy
    # offsets that are not contiguous.
    cloud = torch.searchsorted(ptr.contiguous(), edge_index[0], right=True)
    slices = {"edge_index": torch.bincount(cloud, minlength=ptr.size(0)).cumsum(0)}
    # What PyG subtracts from both rows of a cloud's edges.
    first = ptr[:-1]
    if isinstance(data, HeteroData):
        first = torch.stack([ptr[:-1], target_ptr[:-1]], dim=1)[:, :, None]
    record_slices(data, store, slices, {"edge_index": first})
