r"""What a rollout reads from data, checked once."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Optional

from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.data.storage import NodeStorage

from torch_geometric_erwin.data.storage import stored_tree
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.reading import Nodes, store_ptr, tree_prefixes
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_floating,
    check_instance,
    check_mask,
    check_ptr,
    check_rows,
    check_shape,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import segment_ids


class Scene(NamedTuple):
    r"""What stays the same from step to step."""

    x: Optional[Tensor]
    edge_index: Optional[Tensor]
    edge_attr: Optional[Tensor]
    batch: Optional[Tensor]
    ptr: Optional[Tensor]
    tree: Optional[Tree]
    boundary: Optional[Tensor]  # [N, 1], bool


def read_states(data: Nodes, window: int, more: int = 0) -> Tensor:
    r"""Returns the states of data; its masks are checked too.

    Args:
        data: Data, a batch, or one node store of heterogeneous data.
        window: The number of states that must be known.
        more: The least number of states that follow them.

    Shapes:
        - **output:** :math:`(N, W, C)`.

    Raises:
        TypeError: If something has another type.
        ValueError: If states are missing, or masks are of other nodes.
    """
    check_instance("data", data, (Data, NodeStorage), "Data, or a batch of it")
    states = getattr(data, "states", None)
    if states is None:
        raise ValueError("the data has no states: 'data.states' is missing")
    check_tensor("states", states)
    check_floating("states", states)
    if states.dim() != 3 or states.size(1) < window + more:
        raise ValueError(
            f"'states' must have shape [N, W, C] with at least {window + more} states "
            f"W, {window} that are known and {more} after them (got "
            f"{[*states.shape]})"
        )
    _check_number_of_nodes(data, states)
    for name in ("boundary_mask", "node_mask"):
        if (mask := getattr(data, name, None)) is not None:
            check_mask(name, mask, states.size(0))
            check_devices(**{"states": states, name: mask})
    return states


def read_scene(data: Nodes, states: Tensor, pos: Any, model: Module) -> Scene:
    r"""Returns everything but the states.

    The tree is the one that the data carries. Otherwise it is built if the model has a
    :obj:`tree_config`.

    Args:
        data: Data, a batch, or one node store of heterogeneous data.
        states: Its states.
        pos: The positions at the end of the window, or :obj:`None`.
        model: The model.

    Raises:
        TypeError: If something has another type.
        ValueError: If something is of other nodes or on another device.
    """
    if (ptr := store_ptr(data)) is not None:
        check_ptr(ptr, states.size(0), states.device, values=is_readable(ptr))
    batch = getattr(data, "batch", None)
    if batch is None and ptr is not None:
        batch = segment_ids(ptr.diff(), states.size(0))
    own = getattr(data, "pos", None)
    if own is not None:
        # Points that move have the dimension of their states.
        sizes = (states.size(0),) if own is pos else (states.size(0), states.size(2))
        check_shape("pos", own, sizes)
        check_devices(states=states, pos=own)
    x = getattr(data, "x", None)
    if x is not None:
        check_tensor("x", x)
        check_rows("x", x, states.size(0), x.size(-1) if x.dim() > 0 else 0)
        check_devices(states=states, x=x)
    boundary = getattr(data, "boundary_mask", None)
    config, tree = getattr(model, "tree_config", None), None
    if prefixes := tree_prefixes(data):
        if config is not None:
            tree = stored_tree(data, config)
        else:
            tree = Tree.from_data(data, prefix=prefixes[0])
    elif config is not None and pos is not None:
        tree = build_tree(pos, ptr, config)
    return Scene(
        x=x,
        edge_index=getattr(data, "edge_index", None),
        edge_attr=getattr(data, "edge_attr", None),
        batch=batch,
        ptr=ptr,
        tree=tree,
        boundary=None if boundary is None else boundary[:, None],
    )


def free_nodes(data: Nodes) -> Optional[Tensor]:
    r"""Returns the mask of nodes that have a target: real, and not on the boundary.

    It is :obj:`None` if all have one.

    Args:
        data: Data, a batch, or one node store of heterogeneous data.

    Example:
        >>> import torch
        >>> free_nodes(Data(boundary_mask=torch.tensor([True, False])))
        tensor([False,  True])
    """
    boundary = getattr(data, "boundary_mask", None)
    real = getattr(data, "node_mask", None)
    if boundary is None:
        return real
    return ~boundary if real is None else real & ~boundary


def each_data(name: str, source: Any) -> Iterable[Nodes]:
    r"""Iterates over data, or over what contains it.

    Args:
        name: The argument's name, for messages.
        source: Data, or an iterable of it.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(source, (Data, NodeStorage)):
        return [source]
    try:
        return iter(source)
    except (TypeError, NotImplementedError):  # as classes of PyG raise
        raise TypeError(
            f"'{name}' must be data with states, or an iterable of it (got "
            f"'{type(source).__name__}')"
        ) from None


def _check_number_of_nodes(data: Nodes, states: Tensor) -> None:
    # Blames the states if they are of other nodes than everything else.
    counts: dict[str, int] = {}
    for name in ("pos", "x", "batch", "boundary_mask", "node_mask"):
        value = getattr(data, name, None)
        if isinstance(value, Tensor) and value.dim() > 0:
            counts[name] = value.size(0)
    ptr = getattr(data, "ptr", None)
    if isinstance(ptr, Tensor) and ptr.numel() > 0 and is_readable(ptr):
        counts["ptr"] = int(ptr.flatten()[-1])
    if "num_nodes" in data:  # set by the user, not inferred
        counts["num_nodes"] = data["num_nodes"]
    if not counts or states.size(0) in counts.values():
        return
    name, count = next(iter(counts.items()))
    swap = "; swap the first two axes, time is the second"
    raise ValueError(
        f"'states' must have shape [{count}, W, C], nodes first, as many as '{name}' "
        f"has (got {[*states.shape]}{swap if states.size(1) == count else ''})"
    )
