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

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from benchmark.training import Study, Task, error, main, standardised, train
from torch_geometric_erwin.datasets.lpt import LPTSimulation
from torch_geometric_erwin.nn import BatchNorm, Erwin
from torch_geometric_erwin.transforms import TreeKNNGraph, TreeRadiusGraph

STEPS, SEEDS = 300, 3
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
    clouds = standardised(clouds)
    sizes = {"dim": 3, "in_channels": 0, "out_channels": 3}
    return Task(clouds[:96], clouds[96:], 2, sizes)


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
    sizes = {"dim": 3, "in_channels": 2, "out_channels": 1}
    return Task(clouds[:256], clouds[256:], 8, sizes, _forces)


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
    clouds = standardised([graph(_aerofoil(rng)) for _ in range(120)])
    sizes = {"dim": 2, "in_channels": 4, "out_channels": 2}
    return Task(clouds[:96], clouds[96:], 1, sizes)


TASKS = {"cosmology": cosmology, "forces": forces, "mesh": mesh}


def _measure(name: str, label: str, seed: int, steps: int) -> dict[str, float]:
    # Running statistics are also replaced by those of each test cloud.
    task = TASKS[name](seed)
    model = train(task, (VARIANTS | RELATIVE)[label], seed, steps)
    errors = {label: error(task, model)}
    if label == "batch":
        for norm in model.modules():
            if isinstance(norm, BatchNorm):
                norm.train()
        errors[OWN] = error(task, model)
    return errors


STUDIES = {
    name: Study(
        f"norms_{name}",
        f"Norms: errors on unseen clouds, {name}",
        [*VARIANTS, *(RELATIVE if name == "mesh" else ())],
        partial(_measure, name),
    )
    for name in TASKS
}

if __name__ == "__main__":
    main("norms", STUDIES, SEEDS, STEPS)
