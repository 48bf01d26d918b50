r"""Rolls out a cloud that collapses under its own gravity, with accelerations by Erwin.

Trains on snapshots of simulated collapses, then integrates an unseen one, with the
network instead of the sum over all pairs. The points move in every step, so every step
updates the tree, on the device of the points; with a GPU, the host reads nothing back
before the end. Prints the distance of the final points from the simulated ones, and the
share of time that the tree takes.
"""

import argparse
import time

import cores  # noqa: F401  (before PyTorch)
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from tqdm import tqdm
from training import count_parameters, fit, table

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin, Rollout
from torch_geometric_erwin.transforms import BallTree

SOFTENING = 0.3  # softening length of the force, in units of the cloud's radius
INTERVAL = 0.04  # time between two steps; a free fall takes about 1.1


def parse_arguments() -> argparse.Namespace:
    r"""The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--points", type=int, default=1024, help="points of a cloud")
    parser.add_argument("--clouds", type=int, default=32, help="simulated for training")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--horizon", type=int, default=20, help="steps of the rollout")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of clouds and weights")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the network and the rollout run",
    )
    return parser.parse_args()


def cloud(points: int, generator: torch.Generator) -> Tensor:
    r"""Three overlapping balls of points at rest, of radius about 1 together."""
    centre = 0.6 * torch.randn(3, 3, generator=generator)
    direction = torch.randn(points, 3, generator=generator)
    direction /= direction.norm(dim=-1, keepdim=True)
    radius = torch.rand(points, 1, generator=generator) ** (1 / 3)
    member = torch.randint(3, (points,), generator=generator)
    pos = centre[member] + 0.7 * radius * direction
    return pos - pos.mean(0)


def gravity(pos: Tensor) -> Tensor:
    r"""Accelerations by all other points; total mass and gravitational constant are 1.

    Shapes:
        - **pos:** :math:`(N, 3)`; **output:** :math:`(N, 3)`.
    """
    offset = pos[None] - pos[:, None]
    square = offset.square().sum(-1, keepdim=True) + SOFTENING**2
    return (offset * square**-1.5).mean(1)


def leapfrog(pos: Tensor, steps: int) -> list[Tensor]:
    r"""Positions after every step (kick, drift, kick); the points start at rest.

    Args:
        pos: The positions at the start.
        steps: The number of steps.
    """
    velocity, pull, path = torch.zeros_like(pos), gravity(pos), []
    for _ in range(steps):
        velocity = velocity + 0.5 * INTERVAL * pull
        pos = pos + INTERVAL * velocity
        pull = gravity(pos)
        velocity = velocity + 0.5 * INTERVAL * pull
        path.append(pos)
    return path


def collapse(start: Tensor, steps: int) -> Data:
    r"""A simulated collapse, from the step before the start on.

    Points at rest came from where they will go, so the step before the start is the one
    after it. Differences of three successive positions are accelerations.

    Args:
        start: The positions at the start.
        steps: The number of steps after the start.
    """
    path = leapfrog(start, steps)
    return Data(pos=start, states=torch.stack([path[0], start, *path], dim=1))


def samples(
    args: argparse.Namespace, model: Rollout, transform: BallTree
) -> list[Data]:
    r"""Every other step of simulated collapses, with the positions that follow."""
    generator = torch.Generator().manual_seed(args.seed)
    data: list[Data] = []
    for _ in tqdm(range(args.clouds), desc="simulate", unit="cloud"):
        path = collapse(cloud(args.points, generator), args.horizon + 1)
        data += map(transform, model.windows(path, stride=2))
    return data


def clock(pos: Tensor) -> float:
    r"""Waits until the device has finished its work; returns the time in seconds."""
    if pos.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    r"""Trains, rolls out and compares."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    # Gravity depends on positions alone, so the network gets them and no velocities.
    network = Erwin(
        3, [32, 64, 64], out_channels=3, ball_sizes=128, strides=4, mp_steps=0
    )
    model = Rollout(network, history=0, moving=True, features=torch.nn.Identity())
    data = samples(args, model, network.tree_transform())
    model.set_statistics(data)
    run = fit(
        model,
        DataLoader(data, batch_size=2, shuffle=True),
        args.steps,
        lr=args.lr,
        loss=lambda out, _: torch.nn.functional.mse_loss(*out),
        name="train Erwin",
    )
    print(
        f"{count_parameters(model):,} parameters, loss {run.loss:.5f}, "
        f"{run.seconds_per_step:.3f} s a training step"
    )

    model = model.to(args.device).eval()
    generator = torch.Generator().manual_seed(args.seed + 1)
    truth = collapse(cloud(args.points, generator).to(args.device), args.horizon)
    truth = network.tree_transform()(truth)
    start, true = truth.pos, truth.states[:, -1]
    moved = (true - start).norm(dim=-1).mean()
    with torch.no_grad():
        model.rollout(truth, steps=1)  # warm-up: allocates memory, loads kernels
        begin = clock(start)
        path = model.rollout(truth, args.horizon)
        whole = clock(start) - begin
        tree = Tree.from_data(truth)
        begin = clock(start)
        for pos in path.unbind(1):
            tree = tree.update(pos)
        updates = clock(start) - begin
    # A simple baseline: the start, shrunk to the true size at the end.
    shrunk = start * (true.norm() / start.norm())

    def error(pos: Tensor) -> str:
        return f"{float((pos - true).norm(dim=-1).mean() / moved):.3f}"

    rows = [
        {"prediction": "at rest", "error": error(start)},
        {"prediction": "start, shrunk to the true size", "error": error(shrunk)},
        {"prediction": "Erwin", "error": error(path[:, -1])},
    ]
    print(f"\nafter {args.horizon} steps, mean error over mean distance moved")
    print(table(rows))
    each = 1e3 / args.horizon
    print(
        f"\na step of {args.points} points on {args.device}: tree "
        f"{each * updates:.2f} ms, network {each * (whole - updates):.2f} ms; the tree "
        f"takes {100 * updates / whole:.1f} %"
    )


if __name__ == "__main__":
    main()
