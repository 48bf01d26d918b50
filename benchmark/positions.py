r"""``python -m benchmark.positions``: what absolute positions are worth to a model.

The same small Erwin is trained with every encoding of positions, from several seeds, to
predict a smooth function of absolute position on the points of random closed surfaces,
which lie anywhere in a cube. The result is the squared error on unseen surfaces divided
by the variance of the function: one for a model that predicts the mean.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data
from tqdm import tqdm

from benchmark import machine, report
from benchmark.norms import Task, error, train
from benchmark.runner import ROOT
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import TreeKNNGraph

STEPS, SEEDS = 150, 2
POINTS, TRAIN, TEST = 512, 96, 24
FEATURES = "positions among the features"

#: The compared models: a label, and the arguments of the model.
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"pos_encoding": "linear"},
    "fourier": {"pos_encoding": "fourier"},
    FEATURES: {},
}


def _surface(rng: np.random.Generator) -> Data:
    # A sphere with bumps, of radius about 4, with its centre in a cube of side 16: one
    # unit is about the extent of a ball.
    normal = rng.normal(size=(POINTS, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    waves = rng.normal(size=(3, 6))
    bumps = np.sin(normal @ waves * 2 + rng.uniform(0, 2 * np.pi, 6)).sum(1)
    pos = (4 + 0.4 * bumps)[:, None] * normal + rng.uniform(-8, 8, 3)
    x, y, z = (pos / 8).T
    value = np.sin(2 * x + y) + np.cos(3 * y - z) + x * z
    return Data(
        pos=torch.tensor(pos).float(), y=torch.tensor(value).float().unsqueeze(1)
    )


def _whole(model: Erwin, batch: Any) -> torch.Tensor:
    return model(batch)


def surfaces(seed: int) -> Task:
    r"""Standardised values on random surfaces of 512 points, 4 surfaces a batch.

    Args:
        seed: Of the surfaces.
    """
    rng, graph = np.random.default_rng(seed), TreeKNNGraph(k=8)
    clouds = [graph(_surface(rng)) for _ in range(TRAIN + TEST)]
    values = torch.cat([data.y for data in clouds])
    for data in clouds:
        data.y = (data.y - values.mean()) / values.std()
    sizes = {"dim": 3, "in_channels": 0}
    return Task(clouds[:TRAIN], clouds[TRAIN:], 4, sizes, _whole)


def _with_features(task: Task) -> Task:
    def featured(clouds: Sequence[Data]) -> list[Data]:
        return [Data(x=data.pos / 8, **data.to_dict()) for data in clouds]

    sizes = {**task.arguments, "in_channels": 3}
    return replace(
        task, train=featured(task.train), test=featured(task.test), arguments=sizes
    )


def compare(steps: int, seeds: int) -> dict[str, list[float]]:
    r"""The squared errors over the variance of every variant, by seed.

    Args:
        steps: The number of steps.
        seeds: How many seeds.
    """
    errors: dict[str, list[float]] = {label: [] for label in VARIANTS}
    runs = [(seed, label) for seed in range(seeds) for label in VARIANTS]
    for seed, label in (bar := tqdm(runs)):
        bar.set_description(label)
        task = surfaces(seed)
        task = _with_features(task) if label == FEATURES else task
        model = train(task, VARIANTS[label], seed, steps)
        errors[label].append(error(task, model) ** 2)
    return errors


def main() -> None:
    r"""Reads the command line, trains all and writes the errors as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.positions")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark" / "results")
    args = parser.parse_args()
    about, start = machine.describe(), time.monotonic()
    errors = compare(args.steps, args.seeds)
    result = {
        "case": "positions",
        "title": "Absolute positions: squared errors over the variance, surfaces",
        "machine": about,
        "steps": args.steps,
        "seconds": round(time.monotonic() - start, 1),
        "errors": errors,
    }
    path = report.write(result, args.out, machine.slug())
    for label, own in errors.items():
        print(f"{label:<30} {np.mean(own):.3f} ± {np.std(own):.3f}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
