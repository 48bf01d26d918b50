"""Random clouds that every test can make again from their size and a seed."""

from collections.abc import Sequence

import torch
from torch_geometric.data import Batch, Data


def cloud(
    n: int,
    channels: int = 2,
    dim: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """Points in general position; every node has three edges from random nodes."""
    generator = torch.Generator().manual_seed(1000 * seed + n)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    source = torch.randint(max(n, 1), (3 * n,), generator=generator)
    target = torch.arange(n).repeat_interleave(3)
    return Data(
        x=normal(n, channels) if channels else None,
        pos=normal(n, dim),
        edge_index=torch.stack([source, target]),
    )


def ragged(sizes: Sequence[int], **kwargs) -> Batch:
    """A batch of clouds of these sizes."""
    clouds = [cloud(n, **{"seed": i, **kwargs}) for i, n in enumerate(sizes)]
    return Batch.from_data_list(clouds)
