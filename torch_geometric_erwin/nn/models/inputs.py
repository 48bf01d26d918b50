r"""The arguments that a model is called with: tensors, or PyG data that has them."""

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.storage import BaseStorage, NodeStorage

from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.reading import (
    Nodes,
    check_count,
    edge_makers,
    edge_store,
    store_ptr,
    tree_prefixes,
)
from torch_geometric_erwin.tree.tree import check_tree
from torch_geometric_erwin.utils.checks import (
    batch_to_ptr,
    check_devices,
    check_dim,
    check_edge_attr,
    check_edges,
    check_pos,
    check_ptr,
    check_tensor,
    dtype_of_weights,
    is_autocast,
)


class Given(NamedTuple):
    r"""The arguments of a model's forward pass, as they were given.

    Args:
        data: The node features, or data that holds all of the arguments.
        pos: The node positions.
        edge_index: The edges.
        batch: The cloud of every node, if there are no offsets.
        x: The node features, if they are not the first argument.
        ptr: The row offsets of the clouds.
        tree: The tree of the nodes, which has the offsets too.
        edge_attr: The edge features.
    """

    data: Union[Tensor, Nodes, None]
    pos: Optional[Tensor]
    edge_index: Optional[Tensor]
    batch: Optional[Tensor]
    x: Optional[Tensor] = None
    ptr: Optional[Tensor] = None
    tree: Optional[Tree] = None
    edge_attr: Optional[Tensor] = None


class Takes(NamedTuple):
    r"""What a model takes.

    Args:
        in_channels: The number of features of a node.
        dim: The number of coordinates.
        edge_dim: The number of features of an edge.
        needs_edges: Whether it passes messages between nodes.
        way_out: How to do without edges, for a message.
    """

    in_channels: int
    dim: int
    edge_dim: int
    needs_edges: bool
    way_out: str = ""


class Inputs(NamedTuple):
    r"""The checked arguments of a model's forward pass."""

    x: Optional[Tensor]
    pos: Tensor
    edge_index: Optional[Tensor]
    edge_attr: Optional[Tensor]
    ptr: Tensor
    nodes: Optional[Nodes]


def unpack_inputs(given: Given, takes: Takes, first: Module) -> Inputs:
    r"""Returns the tensors in a model's arguments, checked against the model.

    Args:
        given: The arguments.
        takes: What the model takes.
        first: The module that gets the features; they must have its dtype.

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If an argument is missing or does not fit the model.
    """
    given, nodes = _unpack_data(given, takes)
    pos, tree, batch, ptr = given.pos, given.tree, given.batch, given.ptr
    if pos is None:
        raise ValueError(
            "the model needs node positions, of data or beside 'x': 'pos' is missing"
        )
    if tree is not None:
        check_tree("tree", tree)
    if tree is not None and isinstance(pos, Tensor):
        check_devices(pos=pos, tree=tree.node_ptr)
    if ptr is not None and batch is not None:
        raise ValueError("'ptr' and 'batch' say the same: give one of them")
    values = isinstance(pos, Tensor) and pos.device.type == "cpu"
    if isinstance(pos, Tensor):
        check_dim("pos", pos, takes.dim)
    check_pos(pos, values)
    num_nodes = pos.size(0)
    if tree is not None:
        _check_count(tree, num_nodes, values)
        if ptr is None and batch is None:
            ptr = tree.node_ptr
    elif nodes is not None and values:
        for prefix in tree_prefixes(nodes)[:1]:
            check_count(nodes, prefix)  # its message says more than that of offsets
    if ptr is None and batch is not None:
        if not isinstance(batch, Tensor) or batch.dim() != 1:
            batch_to_ptr(batch)  # raises the error
        if batch.size(0) != num_nodes:
            raise ValueError(
                f"'batch' must have {num_nodes} entries (got {batch.size(0)})"
            )
        # Only the tree knows how many clouds there are if the last ones are empty.
        ptr = batch_to_ptr(batch, None if tree is None else tree.level.size(0))
    ptr = check_ptr(ptr, num_nodes, pos.device, values)
    x, edge_index, edge_attr = given.x, given.edge_index, given.edge_attr
    for name, tensor in (("x", x), ("edge_index", edge_index)):
        if isinstance(tensor, Tensor):
            check_tensor(name, tensor)
            check_devices(pos=pos, **{name: tensor})
    _check_features(x, num_nodes, takes.in_channels)
    if x is not None:
        _check_dtype("x", x, first)
    if edge_index is not None:
        check_edges("edge_index", edge_index, num_nodes)
    elif takes.needs_edges:
        _refuse_no_edges(nodes, takes)
    edge_attr = _checked_edge_attr(edge_index, edge_attr, takes)
    if edge_attr is not None:
        check_devices(pos=pos, edge_attr=edge_attr)
        _check_dtype("edge_attr", edge_attr, first)
    return Inputs(x, pos, edge_index, edge_attr, ptr, nodes)


def _unpack_data(given: Given, takes: Takes) -> tuple[Given, Optional[Nodes]]:
    # Returns the arguments with those of data, where they are not given beside it.
    data, x = given.data, given.x
    if isinstance(data, HeteroData):
        raise TypeError(
            "a model takes one type of nodes, 'data' must not have several: pass a "
            "node store, 'data[node_type]', and its 'edge_index'"
        )
    if not isinstance(data, (Data, NodeStorage)):
        if data is not None and x is not None:
            raise ValueError("'x' is given twice, as the first argument and by name")
        if given.pos is None and not isinstance(data, (Tensor, type(None))):
            raise TypeError(
                "'data' must be Data, a batch of it or a node store, or the features "
                f"'x' as a tensor beside 'pos' (got '{type(data).__name__}')"
            )
        return given._replace(data=None, x=data if x is None else x), None
    pos, own_pos = given.pos, getattr(data, "pos", None)
    if pos is None:
        pos = own_pos
    elif isinstance(pos, Tensor) and isinstance(own_pos, Tensor):
        _check_same_nodes(pos, own_pos)
    edge_index, edge_attr = given.edge_index, given.edge_attr
    if edge_index is None:
        edges = _own_edges(data)
        edge_index = getattr(edges, "edge_index", None)
        if edge_attr is None and takes.edge_dim > 0:
            edge_attr = getattr(edges, "edge_attr", None)
    ptr = given.ptr
    if ptr is None and given.batch is None:
        ptr = store_ptr(data)
    given = given._replace(
        x=getattr(data, "x", None) if x is None else x,
        pos=pos,
        edge_index=edge_index,
        edge_attr=edge_attr,
        ptr=ptr,
    )
    # Without positions of its own, data has no tree.
    return given, data if own_pos is not None else None


def _own_edges(data: Nodes) -> Union[Data, BaseStorage, None]:
    # The edges of a node store are in another store, which its tree names. Compiled
    # code does not read texts, of which a batch has one for every cloud.
    return data if torch.compiler.is_compiling() else edge_store(data)


def _check_same_nodes(pos: Tensor, own_pos: Tensor) -> None:
    if pos.shape[:1] != own_pos.shape[:1]:
        raise ValueError(
            f"'pos' must have a row for each of the data's {own_pos.size(0)} nodes "
            f"(got {[*pos.shape]})"
        )


def _check_count(tree: Tree, num_nodes: int, values: bool) -> None:
    # How many nodes a tree has that repeats points is a value.
    if tree.mask is not None and (not values or torch.compiler.is_compiling()):
        return
    if tree.num_nodes != num_nodes:
        raise ValueError(
            f"the tree does not fit its data: 'tree' is of {tree.num_nodes} nodes, "
            f"'pos' has {num_nodes}; build it again, by 'ball_tree'"
        )


def _check_features(x: Optional[Tensor], num_nodes: int, in_channels: int) -> None:
    if x is None:
        if in_channels > 0:
            raise ValueError(f"'x' is missing, the model takes {in_channels} features")
    elif not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else f"'{type(x).__name__}'"
        raise TypeError(f"'x' must be a floating-point tensor (got {kind})")
    elif in_channels == 0:
        raise ValueError(
            f"the model takes no features, 'in_channels=0' (got 'x' of {[*x.shape]})"
        )
    elif x.dim() != 2 or x.size(0) != num_nodes or x.size(1) != in_channels:
        raise ValueError(
            f"'x' must have shape [{num_nodes}, {in_channels}] (got {[*x.shape]})"
        )


def _check_dtype(name: str, x: Tensor, first: Module) -> None:
    if is_autocast(x.device):
        return
    dtype = dtype_of_weights(first, x.dtype)
    if x.dtype != dtype:
        raise TypeError(
            f"'{name}' is {x.dtype}, the model's weights are {dtype}: convert one of "
            f"them, such as '{name}.to({dtype})'"
        )


def _refuse_no_edges(nodes: Optional[Nodes], takes: Takes) -> None:
    if getattr(nodes, "adj_t", None) is not None:
        raise ValueError(
            "'edge_index' is missing, the data has 'adj_t' instead: leave out the "
            "transform 'ToSparseTensor', or pass "
            "'edge_index=to_edge_index(data.adj_t)[0].flip(0)'"
        )
    raise ValueError(
        "'edge_index' is missing, the model passes messages; apply the transform "
        f"{edge_makers(nodes)}{takes.way_out}"
    )


def _checked_edge_attr(
    edge_index: Optional[Tensor], edge_attr: Optional[Tensor], takes: Takes
) -> Optional[Tensor]:
    if edge_attr is not None and takes.edge_dim == 0:
        raise ValueError(
            "the model takes no edge features, 'edge_dim=0': 'edge_attr' must be None"
        )
    if edge_index is None:
        if edge_attr is not None:
            raise ValueError("'edge_index' is missing beside 'edge_attr'")
        return None
    if takes.edge_dim == 0:
        return None
    if edge_attr is None:
        raise ValueError(
            f"'edge_attr' is missing, the model takes {takes.edge_dim} edge features"
        )
    return check_edge_attr("edge_attr", edge_attr, edge_index.size(1), takes.edge_dim)
