r"""The training loop of all examples."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from torch_geometric_erwin.nn import MPNN, Erwin

Loss = Callable[[Tensor, Batch], Tensor]


@dataclass
class Fit:
    r"""The time that a training run took, and its final loss."""

    loss: float  # mean over the last tenth of the steps
    seconds_per_step: float


def mean_squared_error(out: Tensor, batch: Batch) -> Tensor:
    r"""The loss of a regression of ``batch.y``."""
    return torch.nn.functional.mse_loss(out, batch.y)


def count_parameters(model: torch.nn.Module) -> int:
    r"""The number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def mpnn_of_size(model: Erwin, layers: int) -> MPNN:
    r"""The message-passing network with the number of weights closest to a model's.

    Args:
        model: The model to compare with.
        layers: The number of message-passing steps.
    """
    out_channels = model.out_channels or model.hidden_channels[0]

    def build(width: int) -> MPNN:
        return MPNN(model.in_channels, width, out_channels, layers, model.dim)

    # The number of weights grows as the square of the width.
    size, probe = count_parameters(model), 256
    guess = round(probe * (size / count_parameters(build(probe))) ** 0.5)
    widths = range(max(guess - 16, 1), guess + 17)
    return min(map(build, widths), key=lambda m: abs(count_parameters(m) - size))


def fit(
    model: torch.nn.Module,
    loader: DataLoader,
    steps: int,
    *,
    lr: float,
    loss: Loss = mean_squared_error,
    name: str = "train",
) -> Fit:
    r"""Trains for a number of steps with AdamW, a warm-up and a cosine schedule.

    Args:
        model: The model, called with a batch.
        loader: The batches; it is repeated as often as needed.
        steps: The number of steps.
        lr: The learning rate after the warm-up.
        loss: The loss of an output and its batch.
        name: The label of the progress bar.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.1
    )
    model.train()
    losses: list[float] = []
    seconds = 0.0
    with tqdm(total=steps, desc=name, unit="step", dynamic_ncols=True) as bar:
        for batch in _endless(loader, steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            value = loss(model(batch), batch)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(value.item())
            seconds += time.perf_counter() - start
            recent = losses[-max(steps // 10, 1) :]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
    return Fit(sum(recent) / len(recent), seconds / steps)


def _endless(loader: DataLoader, steps: int) -> Iterator[Batch]:
    if len(loader) == 0:
        raise ValueError("the loader has no batch")
    done = 0
    while done < steps:
        for batch in loader:
            if done == steps:
                return
            done += 1
            yield batch


@torch.no_grad()
def predict(model: torch.nn.Module, loader: DataLoader) -> Tensor:
    r"""The outputs on all batches of a loader, in its order."""
    model.eval()
    return torch.cat([model(batch) for batch in loader])


def table(rows: list[dict[str, str]]) -> str:
    r"""Formats rows that have the same keys as a table."""
    width = {k: max(len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    lines = ["  ".join(k.ljust(w) for k, w in width.items())]
    lines.append("  ".join("-" * w for w in width.values()))
    lines += ["  ".join(row[k].ljust(w) for k, w in width.items()) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
