r"""Noise on the states that a model is trained with."""

from typing import Optional

import torch
from torch import Tensor


def random_walk(
    series: Tensor, std: float, generator: Optional[torch.Generator] = None
) -> Tensor:
    r"""Returns a random walk for every node and channel, as in `"Learning to Simulate
    Complex Physics with Graph Networks" <https://arxiv.org/abs/2002.09405>`_.

    All increments have the same deviation, so that the last value has :obj:`std`.

    Args:
        series: The values that the walk is for; only its shape, dtype and device count.
        std: The deviation of the last value.
        generator: The source of random numbers. (default: PyTorch's)

    Shapes:
        - **series:** :math:`(N, W, C)`; **output:** :math:`(N, W, C)`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> walk = random_walk(torch.zeros(100_000, 4, 1), 0.5, generator=generator)
        >>> [round(float(std), 2) for std in walk.std(0)]
        [0.25, 0.35, 0.43, 0.5]
    """
    steps = torch.randn(
        series.shape, dtype=series.dtype, device=series.device, generator=generator
    )
    return (steps * (std / max(series.size(1), 1) ** 0.5)).cumsum(1)
