r"""Arguments of a model that are one value, or one value per level."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Union

from torch_geometric_erwin.nn.attention import Mixer


def mixer_per_level(
    attention: Union[Mixer, Sequence[Mixer]], levels: int
) -> list[Mixer]:
    r"""Returns the mixer of every level.

    Args:
        attention: One mixer, or one per level.
        levels: The number of levels.

    Raises:
        ValueError: If there are more or fewer mixers than levels.
    """
    if isinstance(attention, str) or not isinstance(attention, Sequence):
        return [attention] * levels
    if len(attention) != levels:
        raise ValueError(
            f"'attention' must be one mixer or {levels} (got {len(attention)})"
        )
    return [*attention]


def default_heads(channels: int) -> int:
    r"""Returns the default number of heads.

    That is the largest divisor of the channels that leaves a head 16 channels or more.
    Less than 16 channels have one head.

    Args:
        channels: The number of channels.
    """
    return next(h for h in range(max(1, channels // 16), 0, -1) if channels % h == 0)


def choices_in_words(**arguments: tuple[Any, Any]) -> str:
    r"""Returns the arguments that differ from their defaults, to be read in a text.

    Args:
        **arguments: Per argument, its value and the default.

    Example:
        >>> choices_in_words(norm=("graph", "layer"), distance=("absolute", "absolute"))
        ", norm='graph'"
    """
    return "".join(
        f", {name}={_in_words(value)}"
        for name, (value, default) in arguments.items()
        if value != default
    )


def _in_words(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_in_words, value))}]"
    # A callable by its name: its text has an address that differs in every process.
    if isinstance(value, str) or not callable(value):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)


def num_levels(arguments: dict[str, tuple[Any, int]]) -> int:
    r"""Returns the number of levels, on which all arguments that are lists must agree.

    Args:
        arguments: Per argument, its value, and how many entries less than levels its
            list has.

    Raises:
        ValueError: If no argument is a list, one is empty, or they disagree.
    """
    lengths = {
        name: len(value) + short
        for name, (value, short) in arguments.items()
        if isinstance(value, Sequence)
    }
    if not lengths:
        raise ValueError(
            "the number of levels is unknown: one of 'hidden_channels', 'ball_sizes', "
            "'strides', 'enc_depths', 'enc_heads' must be a list"
        )
    for name, length in lengths.items():
        if length < 1:
            raise ValueError(f"'{name}' must not be empty")
    # If lists disagree, the number of levels that most of them have is taken for right,
    # so that the message blames the others. In a tie the first list is right.
    counted = [n for n in lengths if not isinstance(arguments[n][0], (str, bytes))]
    votes = Counter(lengths[name] for name in counted)
    right = max(counted or lengths, key=lambda name: votes[lengths[name]])
    levels = lengths[right]
    for name, length in lengths.items():
        value, short = arguments[name]
        if length != levels and not isinstance(value, (str, bytes)):
            raise ValueError(
                f"'{name}' must have one value or {levels - short} (got {len(value)}: "
                f"{[*value]}), as '{right}' is for {levels} levels"
            )
    return levels
