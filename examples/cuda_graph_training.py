r"""Trains Erwin on clouds of any sizes with a CUDA graph that is recorded once.

A graph replays all kernels of a training step in one launch, but only for one size.
Therefore the loader pads batches to the largest size that can occur. The outputs for
real nodes are the same as without padding, and the loss ignores the other nodes.

Every cloud holds electric charges, and the model predicts the potential at each of
them. It is trained twice from the same weights: with batches as they are, and with
padded batches and a recorded graph. The losses of both agree. Without a GPU, the padded
steps run without a graph.
"""

import argparse
import copy
import time
from collections.abc import Callable

import cores  # noqa: F401  (before PyTorch)
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from training import count_parameters, table

from torch_geometric_erwin import CapturedStep, masked_mean, pad_batch
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import TreeKNNGraph

SOFTENING = 0.1  # length that keeps the potential finite when charges meet


def charges(n: int, generator: torch.Generator) -> Data:
    r"""Unit charges of both signs in a box; the target is the potential at each."""
    # A hundred charges per unit of volume, so that a ball has about that volume.
    pos = torch.rand(n, 3, generator=generator) * (n / 100) ** (1 / 3)
    sign = torch.randint(0, 2, (n, 1), generator=generator).float() * 2 - 1
    distance = (torch.cdist(pos, pos).square() + SOFTENING**2).sqrt()
    potential = (sign.T / distance).sum(1, keepdim=True) - sign / SOFTENING
    return Data(x=sign, pos=pos, y=potential)


def train(
    model: Erwin, loader: DataLoader, epochs: int, graph: bool, lr: float
) -> tuple[list[float], float]:
    r"""Returns the losses of all steps, and seconds per step after the first epoch.

    Args:
        model: The model.
        loader: The batches; they must be padded if `graph`.
        epochs: How often to go through them.
        graph: Whether steps are recorded and replayed.
        lr: The learning rate.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, capturable=device.type == "cuda"
    )

    def step(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        error = (model(batch) - batch.y).square()
        mask = (
            batch.node_mask if graph else torch.ones_like(batch.batch, dtype=torch.bool)
        )
        loss = masked_mean(error, mask)
        loss.backward()
        optimizer.step()
        return loss

    run: Callable[[Batch], Tensor] = CapturedStep(step) if graph else step
    losses: list[Tensor] = []
    start, count = time.perf_counter(), 0
    for epoch in range(epochs):
        if epoch == 1:
            _synchronize(device)
            start, count = time.perf_counter(), len(losses)
        for batch in loader:
            loss = run(batch.to(device, non_blocking=True))
            losses.append(loss.detach().clone())  # read at the end: no step waits
    _synchronize(device)
    seconds = (time.perf_counter() - start) / max(len(losses) - count, 1)
    return torch.stack(losses).tolist(), seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    r"""Reads the command line, trains twice and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clouds", type=int, default=64)
    parser.add_argument("--nodes", type=int, nargs=2, default=[200, 1000])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Erwin(1, [32, 64], 1, ball_sizes=128, strides=4, mp_steps=1).to(device)
    generator = torch.Generator().manual_seed(args.seed)
    low, high = args.nodes
    sizes = torch.randint(low, high + 1, (args.clouds,), generator=generator).tolist()
    attach, graph = model.tree_transform(), TreeKNNGraph(k=8)
    clouds = [attach(graph(charges(n, generator))) for n in sizes]
    scale = torch.cat([data.y for data in clouds]).std()
    for data in clouds:
        data.y = data.y / scale

    # The largest possible batch, plus one added node and one added cloud.
    largest = sorted(clouds, key=lambda data: data.num_nodes)[-args.batch_size :]
    num_nodes = sum(data.num_nodes for data in largest) + 1
    num_edges = sum(data.num_edges for data in largest)  # equal numbers per node

    def collate(items: list[Data]) -> Batch:
        batch = Batch.from_data_list(items)
        return pad_batch(batch, num_nodes, args.batch_size + 1, num_edges)

    rows, curves = [], []
    for name, padded in (("as they are", False), ("padded", True)):
        loader = DataLoader(
            clouds,
            args.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(args.seed),
            pin_memory=device.type == "cuda",
        )
        if padded:
            loader.collate_fn = collate
        losses, seconds = train(
            copy.deepcopy(model), loader, args.epochs, graph=padded, lr=args.lr
        )
        last = losses[-len(loader) :]
        rows.append(
            {
                "batches": name,
                "steps": "recorded" if padded and device.type == "cuda" else "eager",
                "ms/step": f"{1e3 * seconds:.2f}",
                "loss": f"{sum(last) / len(last):.4f}",
            }
        )
        curves.append(torch.tensor(losses))
    apart = float(((curves[1] - curves[0]) / curves[0]).abs().max())

    where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    print(
        f"{args.clouds} clouds of {min(sizes)} to {max(sizes)} charges, padded to "
        f"{num_nodes:,} nodes a batch; {count_parameters(model):,} parameters, {where}"
    )
    if device.type != "cuda":
        print("there is no GPU: nothing is recorded, padded steps run one by one")
    print("\n" + table(rows))
    print(f"\nthe losses of the two runs differ by {100 * apart:.4f} % at most")


if __name__ == "__main__":
    main()
