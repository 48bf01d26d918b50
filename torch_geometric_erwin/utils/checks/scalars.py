r"""Checks of single numbers, flags and choices."""

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real

import numpy as np

#: The largest count of anything (rows, channels, ...): what 32 bits can hold.
LIMIT = 2**31 - 1


def check_int(name: str, value: int, minimum: int, maximum: int = LIMIT) -> int:
    r"""Returns an integer argument that lies between a minimum and a maximum.

    Args:
        name: The argument's name, for messages.
        value: The argument; NumPy's integers are integers too.
        minimum: The smallest value that is allowed.
        maximum: The largest one.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is too small or too large.

    Example:
        >>> check_int("dim", 3, minimum=1)
        3
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be an integer (got {value!r})")
    if value < minimum:
        raise ValueError(f"'{name}' must be at least {minimum} (got {value})")
    if value > maximum:
        raise ValueError(f"'{name}' must be at most {maximum} (got {value})")
    return int(value)


def check_number(name: str, value: float) -> float:
    r"""Returns an argument that is a real number as a Python float.

    Args:
        name: The argument's name, for messages.
        value: The argument; NumPy's numbers are fine too.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is too large for a float.

    Example:
        >>> check_number("eps", 2)
        2.0
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be a number (got {value!r})")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"'{name}' must be a number that a float can hold") from None


def check_finite_number(name: str, value: float, minimum: float = -math.inf) -> float:
    r"""Returns a finite number that is not below a minimum as a Python float.

    Args:
        name: The argument's name, for messages.
        value: The argument.
        minimum: The smallest value that is allowed.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is not finite, or too small.

    Example:
        >>> check_finite_number("eps", float("nan"), 0)
        Traceback (most recent call last):
        ValueError: 'eps' must be finite and at least 0 (got nan)
    """
    number = check_number(name, value)
    if not (math.isfinite(number) and number >= minimum):
        least = "" if minimum == -math.inf else f" and at least {minimum}"
        raise ValueError(f"'{name}' must be finite{least} (got {value})")
    return number


def check_radius(r: float) -> float:
    r"""Returns a distance as a Python float.

    Args:
        r: The distance; NumPy's numbers are fine too.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is negative.

    Example:
        >>> check_radius(2)
        2.0
    """
    r = check_number("r", r)
    if not r >= 0:
        raise ValueError(f"'r' must be a number that is not negative (got {r})")
    return r


def check_probability(name: str, value: float) -> float:
    r"""Returns a probability below one as a Python float.

    Args:
        name: The argument's name, for messages.
        value: The argument.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is not in :math:`[0, 1)`.

    Example:
        >>> check_probability("dropout", 0)
        0.0
    """
    number = check_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"'{name}' must be at least 0 and below 1 (got {value})")
    return number


def check_flag(name: str, value: bool) -> bool:
    r"""Returns a flag as a Python bool.

    Args:
        name: The argument's name, for messages.
        value: The argument; NumPy's bools are fine too.

    Raises:
        TypeError: If it is not a bool.

    Example:
        >>> check_flag("loop", True)
        True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"'{name}' must be a bool (got {value!r})")
    return bool(value)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    r"""Checks that an argument is one of a few strings.

    Args:
        name: The argument's name, for messages.
        value: The argument.
        choices: The strings that are allowed.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> check_choice("layout", "balanced", ["balanced", "perfect"])
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"'{name}' must be one of {[*choices]} (got {value!r})")


def check_edge_type(name: str, value: Sequence[str]) -> tuple[str, str, str]:
    r"""Returns a type of edges of heterogeneous data, as PyG names it.

    Args:
        name: The argument's name, for messages.
        value: The argument, a tuple or list.

    Raises:
        TypeError: If it is not three words.

    Example:
        >>> check_edge_type("edge_type", ["atom", "bond", "atom"])
        ('atom', 'bond', 'atom')
    """
    is_type = isinstance(value, (tuple, list)) and len(value) == 3
    if not is_type or not all(isinstance(part, str) for part in value):
        raise TypeError(
            f"'{name}' must be three words, such as ('atom', 'near', 'grid') (got "
            f"{value!r})"
        )
    return value[0], value[1], value[2]
