r"""Padding batches of any sizes to one size."""

import copy
from math import prod
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from torch_geometric_erwin.data.storage import (
    is_tree_attribute,
    tree_attributes,
    tree_code,
)
from torch_geometric_erwin.tree import Tree
from torch_geometric_erwin.tree.reading import check_nodes, store_ptr
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
      :meth:`Tree.pad`.

    Attributes with an entry per node, edge or cloud are filled up: with numbers of
    added nodes if their name contains ``index``, otherwise with zeros. Tensors without
    such entries are refused. If every cloud has one node, an attribute of the clouds
    counts as one of the nodes. Pad last: in a loader's :obj:`collate_fn`, or on the
    GPU, from which nothing is read.

    Args:
        batch: The batch, or a single cloud, with the tree of
            :class:`~torch_geometric_erwin.transforms.BallTree`.
        num_nodes: The number of nodes :math:`N` after padding.
        num_graphs: The number of clouds :math:`G` after padding, larger than before.
        num_edges: The number of edges :math:`E` after padding, where there are edges.

    Raises:
        TypeError: If the data is not homogeneous.
        ValueError: If there is no tree, there are more nodes, edges or clouds than
            asked for, or an attribute belongs to neither nodes nor edges nor clouds.

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
    if getattr(batch, "tree_node", None) is None:
        raise ValueError("the batch has no tree; apply the transform 'BallTree' first")
    if getattr(batch, "tree_real", None) is not None:
        raise ValueError("the batch is padded already")
    check_nodes("batch", batch)
    ptr = store_ptr(batch)
    if ptr is None:
        raise ValueError(
            "the batch has no 'ptr', and no 'batch' either: it needs one of them"
        )
    if batch.edge_index is not None and num_edges is None:
        raise ValueError("'num_edges' is missing, the batch has edges")
    sizes = {"node": batch.pos.size(0), "edge": 0, "graph": ptr.size(0) - 1}
    if batch.edge_index is not None:
        check_edges("edge_index", batch.edge_index, sizes["node"])
        sizes["edge"] = batch.edge_index.size(1)
    elif num_edges:
        raise ValueError(
            f"'num_edges' must be None or 0, the batch has no edges (got {num_edges})"
        )
    wanted = {
        "node": check_int("num_nodes", num_nodes, 0),
        "edge": check_int("num_edges", 0 if num_edges is None else num_edges, 0),
        "graph": check_int("num_graphs", num_graphs, 1),
    }
    missing = {kind: wanted[kind] - size for kind, size in sizes.items()}
    for kind, size in sizes.items():
        least = size + (kind == "graph")
        if wanted[kind] < least:
            raise ValueError(
                f"'num_{kind}s' must be at least {least} for a batch with {size} (got "
                f"{wanted[kind]})"
            )
    if missing["edge"] > 0 and missing["node"] == 0:
        raise ValueError(
            f"'num_nodes' must be above {num_nodes}: added edges need an added node"
        )

    num_nodes, num_graphs = wanted["node"], wanted["graph"]
    tree = Tree.from_data(batch).pad(num_nodes, num_graphs)
    out = copy.copy(batch)
    for name, value in batch.stores[0].items():
        if name in ("ptr", "num_nodes") or is_tree_attribute(name):
            continue
        if isinstance(value, Tensor):
            check_tensor(name, value)
            kind, axis = _kind(batch, name, value, sizes)
            fill = _fill(name, kind, value.device, missing, sizes)
            out[name] = _extended(value, fill, axis)
    if "num_nodes" in batch.stores[0]:
        out.num_nodes = num_nodes
    out.ptr = torch.cat([ptr, ptr.new_full((missing["graph"],), num_nodes)])
    numbers = torch.arange(missing["node"], dtype=torch.int32, device=ptr.device)
    out.tree_node = torch.cat([batch.tree_node, numbers])
    out.tree_code = tree_code(tree.config, out.ptr.diff())
    out.tree_config = [tree.config.text] * num_graphs
    out.stores[0].update(tree_attributes(tree))
    out.graph_mask = tree.real
    out.node_mask = torch.arange(num_nodes, device=ptr.device) < sizes["node"]
    out._num_graphs = num_graphs
    for name in ("_slice_dict", "_inc_dict"):  # the clouds cannot be separated
        vars(out.stores[0]).pop(name, None)
    return out


def _kind(
    batch: Batch, name: str, value: Tensor, sizes: dict[str, int]
) -> tuple[str, int]:
    # Returns whether an attribute has an entry per node, edge or graph, and its axis.
    axis = batch.__cat_dim__(name, value)
    if value.dim() > 0 and axis is not None:
        fits = [kind for kind, n in sizes.items() if n == value.size(axis)]
        if len(fits) > 1:
            fits = _same_slices(batch, name, fits, sizes["graph"]) or fits
        if len(fits) > 1 and "edge" in fits:  # PyG also decides by the name
            fits = ["edge"] if "edge" in name else [k for k in fits if k != "edge"]
        if fits:
            return fits[0], axis % value.dim()
    raise ValueError(
        f"'{name}' of shape {list(value.shape)} has an entry for neither every node "
        "nor every edge nor every cloud: remove it before padding"
    )


def _same_slices(batch: Batch, name: str, kinds: list[str], graphs: int) -> list[str]:
    # If an attribute is as long as there are nodes and, by chance, as there are edges
    # or clouds, how its entries are divided among the clouds tells which it is.
    slices = getattr(batch.stores[0], "_slice_dict", {})
    known = {
        "node": slices.get("pos"),
        "edge": slices.get("edge_index"),
        "graph": torch.arange(graphs + 1),
    }
    own = slices.get(name)
    if own is None:
        return []
    same = {k: s is not None and torch.equal(own, s) for k, s in known.items()}
    return [kind for kind in kinds if same[kind]]


def _fill(
    name: str,
    kind: str,
    device: torch.device,
    missing: dict[str, int],
    sizes: dict[str, int],
) -> Tensor:
    # Returns the added entries of an attribute. The first added cloud holds all added
    # nodes. Added edges are spread over them, because a GPU adds the messages into one
    # node one after the other.
    rows = torch.arange(missing[kind], device=device)
    if name == "batch":
        return rows * 0 + sizes["graph"]
    if "index" in name and len(rows) > 0:
        if missing["node"] == 0:
            raise ValueError(
                f"'num_nodes' must be above {sizes['node']}: '{name}' names a node of "
                "every added cloud, which needs an added node"
            )
        return sizes["node"] + rows % missing["node"]
    return rows * 0


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
