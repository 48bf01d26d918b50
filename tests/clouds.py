"""Random clouds and weights that every test can make again from a seed."""

from collections.abc import Sequence
from typing import Optional, TypeVar

import torch
from torch_geometric.data import Batch, Data
from trees import random_pos

M = TypeVar("M", bound=torch.nn.Module)


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


def randomised(module: M, seed: int = 0) -> M:
    """The module in float64; no weight, bias or running statistic is trivial."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() > 0:  # not a unit of length
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                noise = 0.5 + noise.square()
            tensor.copy_(noise / max(1, tensor.shape[-1]) ** 0.5)
    return module


def edges_of(n: int, seed: int = 0, count: Optional[int] = None) -> torch.Tensor:
    """Random edges with repetitions and loops."""
    generator = torch.Generator().manual_seed(seed + n)
    count = 4 * n if count is None else count
    return torch.randint(max(n, 1), (2, count if n else 0), generator=generator)


def edged(n: int, channels: int = 2, sparse: bool = False) -> Data:
    """A cloud with the features of :func:`edges_of`, or without edges."""
    edge_index = edges_of(n)
    edge_attr = random_pos(edge_index.size(1), channels, seed=n)
    if sparse:  # no edges
        edge_index, edge_attr = edge_index[:, :0], edge_attr[:0]
    return Data(pos=random_pos(n, seed=n), edge_index=edge_index, edge_attr=edge_attr)
