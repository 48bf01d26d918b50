r"""Statistics of states and of their changes, kept with the weights."""

from typing import Any, Union

import torch
from torch import Tensor


class Moments:
    r"""The mean and the deviation of rows that come one chunk after the other.

    Chunks are merged by their means: a sum of squares minus the square of a sum would
    lose the digits of values that are far from zero.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0], [2.0]]))
        >>> moments.add(torch.tensor([[6.0]]))
        >>> float(moments.mean), round(float(moments.variance), 3)
        (3.0, 4.667)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros((), dtype=torch.float64)
        self.squares: Union[Tensor, float] = 0.0  # of the distances from the mean

    def add(self, rows: Tensor) -> None:
        r"""Adds a chunk.

        Args:
            rows: The rows.

        Shapes:
            - **rows:** :math:`(M, C)`.
        """
        if (count := rows.size(0)) == 0:
            return
        rows, before = rows.detach().double().cpu(), self.count
        own = rows.mean(0)
        apart, self.count = own - self.mean, before + count
        self.mean = self.mean + apart * (count / self.count)
        own_squares = (rows - own).square().sum(0)
        between = apart.square() * (count * before / self.count)
        self.squares = self.squares + own_squares + between

    @property
    def variance(self) -> Tensor:
        r"""The variance around the mean of all rows, at least one."""
        return torch.as_tensor(self.squares) / self.count


class Standardise(torch.nn.Module):
    r"""Subtracts a mean and divides by a deviation, per channel.

    Both are buffers. Before :meth:`measure` they are zero and one.

    Shapes:
        - **x:** :math:`(*, C)`; **output:** :math:`(*, C)`.

    Example:
        >>> scale, moments = Standardise(), Moments()
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> scale.measure(moments)
        >>> scale(torch.tensor([[5.0]])), scale.inverse(torch.tensor([[3.0]]))
        (tensor([[3.]]), tensor([[5.]]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))
        self.register_load_state_dict_pre_hook(_with_sizes)

    @property
    def is_measured(self) -> bool:
        r"""Whether :meth:`measure` was called. On a GPU, this waits for it."""
        return bool((self.std != 1).any() or (self.mean != 0).any())

    def measure(self, moments: Moments, noise: float = 0.0) -> None:
        r"""Takes the mean and the deviation of rows, or one where there is none.

        Args:
            moments: The moments of the rows.
            noise: The deviation of noise that will be added to them in training.
        """
        std = (moments.variance + noise**2).sqrt()
        self.mean = moments.mean.to(self.mean)
        self.std = torch.where(std > 0, std, 1).to(self.std)

    def forward(self, x: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        return (x - self.mean) / self.std

    def inverse(self, x: Tensor) -> Tensor:
        r"""Multiplies by the deviation and adds the mean.

        Args:
            x: What :meth:`forward` returned.
        """
        return x * self.std + self.mean


def _with_sizes(
    module: Standardise, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    # How many channels there are is not known before `measure`, but in the state.
    for name, own in [*module.named_buffers()]:
        saved = state.get(prefix + name)
        if isinstance(saved, Tensor) and saved.shape != own.shape:
            setattr(module, name, own.new_empty(saved.shape))
