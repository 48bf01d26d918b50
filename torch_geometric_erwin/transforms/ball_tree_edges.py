r"""Which edges of data the transform :class:`BallTree` makes edges of coarse levels
from.
"""

from typing import NamedTuple, Optional, Union

import numpy as np
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.storage import BaseStorage, NodeStorage
from torch_geometric.typing import EdgeType

from torch_geometric_erwin.tree.reading import edge_makers
from torch_geometric_erwin.utils.checks import check_edge_type


class NodeEdges(NamedTuple):
    r"""The edges between the nodes of one store, and their type in heterogeneous data.

    Shapes:
        - **edge_index:** :math:`(2, E)`; **edge_attr:** :math:`(E, F)`.
    """

    edge_index: Tensor
    edge_attr: Optional[Tensor]
    edge_type: Optional[EdgeType] = None


def check_which_edges(edges: Union[bool, EdgeType]) -> Union[bool, EdgeType]:
    r"""Checks the argument :obj:`edges` of :class:`BallTree` and returns it.

    Args:
        edges: Whether there are edges, or their type.

    Raises:
        TypeError: If it is neither a bool nor a type of edges.
        ValueError: If edges of the type connect two types of nodes.

    Example:
        >>> check_which_edges(["atom", "bond", "atom"])
        ('atom', 'bond', 'atom')
    """
    if not isinstance(edges, (tuple, list)):
        if not isinstance(edges, (bool, np.bool_)):
            raise TypeError(
                "'edges' must be a bool, or a type of edges such as ('atom', 'bond', "
                f"'atom') (got {edges!r})"
            )
        return bool(edges)
    edge_type = check_edge_type("edges", edges)
    if edge_type[0] != edge_type[2]:
        raise ValueError(f"'edges' must connect nodes of one type (got {edge_type})")
    return edge_type


def edges_of_store(
    data: Union[Data, HeteroData], store: NodeStorage, edges: Union[bool, EdgeType]
) -> Optional[NodeEdges]:
    r"""Returns the edges between the nodes of a store that the argument :obj:`edges`
    stands for, or :obj:`None` if it stands for those of another store.

    Args:
        data: The data or batch that owns the store.
        store: The store.
        edges: What :func:`check_which_edges` returned, not :obj:`False`.

    Raises:
        TypeError: If a type of edges is given for data that has none.
        ValueError: If there are no such edges, or edges of several types.

    Example:
        >>> import torch
        >>> data = Data(edge_index=torch.tensor([[0], [1]]))
        >>> edges_of_store(data, data.stores[0], edges=True).edge_index.tolist()
        [[0], [1]]
    """
    if isinstance(data, HeteroData):
        edge_type = _edge_type(data, str(store._key), edges)
        return None if edge_type is None else _edges(data[edge_type], edge_type)
    if not isinstance(edges, bool):
        raise TypeError(
            f"'edges={edges}' names a type of edges of HeteroData, 'data' must be such "
            f"(got '{type(data).__name__}'): use 'edges=True'"
        )
    return _edges(store, None)


def _edge_type(
    data: HeteroData, kind: str, edges: Union[bool, EdgeType]
) -> Optional[EdgeType]:
    if not isinstance(edges, bool):
        if edges not in data.edge_types:
            raise ValueError(
                f"'edges' must be one of the types of edges of 'data', which are "
                f"{data.edge_types} (got {edges})"
            )
        if data[edges[0]].get("pos") is None:
            raise ValueError(
                f"'edges={edges}' needs a tree of '{edges[0]}', whose positions are "
                "missing in 'data'"
            )
        return edges if edges[0] == kind else None
    own = [t for t in data.edge_types if t[0] == t[2] == kind]
    if len(own) == 1:
        return own[0]
    if not own:
        raise ValueError(
            f"'edges=True' needs edges between nodes of type '{kind}', 'data' has only "
            f"{data.edge_types}: make some by the transform 'TreeKNNGraph' or "
            "'TreeRadiusGraph', or name the edges of other nodes, for these alone, "
            "such as 'edges=('atom', 'bond', 'atom')'"
        )
    raise ValueError(
        f"'edges=True' needs one type of edges between nodes of type '{kind}' (got "
        f"{own}): name it, as 'edges={own[0]}'"
    )


def _edges(store: BaseStorage, edge_type: Optional[EdgeType]) -> NodeEdges:
    edge_index, attr = store.get("edge_index"), store.get("edge_attr")
    if edge_index is None:
        where = "data" if edge_type is None else f"data[{edge_type}]"
        raise ValueError(
            f"'edges=True' needs edges: '{where}.edge_index' is missing; apply the "
            f"transform {edge_makers(store)} before 'BallTree'"
        )
    has_means = isinstance(attr, Tensor) and attr.is_floating_point()
    return NodeEdges(edge_index, attr if has_means else None, edge_type)
