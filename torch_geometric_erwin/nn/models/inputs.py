r"""The arguments that a model is called with: tensors, or PyG data that has them."""

from typing import NamedTuple, Optional, Union

from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.storage import NodeStorage

from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.reading import Nodes, check_count, store_ptr
from torch_geometric_erwin.tree.tree import check_tree
from torch_geometric_erwin.utils.checks import (
    batch_to_ptr,
    check_devices,
    check_edges,
    check_pos,
    check_ptr,
    check_tensor,
    is_autocast,
)


class Inputs(NamedTuple):
    r"""The checked arguments of a model's forward pass."""

    x: Optional[Tensor]
    pos: Tensor
    edge_index: Optional[Tensor]
    ptr: Tensor
    nodes: Optional[Nodes]


def unpack_inputs(
    x: Union[Tensor, Nodes, None],
    pos: Optional[Tensor],
    edge_index: Optional[Tensor],
    ptr: Optional[Tensor],
    batch: Optional[Tensor],
    tree: Optional[Tree] = None,
    *,
    in_channels: int,
    dim: int,
    needs_edges: bool,
    first: Module,
) -> Inputs:
    r"""Returns the tensors in a model's arguments, checked against the model.

    Args:
        x: The node features, or data that holds all of the arguments.
        pos: The node positions.
        edge_index: The edges.
        ptr: The row offsets of the clouds.
        batch: The cloud of every node, if there are no offsets.
        tree: The tree of the nodes, which has the offsets too.
        in_channels: The number of features that the model takes.
        dim: The number of coordinates that the model takes.
        needs_edges: Whether the model passes messages.
        first: The module that gets the features; they must have its dtype.

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If an argument is missing or does not fit the model.
    """
    nodes = None
    if isinstance(x, HeteroData):
        raise TypeError(
            "a model takes one type of nodes, 'x' must not have several: pass a node "
            "store, 'data[node_type]', and its 'edge_index'"
        )
    if isinstance(x, (Data, NodeStorage)):
        nodes = x
        x, own_edges = getattr(nodes, "x", None), getattr(nodes, "edge_index", None)
        if pos is not None or (edge_index is not None and own_edges is not None):
            raise ValueError(
                "data was given, so 'pos' and 'edge_index' are its own: 'x' must be a "
                "tensor beside them"
            )
        pos = getattr(nodes, "pos", None)
        # A node store of heterogeneous data has no edges of its own.
        edge_index = own_edges if edge_index is None else edge_index
        ptr = store_ptr(nodes) if ptr is None and batch is None else ptr
    elif pos is None and not isinstance(x, (Tensor, type(None))):
        raise TypeError(
            "'x' must be a tensor beside 'pos', or Data, a batch of it or a node store "
            f"(got '{type(x).__name__}')"
        )
    if pos is None:
        raise ValueError(
            "the model needs node positions, of data or beside 'x': 'pos' is missing"
        )
    if tree is not None:
        check_tree("tree", tree)
    if tree is not None and isinstance(pos, Tensor):
        check_devices(pos=pos, tree=tree.node_ptr)
    if tree is not None and ptr is None and batch is None:
        ptr = tree.node_ptr
    if ptr is not None and batch is not None:
        raise ValueError("'ptr' and 'batch' say the same: give one of them")
    values = isinstance(pos, Tensor) and pos.device.type == "cpu"
    check_pos(pos, values)
    if nodes is not None and values and tree is None:
        check_count(nodes)  # before the offsets, because its message says more
    if pos.size(1) != dim:
        raise ValueError(f"'pos' must have {dim} coordinates (got {pos.size(1)})")
    if ptr is None and batch is not None:
        if not isinstance(batch, Tensor) or batch.dim() != 1:
            batch_to_ptr(batch)  # raises the error
        if batch.size(0) != pos.size(0):
            raise ValueError(
                f"'batch' must have {pos.size(0)} entries (got {batch.size(0)})"
            )
        ptr = batch_to_ptr(batch)
    ptr = check_ptr(ptr, pos.size(0), pos.device, values)
    for name, tensor in (("x", x), ("edge_index", edge_index)):
        if isinstance(tensor, Tensor):
            check_tensor(name, tensor)
            check_devices(pos=pos, **{name: tensor})
    _check_features(x, pos.size(0), in_channels)
    if x is not None:
        _check_dtype(x, first)
    _check_edges(edge_index, pos.size(0), needs_edges)
    return Inputs(x, pos, edge_index, ptr, nodes)


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


def _check_dtype(x: Tensor, first: Module) -> None:
    if is_autocast(x.device):
        return
    floats = (p.dtype for p in first.parameters() if p.is_floating_point())
    dtype = next(floats, x.dtype)
    if x.dtype != dtype:
        raise TypeError(
            f"'x' is {x.dtype}, the model's weights are {dtype}: convert one of them, "
            f"such as 'x.to({dtype})'"
        )


def _check_edges(edge_index: Optional[Tensor], num_nodes: int, needed: bool) -> None:
    if edge_index is None:
        if needed:
            raise ValueError(
                "'edge_index' is missing, the model passes messages; apply the "
                "transform 'TreeKNNGraph' or 'TreeRadiusGraph', or set 'mp_steps=0'"
            )
        return
    check_edges("edge_index", edge_index, num_nodes)
