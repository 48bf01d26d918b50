r"""Trees as attributes of PyG data, such that PyG can collate and separate it."""

import re
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import NodeStorage
from torch_geometric.typing import EdgeType

from torch_geometric_erwin.tree import Tree, TreeConfig
from torch_geometric_erwin.tree.edge_tables import edge_tables
from torch_geometric_erwin.tree.reading import (
    EDGE_TYPE,
    MARK,
    Nodes,
    edge_type_text,
    has_config,
    local_nodes,
    num_nodes,
    read_fields,
    store_ptr,
    tree_prefixes,
)


def stored_tree(nodes: Nodes, config: TreeConfig) -> Optional[Tree]:
    r"""Returns the tree that data carries for a configuration, or :obj:`None`.

    Where the data carries several trees, with different prefixes, it is the first one
    of this configuration; in compiled code, the one without a prefix. It is for callers
    that call :meth:`Tree.validate` themselves; others use :meth:`Tree.from_data`.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        config: The configuration that is needed.

    Raises:
        ValueError: If there are only trees for other configurations, or for other
            nodes.
    """
    prefixes = tree_prefixes(nodes)
    if len(prefixes) > 1:
        if torch.compiler.is_compiling():
            raise ValueError(
                f"the data has trees with the prefixes {prefixes}, between which "
                "compiled code cannot choose: pass "
                "'tree=Tree.from_data(data, prefix=...)'"
            )
        prefixes.sort(key=lambda prefix: not has_config(nodes, config, prefix))
    prefix = prefixes[0] if prefixes else ""
    fields = read_fields(nodes, config, prefix)
    return None if fields is None else Tree(**fields)


def attach_tree(
    data: Union[Data, HeteroData, Batch],
    store: NodeStorage,
    tree: Tree,
    prefix: str = "",
    edge_type: Optional[EdgeType] = None,
) -> None:
    r"""Writes a tree into a node store of :obj:`data`, in place of an earlier one.

    Args:
        data: The data or batch that owns the store.
        store: The node store.
        tree: The tree of its nodes.
        prefix: What the names of the tree's attributes begin with.
        edge_type: In heterogeneous data, the type of the edges from which those of the
            tree were made.

    Raises:
        ValueError: If the store has an attribute of such a name that is not of a tree.
    """
    ptr = store_ptr(store)
    sizes = num_nodes(store, ptr)
    values: dict[str, Any] = {
        **tree_attributes(tree),
        MARK: local_nodes(store, ptr),
        "tree_code": tree_code(tree.config, sizes),
        "tree_config": tree.config.text,
    }
    if edge_type is not None:
        values[EDGE_TYPE] = edge_type_text(edge_type)
    remove_tree(store, prefix)
    count = values.get("tree_edge_count")
    slices = {prefix + name: _slices(name, tree, sizes, count) for name in values}
    values = {prefix + name: value for name, value in values.items()}
    texts = [name for name, value in values.items() if isinstance(value, str)]
    store.update(values)
    if not is_collated(data):
        return
    store.update({name: [values[name]] * len(tree.level) for name in texts})
    incs = {name: torch.zeros(len(tree.level)) for name in values}
    record_slices(data, store, slices, {**incs, **dict.fromkeys(texts)})


def remove_tree(store: NodeStorage, prefix: str = "") -> None:
    r"""Removes the attributes of a tree, but nobody else's.

    Args:
        store: The node store.
        prefix: What the names of the tree's attributes begin with.

    Raises:
        ValueError: If an attribute of such a name is not of a tree.

    Example:
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> data = BallTree(ball_sizes=2)(Data(pos=torch.rand(3, 2)))
        >>> remove_tree(data.stores[0])
        >>> data
        Data(pos=[3, 2])
    """
    is_known = store.get(prefix + MARK) is not None
    for name in [name for name in store if is_tree_attribute(name, prefix)]:
        if is_known or store[name] is None:
            del store[name]
        else:  # also one that this tree will not have, or it would be read as a part
            raise ValueError(
                f"'{name}' of the data is not of a tree, and 'BallTree' does "
                "not overwrite it: rename it, or use BallTree(..., prefix='ball_')"
            )


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
    return attributes | edge_tables(
        *(tree.edges, tree.edge_means, tree.level, tree.edge_code)
    )


_PER_LEVEL = (
    *("ball_len", "group_len", "perm_rot", "run_len"),
    *("tree_edge", "tree_edge_attr"),
)


def is_tree_attribute(name: str, prefix: str = "") -> bool:
    r"""Whether an attribute is part of a tree.

    Args:
        name: The attribute's name.
        prefix: What the names of the tree's attributes begin with.
    """
    if not name.startswith(prefix):
        return False
    name = name[len(prefix) :]
    stem = re.sub(r"(_\d+)+$", "", name)
    return (stem != name and stem in _PER_LEVEL) or name in (
        "perm",
        "level",
        "perm_mask",
        MARK,
        "tree_code",
        "tree_config",
        "tree_real",
        "tree_edge_count",
        EDGE_TYPE,
    )


def _slices(
    name: str, tree: Tree, sizes: Tensor, edge_count: Optional[Tensor]
) -> Tensor:
    # Returns where every cloud's part of an attribute begins, and the last one's end.
    if name in ("level", "tree_code", "tree_config", "tree_edge_count", EDGE_TYPE):
        return torch.arange(len(tree.level) + 1)
    if name == MARK:
        return _offsets(sizes)
    stem, *numbers = re.sub(r"_(?=\d)", " ", name).split()
    l = int(numbers[0]) if numbers else 0
    if stem.startswith("tree_edge"):
        assert edge_count is not None
        return _offsets(edge_count[:, l - 1])
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
