r"""Compares variants of a model by their errors after a short training.

A :class:`Study` has variants, each of which is trained from several seeds. The result
is a file of errors by variant and seed.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
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
from torch_geometric_erwin.nn import Erwin

LEARNING_RATE = 3e-3

Predict = Callable[[Erwin, Batch], Tensor]


def direct(model: Erwin, batch: Batch) -> Tensor:
    r"""The output of a model as its prediction."""
    return model(batch)


@dataclass
class Task:
    r"""Clouds for training and testing, and how a model predicts their targets.

    Args:
        train: The clouds for training.
        test: The unseen ones.
        batch_size: The number of clouds in a step.
        arguments: Arguments of the model, for its input and output.
        predict: Returns the prediction of a model for a batch.
    """

    train: list[Data]
    test: list[Data]
    batch_size: int
    arguments: dict[str, Any]
    predict: Predict = direct


@dataclass(frozen=True)
class Study:
    r"""What is trained and tested.

    Args:
        case: The name of the results.
        title: The question that it answers.
        variants: The labels of the compared models.
        measure: Called with a label, a seed and the number of steps, it trains that
            variant and returns its errors, by the label of the tested model.
    """

    case: str
    title: str
    variants: Sequence[str]
    measure: Callable[[str, int, int], Mapping[str, float]]


def standardised(clouds: list[Data]) -> list[Data]:
    r"""Gives features and targets mean 0 and deviation 1, over all clouds.

    Args:
        clouds: The clouds, which are changed.
    """
    for name in ("x", "y"):
        if name not in clouds[0]:
            continue
        rows = torch.cat([data[name] for data in clouds])
        mean, std = rows.mean(0), rows.std(0)
        for data in clouds:
            data[name] = (data[name] - mean) / std
    return clouds


def train(task: Task, variant: dict[str, Any], seed: int, steps: int) -> Erwin:
    r"""Trains a model for a number of steps with AdamW and a cosine schedule.

    Args:
        task: The task.
        variant: Arguments of the model.
        seed: Of weights and of the order of clouds.
        steps: The number of steps.
    """
    torch.manual_seed(seed)
    model = Erwin(
        hidden_channels=[32, 64],
        ball_sizes=64,
        strides=4,
        mp_steps=1,
        **task.arguments,
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


def compare(study: Study, seeds: int, steps: int) -> dict[str, list[float]]:
    r"""The errors of all variants, by the label of the tested model and then by seed.

    Args:
        study: What is trained and tested.
        seeds: How many seeds.
        steps: The number of steps.
    """
    errors: dict[str, list[float]] = {}
    runs = [(seed, variant) for seed in range(seeds) for variant in study.variants]
    for seed, variant in (bar := tqdm(runs)):
        bar.set_description(f"{study.case}, {variant}")
        for label, value in study.measure(variant, seed, steps).items():
            errors.setdefault(label, []).append(value)
    return errors


def main(name: str, studies: Mapping[str, Study], seeds: int, steps: int) -> None:
    r"""Reads the command line, runs studies and writes their errors as JSON.

    Args:
        name: The module that is run.
        studies: The studies by their name on the command line.
        seeds: How many seeds, if the command line does not say it.
        steps: How many steps, likewise.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmark.{name}")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(studies))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmark" / "results")
    args = parser.parse_args()
    for wanted in args.names:
        if wanted not in studies:
            parser.error(f"there is no {wanted!r}; choose from {', '.join(studies)}")
    for wanted in args.names or studies:
        study, start = studies[wanted], time.monotonic()
        about = machine.describe()
        errors = compare(study, args.seeds, args.steps)
        result = {
            "case": study.case,
            "title": study.title,
            "machine": about,
            "steps": args.steps,
            "seconds": round(time.monotonic() - start, 1),
            "errors": errors,
        }
        path = report.write(result, args.out, machine.slug())
        for label, own in errors.items():
            print(f"{wanted:<10} {label:<40} {np.mean(own):.3f} ± {np.std(own):.3f}")
        print(f"written to {path}")
