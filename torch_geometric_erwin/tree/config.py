r"""The static configuration of a tree."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from numbers import Real
from typing import Union

from torch_geometric_erwin._native import LAYOUTS, MAX_LEVELS
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_instance,
    check_int,
    per_level,
)

# The largest ball size, and the most points below a row, as in csrc/layout.h.
_LIMIT = 2**31

Runs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TreeConfig:
    r"""The static configuration of a tree; a model takes trees of its own one.

    Args:
        ball_sizes: The largest number of rows in a ball, one value or one per level.
        strides: The number of rows that each coarsening pools, one value or one per
            coarsening. There is one level more than there are strides.
        rotate: The angle of the second tree in degrees: in 2-D of a rotation of the
            plane, in 3-D of three rotations by equal Euler angles. Negative angles turn
            the other way; with zero no second tree is built.
        layout: :obj:`"balanced"`, or :obj:`"perfect"` for the original's tree of
            :math:`2^m` slots, in which points are repeated.
        runs: Further sizes, per level, at which the main tree is cut into runs of rows
            for mixers that need them (:attr:`Level.runs`), finer or coarser than balls.

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
    runs: Runs = ()
    # Stored, so that traced code can compare two configurations as constants.
    text: str = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        ball_sizes: Union[int, Sequence[int]],
        strides: Union[int, Sequence[int]] = (),
        rotate: float = 45.0,
        layout: str = "balanced",
        runs: Sequence[Sequence[int]] = (),
    ) -> None:
        for name, given in (("ball_sizes", ball_sizes), ("strides", strides)):
            if isinstance(given, (str, bytes)):
                raise TypeError(f"'{name}' must hold integers (got {given!r})")
        levels = _num_levels(ball_sizes, strides)
        is_angle = isinstance(rotate, Real) and not isinstance(rotate, bool)
        if not is_angle or not abs(rotate) <= 360.0:
            raise ValueError(f"'rotate' must be an angle in degrees (got {rotate!r})")
        check_choice("layout", layout, LAYOUTS)
        sizes = per_level("ball_sizes", ball_sizes, levels, maximum=_LIMIT)
        steps = per_level("strides", strides, levels - 1, maximum=_LIMIT)
        cuts = _runs(runs, levels)
        if cuts and levels == MAX_LEVELS:  # to compute runs takes one level more
            raise ValueError(f"a tree with runs has at most {MAX_LEVELS - 1} levels")
        if prod(steps) > _LIMIT:
            raise ValueError(
                f"the product of 'strides' must be at most {_LIMIT} (got {prod(steps)})"
            )
        for name, numbers in (
            ("ball_sizes", sizes),
            ("strides", steps),
            ("runs", tuple(size for level in cuts for size in level)),
        ):
            bad = [v for v in numbers if v & (v - 1)]
            if layout == "perfect" and bad:
                raise ValueError(
                    f"layout='perfect' needs powers of two in '{name}' (got {bad[0]}); "
                    "layout='balanced' takes any"
                )
        angle = float(rotate) + 0.0  # -0.0 becomes 0.0, because texts are compared
        text = (
            f"balls={_joined(sizes)} strides={_joined(steps)} rotate={angle} "
            f"layout={layout}"
        )
        if cuts:
            text += f" runs={'|'.join(map(_joined, cuts))}"
        values = {
            "ball_sizes": sizes,
            "strides": steps,
            "rotate": angle,
            "layout": layout,
            "runs": cuts,
            "text": text,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def num_levels(self) -> int:
        r"""The number of U-Net levels, :math:`L + 1`."""
        return len(self.ball_sizes)

    @property
    def numbers(self) -> tuple[int, ...]:
        r"""The configuration as integers, for compiled code that cannot compare texts.

        The number of levels, the ball sizes, the strides, the angle in millionths of a
        degree, the layout (0 is balanced, 1 perfect), and, if there are any, the
        number of :attr:`runs` of every level with their sizes.

        Example:
            >>> TreeConfig([16, 8], [2]).numbers
            (2, 16, 8, 2, 45000000, 0)
        """
        angle = round(1e6 * self.rotate)
        layout = LAYOUTS[self.layout]
        runs = [number for sizes in self.runs for number in (len(sizes), *sizes)]
        levels = self.num_levels
        return (levels, *self.ball_sizes, *self.strides, angle, layout, *runs)

    def runs_of(self, level: int) -> tuple[int, ...]:
        r"""Returns the sizes in :attr:`runs` for a level.

        Example:
            >>> TreeConfig([8, 8], [2], runs=[[2], []]).runs_of(0)
            (2,)
        """
        check_int("level", level, 0, self.num_levels - 1)
        return self.runs[level] if self.runs else ()

    def padded_sizes(
        self, num_nodes: int, num_clouds: int
    ) -> tuple[list[int], list[int]]:
        r"""Returns the numbers of rows and of balls per level that every batch has
        after :meth:`Tree.pad`.

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
        num_nodes = check_int("num_nodes", num_nodes, 0)
        num_clouds = check_int("num_clouds", num_clouds, 1)
        # The most there can be: every cloud may have one group that is not full.
        spans = [prod(self.strides[:l]) for l in range(self.num_levels)]
        rows = [(num_nodes + num_clouds * (span - 1)) // span for span in spans]
        balls = [
            self.padded_runs(l, size, rows[l], num_clouds)
            for l, size in enumerate(self.ball_sizes)
        ]
        return rows, balls

    def padded_runs(self, level: int, size: int, num_rows: int, num_clouds: int) -> int:
        r"""Returns how many runs of at most :obj:`size` rows a level has at most.

        Args:
            level: The level.
            size: The largest number of rows in a run.
            num_rows: The number of rows of all clouds.
            num_clouds: The number of clouds.

        Example:
            >>> TreeConfig(128).padded_runs(0, 128, 1000, 3)
            10
        """
        check_int("level", level, 0, self.num_levels - 1)
        for name, value, minimum in (
            ("size", size, 1),
            ("num_rows", num_rows, 0),
            ("num_clouds", num_clouds, 1),
        ):
            check_int(name, value, minimum)
        first = self.ball_sizes[0]
        ratio, rest = divmod(size * prod(self.strides[:level]), first)
        aligned = rest == 0 and ratio & (ratio - 1) == 0
        if aligned and first % prod(self.strides) == 0:
            return (num_rows + num_clouds * (size - 1)) // size
        # Otherwise runs may be about half full: every split leaves at least a third of
        # the rows on each side, so that k runs of a cloud hold k (size + 1) / 2 rows.
        return num_clouds + 2 * num_rows // (size + 1)

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> "TreeConfig":
        r"""Reads a configuration from the text that :class:`str` gives.

        Args:
            text: The text.

        Raises:
            TypeError: If it is not a text.
            ValueError: If it is not the text of a configuration.
        """
        check_instance("text", text, str, "the text of a configuration")
        try:
            fields = dict(field.split("=") for field in text.split(" "))
            runs = fields["runs"].split("|") if "runs" in fields else []
            return cls(
                _split(fields["balls"]),
                _split(fields["strides"]),
                float(fields["rotate"]),
                fields["layout"],
                [_split(level) for level in runs],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"'text' must be what a TreeConfig was written as (got {text!r})"
            ) from error


def _num_levels(
    ball_sizes: Union[int, Sequence[int]], strides: Union[int, Sequence[int]]
) -> int:
    # The length of a list tells how many levels there are; two lists must agree.
    if isinstance(ball_sizes, Sequence):
        name, levels = "ball_sizes", len(ball_sizes)
    elif isinstance(strides, Sequence):
        name, levels = "strides", len(strides) + 1
    else:
        raise ValueError(
            "the number of levels is unknown: 'ball_sizes' or 'strides' must be a list "
            f"(got {ball_sizes} and {strides}), such as 'ball_sizes={ball_sizes}, "
            f"strides=[{strides}]' for two levels"
        )
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(
            f"'{name}' must be for 1 to {MAX_LEVELS} levels (got {levels})"
        )
    if isinstance(strides, Sequence) and len(strides) + 1 != levels:
        raise ValueError(
            f"'ball_sizes' has {levels} values and 'strides' {len(strides)}: there "
            "must be one stride less than ball sizes, or one number for all (got "
            f"{[*ball_sizes]} and {[*strides]})"  # type: ignore[misc]
        )
    return levels


def _runs(runs: Sequence[Sequence[int]], levels: int) -> Runs:
    # Checks and sorts the sizes of every level, without repetitions. Returns an empty
    # tuple if no level has any.
    given = runs if isinstance(runs, Sequence) else [runs]
    if isinstance(runs, str) or not all(isinstance(r, (list, tuple)) for r in given):
        raise TypeError(f"'runs' must hold a list of sizes per level (got {runs!r})")
    lists = [list(level) for level in given]
    if not any(lists):
        return ()
    if len(lists) != levels:
        raise ValueError(f"'runs' must have {levels} lists of sizes (got {runs})")
    sizes = [per_level("runs", r, len(r), maximum=_LIMIT) for r in lists]
    return tuple(tuple(sorted(set(level))) for level in sizes)


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _split(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
