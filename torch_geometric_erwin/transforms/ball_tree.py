r"""The transform that attaches a ball tree to data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Union

from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.typing import EdgeType

from torch_geometric_erwin.data.reorder import reorder_nodes
from torch_geometric_erwin.data.storage import attach_tree, remove_tree
from torch_geometric_erwin.transforms.ball_tree_edges import (
    check_which_edges,
    edges_of_store,
)
from torch_geometric_erwin.tree import TreeConfig
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.order import TIES
from torch_geometric_erwin.tree.reading import local_nodes, store_ptr
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_flag,
    check_instance,
    check_tensor,
)


@functional_transform("ball_tree")
class BallTree(BaseTransform):
    r"""Attaches the ball tree of the node positions :obj:`data.pos`, as in `"Erwin: A
    Tree-based Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_ (functional name: :obj:`ball_tree`).

    It sets, for the levels :math:`l = 0 \ldots L`:

    - :obj:`perm` :math:`(n)`: the nodes in tree order, counted in their own cloud, in a
      batch too (:meth:`Tree.global_perm <torch_geometric_erwin.Tree.global_perm>`
      counts them in the batch);
    - :obj:`level` :math:`(1, L + 1)`: the number of rows of every level, in a batch
      :math:`(G, L + 1)`;
    - :obj:`ball_len_{l}`: the number of rows of every ball;
    - :obj:`perm_rot_{l}`: the order of rows in the rotated tree, or if there is none
      :obj:`group_len_{l}`: the number of children of every pooled row;
    - :obj:`run_len_{l}_{m}`: the number of rows of every run of size :math:`m` in
      :obj:`runs`;
    - :obj:`tree_config`: the configuration, so that a model for another one refuses the
      tree, and :obj:`tree_code` :math:`(1, F + 1)`: the same as numbers
      (:attr:`TreeConfig.numbers`), followed by the number of nodes;
    - :obj:`tree_node` :math:`(n)`: the nodes' numbers, by which a tree whose nodes were
      dropped or reordered is refused;
    - :obj:`perm_mask`, only for :obj:`layout="perfect"`: :obj:`False` for rows of
      :obj:`perm` that repeat a node.

    With :obj:`edges` it sets also

    - :obj:`tree_edge_{l}` :math:`(E_l, 2)`: the edges between the rows of every coarse
      level, which are counted in their own cloud, and :obj:`tree_edge_count`
      :math:`(1, L + 2)`: their numbers, followed by the number of edges between nodes
      and a checksum of them, so that a tree of other edges is refused;
    - :obj:`tree_edge_attr_{l}` :math:`(E_l, F)`: their features, the means of
      :obj:`edge_attr`, if that is there and floating-point;
    - :obj:`tree_edge_type`, only in heterogeneous data: the type of the edges.

    :meth:`Tree.from_data <torch_geometric_erwin.Tree.from_data>` reads the tree again.
    Attributes of these names that are not of a tree, such as a permeability
    :obj:`perm` or a refinement :obj:`level`, are not overwritten: they cause an error,
    and :obj:`prefix` is the way out. Models find a tree with any prefix.

    The tree is built on the device of the positions. All attributes collate without
    offsets. The transform works on :class:`~torch_geometric.data.Data`, on every node
    store with positions of :class:`~torch_geometric.data.HeteroData`, and on batches of
    both. Apply it last, because transforms that remove or reorder nodes make the tree
    invalid. If nodes only move, the tree stays valid, but it is not the one that would
    be built for the new positions.
    :meth:`torch_geometric_erwin.nn.Erwin.tree_transform` returns the transform that
    fits a model.

    Args:
        ball_sizes: The largest number of rows in a ball, one value or one per level.
        strides: The number of rows that each coarsening pools, one value or one per
            coarsening. If it is a number, :obj:`ball_sizes` must be a list, whose
            length is the number of levels.
        rotate: The angle of the second tree, in degrees; zero for none.
        layout: :obj:`"balanced"`, or :obj:`"perfect"` for the tree of the original
            implementation.
        ties: What orders nodes of equal coordinate, :obj:`"index"` or
            :obj:`"coordinates"`, see :func:`~torch_geometric_erwin.ball_tree`.
        runs: Further sizes of runs, per level, see
            :class:`~torch_geometric_erwin.TreeConfig`.
        reorder: Whether to sort the nodes themselves into the order of the tree, with
            every attribute that has an entry per node, and the node numbers in
            :obj:`edge_index`, :obj:`face` and other attributes that name nodes. The
            order of the tree is then that of the nodes, so that mixers and PyG's layers
            work on the same rows, and :obj:`original_node` :math:`(n)` has the number
            of every node before (:func:`torch_geometric_erwin.to_original` is the way
            back). Edges keep their order.
        prefix: What the names of the tree's attributes begin with, such as
            :obj:`"ball_"`.
        edges: Whether to attach the edges of coarse levels
            (:meth:`Tree.coarse_edges <torch_geometric_erwin.Tree.coarse_edges>`) of
            :obj:`edge_index`, for models and layers that pass messages there. Apply
            transforms that make or change edges or :obj:`edge_attr` before. A batch
            with such trees cannot be padded. In heterogeneous data, the type of the
            edges, such as :obj:`("atom", "bond", "atom")`; trees of other nodes get
            none. :obj:`True` is enough where every type of nodes with positions has
            edges of exactly one type between its nodes.

    Raises:
        TypeError: If an argument or the positions have another type.
        ValueError: If an argument is out of range, a position is not finite, or there
            are no edges of the kind that :obj:`edges` names.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> data = BallTree(ball_sizes=4, strides=[2])(Data(pos=torch.rand(10, 3)))
        >>> data.level.tolist(), data.ball_len_0.tolist(), data.ball_len_1.tolist()
        ([[10, 5]], [4, 2, 4], [3, 2])
    """

    def __init__(
        self,
        ball_sizes: Union[int, Sequence[int]],
        strides: Union[int, Sequence[int]] = (),
        rotate: float = 45.0,
        layout: str = "balanced",
        ties: str = "index",
        runs: Sequence[Sequence[int]] = (),
        reorder: bool = False,
        prefix: str = "",
        edges: Union[bool, EdgeType] = False,
    ) -> None:
        self.config = TreeConfig(ball_sizes, strides, rotate, layout, runs)
        check_choice("ties", ties, TIES)
        self.ties = ties
        self.reorder = check_flag("reorder", reorder)
        if reorder and layout == "perfect":
            raise ValueError(
                "'reorder' needs layout='balanced' (got 'perfect', which repeats nodes)"
            )
        self.prefix = _check_prefix(prefix)
        self.edges = check_which_edges(edges)

    def forward(
        self, data: Union[Data, HeteroData, Batch]
    ) -> Union[Data, HeteroData, Batch]:
        r"""Attaches the tree to a shallow copy of the data."""
        check_instance(
            "data", data, (Data, HeteroData), "Data, HeteroData or a batch of them"
        )
        stores = [s for s in data.node_stores if s.get("pos") is not None]
        if not stores:
            raise ValueError("'BallTree' needs node positions: 'data.pos' is missing")
        for store in stores:
            check_tensor("pos", store["pos"])
            tree = build_tree(
                *(store["pos"], store_ptr(store)),
                *(self.config, self.ties),
                validate=store["pos"].device.type != "cpu",
            )
            edge_type = None
            if self.edges:
                edges = edges_of_store(data, store, self.edges)
                if edges is not None:
                    edge_type = edges.edge_type
                    tree = tree.with_edges(edges.edge_index, edges.edge_attr)
            if self.reorder:
                # Only then: the order of an earlier tree has an entry per node too.
                remove_tree(store, self.prefix)
                reorder_nodes(data, store, tree.global_perm())
                tree = replace(tree, perm=local_nodes(store, store_ptr(store)).long())
            attach_tree(data, store, tree, self.prefix, edge_type)
        return data

    def __repr__(self) -> str:
        c = self.config
        more = f", runs={[[*level] for level in c.runs]}" if c.runs else ""
        more += ", reorder=True" if self.reorder else ""
        more += f", prefix={self.prefix!r}" if self.prefix else ""
        more += f", edges={self.edges}" if self.edges else ""
        return (
            f"{self.__class__.__name__}(ball_sizes={[*c.ball_sizes]}, "
            f"strides={[*c.strides]}, rotate={c.rotate}, layout='{c.layout}', "
            f"ties='{self.ties}'{more})"
        )


# Parts of names by which PyG decides what an attribute is.
_TAKEN = ("index", "face", "batch", "ptr", "adj", "edge")


def _check_prefix(prefix: str) -> str:
    check_instance("prefix", prefix, str)
    if prefix and not prefix.isidentifier():
        raise ValueError(f"'prefix' must be a name, such as 'ball_' (got {prefix!r})")
    for part in _TAKEN:
        if part in prefix:
            raise ValueError(
                f"'prefix' must not contain {part!r}, by which PyG takes attributes "
                f"for those of edges or clouds (got {prefix!r})"
            )
    return prefix
