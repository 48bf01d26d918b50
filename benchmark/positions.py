r"""``python -m benchmark.positions``: what absolute positions are worth to a model.

The same small Erwin is trained with every encoding of positions, from several seeds, to
predict a smooth function of absolute position on the points of random closed surfaces,
which lie anywhere in a cube. The result is the squared error on unseen surfaces divided
by the variance of the function: one for a model that predicts the mean.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from benchmark.training import Study, Task, error, main, standardised, train
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


def surfaces(seed: int) -> Task:
    r"""Standardised values on random surfaces of 512 points, 4 surfaces a batch.

    Args:
        seed: Of the surfaces.
    """
    rng, graph = np.random.default_rng(seed), TreeKNNGraph(k=8)
    clouds = standardised([graph(_surface(rng)) for _ in range(TRAIN + TEST)])
    sizes = {"dim": 3, "in_channels": 0, "out_channels": 1}
    return Task(clouds[:TRAIN], clouds[TRAIN:], 4, sizes)


def _with_features(task: Task) -> Task:
    def featured(clouds: Sequence[Data]) -> list[Data]:
        return [Data(x=data.pos / 8, **data.to_dict()) for data in clouds]

    sizes = {**task.arguments, "in_channels": 3}
    return replace(
        task, train=featured(task.train), test=featured(task.test), arguments=sizes
    )


def _measure(label: str, seed: int, steps: int) -> dict[str, float]:
    task = surfaces(seed)
    task = _with_features(task) if label == FEATURES else task
    return {label: error(task, train(task, VARIANTS[label], seed, steps)) ** 2}


STUDIES = {
    "positions": Study(
        "positions",
        "Absolute positions: squared errors over the variance, surfaces",
        [*VARIANTS],
        _measure,
    )
}

if __name__ == "__main__":
    main("positions", STUDIES, SEEDS, STEPS)
