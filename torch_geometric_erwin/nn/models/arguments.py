r"""Arguments of a model that are one value, or one value per level."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

from torch.nn import Module

from torch_geometric_erwin.nn.attention import Mixer
from torch_geometric_erwin.utils.checks import made_by

#: A callable that makes a message-passing layer from a number of channels.
Conv = Callable[[int], Module]


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


def conv_per_level(
    conv: Union[Conv, Sequence[Optional[Conv]], None], levels: int
) -> list[Optional[Conv]]:
    r"""Returns what makes the message-passing layers of every level.

    Args:
        conv: One callable for all levels, or one or :obj:`None` per level.
        levels: The number of levels.

    Raises:
        TypeError: If one is not a callable.
        ValueError: If there are more or fewer than levels.
    """
    several = isinstance(conv, Sequence) and not isinstance(conv, str)
    convs: list[Optional[Conv]] = [*conv] if several else [conv] * levels  # type: ignore
    if len(convs) != levels:
        raise ValueError(f"'conv' must be one layer or {levels} (got {len(convs)})")
    for one in convs:
        if one is not None and (isinstance(one, Module) or not callable(one)):
            raise TypeError(
                "'conv' must be a callable that makes a layer from a number of "
                f"channels, one for every block (got {one!r})"
            )
    return convs


def make_conv(
    conv: Optional[Conv], channels: int, edge_dim: int = 0
) -> Optional[Module]:
    r"""Makes the message-passing layer of a block.

    Args:
        conv: What makes it, or :obj:`None` for none.
        channels: The number of features.
        edge_dim: The number of features of an edge that the model takes.

    Raises:
        TypeError: If it does not make a module from a number of channels.
        ValueError: If it makes one for another number of features of an edge.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> make_conv(lambda channels: GCNConv(channels, channels), 8)
        GCNConv(8, 8)
    """
    if conv is None:
        return None
    module = made_by("conv", conv, "a number of channels", channels)
    if not isinstance(module, Module):
        kind = type(module).__name__
        raise TypeError(f"'conv' must make a module (got '{kind}')")
    own = getattr(module, "edge_dim", None)
    if isinstance(own, int) and own not in (0, edge_dim):
        raise ValueError(
            f"'conv' makes a '{type(module).__name__}' with edge_dim={own}: the model "
            f"must have 'edge_dim={own}' too (got {edge_dim})"
        )
    return module


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
