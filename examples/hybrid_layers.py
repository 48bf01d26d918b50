r"""Adds balls to a message-passing network, in node order and without any glue.

Every cloud holds charges, and the target is the electric potential at each of them,
to which all others contribute. A graph convolution sees a few hops of the graph of
nearest neighbours. The same network whose layers are hybrids exchanges information
inside balls of 128 nodes too, in every second layer inside those of the rotated tree.
Prints the errors of both on unseen clouds.
"""

import argparse
from collections.abc import Callable

import cores  # noqa: F401  (before PyTorch)
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import Compose
from training import count_parameters, fit, predict, table

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import HybridConv
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph

SIDE = 4.0  # of the box: a ball of 128 of 1,000 points has an extent of about one
SOFTENING = 0.2  # the distance below which the potential of a charge stops rising

Mixer = Callable[[int, int, int, int], torch.nn.Module]


def parse_arguments() -> argparse.Namespace:
    r"""The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--points", type=int, default=1000, help="charges of a cloud")
    parser.add_argument("--clouds", type=int, default=48, help="clouds for training")
    parser.add_argument("--steps", type=int, default=80, help="training steps")
    parser.add_argument("--channels", type=int, default=32, help="features of a node")
    parser.add_argument("--layers", type=int, default=4, help="layers of a network")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of clouds and weights")
    return parser.parse_args()


def charges(points: int, generator: torch.Generator) -> Data:
    r"""Charges in a box, and their potential in units of its standard deviation."""
    pos = SIDE * torch.rand(points, 3, generator=generator)
    x = torch.randn(points, 1, generator=generator)
    square = torch.cdist(pos, pos).square() + SOFTENING**2
    y = square.rsqrt() @ x - x / SOFTENING  # not that of the charge itself
    return Data(x=x, pos=pos, y=(y - y.mean()) / y.std())


class NoMixer(torch.nn.Module):
    r"""A mixer that exchanges nothing, for the network without balls."""

    def __init__(self, *_: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, level: object) -> Tensor:
        r"""Returns zeros."""
        return torch.zeros_like(x)


class Network(torch.nn.Module):
    r"""Layers in node order; all of them use the tree that the batch carries.

    Args:
        channels: The number of features of a node.
        layers: The number of layers.
        attention: What the layers do beside the convolution.
    """

    def __init__(self, channels: int, layers: int, attention: Mixer | str) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(1, channels)
        self.layers = torch.nn.ModuleList(
            HybridConv(
                channels,
                GCNConv(channels, channels),
                attention,
                heads=4,
                rotated=i % 2 == 1,
                norm="graph",
            )
            for i in range(layers)
        )
        self.head = torch.nn.Linear(channels, 1)

    def forward(self, batch: Batch) -> Tensor:
        r"""The potential at every node."""
        tree, x = Tree.from_data(batch), self.embed(batch.x)
        for layer in self.layers:
            x = layer(x, batch.pos, batch.edge_index, batch.batch, tree=tree)
        return self.head(x)


def main() -> None:
    r"""Trains both networks and prints their errors."""
    args = parse_arguments()
    generator = torch.Generator().manual_seed(args.seed)
    transform = Compose([TreeKNNGraph(k=8), BallTree(ball_sizes=128)])
    clouds = [
        transform(charges(args.points, generator)) for _ in range(args.clouds + 8)
    ]
    train = DataLoader(clouds[:-8], batch_size=4, shuffle=True, drop_last=True)
    test = DataLoader(clouds[-8:], batch_size=4)
    target = torch.cat([data.y for data in clouds[-8:]])
    rows = []
    for name, attention in (("GCN", NoMixer), ("GCN + balls", "ball")):
        torch.manual_seed(args.seed)
        model = Network(args.channels, args.layers, attention)
        run = fit(model, train, args.steps, lr=args.lr, name=name)
        error = (predict(model, test) - target).square().mean().sqrt()
        rows.append(
            {
                "model": name,
                "weights": f"{count_parameters(model):,}",
                "s/step": f"{run.seconds_per_step:.3f}",
                "error": f"{error:.3f}",
            }
        )
    print("error: root mean square, in standard deviations of the potential")
    print(table(rows))


if __name__ == "__main__":
    main()
