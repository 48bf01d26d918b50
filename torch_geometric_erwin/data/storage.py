r"""Trees as attributes of PyG data: written, collated, separated and read."""

import re
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import NodeStorage

from torch_geometric_erwin.tree import Tree, TreeConfig
from torch_geometric_erwin.tree.partition import group_lengths
from torch_geometric_erwin.tree.validation import ADVICE
from torch_geometric_erwin.utils.checks import batch_to_ptr
from torch_geometric_erwin.utils.rows import segment_ids

Nodes = Union[Data, NodeStorage]


def store_ptr(nodes: Nodes) -> Optional[Tensor]:
    r"""The row offsets of the clouds, from :obj:`ptr` or a sorted :obj:`batch`.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
    """
    ptr, batch = getattr(nodes, "ptr", None), getattr(nodes, "batch", None)
    if ptr is not None:
        return ptr
    return None if batch is None else batch_to_ptr(batch)


def global_perm(nodes: Nodes) -> Tensor:
    r"""The node of the batch in every row of tree order.

    :obj:`batch.perm` counts nodes in their own cloud and must not index a batch.

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
    if getattr(nodes, "tree_node", None) is None:
        raise ValueError("the data has no tree; apply the transform 'BallTree' first")
    ptr = store_ptr(nodes)
    _check_nodes(nodes, ptr)
    if ptr is None:
        return nodes.perm.long()
    return nodes.perm + ptr[segment_ids(nodes.level[:, 0], nodes.perm.size(0))]


def read_tree(nodes: Nodes, config: TreeConfig) -> Optional[Tree]:
    r"""The tree that :class:`~torch_geometric_erwin.transforms.BallTree` attached.

    :obj:`None` if there is no tree. In compiled code, configurations and nodes are
    compared on the device, by :obj:`tree_code` and :obj:`tree_node`.

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
    if getattr(nodes, "tree_node", None) is None:
        return None
    if torch.compiler.is_compiling():
        # The texts in a batch are a list, and one graph serves one length of it.
        fits = (nodes.tree_code[:, 0] == config.code).all()
        torch._assert_async(fits, f"the tree was not built for '{config.text}'")
    else:
        built = nodes.tree_config
        for text in built if isinstance(built, list) else [built]:
            if text != config.text:
                raise ValueError(
                    f"the data's tree was built for '{text}', needed is '{config}'; "
                    "apply 'model.tree_transform()' to the data"
                )
    ptr = store_ptr(nodes)
    _check_nodes(nodes, ptr)
    levels = range(config.num_levels)

    def table(name: str) -> Tensor:
        value = getattr(nodes, name, None)
        if value is None:
            raise ValueError(f"the tree has no '{name}'; {ADVICE}")
        return value.long() if name != "perm_mask" else value

    level = table("level")
    perm_rot = tuple(table(f"perm_rot_{l}") for l in levels if config.rotate)
    if config.rotate:
        steps = enumerate(zip(config.strides, perm_rot[1:]))
        groups = [group_lengths(level, l, s, rows.size(0)) for l, (s, rows) in steps]
    else:
        groups = [table(f"group_len_{l}") for l in levels[:-1]]
    return Tree(
        table("perm"),
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


def _num_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> Tensor:
    # The nodes of every cloud.
    if ptr is None:
        return torch.full([1], nodes.pos.size(0), device=nodes.pos.device)
    return ptr.diff()


def _local_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> Tensor:
    # The number of every node in its own cloud.
    rows = torch.arange(nodes.pos.size(0), device=nodes.pos.device)
    if ptr is not None:
        rows = rows - ptr[segment_ids(ptr.diff(), rows.size(0))]
    return rows.int()


def _check_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> None:
    # PyG drops and reorders whatever has one entry per node, so the numbers that the
    # nodes had when the tree was built tell whether they are still the same ones.
    message = f"the tree does not fit its data: {ADVICE}"
    if nodes.tree_node.shape != nodes.pos.shape[:1]:
        raise ValueError(message)
    same = (nodes.tree_node == _local_nodes(nodes, ptr)).all()
    same = same & (nodes.tree_code[:, 1] == _num_nodes(nodes, ptr)).all()
    if torch.compiler.is_compiling() or same.device.type != "cpu":
        torch._assert_async(same, message)  # raised by the device, nothing waits for it
    elif not bool(same):
        raise ValueError(message)


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
    code = torch.full_like(num_nodes, tree.config.code)
    values: dict[str, Any] = {
        **tree_attributes(tree),
        "tree_node": _local_nodes(store, ptr),
        "tree_code": torch.stack([code, num_nodes], dim=1),
        "tree_config": tree.config.text,
    }
    if not is_collated(data):
        store.update(values)
        return
    store.update({**values, "tree_config": [tree.config.text] * len(tree.level)})
    slices = {name: _slices(name, tree, num_nodes) for name in values}
    incs = {name: torch.zeros(len(tree.level)) for name in values}
    record_slices(data, store, slices, {**incs, "tree_config": None})


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
    r"""Records what collation would have, for attributes added to a batch.

    With it, :obj:`to_data_list` gives every cloud its own part of them. Attributes that
    the store no longer has are forgotten. The dictionaries are replaced, as shallow
    copies of the batch share them.

    Args:
        data: The batch that owns the store.
        store: The store of the attributes.
        slices: Per attribute, the offsets of every cloud's part.
        incs: Per attribute, what was added to every cloud's values.
    """
    batch, key = data.stores[0], store._key  # the first store holds them for all
    for attribute, new in (("_slice_dict", slices), ("_inc_dict", incs)):
        whole = getattr(batch, attribute)
        old = whole if key is None else whole.get(key, {})
        new = {**{name: old[name] for name in old if name in store}, **new}
        setattr(batch, attribute, new if key is None else {**whole, key: new})


def tree_attributes(tree: Tree) -> dict[str, Tensor]:
    r"""The tensors of a tree by the names that they have in data, in int32.

    Numbers of rows and nodes are counted in their own cloud. The children of groups
    follow from the sizes of the levels; they are stored where no rotated order tells
    how many groups there are.

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
    # Offsets of every cloud's part of an attribute.
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
    # No run is empty: a cloud's are those that end within its rows.
    return torch.searchsorted(lengths.cumsum(0).cpu(), rows, right=True)


def _offsets(lengths: Tensor) -> Tensor:
    return pad(lengths.cumsum(0), (1, 0)).cpu()
