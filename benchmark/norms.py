r"""``python -m benchmark.norms``: compares the accuracy of norms on three tasks.

The same small Erwin is trained with every norm on the same clouds in the same order,
from several seeds. The result is the error on unseen clouds,
:math:`\lVert \hat y - y \rVert / \lVert y \rVert`. The tasks have different batches:

- *cosmology*: velocities of haloes (second-order perturbation theory), 2 clouds a
  batch, all alike;
- *forces*: of random molecules with a Morse potential, as the gradient of a predicted
  energy, 8 clouds of very different sizes a batch;
- *mesh*: the flow around Joukowski aerofoils, exact, on meshes whose nearest points are
  from 4e-5 (trailing edge) to 0.1 chords apart; one mesh a batch.

Features and targets of the first and the last are standardised over all clouds.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from tqdm import tqdm

from benchmark import machine, report
from benchmark.runner import ROOT
from torch_geometric_erwin.datasets.lpt import LPTSimulation
from torch_geometric_erwin.nn import BatchNorm, Erwin
from torch_geometric_erwin.transforms import TreeKNNGraph, TreeRadiusGraph

STEPS, SEEDS = 300, 3
LEARNING_RATE = 3e-3
OWN = "batch, a test cloud's own statistics"

#: The compared models: a label, and the arguments of the model.
VARIANTS: dict[str, dict[str, Any]] = {
    "batch": {"norm": "batch"},
    "graph": {"norm": "graph"},
    "layer": {"norm": "layer"},
    "rms": {"norm": "rms"},
    "graph, blocks too": {"norm": "graph", "block_norm": "graph"},
}

#: The same with distances in units of the ball's extent, for balls of different sizes.
RELATIVE = {
    f"{name}, relative distances": {**VARIANTS[name], "distance": "relative"}
    for name in ("batch", "layer")
}

Predict = Callable[[Erwin, Batch], Tensor]


@dataclass
class Task:
    r"""Clouds for training and testing, and how a model predicts their targets."""

    train: list[Data]
    test: list[Data]
    batch_size: int
    arguments: dict[str, Any]
    predict: Predict


def _direct(model: Erwin, batch: Batch) -> Tensor:
    return model(batch)


def cosmology(seed: int) -> Task:
    r"""Haloes of 250 Mpc/h boxes, 1,000 to 2,000 per cloud, in units of their distance.

    Args:
        seed: Of the universes.
    """
    rng = np.random.default_rng(seed)
    unit = 250.0 / 1500 ** (1 / 3)
    simulation = LPTSimulation(box_size=250.0, mesh_size=64)
    clouds = []
    for _ in range(112):
        count = int(rng.integers(1000, 2000))
        pos, velocity = simulation.haloes(rng, count)
        place, motion = (torch.tensor(t).float() for t in (pos / unit, velocity / 300))
        data = Data(pos=place, y=motion)
        clouds.append(TreeKNNGraph(k=8)(data))
    clouds = _standardised(clouds)
    return Task(clouds[:96], clouds[96:], 2, {"dim": 3, "in_channels": 0}, _direct)


def _molecule(rng: np.random.Generator) -> Data:
    # Atoms of two kinds with distances of at least 0.8; each is placed near an earlier
    # one.
    count = int(rng.integers(12, 64))
    pos = np.zeros((1, 3))
    while len(pos) < count:
        step = rng.normal(size=3)
        new = pos[rng.integers(len(pos))] + step / np.linalg.norm(step)
        if np.linalg.norm(pos - new, axis=1).min() > 0.8:
            pos = np.vstack([pos, new])
    kind = torch.tensor(rng.integers(2, size=count))
    place = torch.tensor(pos).requires_grad_()
    i, j = torch.triu_indices(count, count, 1)
    distance = (place[i] - place[j]).norm(dim=1)
    depth = 0.5 + 0.5 * (kind[i] + kind[j])
    energy = (depth * ((1 - torch.exp(-2 * (distance - 1))) ** 2 - 1)).sum()
    (gradient,) = torch.autograd.grad(energy, place)
    x = torch.nn.functional.one_hot(kind, 2).float()
    return Data(x=x, pos=place.detach().float(), y=-gradient.float())


def _forces(model: Erwin, batch: Batch) -> Tensor:
    with torch.enable_grad():
        batch.pos = batch.pos.detach().requires_grad_()
        energy = model(batch).sum()
        (gradient,) = torch.autograd.grad(energy, batch.pos, create_graph=True)
    return -gradient


def forces(seed: int) -> Task:
    r"""Forces on 12 to 63 atoms, in units of the depth of a bond divided by its length.

    Args:
        seed: Of the molecules.
    """
    rng = np.random.default_rng(seed)
    graph = TreeRadiusGraph(r=2.0)
    clouds = [graph(_molecule(rng)) for _ in range(320)]
    scale = torch.cat([data.y for data in clouds]).square().mean().sqrt()
    for data in clouds:
        data.y = data.y / scale
    return Task(clouds[:256], clouds[256:], 8, {"dim": 3, "in_channels": 2}, _forces)


def _aerofoil(rng: np.random.Generator) -> Data:
    # Milne-Thomson, Theoretical Aerodynamics, 1958: potential flow around the circle
    # |z - c| = r, mapped by z + 1 / z; a radius 2 % beyond the trailing edge rounds it.
    centre = complex(-rng.uniform(0.05, 0.15), rng.uniform(0.0, 0.15))
    radius = 1.02 * abs(1 - centre)
    angle = float(rng.uniform(-0.15, 0.15))
    around, layers = int(rng.integers(48, 80)), 20
    theta = np.linspace(0, 2 * np.pi, around, endpoint=False)
    out = 1 + np.concatenate([[0.0], np.geomspace(4e-3, 3.0, layers - 1)])
    z = centre + radius * np.exp(1j * theta)[:, None] * out
    z, w = z.ravel(), (z - centre).ravel()
    turn = np.exp(-1j * angle)
    rear = -np.arcsin(centre.imag / radius)
    circulation = 4 * np.pi * radius * np.sin(angle - rear)
    flow = turn - radius**2 / turn / w**2 + 1j * circulation / (2 * np.pi * w)
    flow = flow / (1 - 1 / z**2)
    place = z + 1 / z
    velocity = np.stack([flow.real, -flow.imag], 1)
    pos = np.stack([place.real, place.imag], 1)
    body = np.tile(out == 1, around)
    more = np.stack([body, np.full(len(z), angle)], 1)
    x = torch.tensor(np.concatenate([pos, more], 1)).float()
    y = torch.tensor(velocity).float() - torch.tensor([1.0, 0.0])
    return Data(x=x, pos=torch.tensor(pos).float(), y=y)


def mesh(seed: int) -> Task:
    r"""Velocities at 960 to 1,580 points, minus the free stream and in units of it.

    Args:
        seed: Of the shapes.
    """
    rng = np.random.default_rng(seed)
    graph = TreeKNNGraph(k=6)
    clouds = _standardised([graph(_aerofoil(rng)) for _ in range(120)])
    return Task(clouds[:96], clouds[96:], 1, {"dim": 2, "in_channels": 4}, _direct)


def _standardised(clouds: list[Data]) -> list[Data]:
    for name in ("x", "y"):
        if name not in clouds[0]:
            continue
        rows = torch.cat([data[name] for data in clouds])
        mean, std = rows.mean(0), rows.std(0)
        for data in clouds:
            data[name] = (data[name] - mean) / std
    return clouds


TASKS = {"cosmology": cosmology, "forces": forces, "mesh": mesh}


def train(task: Task, variant: dict[str, Any], seed: int, steps: int) -> Erwin:
    r"""Trains a model for a number of steps with AdamW and a cosine schedule.

    Args:
        task: The task.
        variant: Arguments of the model.
        seed: Of weights and of the order of clouds.
        steps: The number of steps.
    """
    torch.manual_seed(seed)
    out = 1 if task.predict is _forces else task.train[0].y.size(1)
    model = Erwin(
        task.arguments["in_channels"],
        [32, 64],
        out,
        ball_sizes=64,
        strides=4,
        dim=task.arguments["dim"],
        mp_steps=1,
        **variant,
    )
    tree = model.tree_transform()
    clouds = [tree(data) for data in task.train]
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < task.batch_size:
            order = torch.randperm(len(clouds), generator=generator).tolist()
        chosen, order = order[: task.batch_size], order[task.batch_size :]
        batch = Batch.from_data_list([clouds[i] for i in chosen])
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(task.predict(model, batch), batch.y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def error(task: Task, model: Erwin) -> float:
    r"""The error on the test clouds, one at a time.

    Args:
        task: The task.
        model: The model.
    """
    tree = model.tree_transform()
    wrong = size = 0.0
    for data in task.test:
        batch = Batch.from_data_list([tree(data)])
        with torch.no_grad():
            out = task.predict(model, batch).detach()
        wrong += float((out - batch.y).square().sum())
        size += float(batch.y.square().sum())
    return (wrong / size) ** 0.5


def measure(name: str, variant: dict[str, Any], seed: int, steps: int) -> dict:
    r"""The errors after one training, by the label of the tested model.

    Args:
        name: The task.
        variant: Arguments of the model.
        seed: Of clouds, weights and order.
        steps: The number of steps.
    """
    task = TASKS[name](seed)
    model = train(task, variant, seed, steps)
    errors = {"": error(task, model)}
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if norms:
        for norm in norms:
            norm.train()
        errors[OWN] = error(task, model)
    return errors


def compare(name: str, steps: int, seeds: int) -> dict[str, list[float]]:
    r"""The errors of every variant on one task, by seed.

    Args:
        name: The task.
        steps: The number of steps.
        seeds: How many seeds.
    """
    variants = VARIANTS | (RELATIVE if name == "mesh" else {})
    errors: dict[str, list[float]] = {}
    runs = [(seed, label) for seed in range(seeds) for label in variants]
    for seed, label in (bar := tqdm(runs)):
        bar.set_description(f"{name}, {label}")
        for test, value in measure(name, variants[label], seed, steps).items():
            if test == "" or label == "batch":
                errors.setdefault(test or label, []).append(value)
    return errors


def main() -> None:
    r"""Reads the command line, trains all and writes the errors as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.norms")
    parser.add_argument("tasks", nargs="*", default=[*TASKS], help=", ".join(TASKS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark" / "results")
    args = parser.parse_args()
    for name in args.tasks:
        if name not in TASKS:
            parser.error(f"there is no task {name!r}; choose from {', '.join(TASKS)}")
        about, start = machine.describe(), time.monotonic()
        errors = compare(name, args.steps, args.seeds)
        result = {
            "case": f"norms_{name}",
            "title": f"Norms: errors on unseen clouds, {name}",
            "machine": about,
            "steps": args.steps,
            "seconds": round(time.monotonic() - start, 1),
            "errors": errors,
        }
        path = report.write(result, args.out, machine.slug())
        for label, own in errors.items():
            print(f"{name:<10} {label:<40} {np.mean(own):.3f} ± {np.std(own):.3f}")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
