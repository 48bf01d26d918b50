r"""Checks that a tree fits its nodes, and finds out what is wrong if it does not."""

from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.order import wrong_order
from torch_geometric_erwin.tree.partition import (
    Partition,
    difference,
    has_other_lengths,
)
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edges,
    check_flag,
    check_floating,
    check_instance,
    check_int,
    check_ptr,
    check_tensor,
    is_batched,
    unwrapped,
)

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree

# What to do about a tree that does not fit its nodes, one for each cause.
_AGAIN = "apply 'BallTree' again, as the last transform"
#: There are more or fewer nodes.
OTHER_NODES = f"nodes were added or removed after it was built, so {_AGAIN}"
#: The number of nodes is right, but not all are the same ones in the same places.
OTHER_ORDER = f"nodes were reordered or replaced after it was built, so {_AGAIN}"
#: A table of the tree was changed.
CHANGED = f"its tables were changed after it was built, so {_AGAIN}, or 'ball_tree'"
#: The edges are not those that the edges of coarse levels stand for.
OTHER_EDGES = (
    "edges were changed after it got the edges of coarse levels: apply "
    "'BallTree(..., edges=True)' after all transforms that make or change them, or "
    "call 'tree.with_edges(edge_index, edge_attr)'"
)
#: A transform cut a table, because its length is the number of nodes or edges.
CUT = (
    "a transform took it for an attribute of nodes or edges, as its length is their "
    f"number, so {_AGAIN}"
)
_PLACES = "move the data with its tree, such as by 'data.to(device)'; or build it there"


def check_fits(
    tree: "Tree",
    num_nodes: int,
    config: TreeConfig,
    ptr: Optional[Tensor] = None,
    values: bool = True,
) -> None:
    r"""Checks that a tree fits a batch; see :meth:`Tree.validate`.

    Args:
        tree: The tree.
        num_nodes: The number of nodes :math:`N` of the batch.
        config: The configuration that is needed.
        ptr: The row offsets of the clouds, to compare them with those of the tree.
        values: Whether to check values too; if they are on a GPU, this waits for it.

    Raises:
        TypeError: If the offsets are not int64.
        ValueError: If the tree was built for other nodes or another configuration.
    """
    check_instance("config", config, TreeConfig)
    check_instance("config", tree.config, TreeConfig)
    if not torch.compiler.is_compiling():
        values = check_flag("values", values)
        num_nodes = check_int("num_nodes", num_nodes, 0)
    if tree.config.text != config.text:
        raise ValueError(
            f"the tree was built for '{tree.config.text}', needed is "
            f"'{config.text}'; apply 'model.tree_transform()' to the data"
        )
    device = None
    if ptr is not None:
        check_tensor("ptr", ptr)
        device = check_ptr(ptr, num_nodes, ptr.device, values=False).device
        if isinstance(tree.node_ptr, Tensor):
            check_devices(tree=tree.node_ptr, ptr=ptr)
    wrong = _problem(tree, num_nodes, device, values)
    if wrong:
        raise ValueError(f"the tree does not fit its data: {wrong}")
    if ptr is None:
        return
    message = "'batch' or 'ptr' must be of the clouds that the tree was built for"
    if ptr.shape != tree.node_ptr.shape:
        clouds = tree.level.size(0)
        raise ValueError(f"{message}: {clouds} (got {ptr.size(0) - 1})")
    if values:
        if not torch.equal(ptr, tree.node_ptr):
            own = tree.node_ptr.tolist()
            raise ValueError(f"{message}: offsets {own} (got {ptr.tolist()})")
    else:  # the device raises the error, so that the host need not wait
        torch._assert_async((ptr == tree.node_ptr).all(), message)


def _problem(
    tree: "Tree", num_nodes: int, device: Optional[torch.device], values: bool
) -> str:
    # Says why a tree does not fit nodes, on the device of the tree if none is given;
    # empty if it fits.
    for check in (_wrong_places, _malformed, _wrong_edges):
        wrong = check(tree, num_nodes, device)
        if wrong:
            return wrong
    if not values:
        return ""
    # NumPy reads tensors on the host only, and not those with a lazy negation.
    host = pytree.tree_map_only(Tensor, lambda t: t.cpu().resolve_neg(), tree)
    if not torch._C._are_functorch_transforms_active():
        return _wrong_values(host, num_nodes)
    if any(map(is_batched, host.tensors())):
        return ""  # `torch.vmap` built it, so its values differ from sample to sample
    with torch._C._DisableFuncTorch():
        return _wrong_values(pytree.tree_map_only(Tensor, unwrapped, host), num_nodes)


def _wrong_places(tree: "Tree", num_nodes: int, device: Optional[torch.device]) -> str:
    # Checks the classes, dtypes and devices of all tables.
    config = tree.config
    check_instance("config", config, TreeConfig)
    levels, perfect = config.num_levels, config.layout == "perfect"
    ints, flags = torch.int64, torch.bool
    if tree.mask is not None and not perfect:
        return f"'mask' is given, expected None with layout='balanced'; {CHANGED}"
    check_instance("runs", tree.runs, tuple)
    for lengths in tree.runs:
        check_instance("runs", lengths, tuple)
    for name in ("edges", "edge_means"):
        check_instance(name, getattr(tree, name), tuple)
    runs = tuple(t for lengths in tree.runs for t in lengths)
    coarse, code = levels - 1 if tree.edges else 0, tree.edge_code
    for name, tables, dtype, dim, count in (
        ("perm", (tree.perm,), ints, 1, 1),
        ("node_ptr", (tree.node_ptr,), ints, 1, 1),
        ("level", (tree.level,), ints, 2, 1),
        ("ball_len", tree.ball_len, ints, 1, levels),
        ("group_len", tree.group_len, ints, 1, levels - 1),
        ("perm_rot", tree.perm_rot, ints, 1, levels if config.rotate else 0),
        ("mask", (tree.mask,) if perfect else (), flags, 1, int(perfect)),
        ("real", () if tree.real is None else (tree.real,), flags, 1, None),
        ("runs", runs, ints, 1, sum(map(len, config.runs))),
        ("edges", tree.edges, ints, 2, coarse),
        ("edge_means", tree.edge_means, None, 2, coarse if tree.edge_means else 0),
        ("edge_code", () if code is None else (code,), ints, 2, None),
    ):
        if not isinstance(tables, tuple):
            return f"'{name}' is a '{type(tables).__name__}', expected a tuple"
        if count is not None and len(tables) != count:
            return f"'{name}' has {len(tables)} tables, expected {count}; {CHANGED}"
        for table in tables:
            if not isinstance(table, Tensor):
                return f"'{name}' is a '{type(table).__name__}', expected a tensor"
            check_tensor(name, table)
            if is_traceable_wrapper_subclass(table):
                return f"'{name}' is a '{type(table).__name__}', not a plain tensor"
            if dtype is None:
                check_floating(name, table)
            if table.dtype != (dtype or table.dtype) or table.dim() != dim:
                return (
                    f"'{name}' is {table.dtype} with {table.dim()} dimensions, "
                    f"expected {dtype} with {dim}; {CHANGED}"
                )
            device = table.device if device is None else device
            if table.device != device:
                return (
                    f"'{name}' is on {table.device}, the nodes on {device}; {_PLACES}"
                )
    return ""


def _malformed(tree: "Tree", num_nodes: int, device: Optional[torch.device]) -> str:
    # Checks the shapes of all tables.
    shape = [tree.node_ptr.size(0) - 1, tree.config.num_levels]
    if [*tree.level.shape] != shape:
        return (
            f"'level' has shape {[*tree.level.shape]}, expected {shape} for the "
            f"clouds of 'node_ptr'; {CHANGED}"
        )
    if tree.real is not None and tree.real.shape != tree.level.shape[:1]:
        return f"'real' has shape {[*tree.real.shape]}, expected {shape[:1]}; {CHANGED}"
    if tree.mask is None and tree.perm.size(0) != num_nodes:
        return (
            f"'perm' has {tree.perm.size(0)} entries for {num_nodes} nodes; "
            f"{OTHER_NODES}"
        )
    if torch.compiler.is_compiling():  # the traced graph must not depend on sizes
        return ""
    if tree.mask is not None and tree.mask.shape != tree.perm.shape:
        sizes = f"'mask' has {tree.mask.size(0)} entries for {tree.num_rows(0)} rows"
        return f"{sizes}; {CHANGED}"
    for l, perm in enumerate(tree.perm_rot):
        if perm.size(0) != tree.num_rows(l):
            return (
                f"'perm_rot_{l}' has {perm.size(0)} entries for {tree.num_rows(l)} "
                f"rows of 'perm' and 'group_len'; {CUT}"
            )
    return ""


def _wrong_edges(tree: "Tree", num_nodes: int, device: Optional[torch.device]) -> str:
    # Checks the shapes of edges, and on the host that their rows are there.
    code, clouds = tree.edge_code, tree.level.size(0)
    if code is not None and not torch.compiler.is_compiling():
        shape = [*code.shape]
        if shape != [clouds, 2]:
            return f"'edge_code' has shape {shape}, expected {[clouds, 2]}; {CHANGED}"
    for l, edges in enumerate(tree.edges, 1):
        if edges.size(0) != 2:
            return f"'edges' has shape {[*edges.shape]}, expected [2, E]; {CHANGED}"
        try:
            check_edges(f"edges[{l - 1}]", edges, tree.num_rows(l))
        except ValueError as error:
            return f"{error}; {CHANGED}"
    for edges, means in zip(tree.edges, tree.edge_means):
        if means.size(0) != edges.size(1):
            return (
                f"'edge_means' has {means.size(0)} rows for {edges.size(1)} edges; "
                f"{CUT}"
            )
    return ""


def _wrong_values(tree: "Tree", num_nodes: int) -> str:
    ptr = tree.node_ptr
    try:
        check_ptr(ptr, num_nodes, ptr.device, name="node_ptr")
        right = Partition.of(*_own_clouds(tree, num_nodes), tree.config)
    except ValueError as error:
        return f"{error}; {CHANGED}"
    if tree.real is not None:  # padded like the tree
        points = int(ptr[int(tree.real.sum())])
        right = right.padded(tree.config, points, num_nodes, tree.level.size(0))
        if not torch.equal(ptr.diff(), right.level[:, 0]):
            return f"the clouds that were added are not those of 'pad'; {CHANGED}"
    tables = tree.partition()
    wrong = difference(tables, right)
    if wrong:
        return f"{wrong}; {CUT if has_other_lengths(tables, right) else CHANGED}"
    wrong = wrong_order(tree.perm, tree.perm_rot, tree.mask, tree.level, ptr)
    return f"{wrong}; {CHANGED}" if wrong else ""


def _own_clouds(tree: "Tree", num_nodes: int) -> tuple[Tensor, int]:
    # Returns the offsets of the clouds that 'pad' did not add, and their nodes' number.
    if tree.real is None:
        return tree.node_ptr.contiguous(), num_nodes
    clouds = int(tree.real.sum())
    if not bool(tree.real[:clouds].all()):
        raise ValueError("'real' does not name the first clouds")
    own = tree.node_ptr[: clouds + 1].contiguous()
    return own, int(own[-1])
