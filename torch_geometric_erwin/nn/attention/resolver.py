r"""Making mixers by name."""

from collections.abc import Callable
from typing import Any, Union

from torch.nn import Module

from torch_geometric_erwin.nn.attention.ball_attention import BallAttention
from torch_geometric_erwin.utils.checks import check_int, made_by

#: A name, or a callable that makes a mixer from channels, heads, ball size, dimension.
Mixer = Union[str, Callable[[int, int, int, int], Module]]

MIXERS: dict[str, Callable[..., Module]] = {"ball": BallAttention}


def make_mixer(
    attention: Mixer,
    channels: int,
    heads: int,
    ball_size: int,
    dim: int,
    **kwargs: Any,
) -> Module:
    r"""Makes a mixer by its name, or by a callable.

    A mixer is a module that is called with rows in tree order and their
    :class:`~torch_geometric_erwin.Level`, and returns as many rows with as many
    features. It may have an attribute :obj:`required_runs`, the sizes of the runs that
    it looks up in :attr:`~torch_geometric_erwin.Level.runs`.

    Args:
        attention: :obj:`"ball"`, or a callable.
        channels: The number of features of a row.
        heads: The number of heads.
        ball_size: The largest number of rows in a ball.
        dim: The number of coordinates :math:`D`.
        **kwargs: Further arguments of the mixer, such as :obj:`distance`.

    Raises:
        TypeError: If it is neither, or the callable does not make a module.
        ValueError: If no mixer has that name.

    Example:
        >>> make_mixer("ball", 16, 2, 8, 3)
        BallAttention(16, heads=2, ball_size=8)
    """
    sizes = {"channels": channels, "heads": heads, "ball_size": ball_size, "dim": dim}
    channels, heads, ball_size, dim = (check_int(n, v, 1) for n, v in sizes.items())
    if isinstance(attention, str):
        if attention not in MIXERS:
            raise ValueError(
                f"'attention' must be one of {[*MIXERS]} (got {attention!r})"
            )
        attention = MIXERS[attention]
    if isinstance(attention, Module) or not callable(attention):
        # The place of the heads in PyG's `GPSConv`.
        is_number = isinstance(attention, int) and not isinstance(attention, bool)
        hint = f"; heads are given by name, 'heads={attention}'" if is_number else ""
        raise TypeError(
            "'attention' must be a name or a callable that makes a mixer from (channels"
            f", heads, ball_size, dim), one for every block (got {attention!r}){hint}"
        )
    what = "(channels, heads, ball_size, dim)"
    args = (channels, heads, ball_size, dim)
    mixer = made_by("attention", attention, what, *args, **kwargs)
    if not isinstance(mixer, Module):
        raise TypeError(
            f"'attention' must make a module (got {type(mixer).__name__!r})"
        )
    runs = getattr(mixer, "required_runs", ())
    if not isinstance(runs, (tuple, list)):
        raise TypeError(f"'required_runs' of a mixer must be a tuple (got {runs!r})")
    return mixer
