r"""Transforms that attach a graph by exact neighbour search."""

from typing import Optional, Union

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import to_undirected

from torch_geometric_erwin.data.storage import is_collated, record_slices
from torch_geometric_erwin.neighbors import FLOWS, knn_graph, radius_graph
from torch_geometric_erwin.tree.reading import store_ptr
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_flag,
    check_int,
    check_radius,
)


@functional_transform("tree_knn_graph")
class TreeKNNGraph(BaseTransform):
    r"""Creates the k-NN graph of the node positions :obj:`data.pos` by
    :func:`~torch_geometric_erwin.neighbors.knn_graph` (functional name:
    :obj:`tree_knn_graph`).

    It sets :obj:`data.edge_index` and removes :obj:`data.edge_attr`, as
    :class:`torch_geometric.transforms.KNNGraph` does, without its optional
    dependencies. It works on :class:`~torch_geometric.data.Data` and on batches of it,
    whose clouds stay apart.

    Args:
        k: The number of neighbours.
        loop: Whether a node is its own neighbour.
        force_undirected: Whether every edge gets its reverse; edges are then sorted by
            the first row of :obj:`edge_index`.
        flow: :obj:`"source_to_target"`, where every target has :obj:`k` sources, or
            :obj:`"target_to_source"`.

    Raises:
        TypeError: If an argument has another type, or the data is not homogeneous.
        ValueError: If an argument is out of range, there are no positions, or one is
            not finite.

    Example:
        >>> data = TreeKNNGraph(k=1)(Data(pos=torch.tensor([[0.0], [1.0], [3.0]])))
        >>> data.edge_index
        tensor([[1, 0, 1],
                [0, 1, 2]])
    """

    def __init__(
        self,
        k: int = 6,
        loop: bool = False,
        force_undirected: bool = False,
        flow: str = "source_to_target",
    ) -> None:
        check_choice("flow", flow, FLOWS)
        self.k = check_int("k", k, 1, maximum=2**63 - 1)
        self.loop = check_flag("loop", loop)
        self.force_undirected = check_flag("force_undirected", force_undirected)
        self.flow = flow

    def forward(self, data: Union[Data, Batch]) -> Union[Data, Batch]:
        r"""Attaches the graph to a shallow copy of the data."""
        pos, ptr = _cloud(data, self)
        edge_index = knn_graph(pos, self.k, ptr=ptr, loop=self.loop, flow=self.flow)
        if self.force_undirected:
            edge_index = to_undirected(edge_index, num_nodes=pos.size(0))
        return _attach(data, edge_index, ptr)

    def __repr__(self) -> str:
        # With all arguments: PyG compares texts to see if a `pre_transform` changed.
        return (
            f"{self.__class__.__name__}(k={self.k}, loop={self.loop}, "
            f"force_undirected={self.force_undirected}, flow='{self.flow}')"
        )


@functional_transform("tree_radius_graph")
class TreeRadiusGraph(BaseTransform):
    r"""Creates the graph of all nodes within a distance, from the node positions
    :obj:`data.pos`, by :func:`~torch_geometric_erwin.neighbors.radius_graph`
    (functional name: :obj:`tree_radius_graph`).

    It sets :obj:`data.edge_index` and removes :obj:`data.edge_attr`, as
    :class:`torch_geometric.transforms.RadiusGraph` does, without its optional
    dependencies and without a limit on the neighbours unless one is given. It works on
    :class:`~torch_geometric.data.Data` and on batches of it, whose clouds stay apart.

    Args:
        r: The distance, in the unit of the positions.
        loop: Whether a node is its own neighbour.
        max_num_neighbors: Keeps this many of a node's neighbours, the nearest ones.
            (default: all)
        flow: :obj:`"source_to_target"` or :obj:`"target_to_source"`.

    Raises:
        TypeError: If an argument has another type, or the data is not homogeneous.
        ValueError: If an argument is out of range, there are no positions, or one is
            not finite.

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
    ) -> None:
        check_choice("flow", flow, FLOWS)
        if max_num_neighbors is not None:
            max_num_neighbors = check_int(
                "max_num_neighbors", max_num_neighbors, 1, maximum=2**63 - 1
            )
        self.r = check_radius(r)
        self.loop = check_flag("loop", loop)
        self.max_num_neighbors = max_num_neighbors
        self.flow = flow

    def forward(self, data: Union[Data, Batch]) -> Union[Data, Batch]:
        r"""Attaches the graph to a shallow copy of the data."""
        pos, ptr = _cloud(data, self)
        edge_index = radius_graph(
            pos,
            self.r,
            ptr=ptr,
            loop=self.loop,
            max_num_neighbors=self.max_num_neighbors,
            flow=self.flow,
        )
        return _attach(data, edge_index, ptr)

    def __repr__(self) -> str:
        # With all arguments: PyG compares texts to see if a `pre_transform` changed.
        return (
            f"{self.__class__.__name__}(r={self.r}, loop={self.loop}, "
            f"max_num_neighbors={self.max_num_neighbors}, flow='{self.flow}')"
        )


def _cloud(
    data: Union[Data, Batch], transform: BaseTransform
) -> tuple[Tensor, Optional[Tensor]]:
    name = transform.__class__.__name__
    if not isinstance(data, Data):
        raise TypeError(
            f"'{name}' works on Data and batches of Data, 'data' must be one (got "
            f"'{type(data).__name__}'); for heterogeneous data call the function on "
            "the positions of a node type"
        )
    if data.pos is None:
        raise ValueError(f"'{name}' needs node positions: 'data.pos' is missing")
    return data.pos, store_ptr(data)


def _attach(
    data: Union[Data, Batch], edge_index: Tensor, ptr: Optional[Tensor]
) -> Union[Data, Batch]:
    data.edge_index, data.edge_attr = edge_index, None
    if ptr is not None and is_collated(data):
        # The cloud of every edge, counted from 1. `searchsorted` warns if it has to
        # copy offsets that are not contiguous.
        cloud = torch.searchsorted(ptr.contiguous(), edge_index[0], right=True)
        slices = {"edge_index": torch.bincount(cloud, minlength=ptr.size(0)).cumsum(0)}
        record_slices(data, data.stores[0], slices, {"edge_index": ptr[:-1]})
    return data
