r"""Predicts the velocities of dark-matter haloes from their positions.

Trains Erwin and a message-passing network of the same size for the same number of steps
on simulated universes, compares both with linear theory on unseen universes, and draws
the result.
"""

import argparse
import json
import time
from pathlib import Path

import cores  # noqa: F401  (before PyTorch)
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from training import count_parameters, fit, mpnn_of_size, predict, table

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.datasets import (
    CosmologyLPT,
    fit_linear_velocity,
    linear_velocity,
)
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import TreeKNNGraph
from torch_geometric_erwin.utils.files import written_whole
from torch_geometric_erwin.visualization import plot_ball_tree


def parse_arguments() -> argparse.Namespace:
    r"""The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data/cosmology"), help="where the data is"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/cosmology"), help="where results go"
    )
    parser.add_argument(
        "--clouds", type=int, default=128, help="training clouds of 5000 haloes"
    )
    parser.add_argument("--test-clouds", type=int, default=16, help="unseen clouds")
    parser.add_argument(
        "--steps", type=int, default=600, help="training steps of each model"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="clouds in a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[32, 64, 96],
        help="Erwin's channels, per level",
    )
    parser.add_argument(
        "--layers", type=int, default=3, help="message-passing steps of the baseline"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    return parser.parse_args()


def scores(prediction: Tensor, target: Tensor) -> dict[str, str]:
    r"""R² and mean squared error of velocities, in units of the linear theory's."""
    error = (prediction - target).square().mean()
    return {
        "R2": f"{float(1 - error / target.var(unbiased=False)):.3f}",
        "MSE": f"{float(error):.4f}",
    }


def draw(path: Path, data: Data, prediction: Tensor, r2: str) -> None:
    r"""Draws predicted and true velocities on a slice, and the tree at four levels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    slab = data.pos[:, 2].abs() < 0.12
    x, y = data.pos[slab, 0], data.pos[slab, 1]
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    top, bottom = list(figure.subfigures(2, 1, height_ratios=[1.25, 1]))  # type: ignore
    axes = top.subplots(1, 3)
    limit = float(data.y[slab].norm(dim=1).quantile(0.98))
    for ax, velocity, title in (
        (axes[0], data.y, "true velocity"),
        (axes[1], prediction, "Erwin"),
    ):
        v = velocity[slab]
        arrows = ax.quiver(
            x,
            y,
            v[:, 0],
            v[:, 1],
            v.norm(dim=1),
            clim=(0, limit),
            cmap="viridis",
            scale=40,
            width=0.003,
        )
        ax.set(title=title, aspect="equal", xlabel="x", ylabel="y")
    figure.colorbar(arrows, ax=axes[1], label="speed")
    axes[2].hexbin(
        data.y.flatten(), prediction.flatten(), gridsize=60, mincnt=1, cmap="magma_r"
    )
    ends = [-3.5, 3.5]
    axes[2].plot(ends, ends, color="gray", linewidth=1)
    axes[2].set(
        title=f"unseen universes, R² = {r2}",
        xlabel="true component",
        ylabel="predicted",
        xlim=ends,
        ylim=ends,
        aspect="equal",
    )
    # For the picture: a tree with finer and coarser levels than the model's.
    tree = ball_tree(data.pos, ball_sizes=64, strides=[4, 4, 4])
    for level, ax in enumerate(bottom.subplots(1, 4)):
        plot_ball_tree(data.pos, tree, level, mask=slab, ax=ax, s=9)
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    r"""Runs the comparison."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    torch.manual_seed(args.seed)
    arguments = {
        "in_channels": 0,
        "hidden_channels": args.widths,
        "out_channels": 3,
        "ball_sizes": 128,
        "strides": 4,
        "mlp_ratio": 2,
        "norm": "batch",  # as in the paper; docs/units.md compares others
    }
    erwin = Erwin(**arguments)
    mpnn = mpnn_of_size(erwin, args.layers)

    print(f"data: universes of 5000 haloes under '{args.root}'", flush=True)
    # Not a `pre_transform`: its results would be saved, but trees depend on options.
    graph_and_tree = T.Compose([TreeKNNGraph(k=10), erwin.tree_transform()])
    train, test = (
        [
            graph_and_tree(data)
            for data in CosmologyLPT(str(args.root), split, num_clouds=count)
        ]
        for split, count in (("train", args.clouds), ("test", args.test_clouds))
    )
    test_loader = DataLoader(test, batch_size=4)
    target = torch.cat([data.y for data in test])

    smoothing, amplitude = fit_linear_velocity(train[:16])
    linear = [linear_velocity(data.pos, smoothing, amplitude) for data in test]
    rows = [
        {
            "model": "linear theory",
            "parameters": "2",
            "s/step": "-",
            **scores(torch.cat(linear), target),
        }
    ]
    for name, model in (("MPNN", mpnn), ("Erwin", erwin)):
        torch.manual_seed(args.seed)
        loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
        run = fit(model, loader, args.steps, lr=args.lr, name=f"train {name}")
        prediction = predict(model, test_loader)
        rows.append(
            {
                "model": name,
                "parameters": f"{count_parameters(model):,}",
                "s/step": f"{run.seconds_per_step:.3f}",
                **scores(prediction, target),
            }
        )
    # Erwin(**checkpoint["arguments"]).load_state_dict(checkpoint["state_dict"])
    checkpoint = {"arguments": arguments, "state_dict": erwin.state_dict()}
    with written_whole(args.out / "erwin.pt") as file:
        torch.save(checkpoint, file)
    picture = args.out / "velocities.png"
    draw(picture, test[0], prediction[: test[0].num_nodes], rows[-1]["R2"])

    print(f"\nVelocities of {len(target):,} haloes in {len(test)} unseen universes:\n")
    text = table(rows)
    print(text)
    (args.out / "table.txt").write_text(text + "\n")
    (args.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\ncheckpoint: {args.out / 'erwin.pt'}\npicture:    {picture}")
    print(f"done in {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
