r"""The transform that attaches a ball tree to data."""

from collections.abc import Sequence
from typing import Union

from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_erwin.data.storage import attach_tree, store_ptr
from torch_geometric_erwin.tree import TreeConfig
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.order import TIES
from torch_geometric_erwin.utils.checks import (
    check_choice,
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
      batch too (see :func:`torch_geometric_erwin.global_perm`);
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
            coarsening.
        rotate: The angle of the second tree, in degrees; zero for none.
        layout: :obj:`"balanced"`, or :obj:`"perfect"` for the tree of the original
            implementation.
        ties: What orders nodes of equal coordinate, :obj:`"index"` or
            :obj:`"coordinates"`, see :func:`~torch_geometric_erwin.ball_tree`.
        runs: Further sizes of runs, per level, see
            :class:`~torch_geometric_erwin.TreeConfig`.

    Raises:
        TypeError: If an argument or the positions have another type.
        ValueError: If an argument is out of range, or a position is not finite.

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
    ) -> None:
        self.config = TreeConfig(ball_sizes, strides, rotate, layout, runs)
        check_choice("ties", ties, TIES)
        self.ties = ties

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
            attach_tree(data, store, tree)
        return data

    def __repr__(self) -> str:
        c = self.config
        runs = f", runs={[[*level] for level in c.runs]}" if c.runs else ""
        return (
            f"{self.__class__.__name__}(ball_sizes={[*c.ball_sizes]}, "
            f"strides={[*c.strides]}, rotate={c.rotate}, layout='{c.layout}', "
            f"ties='{self.ties}'{runs})"
        )
