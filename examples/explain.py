r"""Asks a trained Erwin which nodes an output depends on, where the answer is known.

Every node of a cloud has a charge, and one node is marked. All nodes have to name the
charge of the marked one, which message passing over few neighbours cannot. PyG's
``GNNExplainer`` then looks for the nodes and edges that matter for the output of one
node of every test cloud; the marked node should have the largest mask. The attention
weights of the same model say how far its layers look.
"""

import argparse

import cores  # noqa: F401  (before PyTorch)
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.explain import Explainer
from torch_geometric.explain.algorithm import GNNExplainer
from torch_geometric.loader import DataLoader
from training import fit, predict, table

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin, attention_weights, explainable
from torch_geometric_erwin.transforms import TreeKNNGraph


def marked_charges(n: int, generator: torch.Generator) -> Data:
    r"""Points with a charge each, one of them marked; the target is its charge."""
    pos = 2 * torch.rand(n, 3, generator=generator)
    charge = torch.randn(n, 1, generator=generator)
    marked = int(torch.randint(n, (1,), generator=generator))
    mark = torch.zeros(n, 1).index_fill_(0, torch.tensor([marked]), 1.0)
    x = torch.cat([charge, mark], dim=1)
    return Data(x=x, pos=pos, y=charge[marked].expand(n, 1))


def marked_nodes(batch: Batch) -> Tensor:
    r"""The marked node of every cloud."""
    return batch.x[:, 1].nonzero().flatten()


def explain(model: Erwin, batch: Batch, nodes: Tensor, epochs: int) -> Tensor:
    r"""Returns the mask of every node, for the outputs at some nodes."""
    explainer = Explainer(
        explainable(model),
        GNNExplainer(epochs=epochs, lr=0.1),
        explanation_type="model",
        node_mask_type="object",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node"},
    )
    tree = Tree.from_data(batch)
    explanation = explainer(
        batch.x, batch.edge_index, index=nodes, pos=batch.pos, tree=tree
    )
    return explanation.node_mask.flatten()


def distances(model: Erwin, batch: Batch) -> list[dict[str, str]]:
    r"""How far apart the rows of a ball are, without and with attention's weights."""
    rows = []
    with torch.no_grad():
        for layer in attention_weights(model, batch):
            pos = batch.pos if layer.level.node is not None else layer.level.pos
            source, target = layer.edge_index
            distance = (pos[source] - pos[target]).norm(dim=1)
            # The weights of a target sum to one, so this is a mean over targets.
            weighted = (layer.alpha.mean(1) * distance).sum() / len(pos)
            rows.append(
                {
                    "layer": layer.name.removesuffix(".attention"),
                    "rows": str(layer.level.num_rows),
                    "distance": f"{distance.mean():.2f}",
                    "weighted": f"{weighted:.2f}",
                }
            )
    return rows


def main() -> None:
    r"""Trains, explains, and counts how often the explanation is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=32, help="nodes of a cloud")
    parser.add_argument("--clouds", type=int, default=1024, help="training clouds")
    parser.add_argument("--test-clouds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=360, help="of training")
    parser.add_argument("--epochs", type=int, default=50, help="of the explainer")
    parser.add_argument("--lr", type=float, default=5e-3)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Erwin(2, [32, 32], 1, ball_sizes=16, strides=4, enc_heads=4, mp_steps=1)
    prepare = T.Compose([TreeKNNGraph(6), model.tree_transform()])
    count = arguments.clouds + arguments.test_clouds
    clouds = [prepare(marked_charges(arguments.nodes, generator)) for _ in range(count)]
    loader = DataLoader(clouds[: arguments.clouds], batch_size=16, shuffle=True)
    fit(model, loader, arguments.steps, lr=arguments.lr, name="Erwin")

    test = Batch.from_data_list(clouds[arguments.clouds :])
    error = (predict(model, [test]) - test.y).square().mean()
    print(f"test error {error:.3f}, where the mean has {test.y.var():.3f}")

    marked = marked_nodes(test)
    # The output that is explained is that of the node farthest from the marked one.
    apart = (test.pos - test.pos[marked][test.batch]).norm(dim=1)
    nodes = apart.view(-1, arguments.nodes).argmax(1) + test.ptr[:-1]
    mask = explain(model, test, nodes, arguments.epochs)
    largest = mask.view(-1, arguments.nodes).argmax(1) + test.ptr[:-1]
    hits = int((largest == marked).sum())
    print(
        f"the marked node has the largest mask in {hits} of {len(marked)} clouds, by "
        f"chance it would in {len(marked) / arguments.nodes:.1f}"
    )
    print(table(distances(model, test)))


if __name__ == "__main__":
    main()
