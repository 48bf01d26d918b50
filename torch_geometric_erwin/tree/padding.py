r"""Trees of which all sizes follow from those of a batch."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_geometric_erwin.utils.checks import check_int

if TYPE_CHECKING:
    from torch_geometric_erwin.tree.tree import Tree


def padded(tree: "Tree", num_nodes: int, num_clouds: int) -> "Tree":
    r"""Adds clouds to a tree; see :meth:`Tree.pad`.

    Args:
        tree: The tree.
        num_nodes: The number of nodes :math:`N` after padding.
        num_clouds: The number of clouds :math:`G` after padding.

    Raises:
        ValueError: If the tree has too many nodes, clouds or balls, repeats points, or
            has edges.
    """
    if tree.real is not None:
        raise ValueError("the tree is padded already")
    if tree.edges:
        raise ValueError(
            "a tree with edges cannot be padded, as the number of edges of a level "
            "does not follow from that of nodes: build it without"
        )
    num_nodes = check_int("num_nodes", num_nodes, 0)
    num_clouds = check_int("num_clouds", num_clouds, 1)
    clouds = tree.level.size(0)
    tables = tree.partition().padded(
        tree.config, tree.perm.size(0), num_nodes, num_clouds
    )

    def itself(perm: Tensor, rows: int) -> Tensor:
        added = torch.arange(rows - perm.size(0), device=perm.device)
        return torch.cat([perm, added])

    rows = [num_nodes, *(lengths.size(0) for lengths in tables.group_len)]
    ends = tree.node_ptr.new_full((num_clouds - clouds,), num_nodes)
    return replace(
        tree,
        perm=itself(tree.perm, num_nodes),
        node_ptr=torch.cat([tree.node_ptr, ends]),
        perm_rot=tuple(itself(t, n) for t, n in zip(tree.perm_rot, rows)),
        real=torch.arange(num_clouds, device=tree.level.device) < clouds,
        **tables._asdict(),
    )
