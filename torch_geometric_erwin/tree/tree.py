r"""The ball tree of a batch of clouds."""

from dataclasses import dataclass, replace
from typing import Optional, Union

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.edge_check import check_same_edges, edge_code
from torch_geometric_erwin.tree.edges import (
    RowEdges,
    checked_edges,
    edges_on_level,
)
from torch_geometric_erwin.tree.fit import warn_of_order
from torch_geometric_erwin.tree.level import Level
from torch_geometric_erwin.tree.levels import levels_of
from torch_geometric_erwin.tree.order import Order
from torch_geometric_erwin.tree.padding import padded
from torch_geometric_erwin.tree.partition import Partition
from torch_geometric_erwin.tree.reading import (
    Nodes,
    edge_store,
    read_config,
    read_fields,
)
from torch_geometric_erwin.tree.update import updated
from torch_geometric_erwin.tree.validation import check_fits
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edges,
    check_floating,
    check_instance,
    check_int,
    check_pos,
    check_positions,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import segment_ids


@dataclass(frozen=True, eq=False)
class Tree:
    r"""The ball tree of a batch of clouds, as :func:`ball_tree` builds it.

    Level :math:`l` has :math:`N_l` rows in all clouds. Every ball of a level and every
    pooling group is a range of consecutive rows, so that lengths describe them.

    Args:
        perm: The point of every row of level 0, counted in its own cloud.
        node_ptr: The offsets of the clouds among the nodes.
        level: The number of rows of every cloud on every level.
        ball_len: Per level, the number of rows of every ball.
        group_len: Per coarsening, the number of children of every pooled row.
        perm_rot: Per level, the row at every place of the rotated tree, counted in its
            own cloud; empty if there is no rotated tree.
        mask: For :obj:`layout="perfect"`, :obj:`False` where a row repeats the point
            before it; otherwise :obj:`None`.
        config: The configuration that it was built for.
        runs: Per level, for every size in :attr:`TreeConfig.runs`, the number of rows
            of every run.
        real: After :meth:`pad`, :obj:`False` for the clouds that were added; otherwise
            :obj:`None`.
        edges: Per coarse level, the edges between its rows, see :meth:`with_edges`;
            empty if there are none.
        edge_means: Per coarse level, the features of these edges; empty if they have
            none.
        edge_code: Numbers by which edges between nodes are recognised as those from
            which :obj:`edges` were made; :obj:`None` if there are none.

    Shapes:
        - **perm:** :math:`(N_0)`; **node_ptr:** :math:`(G + 1)`; **level:**
          :math:`(G, L + 1)`; **ball_len:** :math:`(K_l)` each; **group_len:**
          :math:`(N_{l+1})` each; **perm_rot:** :math:`(N_l)` each; **mask:**
          :math:`(N_0)`; **real:** :math:`(G)`; **edges:** :math:`(2, E_l)` each;
          **edge_means:** :math:`(E_l, F)` each; **edge_code:** :math:`(G, 2)`.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> tree = ball_tree(torch.rand(1000, 3), ball_sizes=128, strides=[2, 2, 2, 2])
        >>> [balls.tolist() for balls in tree.ball_len[2:]]
        [[128, 122], [125], [63]]
        >>> x = torch.rand(1000, 8)
        >>> torch.equal(tree.to_nodes(tree.to_rows(x)), x)
        True
        >>> ball_tree(torch.rand(9, 3), ball_sizes=4)
        Tree('balls=4 strides= rotate=45.0 layout=balanced', clouds=1, rows=[9])
    """

    perm: Tensor
    node_ptr: Tensor
    level: Tensor
    ball_len: tuple[Tensor, ...]
    group_len: tuple[Tensor, ...]
    perm_rot: tuple[Tensor, ...]
    mask: Optional[Tensor]
    config: TreeConfig
    runs: tuple[tuple[Tensor, ...], ...] = ()
    real: Optional[Tensor] = None
    edges: tuple[Tensor, ...] = ()
    edge_means: tuple[Tensor, ...] = ()
    edge_code: Optional[Tensor] = None

    @classmethod
    def from_data(
        cls, data: Nodes, config: Optional[TreeConfig] = None, prefix: str = ""
    ) -> "Tree":
        r"""Returns the tree that
        :class:`~torch_geometric_erwin.transforms.BallTree` attached to data.

        A warning tells if nodes were shuffled or replaced by hand since then.

        Args:
            data: Data, a batch of it, or one node store of heterogeneous data.
            config: The configuration that the tree must have. (default: any). In
                compiled code, where it is not given, another number of clouds compiles
                again.
            prefix: The :obj:`prefix` of the transform.

        Raises:
            TypeError: If it is something else.
            ValueError: If there is no tree, or it does not fit the data: the message
                says why.

        Example:
            >>> from torch_geometric.data import Batch, Data
            >>> from torch_geometric_erwin.transforms import BallTree
            >>> clouds = [Data(pos=torch.tensor([[1.0], [0.0]])) for _ in range(2)]
            >>> batch = Batch.from_data_list([BallTree(2)(data) for data in clouds])
            >>> Tree.from_data(batch).global_perm()
            tensor([1, 0, 3, 2])
        """
        check_instance("prefix", prefix, str)
        own = read_config(data, prefix) if config is None else config
        check_instance("config", own, TreeConfig)
        fields = read_fields(data, own, prefix)
        if fields is None:
            own = read_config(data, prefix)  # raises the error
        assert fields is not None
        tree = cls(**fields)
        if is_readable(tree.perm):
            tree.validate(data.pos.size(0), own)
            check_pos(data.pos)
            warn_of_order(tree, data.pos)
            if tree.edges:
                edges = getattr(edge_store(data, prefix), "edge_index", None)
                if isinstance(edges, Tensor):
                    check_edges("edge_index", edges, tree.num_nodes)
                    check_same_edges(tree, RowEdges(edges), tree.row_of_node())
        return tree

    @property
    def num_nodes(self) -> int:
        r"""The number of nodes :math:`N`.

        With :obj:`layout="perfect"` it is read from a tensor, which waits for a GPU.
        """
        return self.perm.size(0) if self.mask is None else int(self.node_ptr[-1])

    def num_rows(self, level: int) -> int:
        r"""Returns the number of rows :math:`N_l` of a level in all clouds."""
        self._check_level(level)
        return (self.perm if level == 0 else self.group_len[level - 1]).size(0)

    def ptr(self, level: int = 0) -> Tensor:
        r"""Returns the offsets of the clouds among the rows of a level.

        Shapes:
            - **output:** :math:`(G + 1)`.
        """
        self._check_level(level)
        return pad(self.level[:, level].cumsum(0), (1, 0))

    def batch(self, level: int) -> Tensor:
        r"""Returns the cloud of every row of a level, as PyG's readouts take it."""
        num_rows = self.num_rows(level)
        return segment_ids(self.level[:, level], num_rows)

    def real_rows(self, level: int) -> Optional[Tensor]:
        r"""Returns which rows of a level are real, not added by :meth:`pad`.

        It is :obj:`None` for a tree that is not padded.

        Shapes:
            - **output:** :math:`(N_l)`, bool; real rows come first.
        """
        self._check_level(level)
        if self.real is None:
            return None
        end = (self.level[:, level] * self.real).sum()
        return torch.arange(self.num_rows(level), device=end.device) < end

    def global_perm(self) -> Tensor:
        r"""Returns the node of every row of level 0, counted in the batch.

        Shapes:
            - **output:** :math:`(N_0)`.
        """
        cloud = segment_ids(self.level[:, 0], self.perm.size(0))
        return self.perm + self.node_ptr[:-1][cloud]

    def global_perm_rot(self, level: int) -> Tensor:
        r"""Returns the row at every place of the rotated tree, counted in the batch.

        Shapes:
            - **output:** :math:`(N_l)`.
        """
        self._check_level(level)
        if not self.perm_rot:
            raise ValueError("the tree has no rotated tree: 'rotate' must not be zero")
        perm, rows = self.perm_rot[level], self.level[:, level]
        return perm + (rows.cumsum(0) - rows)[segment_ids(rows, perm.size(0))]

    def order(
        self, num_nodes: Optional[int] = None, levels: Optional[int] = None
    ) -> Order:
        r"""Returns :meth:`global_perm`, and :meth:`global_perm_rot` of all levels.

        Args:
            num_nodes: The number of nodes, if the caller knows it. (default:
                :attr:`num_nodes`)
            levels: The number of levels with a rotated order, from the finest on.
                (default: all)
        """
        num_nodes = self.num_nodes if num_nodes is None else num_nodes
        tables = (self.perm, self.perm_rot[:levels], self.level, self.node_ptr)
        return Order.of(*tables, num_nodes, repeats=self.mask is not None)

    def to_rows(self, x: Tensor) -> Tensor:
        r"""Brings entries of nodes into the order of the rows of level 0.

        Shapes:
            - **x:** :math:`(N, *)`; **output:** :math:`(N_0, *)`.

        Raises:
            ValueError: If it does not have one entry for every node, or is on another
                device.
        """
        check_tensor("x", x)
        check_devices(x=x, tree=self.perm)
        if x.dim() == 0 or not self._has_nodes(x.size(0)):
            raise ValueError(
                f"'x' must have an entry for each of {self.num_nodes} nodes (got "
                f"{[*x.shape]})"
            )
        return self.order(x.size(0)).to_rows(x)

    def to_nodes(self, rows: Tensor) -> Tensor:
        r"""Brings entries of the rows of level 0 into the order of the nodes.

        Shapes:
            - **rows:** :math:`(N_0, *)`; **output:** :math:`(N, *)`.

        Raises:
            ValueError: If it does not have one entry for every row, or is on another
                device.
        """
        check_tensor("rows", rows)
        check_devices(rows=rows, tree=self.perm)
        if rows.is_floating_point():
            check_floating("rows", rows)
        if rows.shape[:1] != (self.num_rows(0),):
            raise ValueError(
                f"'rows' must have an entry for each of {self.num_rows(0)} rows (got "
                f"{[*rows.shape]})"
            )
        return self.order().to_nodes(rows)

    def row_of_node(self, level: int = 0) -> Tensor:
        r"""Returns the row of every node on a level, by which it can be indexed there.

        If a node has several rows on level 0, the first one is taken.

        Args:
            level: The level.

        Shapes:
            - **output:** :math:`(N)`.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> pos = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
            >>> tree = ball_tree(pos, ball_sizes=2, strides=[2])
            >>> tree.row_of_node(0).tolist(), tree.row_of_node(1).tolist()
            ([3, 1, 2, 0], [1, 0, 1, 0])
        """
        self._check_level(level)
        perm, repeats = self.global_perm(), self.mask is not None
        rows = Order(perm, (), self.num_nodes, repeats).row_of_node()
        for l, groups in enumerate(self.group_len[:level]):
            parent = segment_ids(groups, self.num_rows(l))
            rows = parent.index_select(0, rows)
        return rows

    def coarse_edges(
        self, edge_index: Tensor, level: int, edge_attr: Optional[Tensor] = None
    ) -> Union[Tensor, tuple[Tensor, Tensor]]:
        r"""Returns the edges between the rows of a level.

        Two rows have an edge if a node below the one has an edge to a node below the
        other. On coarse levels every edge is there once, sorted as by
        :func:`torch_geometric.utils.coalesce`, and none connects a row to itself. On
        level 0 all edges are kept, in their order.

        Args:
            edge_index: Edges between nodes, in the numbers of nodes.
            level: The level.
            edge_attr: The features of the edges. If they are given, a pair is returned:
                the edges of the level, and for each the mean of the features of all
                edges that it stands for.

        Shapes:
            - **edge_index:** :math:`(2, E)`; **edge_attr:** :math:`(E, F)`;
              **output:** :math:`(2, E_l)`, and :math:`(E_l, F)`.

        Raises:
            TypeError: If a tensor has another kind of dtype.
            ValueError: If there is no such level or node, or not a row of features for
                every edge.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> pos = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
            >>> tree = ball_tree(pos, ball_sizes=2, strides=[2])
            >>> edge_index = torch.tensor([[0, 0, 2, 3], [1, 2, 1, 1]])
            >>> tree.coarse_edges(edge_index, level=1).tolist()
            [[1], [0]]
        """
        self._check_level(level)
        edges = self._given(edge_index, edge_attr)
        edge_index, edge_attr = edges_on_level(self, edges, level)
        return edge_index if edge_attr is None else (edge_index, edge_attr)

    def with_edges(
        self, edge_index: Tensor, edge_attr: Optional[Tensor] = None
    ) -> "Tree":
        r"""Returns the tree with the edges of all coarse levels
        (:meth:`coarse_edges`), which :meth:`levels` then hands to layers.

        Args:
            edge_index: Edges between nodes.
            edge_attr: The features of the edges.

        Shapes:
            - **edge_index:** :math:`(2, E)`; **edge_attr:** :math:`(E, F)`.

        Raises:
            TypeError: If a tensor has another kind of dtype.
            ValueError: If there is no such node, not a row of features for every edge,
                or the tree is padded.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> pos = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
            >>> tree = ball_tree(pos, ball_sizes=2, strides=[2])
            >>> tree = tree.with_edges(torch.tensor([[0], [1]]))
            >>> [level.edge_index for level in tree.levels(pos)]
            [None, tensor([[1],
                    [0]])]
        """
        if self.real is not None:
            raise ValueError(
                "the tree is padded: it has to get its edges before, and trees with "
                "edges cannot be padded"
            )
        given = self._given(edge_index, edge_attr)
        coarse = range(1, self.config.num_levels)
        edges = [edges_on_level(self, given, level) for level in coarse]
        means = [own.edge_attr for own in edges if own.edge_attr is not None]
        code = None
        if edges:
            code = edge_code(given.edge_index, self.row_of_node(), self.level[:, 0])
        return replace(
            self,
            edges=tuple(e.edge_index for e in edges),
            edge_means=tuple(means),
            edge_code=code,
        )

    def _given(self, edge_index: Tensor, edge_attr: Optional[Tensor]) -> RowEdges:
        edges = checked_edges(edge_index, edge_attr, self.num_nodes)
        check_devices(tree=self.perm, edge_index=edge_index, edge_attr=edge_attr)
        return edges

    def __repr__(self) -> str:
        edges = f", edges={[e.size(1) for e in self.edges]}" if self.edges else ""
        padded = ", padded" if self.real is not None else ""
        rows = [self.num_rows(l) for l in range(len(self.ball_len))]
        return (
            f"{self.__class__.__name__}('{self.config}', clouds={len(self.level)}, "
            f"rows={rows}{edges}{padded})"
        )

    def levels(
        self,
        pos: Tensor,
        edge_index: Optional[Tensor] = None,
        edge_attr: Optional[Tensor] = None,
    ) -> tuple[Level, ...]:
        r"""Returns all levels in the form that layers take, with all geometry.

        The position of a coarse row is the mean of its children's. Positions that
        require a gradient get one. The edges of coarse levels are those of the tree
        (:meth:`with_edges`).

        Args:
            pos: The node positions.
            edge_index: Edges between nodes, for the layers of level 0.
            edge_attr: The features of these edges.

        Shapes:
            - **pos:** :math:`(N, D)`; **edge_index:** :math:`(2, E)`; **edge_attr:**
              :math:`(E, F)`.

        Raises:
            TypeError: If the positions are not floating-point.
            ValueError: If there are more or fewer positions than nodes, or they are on
                another device.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> pos = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
            >>> fine, coarse = ball_tree(pos, ball_sizes=2, strides=[2]).levels(pos)
            >>> fine.pos.flatten().tolist(), coarse.pos.flatten().tolist()
            ([0.0, 1.0, 2.0, 3.0], [0.5, 2.5])
        """
        check_tensor("pos", pos)
        if pos.dim() != 2 or not self._has_nodes(pos.size(0)):
            raise ValueError(
                f"'pos' must have a row for each of the tree's {self.num_nodes} nodes "
                f"(got {[*pos.shape]})"
            )
        check_positions("pos", pos, *pos.shape)
        check_devices(pos=pos, tree=self.perm)
        if edge_index is not None:
            edge_index, edge_attr = checked_edges(edge_index, edge_attr, pos.size(0))
            check_devices(pos=pos, edge_index=edge_index, edge_attr=edge_attr)
        elif edge_attr is not None:
            raise ValueError("'edge_index' is missing beside 'edge_attr'")
        return levels_of(self, self.order(pos.size(0)), pos, edge_index, edge_attr)

    def extents(self, pos: Tensor) -> tuple[Tensor, ...]:
        r"""Returns the extents of the balls of every level.

        The extent of a ball is the root mean square distance of its rows from their
        mean, in the unit of the positions. On meshes with local refinement, the extents
        of one level differ by a factor of 100 and more;
        :obj:`Erwin(..., distance="relative")` is for those.

        Args:
            pos: The node positions.

        Shapes:
            - **pos:** :math:`(N, D)`; **output:** :math:`(K_l)` each.

        Raises:
            TypeError: If the positions are not floating-point.
            ValueError: If there are more or fewer positions than nodes, or they are on
                another device.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> pos = torch.tensor([[0.0], [2.0], [10.0], [16.0]])
            >>> [e.tolist() for e in ball_tree(pos, ball_sizes=2).extents(pos)]
            [[1.0, 3.0]]
        """
        return tuple(level.extent for level in self.levels(pos))

    def _check_level(self, level: int) -> None:
        if type(level) is not int or not 0 <= level < len(self.ball_len):
            check_int("level", level, 0, len(self.ball_len) - 1)

    def _has_nodes(self, count: int) -> bool:
        # With repeated points the number of nodes is a value, which traced code cannot
        # read.
        unknown = self.mask is not None and torch.compiler.is_compiling()
        return unknown or count == self.num_nodes

    def partition(self) -> Partition:
        r"""Returns the lengths of clouds, balls, groups and runs."""
        return Partition(self.level, self.ball_len, self.group_len, self.runs)

    def tensors(self) -> list[Tensor]:
        r"""Returns all tensors of the tree."""
        return [t for t in pytree.tree_leaves(self) if t is not None]

    def pad(self, num_nodes: int, num_clouds: int) -> "Tree":
        r"""Adds clouds such that all sizes follow from :math:`N`, :math:`G` and the
        configuration (:meth:`TreeConfig.padded_sizes`).

        One compiled graph, or one recorded CUDA graph, then serves batches of any
        sizes. The first added cloud holds all added nodes, in balls and groups of its
        own, and on every level all added rows; further added clouds are empty. Balls
        and groups without rows have the length zero.
        :func:`torch_geometric_erwin.pad_batch` pads the nodes in the same way. Nothing
        is read from a GPU.

        Args:
            num_nodes: The number of nodes :math:`N` after padding.
            num_clouds: The number of clouds :math:`G` after padding, larger than
                before.

        Raises:
            ValueError: If the tree has too many nodes, clouds or balls, repeats points,
                or has edges.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> tree = ball_tree(torch.rand(5, 2), ball_sizes=4, strides=[2])
            >>> tree = tree.pad(num_nodes=10, num_clouds=3)
            >>> tree.level.tolist(), tree.real.tolist()
            ([[5, 3], [5, 3], [0, 0]], [True, False, False])
            >>> [balls.tolist() for balls in tree.ball_len]
            [[4, 1, 4, 1], [3, 3, 0]]
        """
        return padded(self, num_nodes, num_clouds)

    def update(self, pos: Tensor, max_points: Optional[int] = None) -> "Tree":
        r"""Builds the tree again for positions that moved.

        As splits are by count, the sizes of balls and groups stay the same. Points of
        equal coordinate are ordered by index. Nothing is read from a GPU, so a rollout
        does not wait for it, and the call can be recorded in a CUDA graph or compiled
        together with the model. Edges of coarse levels are left out, because rows
        change places: call :meth:`with_edges` again.

        Args:
            pos: The new positions of the same nodes.
            max_points: An upper bound of the points of a cloud. On a GPU it saves the
                launches that larger clouds would need; the GPU asserts that it holds.
                (default: the number of nodes)

        Shapes:
            - **pos:** :math:`(N, D)`.

        Raises:
            ValueError: If there are more or fewer positions than nodes, or a cloud has
                more points than :obj:`max_points`.

        Example:
            >>> from torch_geometric_erwin import ball_tree
            >>> pos = torch.rand(10, 2)
            >>> tree = ball_tree(pos, ball_sizes=4)
            >>> moved = tree.update(-pos)
            >>> torch.equal(moved.perm, ball_tree(-pos, ball_sizes=4).perm)
            True
        """
        return updated(self, pos, max_points)

    def to(self, device: Union[str, torch.device]) -> "Tree":
        r"""Moves every tensor to a device.

        Args:
            device: The device.

        Raises:
            TypeError: If it is neither a name nor a device.
            ValueError: If PyTorch knows no device of that name.
        """
        check_instance("device", device, (str, torch.device), "a device or its name")
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(
                f"'device' must be the name of a device (got {device!r})"
            ) from error
        return pytree.tree_map_only(Tensor, lambda t: t.to(device), self)

    def validate(
        self,
        num_nodes: int,
        config: TreeConfig,
        ptr: Optional[Tensor] = None,
        values: bool = True,
    ) -> None:
        r"""Checks that the tree fits a batch, and says what to do if it does not.

        Args:
            num_nodes: The number of nodes :math:`N` of the batch.
            config: The configuration that is needed.
            ptr: The row offsets of the clouds, to compare them with those of the tree.
            values: Whether to check values too; if they are on a GPU, this waits for
                it.

        Raises:
            TypeError: If the offsets are not int64.
            ValueError: If the tree was built for other nodes or another configuration.
        """
        check_fits(self, num_nodes, config, ptr, values)


def check_tree(name: str, tree: Tree) -> None:
    r"""Checks that an argument is a tree; :meth:`Tree.validate` checks its tables.

    Args:
        name: The argument's name, for messages.
        tree: The argument.

    Raises:
        TypeError: If it is not a tree.

    Example:
        >>> check_tree("tree", None)
        Traceback (most recent call last):
        TypeError: 'tree' must be a Tree (got None)
    """
    check_instance(name, tree, Tree)
    check_instance(f"{name}.config", tree.config, TreeConfig)
    for table in ("perm", "node_ptr"):
        check_tensor(table, getattr(tree, table))
