r"""Trains on parts of one large cloud, and tests on the whole cloud at once.

The cloud is a closed surface with charges at some of its nodes; the target is their
screened potential at every node, which reaches far beyond the neighbours in the graph.
Parts are either random nodes (PyG's ``RandomNodeLoader``), or ranges of the nodes after
``BallTree(..., reorder=True)`` has sorted them: compact patches of the surface, in
which nodes keep their neighbours. Every part gets its own tree. Prints the error on the
whole surface with other charges, as a share of the potential's root mean square.
"""

import argparse
from collections.abc import Callable, Iterable
from itertools import pairwise

import cores  # noqa: F401  (before PyTorch)
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader, RandomNodeLoader
from tqdm import tqdm
from training import count_parameters, fit, mpnn_of_size, predict, table

from torch_geometric_erwin.nn import MPNN, Erwin
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph

RADIUS = 10.0  # of the surface, on average
LENGTH = 0.7  # the screening length of the potential, four distances of neighbours
NODES_PER_CHARGE = 10


def parse_arguments() -> argparse.Namespace:
    r"""The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=50_000, help="of the surface")
    parser.add_argument("--parts", type=int, default=16, help="of equal size")
    parser.add_argument("--draws", type=int, default=4, help="of charges, for training")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of surface and weights")
    return parser.parse_args()


def surface(nodes: int) -> Data:
    r"""Random points of a sphere with bumps, and the graph of 8 nearest neighbours."""
    direction = torch.randn(nodes, 3)
    direction /= direction.norm(dim=1, keepdim=True)
    bumps = (4 * direction).sin().sum(1, keepdim=True)
    return TreeKNNGraph(k=8)(Data(pos=RADIUS * (1 + 0.1 * bumps) * direction))


def charged(data: Data, scale: float = 1.0) -> Data:
    r"""The surface with new charges as features and their potential as target.

    Args:
        data: The surface.
        scale: What the potential is divided by.
    """
    count = data.num_nodes // NODES_PER_CHARGE
    places = torch.randperm(data.num_nodes)[:count]
    charge, y = torch.randn(count), []
    for pos in tqdm(data.pos.split(2048), desc="potential", unit="chunk"):
        distance = torch.cdist(pos, data.pos[places])
        y.append((-distance / LENGTH).exp() @ charge)
    data = data.clone()
    data.x = torch.zeros(data.num_nodes, 1).index_put((places,), charge[:, None])
    data.y = torch.cat(y)[:, None] / scale
    return data


def patches(data: Data, parts: int) -> list[Data]:
    r"""Ranges of nodes, which are compact if the nodes are sorted.

    Args:
        data: The sorted data.
        parts: Their number.
    """
    ends = [i * data.num_nodes // parts for i in range(parts + 1)]
    return [data.subgraph(torch.arange(a, b)) for a, b in pairwise(ends)]


def relative_error(out: Tensor, y: Tensor) -> float:
    r"""The root mean square error divided by the root mean square of the target."""
    return ((out - y).norm() / y.norm()).item()


def main() -> None:
    r"""Trains on both kinds of parts and prints the errors."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    bare = surface(args.nodes)
    scale = charged(bare).y.square().mean().sqrt().item()
    test, *train = (charged(bare, scale) for _ in range(1 + args.draws))

    def erwin() -> Erwin:
        torch.manual_seed(args.seed)
        return Erwin(1, [16, 32], 1, ball_sizes=128, strides=8, mp_steps=2)

    def mpnn() -> MPNN:
        return mpnn_of_size(erwin(), layers=3)

    def random_nodes(data: Data) -> Iterable[Data]:
        return RandomNodeLoader(data, args.parts, shuffle=True)

    def ranges(data: Data) -> Iterable[Data]:
        data = BallTree(ball_sizes=128, reorder=True)(data)
        return patches(data, args.parts)

    runs: list[tuple[str, Callable, str, Callable]] = [
        ("MPNN", mpnn, "sorted ranges", ranges),
        ("Erwin", erwin, "random nodes", random_nodes),
        ("Erwin", erwin, "sorted ranges", ranges),
    ]
    rows = []
    tree = erwin().tree_transform()
    for name, make, kind, cut in runs:
        parts = [tree(part) for data in train for part in cut(data)]
        loader = DataLoader(parts, batch_size=1, shuffle=True)
        model, label = make(), f"{name}, {kind}"
        run = fit(model, loader, args.steps, lr=args.lr, name=label)
        error = relative_error(predict(model, DataLoader([test])), test.y)
        rows.append(
            {
                "model": name,
                "parts": kind,
                "weights": f"{count_parameters(model):,}",
                "seconds per step": f"{run.seconds_per_step:.3f}",
                "loss": f"{run.loss:.3f}",
                "error": f"{error:.3f}",
            }
        )
    print(f"{args.nodes:,} nodes, {bare.num_edges:,} edges, {args.parts} parts")
    print(table(rows))


if __name__ == "__main__":
    main()
