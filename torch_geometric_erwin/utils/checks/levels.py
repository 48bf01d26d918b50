r"""Checks of arguments that have one value for every level of a tree."""

from collections.abc import Sequence
from numbers import Integral
from typing import Union

from torch_geometric_erwin.utils.checks.scalars import LIMIT, check_flag, check_int


def per_level(
    name: str,
    value: Union[int, Sequence[int]],
    levels: int,
    minimum: int = 1,
    maximum: int = LIMIT,
) -> tuple[int, ...]:
    r"""Repeats a scalar for every level, or checks one value per level.

    Args:
        name: The argument's name, for messages.
        value: One number, or one per level.
        levels: The number of levels.
        minimum: The smallest value that is allowed.
        maximum: The largest one.

    Raises:
        TypeError: If a value is not an integer.
        ValueError: If there are too few or too many, or one is out of range.

    Example:
        >>> per_level("ball_sizes", 128, 3)
        (128, 128, 128)
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(f"'{name}' must hold integers (got {value!r})")
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    for v in values:
        if not isinstance(v, Integral) or isinstance(v, bool):
            raise TypeError(f"'{name}' must hold integers (got {v!r})")
        check_int(name, v, minimum, maximum)
    if len(values) != levels:
        raise ValueError(
            f"'{name}' must have one value or {levels} (got {len(values)}: {values})"
        )
    return tuple(int(v) for v in values)


def flag_per_level(
    name: str, value: Union[bool, Sequence[bool]], levels: int
) -> tuple[bool, ...]:
    r"""Repeats a flag for every level, or checks one per level.

    Args:
        name: The argument's name, for messages.
        value: One flag, or one per level.
        levels: The number of levels.

    Raises:
        TypeError: If a value is not a flag.
        ValueError: If there are too few or too many.

    Example:
        >>> flag_per_level("checkpoint", True, 2)
        (True, True)
    """
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    values = [check_flag(name, v) for v in values]
    if len(values) != levels:
        raise ValueError(
            f"'{name}' must have one value or {levels} (got {len(values)}: {values})"
        )
    return tuple(values)
