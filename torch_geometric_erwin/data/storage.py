r"""Writing trees into PyG data as attributes, and reading them.

The attributes are such that PyG can collate and separate data that has a tree.
"""

import re
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import NodeStorage

from torch_geometric_erwin.tree import Tree, TreeConfig
from torch_geometric_erwin.tree.order import wrong_order
from torch_geometric_erwin.tree.partition import group_lengths
from torch_geometric_erwin.tree.validation import (
    CHANGED,
    CUT,
    OTHER_NODES,
    OTHER_ORDER,
)
from torch_geometric_erwin.utils.checks import (
    batch_to_ptr,
    check_devices,
    check_instance,
    check_ptr,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import segment_ids

Nodes = Union[Data, NodeStorage]


def store_ptr(nodes: Nodes) -> Optional[Tensor]:
    r"""Returns the row offsets of the clouds, from :obj:`ptr` or a sorted :obj:`batch`.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
    """
    ptr, batch = getattr(nodes, "ptr", None), getattr(nodes, "batch", None)
    if ptr is not None:
        check_tensor("ptr", ptr)
        return ptr
    return None if batch is None else batch_to_ptr(batch)


def global_perm(nodes: Nodes) -> Tensor:
    r"""Returns the node of every row in tree order, counted in the batch.

    Use it to index a batch. :obj:`batch.perm` counts nodes in their own cloud.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data, with a tree.

    Shapes:
        - **output:** :math:`(N_0)`, rows of :obj:`nodes.pos`.

    Raises:
        ValueError: If there is no tree, or it was built for other nodes.

    Example:
        >>> from torch_geometric.data import Batch, Data
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> clouds = [Data(pos=torch.tensor([[1.0], [0.0]])) for _ in range(2)]
        >>> batch = BallTree(ball_sizes=2)(Batch.from_data_list(clouds))
        >>> batch.perm.tolist(), global_perm(batch).tolist()
        ([1, 0, 1, 0], [1, 0, 3, 2])
    """
    check_nodes("nodes", nodes)
    if getattr(nodes, "tree_node", None) is None:
        raise ValueError("the data has no tree; apply the transform 'BallTree' first")
    ptr = store_ptr(nodes)
    _check_nodes(nodes, ptr)
    perm, level = _table(nodes, "perm"), _table(nodes, "level", dim=2)
    if is_readable(perm):
        _check_order(nodes, perm, level, ptr)
    if ptr is None:
        return perm
    return perm + ptr[segment_ids(level[:, 0], perm.size(0))]


def check_nodes(name: str, nodes: Nodes) -> None:
    r"""Checks that an argument is data of one kind of nodes, with positions.

    Args:
        name: The argument's name, for messages.
        nodes: The argument.

    Raises:
        TypeError: If it is something else, or the positions are not a tensor.
        ValueError: If there are no positions.

    Example:
        >>> check_nodes("data", Data())
        Traceback (most recent call last):
        ValueError: the data has no node positions: 'data.pos' is missing
    """
    if isinstance(nodes, HeteroData):
        raise TypeError(
            f"'{name}' must be Data, a batch of it, or one node store of heterogeneous "
            "data, such as 'data[node_type]' (got 'HeteroData')"
        )
    check_instance(name, nodes, (Data, NodeStorage), "Data, or a batch of it")
    pos = getattr(nodes, "pos", None)
    if pos is None:
        raise ValueError("the data has no node positions: 'data.pos' is missing")
    check_tensor("pos", pos)
    if pos.dim() == 0:
        raise ValueError("'pos' must have shape [N, D] (got [])")


def _table(nodes: Nodes, name: str, dim: int = 1) -> Tensor:
    # Returns an attribute of the tree. Its length is not checked yet.
    value = getattr(nodes, name, None)
    if value is None:
        raise ValueError(
            f"the tree has no '{name}', which must be kept with its other attributes; "
            "apply 'BallTree' again, as the last transform"
        )
    check_tensor(name, value)
    wanted = (torch.bool,) if name == "perm_mask" else (torch.int32, torch.int64)
    if value.dtype not in wanted or value.dim() != dim:
        raise ValueError(
            f"the tree does not fit its data: '{name}' is {value.dtype} with "
            f"{value.dim()} dimensions, expected {wanted[0]} with {dim}; {CHANGED}"
        )
    check_devices(**{"pos": nodes.pos, name: value})
    return value if name == "perm_mask" else value.long()


def _check_order(
    nodes: Nodes, perm: Tensor, level: Tensor, ptr: Optional[Tensor]
) -> None:
    # Checks the order of rows alone; the other tables of the tree are not needed.
    rows, wrong = level[:, 0], ""
    mask = getattr(nodes, "perm_mask", None)
    clouds = pad(_num_nodes(nodes, ptr), (1, 0)).cumsum(0)
    if rows.size(0) != clouds.size(0) - 1:
        wrong = f"'level' has {rows.size(0)} rows for {clouds.size(0) - 1} clouds"
    elif int(rows.sum()) != perm.size(0) or bool((rows < 0).any()):
        wrong = f"'level' has {int(rows.sum())} rows, 'perm' has {perm.size(0)}"
    else:
        perm, level = perm.resolve_neg(), level.resolve_neg()
        mask = None if mask is None else _table(nodes, "perm_mask")
        wrong = wrong_order(perm, (), mask, level, clouds)
    if wrong:
        raise ValueError(f"the tree does not fit its data: {wrong}; {CHANGED}")


def read_tree(nodes: Nodes, config: TreeConfig) -> Optional[Tree]:
    r"""Reads the tree of :class:`~torch_geometric_erwin.transforms.BallTree` from data.

    It is :obj:`None` if there is no tree. In compiled code, configurations and nodes
    are compared on the device, by :obj:`tree_code` and :obj:`tree_node`.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        config: The configuration that is needed.

    Raises:
        ValueError: If the tree was built for another configuration, or for other nodes.

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> transform = BallTree(ball_sizes=2)
        >>> data = transform(Data(pos=torch.tensor([[2.0], [0.0], [1.0]])))
        >>> read_tree(data, transform.config).perm
        tensor([1, 2, 0])
    """
    tree = stored_tree(nodes, config)
    if tree is not None and is_readable(tree.perm):
        tree.validate(nodes.pos.size(0), config)
    return tree


def stored_tree(nodes: Nodes, config: TreeConfig) -> Optional[Tree]:
    r"""Does the same as :func:`read_tree` without :meth:`Tree.validate`.

    It is for callers that validate the tree themselves.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        config: The configuration that is needed.
    """
    check_nodes("nodes", nodes)
    check_instance("config", config, TreeConfig)
    if getattr(nodes, "tree_node", None) is None:
        return None
    if torch.compiler.is_compiling():
        # Not by the texts: in a batch they are a list, and a graph that reads a list is
        # compiled again for every length.
        message = f"the tree was not built for '{config.text}'"
        numbers, code = config.numbers, nodes.tree_code
        if code.size(1) != len(numbers) + 1:
            raise ValueError(
                f"{message}, or by an earlier version; apply 'model.tree_transform()' "
                "to the data"
            )
        fits = [code[:, i] == number for i, number in enumerate(numbers)]
        torch._assert_async(torch.stack(fits).all(), message)
    else:
        built = getattr(nodes, "tree_config", None)
        if not isinstance(built, (str, list)):
            raise ValueError(
                "'tree_config' of the data must be the text of a configuration, or a "
                f"list of them (got {built!r})"
            )
        for text in built if isinstance(built, list) else [built]:
            if text != config.text:
                raise ValueError(
                    f"the data's tree was built for '{text}', needed is '{config}'; "
                    "apply 'model.tree_transform()' to the data"
                )
    ptr = store_ptr(nodes)
    _check_nodes(nodes, ptr)
    levels, table = range(config.num_levels), partial(_table, nodes)
    perm, level = table("perm"), table("level", dim=2)
    perm_rot = tuple(table(f"perm_rot_{l}") for l in levels if config.rotate)
    if not torch.compiler.is_compiling():
        _check_rows(nodes, config, perm, level, perm_rot)
    if config.rotate:
        steps = enumerate(zip(config.strides, perm_rot[1:]))
        groups = [group_lengths(level, l, s, rows.size(0)) for l, (s, rows) in steps]
    else:
        groups = [table(f"group_len_{l}") for l in levels[:-1]]
    return Tree(
        perm,
        pad(_num_nodes(nodes, ptr), (1, 0)) if ptr is None else ptr,
        level,
        tuple(table(f"ball_len_{l}") for l in levels),
        tuple(groups),
        perm_rot,
        table("perm_mask") if config.layout == "perfect" else None,
        config,
        tuple(
            tuple(table(f"run_len_{l}_{size}") for size in sizes)
            for l, sizes in enumerate(config.runs)
        ),
        getattr(nodes, "tree_real", None),
    )


def _check_rows(
    nodes: Nodes,
    config: TreeConfig,
    perm: Tensor,
    level: Tensor,
    perm_rot: tuple[Tensor, ...],
) -> None:
    # Checks the tables from which others are computed below. PyG may have cut one: it
    # drops entries of any attribute that is as long as there are nodes or edges.
    def misfit(text: str) -> ValueError:
        return ValueError(f"the tree does not fit its data: {text}")

    if level.size(1) != config.num_levels:
        raise misfit(
            f"'level' has {level.size(1)} columns for {config.num_levels} levels; "
            f"{CHANGED}"
        )
    count = nodes.tree_node.size(0)
    if config.layout == "balanced" and perm.size(0) != count:
        raise misfit(f"'perm' has {perm.size(0)} entries for {count} nodes; {CUT}")
    if not is_readable(level):
        return
    if bool((level < 0).any()):
        raise misfit(f"'level' has {int(level.min())} rows; {CHANGED}")
    for l, (rows, count) in enumerate(zip(perm_rot, level.sum(0).tolist())):
        if rows.size(0) != count:
            raise misfit(
                f"'perm_rot_{l}' has {rows.size(0)} entries for {count} rows of "
                f"'level'; {CUT}"
            )


def _num_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> Tensor:
    # Returns the number of nodes of every cloud.
    if ptr is None:
        return torch.full([1], nodes.pos.size(0), device=nodes.pos.device)
    return ptr.diff()


def _local_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> Tensor:
    # Returns the number of every node, counted in its own cloud.
    rows = torch.arange(nodes.pos.size(0), device=nodes.pos.device)
    if ptr is not None:
        rows = rows - ptr[segment_ids(ptr.diff(), rows.size(0))]
    return rows.int()


def check_count(nodes: Nodes) -> None:
    r"""Checks that data has as many nodes as its tree, if it carries one.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.

    Raises:
        ValueError: If nodes were added or removed.

    Example:
        >>> check_count(Data(pos=torch.rand(3, 2)))
    """
    own, code = getattr(nodes, "tree_node", None), getattr(nodes, "tree_code", None)
    if not isinstance(own, Tensor) or not isinstance(code, Tensor):
        return
    count = nodes.pos.size(0)
    sizes = [own.size(0)] if own.dim() == 1 else []
    if code.dim() == 2 and code.size(1) > 1 and is_readable(code):
        sizes.append(int(code[:, -1].sum()))
    for size in sizes:
        if size != count:
            raise ValueError(
                f"the tree does not fit its data: it is of {size} nodes, 'pos' has "
                f"{count}: {OTHER_NODES}"
            )


def _check_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> None:
    # Checks that the nodes are still those that the tree was built for. 'tree_node' has
    # the numbers that they had then. A transform that drops or reorders nodes does the
    # same to 'tree_node', because it has one entry per node.
    message = "the tree does not fit its data: "
    pos, own = nodes.pos, _table(nodes, "tree_node")
    code, compiling = _table(nodes, "tree_code", dim=2), torch.compiler.is_compiling()
    values = pos.device.type == "cpu" and not compiling
    if ptr is not None:
        check_ptr(ptr, pos.size(0), pos.device, values=False)
    clouds = 1 if ptr is None else ptr.size(0) - 1
    if code.size(1) < 2:
        raise ValueError(
            f"{message}'tree_code' has {code.size(1)} columns, expected more; {CHANGED}"
        )
    check_count(nodes)
    if ptr is None and code.size(0) != 1:
        raise ValueError(
            f"{message}it is of {code.size(0)} clouds, but 'ptr' is missing, and so is "
            "'batch': a batch needs one of them beside its tree"
        )
    if code.size(0) != clouds:
        raise ValueError(
            f"{message}it is of {code.size(0)} clouds, 'ptr' of {clouds}: the clouds "
            "must be those that the tree was built for"
        )
    if values and ptr is not None:
        check_ptr(ptr, pos.size(0), pos.device)
    sizes = _num_nodes(nodes, ptr)
    same_sizes = (code[:, -1] == sizes).all()
    same_order = (own == _local_nodes(nodes, ptr)).all()
    if not values:  # the device raises the error, so that the host need not wait
        same = same_order & same_sizes
        torch._assert_async(same, f"{message}{OTHER_NODES}, or 'ptr' is of others")
    elif not bool(same_sizes):
        raise ValueError(
            f"{message}it is of clouds of {code[:, -1].tolist()} nodes, 'ptr' of "
            f"{sizes.tolist()}: the clouds must be those that the tree was built for"
        )
    elif not bool(same_order):
        raise ValueError(f"{message}{OTHER_ORDER}")


def attach_tree(
    data: Union[Data, HeteroData, Batch], store: NodeStorage, tree: Tree
) -> None:
    r"""Writes a tree into a node store of :obj:`data`, in place of an earlier one.

    Args:
        data: The data or batch that owns the store.
        store: The node store.
        tree: The tree of its nodes.
    """
    for name in [name for name in store if is_tree_attribute(name)]:
        del store[name]
    ptr = store_ptr(store)
    num_nodes = _num_nodes(store, ptr)
    values: dict[str, Any] = {
        **tree_attributes(tree),
        "tree_node": _local_nodes(store, ptr),
        "tree_code": tree_code(tree.config, num_nodes),
        "tree_config": tree.config.text,
    }
    if not is_collated(data):
        store.update(values)
        return
    store.update({**values, "tree_config": [tree.config.text] * len(tree.level)})
    slices = {name: _slices(name, tree, num_nodes) for name in values}
    incs = {name: torch.zeros(len(tree.level)) for name in values}
    record_slices(data, store, slices, {**incs, "tree_config": None})


def tree_code(config: TreeConfig, num_nodes: Tensor) -> Tensor:
    r"""Returns as numbers for which configuration and clouds a tree was built.

    Args:
        config: The configuration of the tree.
        num_nodes: The number of nodes of every cloud.

    Shapes:
        - **num_nodes:** :math:`(G)`; **output:** :math:`(G, F + 1)`, the :math:`F`
          numbers of the configuration and, last, the number of nodes.

    Example:
        >>> tree_code(TreeConfig(8, [2], rotate=0), torch.tensor([5, 9])).tolist()
        [[2, 8, 8, 2, 0, 0, 5], [2, 8, 8, 2, 0, 0, 9]]
    """
    # Filled on the device: to copy a tensor from the host would wait for a GPU.
    numbers = [torch.full_like(num_nodes, number) for number in config.numbers]
    return torch.stack([*numbers, num_nodes], dim=1)


def is_collated(data: Union[Data, HeteroData, Batch]) -> bool:
    r"""Whether :obj:`to_data_list` can take the data apart.

    Args:
        data: The data or batch.
    """
    return hasattr(data.stores[0], "_slice_dict")


def record_slices(
    data: Union[Data, HeteroData, Batch],
    store: NodeStorage,
    slices: dict[str, Any],
    incs: dict[str, Any],
) -> None:
    r"""Records how attributes that were added to a batch are divided among its clouds.

    PyG records this when it collates a batch; :obj:`to_data_list` needs it to give
    every cloud its own part. Entries of attributes that the store no longer has are
    removed. The dictionaries are replaced and not changed, because shallow copies of
    the batch share them.

    Args:
        data: The batch that owns the store.
        store: The store of the attributes.
        slices: Per attribute, the offsets of every cloud's part.
        incs: Per attribute, the number that was added to every cloud's values.
    """
    batch, key = data.stores[0], store._key  # the first store has the records of all
    for attribute, new in (("_slice_dict", slices), ("_inc_dict", incs)):
        whole = getattr(batch, attribute)
        old = whole if key is None else whole.get(key, {})
        new = {**{name: old[name] for name in old if name in store}, **new}
        setattr(batch, attribute, new if key is None else {**whole, key: new})


def tree_attributes(tree: Tree) -> dict[str, Tensor]:
    r"""Returns the tensors of a tree by the names that they have in data, in int32.

    Rows and nodes are counted in their own cloud. The numbers of children follow from
    the sizes of the levels, and are computed when the tree is read. They are stored
    only if there is no rotated tree, because the number of groups is then not known
    from the length of a rotated order.

    Args:
        tree: The tree.
    """
    groups = () if tree.perm_rot else tree.group_len
    attributes = {"perm": tree.perm, "level": tree.level}
    for name, tensors in (
        ("ball_len", tree.ball_len),
        ("group_len", groups),
        ("perm_rot", tree.perm_rot),
    ):
        for l, tensor in enumerate(tensors):
            attributes[f"{name}_{l}"] = tensor
    for l, sizes in enumerate(tree.config.runs):
        for size, tensor in zip(sizes, tree.runs[l]):
            attributes[f"run_len_{l}_{size}"] = tensor
    attributes = {name: tensor.int() for name, tensor in attributes.items()}
    if tree.mask is not None:
        attributes["perm_mask"] = tree.mask
    if tree.real is not None:
        attributes["tree_real"] = tree.real
    return attributes


_PER_LEVEL = ("ball_len", "group_len", "perm_rot", "run_len")


def is_tree_attribute(name: str) -> bool:
    r"""Whether an attribute is part of a tree.

    Args:
        name: The attribute's name.
    """
    stem = re.sub(r"(_\d+)+$", "", name)
    return (stem != name and stem in _PER_LEVEL) or name in (
        "perm",
        "level",
        "perm_mask",
        "tree_node",
        "tree_code",
        "tree_config",
        "tree_real",
    )


def _slices(name: str, tree: Tree, num_nodes: Tensor) -> Tensor:
    # Returns where every cloud's part of an attribute begins, and the last one's end.
    if name in ("level", "tree_code", "tree_config"):
        return torch.arange(len(tree.level) + 1)
    if name == "tree_node":
        return _offsets(num_nodes)
    stem, *numbers = re.sub(r"_(?=\d)", " ", name).split()
    l = int(numbers[0]) if numbers else 0
    rows = _offsets(tree.level[:, l + (stem == "group_len")])
    if stem not in ("ball_len", "run_len"):
        return rows
    lengths = tree.ball_len[l]
    if stem == "run_len":
        lengths = tree.runs[l][tree.config.runs[l].index(int(numbers[1]))]
    # Runs are not empty, so those of a cloud are the ones that end within its rows.
    return torch.searchsorted(lengths.cumsum(0).cpu(), rows, right=True)


def _offsets(lengths: Tensor) -> Tensor:
    return pad(lengths.cumsum(0), (1, 0)).cpu()
