r"""Padding batches of any sizes to one size."""

import copy
from math import prod
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.typing import TensorFrame
from torch_geometric.utils import is_sparse

from torch_geometric_erwin.data.attributes import Attribute, Attributes
from torch_geometric_erwin.data.reorder import ORIGINAL
from torch_geometric_erwin.data.storage import (
    is_tree_attribute,
    tree_attributes,
    tree_code,
)
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.reading import (
    MARK,
    check_nodes,
    store_ptr,
    tree_prefixes,
)
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edges,
    check_floating,
    check_int,
    check_mask,
    check_tensor,
)


def pad_batch(
    batch: Union[Data, Batch],
    num_nodes: int,
    num_graphs: int,
    num_edges: Optional[int] = None,
) -> Batch:
    r"""Pads a batch to given sizes by one cloud with all added nodes, and empty ones.

    One recorded CUDA graph, or one compiled graph, then serves batches of all sizes.
    The results of real nodes are the same as without padding, in training too: the
    added nodes, at the origin and with zeros for features, attend only to each other,
    the added edges lie between them, and normalisations do not count them. The batch
    gets

    - :obj:`node_mask` :math:`(N)` and :obj:`graph_mask` :math:`(G)`, :obj:`False` for
      what was added, for losses such as :func:`masked_mean`;
    - a tree of the sizes that :meth:`TreeConfig.padded_sizes` returns, see
      :meth:`Tree.pad`, in place of each tree that it carries, whatever its prefix.

    Tensors with an entry per node, edge or cloud are filled up, those in mappings and
    lists too: with numbers of added nodes if they name nodes, by PyG's rules for
    collating, otherwise with zeros. Tensors without such entries are refused. What is
    not a tensor, such as a list of names, stays as it is. The attributes of a batch are
    divided among its clouds, which tells what they belong to; where that says the same
    of several, as if every cloud has one node, an attribute with :obj:`edge` in its
    name belongs to the edges, any other to the nodes, or else to the clouds.

    Data that ``BallTree(..., reorder=True)`` sorted stays sorted: :func:`to_original`
    leaves the added nodes at the end. Pad last: in a loader's :obj:`collate_fn`, or on
    the GPU, from which nothing is read.

    Args:
        batch: The batch, or a single cloud, with the tree of
            :class:`~torch_geometric_erwin.transforms.BallTree`.
        num_nodes: The number of nodes :math:`N` after padding.
        num_graphs: The number of clouds :math:`G` after padding, larger than before.
        num_edges: The number of edges :math:`E` after padding, where there are edges.

    Raises:
        TypeError: If the data is not homogeneous, or an attribute is sparse.
        ValueError: If there is no tree, or one with edges of coarse levels; if there
            are more nodes, edges or clouds than asked for; or if an attribute belongs
            to neither nodes nor edges nor clouds.

    Example:
        >>> from torch_geometric_erwin.transforms import BallTree
        >>> clouds = [Data(pos=torch.rand(n, 3), y=torch.rand(1)) for n in (5, 2)]
        >>> batch = BallTree(ball_sizes=4)(Batch.from_data_list(clouds))
        >>> batch = pad_batch(batch, num_nodes=10, num_graphs=4)
        >>> batch.ptr.tolist(), batch.y.shape
        ([0, 5, 7, 10, 10], torch.Size([4]))
    """
    if not isinstance(batch, Data):
        raise TypeError(
            f"'pad_batch' takes Data and batches of Data, 'batch' must be one (got "
            f"'{type(batch).__name__}')"
        )
    if not isinstance(batch, Batch):
        batch = Batch.from_data_list([batch])
    prefixes = tree_prefixes(batch)
    if not prefixes:
        raise ValueError("the batch has no tree; apply the transform 'BallTree' first")
    if any(f"{prefix}tree_real" in batch.stores[0] for prefix in prefixes):
        raise ValueError("the batch is padded already")
    for name in ("node_mask", "graph_mask"):
        if name in batch.stores[0]:
            raise ValueError(
                f"'{name}' of the batch would be overwritten by that of padding: "
                "rename it"
            )
    check_nodes("batch", batch)
    ptr = store_ptr(batch)
    if ptr is None:
        raise ValueError(
            "the batch has no 'ptr', and no 'batch' either: it needs one of them"
        )
    if batch.edge_index is not None:
        check_edges("edge_index", batch.edge_index, batch.pos.size(0))
    rules = Attributes(batch, batch.stores[0])
    wanted = _wanted(rules.sizes, num_nodes, num_graphs, num_edges)
    trees = {
        prefix: Tree.from_data(batch, prefix=prefix).pad(num_nodes, num_graphs)
        for prefix in prefixes
    }
    pad = _Padding(rules, wanted)

    def padded(own: Attribute) -> Any:
        name = own.path[0]
        is_of_tree = any(is_tree_attribute(name, prefix) for prefix in trees)
        return own.value if is_of_tree or name in ("ptr", "num_nodes") else pad(own)

    out = copy.copy(batch)
    out.stores[0].update(rules.map(padded))
    if "num_nodes" in batch.stores[0]:
        out.num_nodes = num_nodes
    nodes, clouds = rules.sizes["node"], rules.sizes["graph"]
    out.ptr = torch.cat([ptr, ptr.new_full((num_graphs - clouds,), num_nodes)])
    numbers = torch.arange(num_nodes - nodes, dtype=torch.int32, device=ptr.device)
    for prefix, tree in trees.items():
        values: dict[str, Any] = {
            **tree_attributes(tree),
            MARK: torch.cat([batch[prefix + MARK], numbers]),
            "tree_code": tree_code(tree.config, out.ptr.diff()),
            "tree_config": [tree.config.text] * num_graphs,
        }
        out.stores[0].update({prefix + name: value for name, value in values.items()})
    out.graph_mask = torch.arange(num_graphs, device=ptr.device) < clouds
    out.node_mask = torch.arange(num_nodes, device=ptr.device) < nodes
    out._num_graphs = num_graphs
    for name in ("_slice_dict", "_inc_dict"):  # the clouds cannot be separated
        vars(out.stores[0]).pop(name, None)
    return out


def _wanted(
    sizes: dict[str, int], num_nodes: int, num_graphs: int, num_edges: Optional[int]
) -> dict[str, int]:
    # The sizes after padding, which are checked.
    if "edge" in sizes and num_edges is None:
        raise ValueError("'num_edges' is missing, the batch has edges")
    if "edge" not in sizes and num_edges:
        raise ValueError(
            f"'num_edges' must be None or 0, the batch has no edges (got {num_edges})"
        )
    wanted = {
        "node": check_int("num_nodes", num_nodes, 0),
        "edge": check_int("num_edges", 0 if num_edges is None else num_edges, 0),
        "graph": check_int("num_graphs", num_graphs, 1),
    }
    for kind, size in sizes.items():
        least = size + (kind == "graph")
        if wanted[kind] < least:
            raise ValueError(
                f"'num_{kind}s' must be at least {least} for a batch with {size} (got "
                f"{wanted[kind]})"
            )
    if wanted["edge"] > sizes.get("edge", 0) and wanted["node"] == sizes["node"]:
        raise ValueError(
            f"'num_nodes' must be above {num_nodes}: added edges need an added node"
        )
    return wanted


class _Padding:
    # The first added cloud has all added nodes, and all added edges between them.

    def __init__(self, rules: Attributes, wanted: dict[str, int]) -> None:
        self.rules, self.wanted = rules, wanted
        self.missing = {kind: wanted[kind] - n for kind, n in rules.sizes.items()}

    def __call__(self, own: Attribute) -> Any:
        value, name = own.value, ".".join(own.path)
        if isinstance(value, TensorFrame) or is_sparse(value):
            kind = getattr(value, "layout", type(value).__name__)
            raise TypeError(
                f"'{name}' must be a dense tensor to be padded (got {kind}): give "
                "edges as 'edge_index', or remove it before padding"
            )
        if not isinstance(value, Tensor):
            return value
        check_tensor(name, value)
        kind, axis = self.rules.owner(own)
        if self.rules.is_ptr(own):
            fill = self._offsets(own)
        else:
            fill = None if kind is None else self._entries(own, kind)
        if fill is None:
            raise ValueError(
                f"'{name}' of shape {list(value.shape)} has an entry for neither every "
                "node nor every edge nor every cloud: remove it before padding"
            )
        return _extended(value, fill, axis)

    def _entries(self, own: Attribute, kind: str) -> Tensor:
        rows = torch.arange(self.missing[kind], device=own.value.device)
        nodes, clouds = self.rules.sizes["node"], self.rules.sizes["graph"]
        if own.path == (ORIGINAL,):
            return rows  # added nodes were not sorted
        if own.path == ("batch",) or self.rules.followed(own) is not None:
            return clouds + (rows if kind == "graph" else rows * 0)
        if len(rows) == 0 or not self.rules.names_nodes(own):
            return rows * 0
        if self.missing["node"] == 0:
            raise ValueError(
                f"'num_nodes' must be above {nodes}: '{own.name}' names a node of "
                "every added cloud, which needs an added node"
            )
        # Spread over the added nodes, because a GPU adds the messages into one node one
        # after the other.
        return nodes + rows % self.missing["node"]

    def _offsets(self, own: Attribute) -> Optional[Tensor]:
        # The offsets of an attribute that a batch follows, where added clouds end.
        followed, clouds = self.rules.followed(own), self.rules.sizes["graph"]
        kind = None if followed is None else self.rules.owner(followed)[0]
        if kind is None or own.value.shape != (clouds + 1,):
            return None
        added = torch.arange(self.missing["graph"], device=own.value.device)
        return clouds + 1 + added if kind == "graph" else added * 0 + self.wanted[kind]


def _extended(value: Tensor, fill: Tensor, axis: int) -> Tensor:
    shape: list[Any] = [1] * value.dim()
    shape[axis] = fill.size(0)
    size = [*value.shape]
    size[axis] = fill.size(0)
    return torch.cat([value, fill.to(value.dtype).view(shape).expand(size)], axis)


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    r"""Returns the mean over the rows that a mask keeps, zero if there are none.

    It equals :obj:`value[mask].mean()`, but no size depends on values of the mask, so
    that it can be compiled, and recorded in a CUDA graph.

    Args:
        value: A value, or several, per row.
        mask: The rows that count, such as the :obj:`node_mask` of :func:`pad_batch`.

    Shapes:
        - **value:** :math:`(N, *)`; **mask:** :math:`(N)`, bool; **output:** a scalar.

    Raises:
        ValueError: If the mask does not have one flag for every row.

    Example:
        >>> value = torch.tensor([1.0, 3.0, float("nan")])
        >>> masked_mean(value, torch.tensor([True, True, False]))
        tensor(2.)
    """
    check_tensor("value", value)
    if value.dim() == 0:
        raise ValueError("'value' must have shape [N, ...] (got [])")
    if value.is_floating_point():
        check_floating("value", value)
    check_mask("mask", mask, value.size(0))
    check_devices(value=value, mask=mask)
    rows = mask.view(-1, *[1] * (value.dim() - 1))
    count = mask.sum() * prod(value.shape[1:])
    return torch.where(rows, value, 0).sum() / count.clamp(min=1)
