r"""Encodings of absolute positions, by name or as modules."""

from collections.abc import Callable
from typing import Union

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_int,
    check_positions,
    check_tensor,
    check_weight,
    dtype_of_weights,
    is_plain,
    made_by,
)

#: A name, or a callable that makes an encoding from the dimension and the channels.
Encoding = Union[str, Callable[[int, int], Module]]


class LinearEncoding(Module):
    r"""A linear map of positions.

    Args:
        dim: The number of coordinates :math:`D`.
        channels: The number of features.

    Shapes:
        - **pos:** :math:`(N, D)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> LinearEncoding(dim=3, channels=8)(torch.rand(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, 1)
        self.channels = check_int("channels", channels, 1)
        self.lin = Linear(dim, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin)

    def forward(self, pos: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        _check_pos(pos, self.dim)
        if is_plain(self.lin, Linear):
            check_weight("pos", pos, self.lin.weight)
        return self.lin(pos)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.dim}, {self.channels})"


class FourierEncoding(Module):
    r"""Fourier features of positions, as in `"NeRF: Representing Scenes as Neural
    Radiance Fields for View Synthesis" <https://arxiv.org/abs/2003.08934>`_, mapped
    linearly.

    .. math::
        W \left( \sin \frac{2 \pi p_d}{\lambda_k}, \cos \frac{2 \pi p_d}{\lambda_k}
        \right)_{d, k} + b, \quad \lambda_k = 2^k, \quad k = 1 \ldots K

    As in the paper, wavelengths double and two units are the shortest one. Here one
    unit is the extent of a ball and not half of the scene's, so they go up from there:
    details within a ball are what attention sees. `"Fourier Features Let Networks Learn
    High Frequency Functions in Low Dimensional Domains"
    <https://arxiv.org/abs/2006.10739>`_ says why they help. Positions may be more
    precise than the weights: rounded to 16 bits, they would miss the short waves.

    Args:
        dim: The number of coordinates :math:`D`.
        channels: The number of features.
        num_frequencies: The number of wavelengths :math:`K`. The longest one,
            :math:`2^K`, should exceed the extent of the clouds.

    Shapes:
        - **pos:** :math:`(N, D)`; **output:** :math:`(N, C)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> encode = FourierEncoding(dim=3, channels=8, num_frequencies=4)
        >>> encode(torch.rand(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, dim: int, channels: int, num_frequencies: int = 6) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, 1)
        self.channels = check_int("channels", channels, 1)
        self.num_frequencies = count = check_int("num_frequencies", num_frequencies, 1)
        self.lin = Linear(2 * count * dim, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset_linear(self.lin)

    def forward(self, pos: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        _check_pos(pos, self.dim)
        if is_plain(self.lin, Linear):
            check_devices(pos=pos, weight=self.lin.weight)
        octave = torch.arange(1, self.num_frequencies + 1, device=pos.device)
        pos = pos.to(torch.promote_types(pos.dtype, torch.float32))
        angle = 2 * torch.pi * (pos[:, :, None] / 2.0**octave).flatten(1)
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.lin(waves.to(dtype_of_weights(self, pos.dtype)))

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.dim}, {self.channels}, "
            f"num_frequencies={self.num_frequencies})"
        )


def _check_pos(pos: Tensor, dim: int) -> None:
    check_tensor("pos", pos)
    check_positions("pos", pos, pos.size(0) if pos.dim() > 0 else 0, dim)


ENCODINGS: dict[str, Callable[[int, int], Module]] = {
    "linear": LinearEncoding,
    "fourier": FourierEncoding,
}


def make_encoding(pos_encoding: Encoding, dim: int, channels: int) -> Module:
    r"""Makes an encoding of positions by its name, or by a callable.

    Args:
        pos_encoding: :obj:`"linear"`, :obj:`"fourier"`, or a callable that makes a
            module from the number of coordinates and of features. The module is called
            with positions and returns features.
        dim: The number of coordinates :math:`D`.
        channels: The number of features.

    Raises:
        TypeError: If it is neither, or the callable does not make a module.
        ValueError: If no encoding has that name.

    Example:
        >>> make_encoding("fourier", dim=3, channels=8)
        FourierEncoding(3, 8, num_frequencies=6)
    """
    dim, channels = check_int("dim", dim, 1), check_int("channels", channels, 1)
    if isinstance(pos_encoding, str):
        if pos_encoding not in ENCODINGS:
            raise ValueError(
                f"'pos_encoding' must be one of {[*ENCODINGS]} (got {pos_encoding!r})"
            )
        return ENCODINGS[pos_encoding](dim, channels)
    if isinstance(pos_encoding, Module) or not callable(pos_encoding):
        raise TypeError(
            "'pos_encoding' must be a name or a callable that makes a module from the "
            f"dimension and a number of channels (got {pos_encoding!r})"
        )
    what = "the dimension and a number of channels"
    module = made_by("pos_encoding", pos_encoding, what, dim, channels)
    if not isinstance(module, Module):
        kind = type(module).__name__
        raise TypeError(f"'pos_encoding' must make a module (got '{kind}')")
    return module
