r"""Reading the tree that PyG data carries as attributes."""

from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.storage import BaseStorage, EdgeStorage, NodeStorage
from torch_geometric.typing import EdgeType

from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.edge_tables import edges_of_table
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

#: The attribute by which data is known to have a tree: the number of every node in its
#: cloud when the tree was built.
MARK = "tree_node"
#: The attribute of a node store that names the edges from which those of its tree were
#: made.
EDGE_TYPE = "tree_edge_type"
_MISFIT = "the tree does not fit its data: "


def store_ptr(nodes: Nodes) -> Optional[Tensor]:
    r"""Returns the row offsets of the clouds, from :obj:`ptr` or a sorted :obj:`batch`.

    Without :obj:`ptr`, the number of clouds is that of the batch, so that clouds
    without nodes count at its end too.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
    """
    ptr, batch = getattr(nodes, "ptr", None), getattr(nodes, "batch", None)
    if ptr is not None:
        check_tensor("ptr", ptr)
        return ptr
    if batch is None:
        return None
    whole = nodes._parent() if isinstance(nodes, NodeStorage) else nodes
    return batch_to_ptr(batch, getattr(whole, "num_graphs", None))


def edge_makers(nodes: Optional[Nodes]) -> str:
    r"""Names the transforms that make the edges which data lacks, for a message.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.

    Example:
        >>> edge_makers(Data(pos=torch.rand(3, 2), face=torch.tensor([[0], [1], [2]])))
        "'FaceToEdge'"
    """
    is_mesh = getattr(nodes, "face", None) is not None
    return "'FaceToEdge'" if is_mesh else "'TreeKNNGraph' or 'TreeRadiusGraph'"


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


def tree_prefixes(nodes: Nodes) -> list[str]:
    r"""Returns the prefixes of the trees that data carries; that without one is first,
    and the only one in compiled code.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.

    Example:
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> data = BallTree(ball_sizes=2, prefix="my_")(Data(pos=torch.rand(3, 2)))
        >>> tree_prefixes(data)
        ['my_']
    """
    is_first = getattr(nodes, MARK, None) is not None
    if is_first and torch.compiler.is_compiling():
        return [""]
    store = nodes if isinstance(nodes, NodeStorage) else nodes.stores[0]
    names = [name[: -len(MARK)] for name in map(str, store) if name.endswith(MARK)]
    # Others may have an attribute whose name ends like that.
    kept = [p for p in names if f"{p}tree_code" in store or f"{p}tree_config" in store]
    return [""] * is_first + [prefix for prefix in kept if prefix]


def read_config(nodes: Nodes, prefix: str = "") -> TreeConfig:
    r"""Returns the configuration of the tree that data carries.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        prefix: What the names of the tree's attributes begin with.

    Raises:
        ValueError: If there is no tree, or trees of several configurations.

    Example:
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> data = BallTree(ball_sizes=2)(Data(pos=torch.rand(3, 2)))
        >>> str(read_config(data))
        'balls=2 strides= rotate=45.0 layout=balanced'
    """
    texts = _Stored(nodes, prefix).texts()
    if not texts:
        raise ValueError("the batch has no clouds, so its tree has no configuration")
    if any(text != texts[0] for text in texts):
        raise ValueError(
            "the clouds of the batch have trees of several configurations: "
            f"{sorted(set(texts))}; apply one 'BallTree' to all"
        )
    try:
        return TreeConfig.parse(texts[0])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'{prefix}tree_config' must hold texts of configurations (got "
            f"{texts[0]!r})"
        ) from error


def has_config(nodes: Nodes, config: TreeConfig, prefix: str = "") -> bool:
    r"""Whether all clouds of data have trees of a configuration.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        config: The configuration.
        prefix: What the names of the trees' attributes begin with.
    """
    return all(text == config.text for text in _Stored(nodes, prefix).texts())


def read_fields(
    nodes: Nodes, config: TreeConfig, prefix: str = ""
) -> Optional[dict[str, Any]]:
    r"""Returns the fields of the :class:`Tree` that data carries.

    It is :obj:`None` if there is no tree. Values of the tables are not checked, except
    those that others are computed from. In compiled code, configurations and nodes are
    compared on the device, by :obj:`tree_code` and :obj:`tree_node`.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        config: The configuration that is needed.
        prefix: What the names of the tree's attributes begin with.

    Raises:
        TypeError: If a table is not a tensor.
        ValueError: If the tree was built for another configuration, or for other nodes.
    """
    stored = _Stored(nodes, prefix)
    if not stored.has_tree():
        return None
    stored.check_config(config)
    ptr = store_ptr(nodes)
    stored.check_nodes(ptr)
    levels, table = range(config.num_levels), stored.table
    perm, level = table("perm"), table("level", dim=2)
    perm_rot = tuple(table(f"perm_rot_{l}") for l in levels if config.rotate)
    if not torch.compiler.is_compiling():
        stored.check_rows(config, perm, level, perm_rot)
    if config.rotate:
        steps = enumerate(zip(config.strides, perm_rot[1:]))
        groups = [group_lengths(level, l, s, rows.size(0)) for l, (s, rows) in steps]
    else:
        groups = [table(f"group_len_{l}") for l in levels[:-1]]
    return {
        "perm": perm,
        "node_ptr": pad(num_nodes(nodes, ptr), (1, 0)) if ptr is None else ptr,
        "level": level,
        "ball_len": tuple(table(f"ball_len_{l}") for l in levels),
        "group_len": tuple(groups),
        "perm_rot": perm_rot,
        "mask": table("perm_mask") if config.layout == "perfect" else None,
        "config": config,
        "runs": tuple(
            tuple(table(f"run_len_{l}_{size}") for size in sizes)
            for l, sizes in enumerate(config.runs)
        ),
        "real": stored.get("tree_real"),
        **stored.edges(config, level),
    }


def edge_type_text(edge_type: EdgeType) -> str:
    r"""Returns the type of edges as data stores it, such as :obj:`atom__bond__atom`.

    Args:
        edge_type: The type.
    """
    return "__".join(edge_type)


def edge_store(
    nodes: Nodes, prefix: Optional[str] = None
) -> Union[Data, BaseStorage, None]:
    r"""Returns what has the edges between nodes of data, as attributes.

    Heterogeneous data may have several between nodes of one type: it is that from which
    the edges of the nodes' tree were made, or :obj:`None` if there is none.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        prefix: What the names of the tree's attributes begin with. (default: those of
            the first tree that has edges)

    Raises:
        ValueError: If the trees of a batch have edges of several types.

    Example:
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> data = HeteroData()
        >>> data["atom"].pos = torch.rand(3, 2)
        >>> data["atom", "bond", "atom"].edge_index = torch.tensor([[0], [1]])
        >>> data = BallTree(2, [2], edges=True)(data)
        >>> edge_store(data["atom"])._key
        ('atom', 'bond', 'atom')
    """
    if isinstance(nodes, (Data, EdgeStorage)):  # the only store of Data is both
        return nodes
    texts: Union[str, list[str]] = []
    for own in tree_prefixes(nodes) if prefix is None else [prefix]:
        texts = texts or getattr(nodes, own + EDGE_TYPE, None) or []
    kinds = {texts} if isinstance(texts, str) else {*texts}
    if len(kinds) > 1:
        raise ValueError(
            "the clouds of the batch have trees with edges of several types: "
            f"{sorted(kinds)}; apply one 'BallTree' to all"
        )
    # The data is gone if only its store was kept, and edges may have been removed.
    whole = nodes._parent()
    stores = [] if whole is None else whole.edge_stores
    return next((s for s in stores if edge_type_text(s._key) in kinds), None)


def num_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> Tensor:
    r"""Returns the number of nodes of every cloud.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        ptr: The row offsets of the clouds, or :obj:`None` for one cloud.
    """
    if ptr is None:
        return torch.full([1], nodes.pos.size(0), device=nodes.pos.device)
    return ptr.diff()


def local_nodes(nodes: Nodes, ptr: Optional[Tensor]) -> Tensor:
    r"""Returns the number of every node, counted in its own cloud, in int32.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        ptr: The row offsets of the clouds, or :obj:`None` for one cloud.
    """
    rows = torch.arange(nodes.pos.size(0), device=nodes.pos.device)
    if ptr is not None:
        rows = rows - ptr[segment_ids(ptr.diff(), rows.size(0))]
    return rows.int()


def check_count(nodes: Nodes, prefix: str = "") -> None:
    r"""Checks that data has as many nodes as its tree, if it carries one.

    Args:
        nodes: Data, a batch, or one node store of heterogeneous data.
        prefix: What the names of the tree's attributes begin with.

    Raises:
        ValueError: If nodes were added or removed.

    Example:
        >>> check_count(Data(pos=torch.rand(3, 2)))
    """
    own = getattr(nodes, prefix + MARK, None)
    code = getattr(nodes, prefix + "tree_code", None)
    if not isinstance(own, Tensor) or not isinstance(code, Tensor):
        return
    count = nodes.pos.size(0)
    sizes = [own.size(0)] if own.dim() == 1 else []
    if code.dim() == 2 and code.size(1) > 1 and is_readable(code):
        sizes.append(int(code[:, -1].sum()))
    for size in sizes:
        if size != count:
            raise ValueError(
                f"{_MISFIT}it is of {size} nodes, 'pos' has {count}: {OTHER_NODES}"
            )


class _Stored:
    # The attributes of one tree of data.

    def __init__(self, nodes: Nodes, prefix: str) -> None:
        check_nodes("data", nodes)
        self.nodes = nodes
        self.prefix = prefix

    def get(self, name: str) -> Any:
        return getattr(self.nodes, self.prefix + name, None)

    def has_tree(self) -> bool:
        if self.get(MARK) is not None:
            return True
        others = [n for n in ("tree_code", "tree_config") if self.get(n) is not None]
        if others:
            raise ValueError(
                f"the data has '{self.prefix}{others[0]}' of a tree, but not "
                f"'{self.prefix}{MARK}': all attributes of a tree must be kept, or "
                "none; apply 'BallTree' again"
            )
        return False

    def texts(self) -> list[str]:
        if not self.has_tree():
            raise ValueError(_no_tree(self.nodes, self.prefix))
        built = self.get("tree_config")
        if built is None:
            raise ValueError(_missing(self.prefix + "tree_config"))
        if not isinstance(built, (str, list)):
            raise ValueError(
                f"'{self.prefix}tree_config' of the data must be the text of a "
                f"configuration, or a list of them (got {built!r})"
            )
        return built if isinstance(built, list) else [built]

    def table(self, name: str, dim: int = 1) -> Tensor:
        # Its length is not checked yet.
        value, name = self.get(name), self.prefix + name
        if value is None:
            raise ValueError(_missing(name))
        check_tensor(name, value)
        is_mask = name.endswith("perm_mask")
        wanted = (torch.bool,) if is_mask else (torch.int32, torch.int64)
        if value.dtype not in wanted or value.dim() != dim:
            raise ValueError(
                f"{_MISFIT}'{name}' is {value.dtype} with {value.dim()} dimensions, "
                f"expected {wanted[0]} with {dim}; {CHANGED}"
            )
        check_devices(**{"pos": self.nodes.pos, name: value})
        return value if is_mask else value.long()

    def check_config(self, config: TreeConfig) -> None:
        if not torch.compiler.is_compiling():
            for text in self.texts():
                if text != config.text:
                    raise ValueError(
                        f"the data's tree was built for '{text}', needed is "
                        f"'{config}'; apply 'model.tree_transform()' to the data"
                    )
            return
        # Not by the texts: in a batch they are a list, and a graph that reads a list is
        # compiled again for every length.
        message = f"the tree was not built for '{config.text}'"
        numbers, code = config.numbers, self.get("tree_code")
        if code.size(1) != len(numbers) + 1:
            raise ValueError(
                f"{message}, or by an earlier version; apply 'model.tree_transform()' "
                "to the data"
            )
        fits = [code[:, i] == number for i, number in enumerate(numbers)]
        torch._assert_async(torch.stack(fits).all(), message)

    def check_rows(
        self,
        config: TreeConfig,
        perm: Tensor,
        level: Tensor,
        perm_rot: tuple[Tensor, ...],
    ) -> None:
        # Checks the tables from which others are computed. PyG may have cut one: it
        # drops entries of any attribute that is as long as there are nodes or edges.
        if level.size(1) != config.num_levels:
            raise ValueError(
                f"{_MISFIT}'{self.prefix}level' has {level.size(1)} columns for "
                f"{config.num_levels} levels; {CHANGED}"
            )
        count = self.get(MARK).size(0)
        if config.layout == "balanced" and perm.size(0) != count:
            raise ValueError(
                f"{_MISFIT}'{self.prefix}perm' has {perm.size(0)} entries for {count} "
                f"nodes; {CUT}"
            )
        if not is_readable(level):
            return
        if bool((level < 0).any()):
            raise ValueError(
                f"{_MISFIT}'{self.prefix}level' has {int(level.min())} rows; {CHANGED}"
            )
        for l, (rows, count) in enumerate(zip(perm_rot, level.sum(0).tolist())):
            if rows.size(0) != count:
                raise ValueError(
                    f"{_MISFIT}'{self.prefix}perm_rot_{l}' has {rows.size(0)} entries "
                    f"for {count} rows of 'level'; {CUT}"
                )

    def edges(self, config: TreeConfig, level: Tensor) -> dict[str, Any]:
        # The edges of the coarse levels, if the tree has any.
        if self.get("tree_edge_count") is None:
            return {}
        count, coarse = self.table("tree_edge_count", dim=2), range(1, level.size(1))
        tables = [self.table(f"tree_edge_{l}", dim=2) for l in coarse]
        means = [self.get(f"tree_edge_attr_{l}") for l in coarse]
        means = [mean for mean in means if isinstance(mean, Tensor)]
        # The last two columns are the code of the edges between nodes.
        wanted = torch.Size([level.size(0), config.num_levels + 1])
        # Compiled code would be compiled for as many clouds as there are columns.
        if not torch.compiler.is_compiling() and count.shape != wanted:
            raise ValueError(
                f"{_MISFIT}'{self.prefix}tree_edge_count' has shape {[*count.shape]}, "
                f"expected {[*wanted]}; {CHANGED}"
            )
        if is_readable(count):
            totals = count[:, :-2].sum(0).tolist()
            for l, (table, total) in enumerate(zip(tables, totals), 1):
                if table.size(0) != total or table.size(1) != 2:
                    raise ValueError(
                        f"{_MISFIT}'{self.prefix}tree_edge_{l}' has shape "
                        f"{[*table.shape]}, expected {[total, 2]}; {CUT}"
                    )
        edges = (
            edges_of_table(table, count[:, l - 1], level[:, l])
            for l, table in enumerate(tables, 1)
        )
        return {
            "edges": tuple(edges),
            "edge_means": tuple(means),
            "edge_code": count[:, -2:],
        }

    def check_nodes(self, ptr: Optional[Tensor]) -> None:
        # Checks that the nodes are still those that the tree was built for. A transform
        # that drops or reorders nodes does the same to their numbers, because there is
        # one per node.
        pos, own = self.nodes.pos, self.table(MARK)
        code = self.table("tree_code", dim=2)
        values = pos.device.type == "cpu" and not torch.compiler.is_compiling()
        if ptr is not None:
            check_ptr(ptr, pos.size(0), pos.device, values=False)
        clouds = 1 if ptr is None else ptr.size(0) - 1
        if code.size(1) < 2:
            raise ValueError(
                f"{_MISFIT}'{self.prefix}tree_code' has {code.size(1)} columns, "
                f"expected more; {CHANGED}"
            )
        check_count(self.nodes, self.prefix)
        if ptr is None and code.size(0) != 1:
            raise ValueError(
                f"{_MISFIT}it is of {code.size(0)} clouds, but 'ptr' is missing, and "
                "so is 'batch': a batch needs one of them beside its tree"
            )
        if code.size(0) != clouds:
            raise ValueError(
                f"{_MISFIT}it is of {code.size(0)} clouds, 'ptr' of {clouds}: the "
                "clouds must be those that the tree was built for"
            )
        if values and ptr is not None:
            check_ptr(ptr, pos.size(0), pos.device)
        sizes = num_nodes(self.nodes, ptr)
        same_sizes = (code[:, -1] == sizes).all()
        same_order = (own == local_nodes(self.nodes, ptr)).all()
        if not values:  # the device raises the error, so that the host need not wait
            same = same_order & same_sizes
            torch._assert_async(same, f"{_MISFIT}{OTHER_NODES}, or 'ptr' is of others")
        elif not bool(same_sizes):
            raise ValueError(
                f"{_MISFIT}it is of clouds of {code[:, -1].tolist()} nodes, 'ptr' of "
                f"{sizes.tolist()}: the clouds must be those that the tree was built "
                "for"
            )
        elif not bool(same_order):
            raise ValueError(f"{_MISFIT}{OTHER_ORDER}")


def _missing(name: str) -> str:
    return (
        f"the tree has no '{name}', which must be kept with its other attributes; "
        "apply 'BallTree' again, as the last transform"
    )


def _no_tree(nodes: Nodes, prefix: str) -> str:
    found = [own for own in tree_prefixes(nodes) if own != prefix]
    if found:
        return f"the data has no tree with prefix={prefix!r}, it must be one of {found}"
    return "the data has no tree; apply the transform 'BallTree' first"
