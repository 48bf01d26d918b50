r"""One level of a tree, in the form that layers take."""

from dataclasses import dataclass, field, replace
from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.utils.centre import centre
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edge_attr,
    check_edges,
    check_finite,
    check_floating,
    check_instance,
    check_int,
    check_int64,
    check_lengths,
    check_mask,
    check_permutation,
    check_positions,
    check_ptr,
    check_shape,
    check_tensor,
    is_readable,
)
from torch_geometric_erwin.utils.rows import (
    from_dense,
    put_rows,
    read_rows,
    row_mask,
    segment_ids,
    take_rows,
    to_dense,
)


@dataclass(frozen=True, eq=False)
class Level:
    r"""One level of a tree, the second argument of a mixer after the rows of features.

    Rows are in tree order: every cloud, every ball of the main tree, every pooling
    group and every run is a range of consecutive rows. In a level that
    :meth:`rotated` returned, balls are those of the second tree, whose order of rows is
    :attr:`perm`; everything else stays that of the main tree.

    :meth:`Tree.levels` makes the levels of a tree. :meth:`build` makes a single one,
    for a layer that is used without a tree.

    Args:
        pos: The row positions.
        ptr: The row offsets of the clouds.
        ball_len: The number of rows of every ball.
        ball_size: The largest number of rows that a ball can have.
        offset: The position of every row relative to the mean of its ball.
        offset_rot: The same for the balls of the second tree.
        perm: If the balls are those of the second tree, the row at every place of that
            tree; :obj:`None` if they are those of the main tree.
        perm_rot: The row at every place of the second tree, in both cases;
            :obj:`None` if there is no second tree.
        group_len: The number of children that every row has on the finer level.
        children: Positions of the children relative to the row, zero in slots without
            a child.
        real: :obj:`False` for the rows that :meth:`Tree.pad` added.
        edge_index: Edges between rows.
        node: On level 0 of a tree, the node of every row.
        edge_attr: The features of the edges.
        runs: For every size in :attr:`TreeConfig.runs`, the number of rows of every run
            of at most that many rows.

    Shapes:
        - **pos**, **offset**, **offset_rot:** :math:`(N, D)`; **ptr:**
          :math:`(G + 1)`; **ball_len:** :math:`(K)`; **perm**, **perm_rot**,
          **group_len**, **real**, **node:** :math:`(N)`; **children:**
          :math:`(N, s, D)`; **edge_index:** :math:`(2, E)`; **edge_attr:**
          :math:`(E, F)`; **runs:** :math:`(K_m)` each.

    Example:
        >>> import torch
        >>> pos = torch.tensor([[0.0], [2.0], [6.0]])
        >>> level = Level.build(pos, torch.tensor([2, 1]), ball_size=2)
        >>> level
        Level(rows=3, clouds=1, balls=2 x 2)
        >>> level.offset.flatten().tolist()
        [-1.0, 1.0, 0.0]
        >>> level.to_balls(pos).squeeze(-1).tolist()
        [[0.0, 2.0], [6.0, 0.0]]
    """

    pos: Tensor
    ptr: Tensor
    ball_len: Tensor
    ball_size: int
    offset: Tensor
    offset_rot: Tensor
    perm: Optional[Tensor] = None
    perm_rot: Optional[Tensor] = None
    group_len: Optional[Tensor] = None
    children: Optional[Tensor] = None
    real: Optional[Tensor] = None
    edge_index: Optional[Tensor] = None
    node: Optional[Tensor] = None
    edge_attr: Optional[Tensor] = None
    runs: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        pos: Tensor,
        ball_len: Tensor,
        *,
        ball_size: int,
        ptr: Optional[Tensor] = None,
        perm_rot: Optional[Tensor] = None,
        edge_index: Optional[Tensor] = None,
        edge_attr: Optional[Tensor] = None,
    ) -> "Level":
        r"""Makes a level from rows that are in tree order already.

        Args:
            pos: The row positions.
            ball_len: The number of rows of every ball; balls are consecutive rows.
            ball_size: The largest number of rows that a ball can have.
            ptr: The row offsets of the clouds. (default: one cloud)
            perm_rot: The row at every place of a second tree, whose balls have the same
                lengths.
            edge_index: Edges between rows.
            edge_attr: The features of the edges.

        Raises:
            TypeError: If a tensor has another dtype.
            ValueError: If shapes or lengths do not fit.
        """
        check_tensor("pos", pos)
        shape = [*pos.shape]
        if pos.dim() != 2:
            raise ValueError(f"'pos' must have shape [N, D] (got {shape})")
        check_positions("pos", pos, *shape)
        ball_size = check_int("ball_size", ball_size, 1)
        check_lengths("ball_len", ball_len, shape[0], ball_size)
        ptr = _check_rows_of(pos, ptr, ball_len, perm_rot, edge_index)
        _check_edge_attr("edge_attr", edge_attr, edge_index)
        check_devices(pos=pos, edge_attr=edge_attr)
        return cls.of(
            *(pos, ptr, ball_len, ball_size, perm_rot),
            edge_index=edge_index,
            edge_attr=edge_attr,
        )

    @classmethod
    def of(
        cls,
        pos: Tensor,
        ptr: Tensor,
        ball_len: Tensor,
        ball_size: int,
        perm_rot: Optional[Tensor],
        **others: Any,
    ) -> "Level":
        r"""Makes a level like :meth:`build`, without checks and with any other field.

        Args:
            pos: The row positions.
            ptr: The row offsets of the clouds.
            ball_len: The number of rows of every ball.
            ball_size: The largest number of rows that a ball can have.
            perm_rot: The row at every place of a second tree.
            **others: Further fields.
        """
        offset = offset_rot = centre(pos, ball_len, None, ball_size)
        if perm_rot is not None:
            offset_rot = centre(pos, ball_len, perm_rot, ball_size)
        level = cls(
            *(pos, ptr, ball_len, ball_size, offset, offset_rot),
            perm_rot=perm_rot,
            **others,
        )
        return level._known_to_fit()

    def _known_to_fit(self) -> "Level":
        # The mark is not a field, so a level that `replace` makes has none and is
        # checked again.
        if not torch.compiler.is_compiling():
            object.__setattr__(self, "_fits", True)
        return self

    def check(self, name: str = "level") -> None:
        r"""Checks once that the tensors of a level fit each other.

        Levels of :meth:`Tree.levels` and :meth:`build` are known to fit and not checked
        again.

        Args:
            name: What the level is called, for messages.

        Raises:
            TypeError: If one has another dtype.
            ValueError: If shapes, devices or, on the host, values do not fit.

        Example:
            >>> import torch
            >>> from dataclasses import replace
            >>> level = Level.build(torch.rand(3, 2), torch.tensor([3]), ball_size=4)
            >>> replace(level, ball_len=torch.tensor([2])).check()
            Traceback (most recent call last):
            ValueError: 'level.ball_len' must sum to the number of rows 3 (got 2)
        """
        if torch.compiler.is_compiling() or vars(self).get("_fits", False):
            return
        _check_fields(name, self)
        self._known_to_fit()

    def rotated(self) -> "Level":
        r"""Returns the level of the second tree, or itself if there is none."""
        if self.perm_rot is None:
            return self
        self.check()
        level = replace(self, perm=self.perm_rot, offset=self.offset_rot)
        return level._known_to_fit()

    def __repr__(self) -> str:
        edges = "" if self.edge_index is None else f", edges={self.edge_index.size(1)}"
        rotated = "" if self.perm is None else ", rotated"
        balls = f"{self.ball_len.size(0)} x {self.ball_size}"
        return (
            f"{self.__class__.__name__}(rows={self.num_rows}, "
            f"clouds={self.num_clouds}, balls={balls}{edges}{rotated})"
        )

    @property
    def num_rows(self) -> int:
        r"""The number of rows :math:`N`."""
        return self.pos.size(0)

    @property
    def num_clouds(self) -> int:
        r"""The number of clouds :math:`G`."""
        return self.ptr.size(0) - 1

    @property
    def batch(self) -> Tensor:
        r"""The cloud of every row :math:`(N)`, as PyG's layers take it."""
        return segment_ids(self.ptr.diff(), self.num_rows)

    @property
    def ball_mask(self) -> Tensor:
        r"""Which slots of :meth:`to_balls` hold a row :math:`(K, B)`."""
        return row_mask(self.ball_len, self.ball_size)

    @property
    def extent(self) -> Tensor:
        r"""The extent of every ball :math:`(K)`: the root mean square distance of its
        rows from their mean.
        """
        # Squares of half precision might overflow.
        offset = self.offset.to(torch.promote_types(self.offset.dtype, torch.float32))
        square = self.to_balls(offset.square().sum(1)).sum(1)
        square = square / self.ball_len.clamp(min=1)
        # The gradient of the root is infinite at zero, so zeros are replaced before it.
        alone = square == 0
        return torch.where(alone, 0, torch.where(alone, 1, square).sqrt())

    @property
    def relative_offset(self) -> Tensor:
        r"""The offsets in units of the extent of their ball :math:`(N, D)`; zero in a
        ball without extent.
        """
        extent = self.extent
        ball = segment_ids(self.ball_len, self.num_rows)
        unit = read_rows(torch.where(extent > 0, extent, 1), ball)[:, None]
        if self.perm is not None:
            unit = put_rows(unit, self.perm, self.num_rows)
        return (self.offset / unit).to(self.offset.dtype)

    def to_balls(self, x: Tensor) -> Tensor:
        r"""Returns the rows of every ball, with zeros in slots without a row.

        Shapes:
            - **x:** :math:`(N, *)`; **output:** :math:`(K, B, *)`.

        Raises:
            ValueError: If it does not have one entry for every row.
        """
        self.check()
        check_shape("x", x, (self.num_rows,))
        check_devices(x=x, level=self.ball_len)
        rows = x if self.perm is None else take_rows(x, self.perm)
        return to_dense(rows, self.ball_len, self.ball_size)

    def from_balls(self, y: Tensor) -> Tensor:
        r"""Returns rows from their slots in balls: the inverse of :meth:`to_balls`.

        Shapes:
            - **y:** :math:`(K, B, *)`; **output:** :math:`(N, *)`.

        Raises:
            ValueError: If it does not have one entry for every slot of every ball.
        """
        self.check()
        check_shape("y", y, (self.ball_len.size(0), self.ball_size))
        check_devices(y=y, level=self.ball_len)
        rows = from_dense(y, self.ball_len, self.num_rows)
        return rows if self.perm is None else put_rows(rows, self.perm, self.num_rows)


def check_level(name: str, level: Level) -> None:
    r"""Checks that an argument is a level whose tensors fit each other.

    Args:
        name: The argument's name, for messages.
        level: The argument.

    Raises:
        TypeError: If it is not a level.
        ValueError: If its tensors do not fit.

    Example:
        >>> check_level("coarse", None)
        Traceback (most recent call last):
        TypeError: 'coarse' must be a Level (got None)
    """
    check_instance(name, level, Level)
    level.check(name)


def _check_rows_of(
    pos: Tensor,
    ptr: Optional[Tensor],
    ball_len: Tensor,
    perm_rot: Optional[Tensor],
    edge_index: Optional[Tensor],
    prefix: str = "",
) -> Tensor:
    # Checks how rows with these positions are divided, ordered and connected.
    count = pos.size(0)
    if perm_rot is not None:
        check_permutation(prefix + "perm_rot", perm_rot, count)
    if edge_index is not None:
        check_edges(prefix + "edge_index", edge_index, count)
    others = {"ball_len": ball_len, "perm_rot": perm_rot, "edge_index": edge_index}
    check_devices(**{prefix + n: t for n, t in {"pos": pos, **others}.items()})
    ptr = check_ptr(ptr, count, pos.device, is_readable(pos))
    if all(map(is_readable, (ptr, ball_len))):
        _check_borders(ptr, ball_len, perm_rot)
    return ptr


def _check_fields(name: str, level: Level) -> None:
    check_tensor(f"{name}.pos", level.pos)
    if level.pos.dim() != 2:
        shape = [*level.pos.shape]
        raise ValueError(f"'{name}.pos' must have shape [N, D] (got {shape})")
    rows = [*level.pos.shape]
    for part in ("pos", "offset", "offset_rot"):
        check_positions(f"{name}.{part}", getattr(level, part), *rows)
    size = check_int(f"{name}.ball_size", level.ball_size, 1)
    check_lengths(f"{name}.ball_len", level.ball_len, rows[0], size)
    check_int64(f"{name}.ptr", level.ptr)
    perms = (level.perm, level.perm_rot)
    for perm in perms if perms[0] is not perms[1] else perms[:1]:
        args = (level.pos, level.ptr, level.ball_len, perm, level.edge_index)
        _check_rows_of(*args, prefix=f"{name}.")
    others = {"offset": level.offset, "offset_rot": level.offset_rot}
    _check_groups(name, level, rows[0])
    if level.real is not None:
        check_mask(f"{name}.real", level.real, rows[0])
        others["real"] = level.real
    if level.node is not None:
        check_int64(f"{name}.node", level.node)
        check_shape(f"{name}.node", level.node, (rows[0],))
        others["node"] = level.node
    _check_edge_attr(f"{name}.edge_attr", level.edge_attr, level.edge_index)
    if level.edge_attr is not None:
        others["edge_attr"] = level.edge_attr
    check_instance(f"{name}.runs", level.runs, dict, "a dict of sizes")
    for size, lengths in level.runs.items():
        check_int(f"{name}.runs", size, 1)
        check_lengths(f"{name}.runs[{size}]", lengths, rows[0], size)
        others[f"runs[{size}]"] = lengths
    check_devices(**{f"{name}.{n}": t for n, t in {"pos": level.pos, **others}.items()})


def _check_edge_attr(
    name: str, edge_attr: Optional[Tensor], edge_index: Optional[Tensor]
) -> None:
    if edge_attr is None:
        return
    check_tensor(name, edge_attr)
    if edge_index is None:
        raise ValueError(f"'edge_index' is missing beside '{name}'")
    if edge_attr.dim() != 2:
        raise ValueError(f"'{name}' must have shape [E, F] (got {[*edge_attr.shape]})")
    check_edge_attr(name, edge_attr, edge_index.size(1), edge_attr.size(1))


def _check_groups(name: str, level: Level, rows: int) -> None:
    # The total number of children is not checked: only the finer level knows it.
    if level.group_len is None or level.children is None:
        for part, other in (("group_len", "children"), ("children", "group_len")):
            if getattr(level, part) is not None:
                raise ValueError(f"'{name}.{other}' is missing, there are '{part}'")
        return
    check_int64(f"{name}.group_len", level.group_len)
    if level.group_len.shape != (rows,):
        shape = [*level.group_len.shape]
        raise ValueError(f"'{name}.group_len' must have shape [{rows}] (got {shape})")
    check_tensor(f"{name}.children", level.children)
    check_floating(f"{name}.children", level.children)
    shape, dim = [*level.children.shape], level.pos.size(1)
    if len(shape) != 3 or shape[0] != rows or shape[2] != dim:
        raise ValueError(
            f"'{name}.children' must have shape [{rows}, stride, {dim}] (got {shape})"
        )
    check_devices(
        **{f"{name}.pos": level.pos, f"{name}.group_len": level.group_len},
        **{f"{name}.children": level.children},
    )
    if level.children.device.type == "cpu":
        check_finite(level.children.flatten(1), f"{name}.children")
    if not is_readable(level.group_len) or rows == 0:
        return
    low, high = (int(t) for t in level.group_len.aminmax())
    if low < 0 or high > shape[1]:
        bad = low if low < 0 else high
        raise ValueError(
            f"'{name}.group_len' must lie between 0 and {shape[1]} (got {bad})"
        )


def _check_borders(ptr: Tensor, ball_len: Tensor, perm: Optional[Tensor]) -> None:
    # No ball of either tree may have rows of two clouds.
    ends = torch.cat([ball_len.new_zeros(1), ball_len.cumsum(0)])
    wrong = ptr[~torch.isin(ptr, ends)]
    if len(wrong) > 0:
        raise ValueError(
            f"'ball_len' must end a ball where clouds end, at row {int(wrong[0])} (got "
            f"ends {ends.tolist()})"
        )
    if perm is None or not is_readable(perm):
        return
    cloud = segment_ids(ptr.diff(), perm.size(0))
    moved = (cloud.index_select(0, perm) != cloud).nonzero()
    if len(moved) > 0:
        place = int(moved[0])
        raise ValueError(
            f"'perm_rot' must keep rows in their cloud (got row {int(perm[place])} at "
            f"place {place})"
        )
