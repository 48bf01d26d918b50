r"""The ball tree of a batch of clouds: what is stored, and how it is built."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from numbers import Real
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import torch_geometric_erwin.ops.ball_tree_cuda  # noqa: F401  (registers the operators)
from torch_geometric_erwin import _native
from torch_geometric_erwin._native import LAYOUTS, MAX_LEVELS
from torch_geometric_erwin.ops.ball_tree import sizes_of, tables_of
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_int,
    check_pos,
    check_ptr,
    check_tensor,
    is_batched,
    per_level,
    unwrapped,
)
from torch_geometric_erwin.utils.rows import segment_ids

TIES = ("index", "coordinates")
_LIMIT = 2**31  # of ball sizes and of the points below a row, as in csrc/layout.h


@dataclass(frozen=True)
class TreeConfig:
    r"""The static configuration of a tree; two trees fit each other if it is equal.

    Args:
        ball_sizes: The largest number of rows in a ball, one value or one per level.
        strides: The number of rows that each coarsening pools, one value or one per
            coarsening. There is one level more than there are strides.
        rotate: The angle of the second tree in degrees, in 2-D a plane rotation, in
            3-D three equal Euler angles; negative angles turn the other way, zero means
            that no second tree is built.
        layout: :obj:`"balanced"`, or :obj:`"perfect"` for the original's tree of
            :math:`2^m` slots, in which points are repeated.

    Raises:
        TypeError: If a size or stride is not an integer.
        ValueError: If a value is out of range, or not a power of two where
            :obj:`layout="perfect"` needs one.

    Example:
        >>> config = TreeConfig(ball_sizes=128, strides=(2, 2))
        >>> str(config)
        'balls=128,128,128 strides=2,2 rotate=45.0 layout=balanced'
        >>> TreeConfig.parse(str(config)) == config
        True
    """

    ball_sizes: tuple[int, ...]
    strides: tuple[int, ...] = ()
    rotate: float = 45.0
    layout: str = "balanced"
    # A traced comparison of two configurations is one of two constants.
    text: str = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        ball_sizes: Union[int, Sequence[int]],
        strides: Union[int, Sequence[int]] = (),
        rotate: float = 45.0,
        layout: str = "balanced",
    ) -> None:
        for name, given in (("ball_sizes", ball_sizes), ("strides", strides)):
            if isinstance(given, (str, bytes)):
                raise TypeError(f"'{name}' must hold integers (got {given!r})")
        if isinstance(ball_sizes, Sequence):
            levels = len(ball_sizes)
        elif isinstance(strides, Sequence):
            levels = len(strides) + 1
        else:
            raise ValueError(
                "the number of levels is unknown: 'ball_sizes' or 'strides' must be a "
                f"list (got {ball_sizes} and {strides})"
            )
        if not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"a tree has 1 to {MAX_LEVELS} levels (got {levels})")
        is_angle = isinstance(rotate, Real) and not isinstance(rotate, bool)
        if not is_angle or not abs(rotate) <= 360.0:
            raise ValueError(f"'rotate' must be an angle in degrees (got {rotate!r})")
        check_choice("layout", layout, LAYOUTS)
        sizes = per_level("ball_sizes", ball_sizes, levels)
        steps = per_level("strides", strides, levels - 1)
        if max(sizes) > _LIMIT:
            raise ValueError(
                f"'ball_sizes' must be at most {_LIMIT} (got {max(sizes)})"
            )
        if prod(steps) > _LIMIT:
            raise ValueError(
                f"the product of 'strides' must be at most {_LIMIT} (got {prod(steps)})"
            )
        for name, numbers in (("ball_sizes", sizes), ("strides", steps)):
            bad = [v for v in numbers if v & (v - 1)]
            if layout == "perfect" and bad:
                raise ValueError(
                    f"layout='perfect' needs powers of two in '{name}' (got {bad[0]}); "
                    "layout='balanced' takes any"
                )
        angle = float(rotate) + 0.0  # no negative zero: texts are compared
        text = (
            f"balls={','.join(map(str, sizes))} strides={','.join(map(str, steps))} "
            f"rotate={angle} layout={layout}"
        )
        values = {
            "ball_sizes": sizes,
            "strides": steps,
            "rotate": angle,
            "layout": layout,
            "text": text,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def num_levels(self) -> int:
        r"""The number of U-Net levels, :math:`L + 1`."""
        return len(self.ball_sizes)

    @property
    def code(self) -> int:
        r"""A number for the configuration, which is compared where texts cannot be.

        A polynomial in the characters modulo a prime: arithmetic that can be traced.
        """
        code = 0
        for character in self.text:
            code = (code * 257 + ord(character)) % (2**61 - 1)
        return code

    def padded_sizes(
        self, num_nodes: int, num_clouds: int
    ) -> tuple[list[int], list[int]]:
        r"""The rows and the balls per level of every padded batch, see
        :meth:`Tree.pad`.

        Args:
            num_nodes: The number of nodes :math:`N` after padding.
            num_clouds: The number of clouds :math:`G` after padding.

        Raises:
            ValueError: If the layout repeats points, or a number is out of range.

        Example:
            >>> TreeConfig(ball_sizes=128, strides=[2]).padded_sizes(1000, 3)
            ([1000, 501], [10, 6])
        """
        if self.layout != "balanced":
            raise ValueError(
                f"padding needs layout='balanced' (got '{self.layout}', which repeats "
                "points)"
            )
        check_int("num_nodes", num_nodes, 0)
        check_int("num_clouds", num_clouds, 1)
        rows, balls = [], []
        whole = prod(self.strides)
        for l, size in enumerate(self.ball_sizes):
            # Every cloud leaves one group, or ball, partially filled.
            span = prod(self.strides[:l])
            rows.append((num_nodes + num_clouds * (span - 1)) // span)
            ratio, rest = divmod(size * span, self.ball_sizes[0])
            aligned = rest == 0 and ratio & (ratio - 1) == 0
            if aligned and self.ball_sizes[0] % whole == 0:
                balls.append((rows[l] + num_clouds * (size - 1)) // size)
            else:
                # Splits of a third to two thirds: k balls hold k (size + 1) / 2 rows.
                balls.append(num_clouds + 2 * rows[l] // (size + 1))
        return rows, balls

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> "TreeConfig":
        r"""Reads what :meth:`__str__` wrote."""
        fields = dict(field.split("=") for field in text.split(" "))
        return cls(
            [int(v) for v in fields["balls"].split(",")],
            [int(v) for v in fields["strides"].split(",") if v],
            float(fields["rotate"]),
            fields["layout"],
        )


#: What to do about a tree that does not fit its nodes.
ADVICE = (
    "nodes were added, removed or reordered after it was built, so apply 'BallTree' "
    "again, as the last transform"
)


@dataclass(frozen=True, eq=False)
class Tree:
    r"""The ball tree of a batch of clouds, as tensors that collate without offsets.

    Built by :func:`ball_tree`. Level :math:`l` has :math:`N_l` rows in all clouds;
    every ball of a level and every pooling group is a run of consecutive rows, so that
    lengths describe them.

    Args:
        perm: The point of every row of level 0, counted in its own cloud.
        level: The rows of every cloud on every level.
        ball_len: Per level, the rows of every ball.
        group_len: Per coarsening, the children of every pooled row.
        perm_rot: Per level, the row at every place of the rotated tree, counted in its
            own cloud; empty if there is no rotated tree.
        mask: For :obj:`layout="perfect"`, :obj:`False` where a row repeats the point
            before it; otherwise :obj:`None`.
        config: The configuration that it was built for.
        real: After :meth:`pad`, :obj:`False` for the clouds that were added; otherwise
            :obj:`None`.

    Shapes:
        - **perm:** :math:`(N_0)`; **level:** :math:`(G, L + 1)`;
          **ball_len:** :math:`(K_l)` each; **group_len:** :math:`(N_{l+1})` each;
          **perm_rot:** :math:`(N_l)` each; **mask:** :math:`(N_0)`; **real:**
          :math:`(G)`.

    Example:
        >>> tree = ball_tree(torch.rand(1000, 3), ball_sizes=128, strides=[2, 2, 2, 2])
        >>> [balls.tolist() for balls in tree.ball_len[2:]]
        [[128, 122], [125], [63]]
    """

    perm: Tensor
    level: Tensor
    ball_len: tuple[Tensor, ...]
    group_len: tuple[Tensor, ...]
    perm_rot: tuple[Tensor, ...]
    mask: Optional[Tensor]
    config: TreeConfig
    real: Optional[Tensor] = None

    def global_perm(self, ptr: Tensor) -> Tensor:
        r"""The row of the batch in every row of level 0.

        Shapes:
            - **ptr:** :math:`(G + 1)`; **output:** :math:`(N_0)`.

        Raises:
            ValueError: If the offsets are those of other clouds.
        """
        self._check_clouds(check_ptr(ptr, 0, self.level.device, values=False))
        return self.perm + ptr[segment_ids(self.level[:, 0], self.perm.size(0))]

    def global_perm_rot(self, level: int) -> Tensor:
        r"""The row of a level at every place of its rotated tree."""
        perm, rows = self.perm_rot[level], self.level[:, level]
        return perm + (rows.cumsum(0) - rows)[segment_ids(rows, perm.size(0))]

    def global_perms(self, ptr: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        r""":meth:`global_perm`, and :meth:`global_perm_rot` of all levels.

        All at once, because on a GPU each takes longer to launch than to compute.
        """
        perms = (self.perm, *self.perm_rot)
        start, level = [ptr[:-1]], self.level.t()
        lengths = [level[0]]
        if self.perm_rot:
            start.append((level.cumsum(1) - level).flatten())
            lengths.append(level.flatten())
        sizes = [perm.size(0) for perm in perms]
        segment = segment_ids(torch.cat(lengths), sum(sizes))
        main, *rotated = (torch.cat(perms) + torch.cat(start)[segment]).split(sizes)
        return main, tuple(rotated)

    def batch(self, level: int) -> Tensor:
        r"""The cloud of every row of a level, as PyG's readouts take it."""
        return segment_ids(self.level[:, level], self.num_rows(level))

    def num_rows(self, level: int) -> int:
        r"""The number of rows :math:`N_l` of a level in all clouds."""
        return (self.perm if level == 0 else self.group_len[level - 1]).size(0)

    def real_rows(self, level: int) -> Optional[Tensor]:
        r"""Which rows of a level :meth:`pad` did not add; :obj:`None` if it added none.

        Shapes:
            - **output:** :math:`(N_l)`, bool; such rows come first.
        """
        if self.real is None:
            return None
        end = (self.level[:, level] * self.real).sum()
        return torch.arange(self.num_rows(level), device=end.device) < end

    def pad(self, num_nodes: int, num_clouds: int) -> "Tree":
        r"""Adds clouds such that all sizes follow from :math:`N`, :math:`G` and the
        configuration (:meth:`TreeConfig.padded_sizes`).

        One compiled graph, or one recorded CUDA graph, then serves batches of any
        sizes. The first added cloud holds all the nodes that are missing, in balls and
        groups of its own, and on every level the rows that are missing; further ones
        are empty. Lengths of balls and groups that nothing fills are zero. Nodes are
        padded alike by :func:`torch_geometric_erwin.pad_batch`. Nothing is read from a
        GPU.

        Args:
            num_nodes: The number of nodes :math:`N` after padding.
            num_clouds: The number of clouds :math:`G` after padding, more than there
                are.

        Raises:
            ValueError: If there are more nodes, clouds or balls, or points are
                repeated.

        Example:
            >>> tree = ball_tree(torch.rand(5, 2), ball_sizes=4, strides=[2])
            >>> tree = tree.pad(num_nodes=10, num_clouds=3)
            >>> tree.level.tolist(), tree.real.tolist()
            ([[5, 3], [5, 3], [0, 0]], [True, False, False])
            >>> [balls.tolist() for balls in tree.ball_len]
            [[4, 1, 4, 1], [3, 3, 0]]
        """
        if self.real is not None:
            raise ValueError("the tree is padded already")
        rows, balls = self.config.padded_sizes(num_nodes, num_clouds)
        clouds, levels = self.level.size(0), range(self.config.num_levels)
        if clouds >= num_clouds:
            raise ValueError(
                f"'num_clouds' must be above {clouds}, the clouds there are (got "
                f"{num_clouds})"
            )
        if self.num_rows(0) > num_nodes:
            raise ValueError(
                f"'num_nodes' must be at least {self.num_rows(0)}, the nodes there are "
                f"(got {num_nodes})"
            )
        missing = [rows[l] - self.num_rows(l) for l in levels]
        for l, size in enumerate(self.config.ball_sizes):
            needed = self.ball_len[l].size(0) - (-missing[l] // size)
            if needed > balls[l]:
                raise ValueError(
                    f"level {l} needs {needed} balls, above the {balls[l]} of a batch "
                    f"of {num_clouds} clouds: raise 'num_clouds'"
                )
        counts = [self.level.new_full((1,), count) for count in missing]
        added = pad(torch.stack(counts, 1), (0, 0, 0, num_clouds - clouds - 1))

        def runs(lengths: Tensor, count: int, size: int, total: int) -> Tensor:
            # Full runs, a partially filled one, and empty ones.
            start = torch.arange(count - lengths.size(0), device=lengths.device) * size
            return torch.cat([lengths, (total - start).clamp(0, size)])

        def itself(perm: Tensor, count: int) -> Tensor:
            return torch.cat([perm, torch.arange(count, device=perm.device)])

        sizes, strides = self.config.ball_sizes, self.config.strides
        return replace(
            self,
            perm=itself(self.perm, missing[0]),
            level=torch.cat([self.level, added]),
            ball_len=tuple(
                runs(t, balls[l], sizes[l], missing[l])
                for l, t in enumerate(self.ball_len)
            ),
            group_len=tuple(
                runs(t, rows[l + 1], strides[l], missing[l])
                for l, t in enumerate(self.group_len)
            ),
            perm_rot=tuple(itself(t, missing[l]) for l, t in enumerate(self.perm_rot)),
            real=torch.arange(num_clouds, device=self.level.device) < clouds,
        )

    def update(
        self,
        pos: Tensor,
        ptr: Optional[Tensor] = None,
        max_points: Optional[int] = None,
    ) -> "Tree":
        r"""Builds the tree again for positions that moved.

        As splits are by count, the sizes of balls and groups stay; points of equal
        coordinate are ordered by index. Nothing has to be
        read from a GPU, so that a rollout does not wait for it, and the call can be
        recorded in a CUDA graph, or compiled into the model's.

        Args:
            pos: The new positions of the same nodes.
            ptr: The row offsets of the clouds. (default: those of the tree)
            max_points: No cloud has more points. A GPU that knows it skips launches
                for larger clouds, and asserts that there are none. (default: the number
                of nodes)

        Shapes:
            - **pos:** :math:`(N, D)`; **ptr:** :math:`(G + 1)`.

        Raises:
            ValueError: If there are more or fewer positions than nodes, the offsets
                are those of other clouds, or a cloud has more points than
                :obj:`max_points`.

        Example:
            >>> pos = torch.rand(10, 2)
            >>> tree = ball_tree(pos, ball_sizes=4)
            >>> moved = tree.update(-pos)
            >>> torch.equal(moved.perm, ball_tree(-pos, ball_sizes=4).perm)
            True
        """
        config, levels = self.config, self.config.num_levels
        pos = check_pos(pos, values=False)
        if pos.device != self.level.device:
            raise ValueError(
                f"'pos' is on {pos.device}, the tree is on {self.level.device}"
            )
        if max_points is None:
            max_points = pos.size(0)
        else:
            check_int("max_points", max_points, 0)
        if self.real is not None and self.level.device.type == "cpu":
            return self._update_padded(pos, ptr, max_points)
        given = ptr is not None
        if ptr is None:
            ends = self.level[:, 0].cumsum(0)
            if self.mask is not None:
                ends = pad(self.mask.cumsum(0), (1, 0))[ends]
            ptr = pad(ends, (1, 0))
        ptr = check_ptr(ptr, pos.size(0), pos.device, values=False)
        if self.mask is None and pos.size(0) != self.perm.size(0):
            raise ValueError(
                f"'pos' must have a row for each of the tree's {self.perm.size(0)} "
                f"nodes (got {pos.size(0)})"
            )
        if given:
            self._check_clouds(ptr)
        perm, mask, *perm_rot = torch.ops.erwin.ball_tree_order(
            pos,
            ptr,
            [self.num_rows(l) for l in range(levels)],
            max_points,
            config.ball_sizes,
            config.strides,
            config.rotate,
            config.layout,
        )
        return replace(
            self,
            perm=self._fixed(perm, 0),
            perm_rot=tuple(self._fixed(t, l) for l, t in enumerate(perm_rot)),
            mask=None if self.mask is None else mask,
        )

    def _fixed(self, perm: Tensor, level: int) -> Tensor:
        # Rows that padding added stay where they are: there are more of them than a
        # cloud with as many points would have.
        real = self.real_rows(level)
        if real is None:
            return perm
        return torch.where(real, perm, (~real).cumsum(0) - 1)

    def _check_clouds(self, ptr: Tensor) -> None:
        # The sizes of balls and groups stay, so that of the clouds must.
        message = "'ptr' must be the offsets of the clouds that the tree was built for"
        if ptr.size(0) != self.level.size(0) + 1:
            raise ValueError(f"{message}, {self.level.size(0)} (got {ptr.size(0) - 1})")
        points = ptr.diff()
        rows = points if self.mask is None else _ceil_pow2(points)
        same = (rows == self.level[:, 0]).all() & (ptr[0] == 0)
        if torch.compiler.is_compiling() or same.device.type != "cpu":
            torch._assert_async(same, message)
        elif not bool(same):
            raise ValueError(f"{message} (got {ptr.tolist()})")

    def _update_padded(
        self, pos: Tensor, ptr: Optional[Tensor], max_points: int
    ) -> "Tree":
        # The builder for the host takes sizes that are exact: of the real clouds alone.
        assert self.real is not None
        num_nodes, num_clouds = self.perm.size(0), self.level.size(0)
        if pos.size(0) != num_nodes:
            raise ValueError(
                f"'pos' must have a row for each of the tree's {num_nodes} nodes (got "
                f"{pos.size(0)})"
            )
        if ptr is not None:
            self._check_clouds(check_ptr(ptr, num_nodes, pos.device))
        own = pad(self.level[self.real, 0].cumsum(0), (1, 0))
        largest = max(own.diff().tolist(), default=0)
        if largest > max_points:
            raise ValueError(
                f"'max_points' must be at least {largest}, the points of the largest "
                f"cloud (got {max_points})"
            )
        tree = build_tree(pos[: int(own[-1])], own, self.config)
        return tree.pad(num_nodes, num_clouds)

    def to(self, device: Union[str, torch.device]) -> "Tree":
        r"""Moves every tensor."""
        return pytree.tree_map_only(Tensor, lambda t: t.to(device), self)

    def validate(
        self, ptr: Tensor, num_nodes: int, config: TreeConfig, values: bool = True
    ) -> None:
        r"""Checks that the tree fits a batch, and says what to do if it does not.

        Args:
            ptr: The row offsets of the clouds.
            num_nodes: The number of nodes :math:`N` of the batch.
            config: The configuration that is needed.
            values: Whether to check values too, which waits for a GPU.

        Raises:
            ValueError: If the tree was built for other nodes or another configuration.
        """
        if self.config.text != config.text:
            raise ValueError(
                f"the tree was built for '{self.config.text}', needed is "
                f"'{config.text}'; apply 'model.tree_transform()' to the data"
            )
        problem = self._problem(ptr, num_nodes, values)
        if problem is not None:
            raise ValueError(f"the tree does not fit its data: {problem}; {ADVICE}")

    def _problem(self, ptr: Tensor, num_nodes: int, values: bool) -> Optional[str]:
        problem = self._malformed(ptr, num_nodes)
        if problem is not None or not values:
            return problem
        # As NumPy can read them: on the host, and not negated in memory.
        tree = pytree.tree_map_only(Tensor, lambda t: t.cpu().resolve_neg(), self)
        ptr = ptr.cpu().resolve_neg().contiguous()
        if not torch._C._are_functorch_transforms_active():
            return tree._wrong_tables(ptr, num_nodes) or tree._wrong_order(ptr)
        tensors = [t for t in pytree.tree_leaves((ptr, tree)) if t is not None]
        if any(map(is_batched, tensors)):
            return None  # as it was built inside, sample by sample
        with torch._C._DisableFuncTorch():
            tree, ptr = pytree.tree_map_only(Tensor, unwrapped, (tree, ptr))
            return tree._wrong_tables(ptr, num_nodes) or tree._wrong_order(ptr)

    def _malformed(self, ptr: Tensor, num_nodes: int) -> Optional[str]:
        clouds, levels = ptr.size(0) - 1, self.config.num_levels
        perfect = self.config.layout == "perfect"
        ints, flags = torch.int64, torch.bool
        for name, tables, dtype, dim, count in (
            ("perm", (self.perm,), ints, 1, 1),
            ("level", (self.level,), ints, 2, 1),
            ("ball_len", self.ball_len, ints, 1, levels),
            ("group_len", self.group_len, ints, 1, levels - 1),
            ("perm_rot", self.perm_rot, ints, 1, levels if self.config.rotate else 0),
            ("mask", (self.mask,) if perfect else (), flags, 1, int(perfect)),
            ("real", () if self.real is None else (self.real,), flags, 1, None),
        ):
            if count is not None and len(tables) != count:
                return f"'{name}' has {len(tables)} levels, expected {count}"
            for table in tables:
                if not isinstance(table, Tensor):
                    return f"'{name}' is a '{type(table).__name__}', expected a tensor"
                check_tensor(name, table)
                if is_traceable_wrapper_subclass(table):
                    return f"'{name}' is a '{type(table).__name__}', not a plain tensor"
                if table.dtype != dtype or table.dim() != dim:
                    return (
                        f"'{name}' is {table.dtype} with {table.dim()} dimensions, "
                        f"expected {dtype} with {dim}"
                    )
                if table.device != ptr.device:
                    return f"'{name}' is on {table.device}, the nodes on {ptr.device}"
        if self.real is not None and self.real.shape != self.level.shape[:1]:
            return f"'real' has shape {list(self.real.shape)}, expected [{clouds}]"
        if list(self.level.shape) != [clouds, levels]:
            shape = list(self.level.shape)
            return f"'level' has shape {shape}, expected {[clouds, levels]}"
        if self.mask is None and self.perm.size(0) != num_nodes:
            return f"'perm' has {self.perm.size(0)} entries for {num_nodes} nodes"
        if torch.compiler.is_compiling():  # sizes may not decide what is traced
            return None
        if self.mask is not None and self.mask.shape != self.perm.shape:
            return f"'mask' has {self.mask.size(0)} entries for {self.num_rows(0)} rows"
        for l, perm in enumerate(self.perm_rot):
            if perm.size(0) != self.num_rows(l):
                rows = self.num_rows(l)
                return f"'perm_rot_{l}' has {perm.size(0)} entries for {rows} rows"
        return None

    def _wrong_tables(self, ptr: Tensor, num_nodes: int) -> Optional[str]:
        # What follows from the sizes of the clouds is computed again. NumPy starts no
        # threads, which a forked process does not have.
        config, points, own = self.config, num_nodes, ptr
        if self.real is not None:  # the tables of the first clouds, filled up
            clouds = int(self.real.sum())
            if not bool(self.real[:clouds].all()):
                return "'real' does not name the first clouds"
            own = ptr[: clouds + 1]
            points = int(own[-1])
        args = ([*config.ball_sizes], [*config.strides], config.layout)
        try:
            level, num_rows, num_balls = sizes_of(own, points, *args)
        except ValueError as error:
            return str(error)
        ball_len, group_len = map(tuple, tables_of(own, num_rows, num_balls, *args))
        if self.real is not None:
            rows = torch.arange(points)
            whole = Tree(rows, level, ball_len, group_len, (), None, config)
            whole = whole.pad(num_nodes, len(self.level))
            level, ball_len, group_len = whole.level, whole.ball_len, whole.group_len
            if not np.array_equal(ptr.diff(), level[:, 0]):
                return "the clouds that were added are not those of 'pad'"
        wrong = np.argwhere(self.level.numpy() != level.numpy())
        if len(wrong) > 0:
            i, l = wrong[0]
            rows_of = f"{self.level[i, l]} rows on level {l} of cloud {i}"
            return f"'level' has {rows_of}, not {level[i, l]}"
        for name, tables, rights in (
            ("ball_len", self.ball_len, ball_len),
            ("group_len", self.group_len, group_len),
        ):
            for l, (table, right) in enumerate(zip(tables, rights)):
                if table.size(0) != right.size(0):
                    sizes = table.size(0), right.size(0)
                    return f"'{name}_{l}' has {sizes[0]} entries, expected {sizes[1]}"
                places = np.flatnonzero(table.numpy() != right.numpy())
                if len(places) > 0:
                    i = places[0]
                    return f"'{name}_{l}' has {table[i]} at {i}, expected {right[i]}"
        return None

    def _wrong_order(self, ptr: Tensor) -> Optional[str]:
        level = self.level.t().contiguous()
        orders = [("perm", self.perm, level[0])]
        if self.mask is not None:
            mask, rows = self.mask.numpy(), self.perm.numpy()
            kept = np.concatenate([[0], mask.cumsum()])
            if not np.array_equal(kept[[0, *level[0].cumsum(0)]], ptr):
                return "'mask' does not keep a row for every node"
            if (rows[1:] != rows[:-1])[~mask[1:]].any():
                return "'mask' hides rows that do not repeat the one before them"
            orders = [("perm", torch.from_numpy(rows[mask]), ptr.diff())]
        for l, perm in enumerate(self.perm_rot):
            orders.append((f"perm_rot_{l}", perm, level[l]))
        for name, perm, lengths in orders:
            cloud = _native.no_permutation(perm.contiguous(), lengths)
            if cloud is not None:
                return f"'{name}' is not a permutation of the rows of cloud {cloud}"
        return None


_TENSORS = ("perm", "level", "ball_len", "group_len", "perm_rot", "mask", "real")


def _flatten(tree: Tree) -> tuple[list[Any], str]:
    # Dynamic shapes of an exported model name the parts; most trees are not padded.
    names = _TENSORS[:-1] if tree.real is None else _TENSORS
    return [getattr(tree, name) for name in names], tree.config.text


def _flatten_with_keys(tree: Tree) -> tuple[list[Any], str]:
    # Numbers, not names: export's guards take the key of 'perm' for the start of that
    # of 'perm_rot' (torch 2.13).
    values, config = _flatten(tree)
    return [(pytree.SequenceKey(i), value) for i, value in enumerate(values)], config


def _unflatten(values: Iterable[Any], config: str) -> Tree:
    return Tree(**dict(zip(_TENSORS, values)), config=TreeConfig.parse(config))


# A tree is an input of torch.compile and torch.export like any nest of tensors.
pytree.register_pytree_node(
    Tree,
    _flatten,
    _unflatten,
    serialized_type_name="torch_geometric_erwin.Tree",
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([Tree, TreeConfig])


def _ceil_pow2(n: Tensor) -> Tensor:
    # Exact up to 2^53 points: frexp splits off the exponent without rounding.
    exponent = torch.frexp((n - 1).clamp(min=0).double()).exponent.long()
    return torch.where(n > 0, torch.ones_like(n) << exponent, 0)


def ball_tree(
    pos: Tensor,
    ptr: Optional[Tensor] = None,
    *,
    ball_sizes: Union[int, Sequence[int]],
    strides: Union[int, Sequence[int]] = (),
    rotate: float = 45.0,
    layout: str = "balanced",
    ties: str = "index",
    validate: bool = False,
) -> Tree:
    r"""Builds the ball trees of a batch of clouds, as in `"Erwin: A Tree-based
    Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_.

    Every cloud is split by count along its widest axis, recursively, down to single
    points. The result is the same on every thread count and device, and does not depend
    on the other clouds of the batch.

    The tree is built where the positions are. Of a GPU the call reads the offsets, if
    they lie there, and nothing else: pass offsets on the host where it must not wait,
    or :meth:`Tree.update` a tree whose points moved.

    Args:
        pos: The node positions; float64 ones are compared as float64, others as
            float32.
        ptr: The row offsets of the clouds. (default: one cloud)
        ball_sizes: The largest number of rows in a ball, one value or one per level.
        strides: The number of rows that each coarsening pools.
        rotate: The angle of the second tree, in degrees; zero for none.
        layout: :obj:`"balanced"` or :obj:`"perfect"`, see :class:`TreeConfig`.
        ties: What orders points of equal coordinate on the split axis:
            :obj:`"index"`, or :obj:`"coordinates"` to compare the other axes first, so
            that the order of the input has no effect on grids either.
        validate: Whether to check on a GPU, which has to wait for it, that positions
            are finite and offsets ascend. On the host both are checked anyway.

    Shapes:
        - **pos:** :math:`(N, D)` with any :math:`D \geq 1`, in any unit of length.
        - **ptr:** :math:`(G + 1)`.

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If an argument is malformed, or a position is not finite.

    Example:
        >>> pos = torch.tensor([[3.0], [1.0], [2.0], [0.0]])
        >>> ball_tree(pos, ball_sizes=2).perm
        tensor([3, 1, 2, 0])
    """
    config = TreeConfig(ball_sizes, strides, rotate, layout)
    return build_tree(pos, ptr, config, ties, validate)


def build_tree(
    pos: Tensor,
    ptr: Optional[Tensor],
    config: TreeConfig,
    ties: str = "index",
    validate: bool = False,
) -> Tree:
    r"""Builds the trees of a configuration; see :func:`ball_tree`.

    Args:
        pos: The node positions.
        ptr: The row offsets of the clouds, or :obj:`None` for one cloud.
        config: The configuration.
        ties: What orders points of equal coordinate.
        validate: Whether to check values on a GPU too.
    """
    check_choice("ties", ties, TIES)
    check_tensor("pos", pos)
    if pos.is_meta:
        raise ValueError("'pos' is on meta, where it has no values")
    # On the host the operator checks values, but of rows that ties have put in another
    # order.
    values = validate or ties == "coordinates"
    pos = check_pos(pos, values)
    device = pos.device
    # Offsets of a GPU's positions may lie on either side.
    on_host = not isinstance(ptr, Tensor) or ptr.device.type == "cpu"
    home = torch.device("cpu") if on_host else device
    ptr = check_ptr(ptr, pos.size(0), home, values)
    if device.type not in ("cpu", "cuda"):
        pos, ptr = pos.cpu(), ptr.cpu()
    order = _coordinate_order(pos, ptr) if ties == "coordinates" else None
    tensors = torch.ops.erwin.ball_tree(
        pos if order is None else pos[order],
        ptr,
        config.ball_sizes,
        config.strides,
        config.rotate,
        config.layout,
    )
    perm, level, mask, *tables = tensors
    if order is not None:
        start = ptr.to(pos.device)[segment_ids(level[:, 0], perm.size(0))]
        perm = order[perm + start] - start
    levels = config.num_levels
    tree = Tree(
        perm,
        level,
        ball_len=tuple(tables[:levels]),
        group_len=tuple(tables[levels : 2 * levels - 1]),
        perm_rot=tuple(tables[2 * levels - 1 :]),
        mask=mask if config.layout == "perfect" else None,
        config=config,
    )
    return tree if pos.device == device else tree.to(device)


def _coordinate_order(pos: Tensor, ptr: Tensor) -> Tensor:
    # Stable sorts from the last axis to the first, then by cloud.
    ptr = ptr.to(pos.device)
    order = torch.arange(pos.size(0), device=pos.device)
    for axis in reversed(range(pos.size(1))):
        order = order[torch.sort(pos[order, axis], stable=True).indices]
    cloud = segment_ids(ptr[1:] - ptr[:-1], pos.size(0))
    return order[torch.sort(cloud[order], stable=True).indices]
