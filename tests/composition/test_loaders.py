"""Trees and the loaders of PyG: of whole clouds, and of parts of one large graph."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from composition.hybrids import GRAPH, TREE, B, WithTree, clouds
from torch_geometric import typing
from torch_geometric.data import Data, InMemoryDataset, OnDiskDataset
from torch_geometric.loader import (
    CachedLoader,
    ClusterData,
    ClusterLoader,
    DataLoader,
    DynamicBatchSampler,
    NeighborLoader,
    PrefetchLoader,
    RandomNodeLoader,
)
from torch_geometric.utils import k_hop_subgraph

from torch_geometric_erwin import Tree, to_original
from torch_geometric_erwin.transforms import BallTree

SIZES = [30, 0, 1, B, 17, 9]
SORT = BallTree(ball_sizes=B, reorder=True)
PARTS = 4

needs_sampler = pytest.mark.skipif(
    not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE),
    reason="neighbours are sampled by pyg-lib or torch-sparse",
)


class InMemory(InMemoryDataset):
    def __init__(self, root, data):
        super().__init__(root)
        self.data, self.slices = self.collate(data)
        self.save(list(self), f"{root}/clouds.pt")
        self.load(f"{root}/clouds.pt")


def on_disk(root, data):
    dataset = OnDiskDataset(root)
    dataset.extend(data)
    return dataset


DATASETS = {
    "list": lambda root, data: data,
    "in memory": InMemory,
    "on disk": on_disk,
}


@pytest.mark.parametrize("made", DATASETS.values(), ids=[*DATASETS])
@pytest.mark.parametrize("transform", [TREE, SORT], ids=["tree", "sorted"])
def test_data_sets_keep_trees(made, transform, tmp_path):
    data = [transform(cloud) for cloud in clouds(SIZES)]
    model = WithTree("gat").double().eval()
    dataset = made(str(tmp_path), data)
    outs = [model(batch) for batch in DataLoader(dataset, batch_size=len(data))]
    wanted = torch.cat([model(cloud) for cloud in data])
    torch.testing.assert_close(outs[0], wanted, rtol=1e-12, atol=1e-12)


CPU = torch.device("cpu")
LOADERS = {
    "prefetch": lambda data: PrefetchLoader(DataLoader(data, 3), CPU),
    "cached": lambda data: CachedLoader(DataLoader(data, 3), CPU),
    "dynamic": lambda data: DataLoader(
        data, batch_sampler=DynamicBatchSampler(data, 40, shuffle=False)
    ),
}


@pytest.mark.parametrize("made", LOADERS.values(), ids=[*LOADERS])
def test_loaders_of_clouds(made):
    data = [TREE(cloud) for cloud in clouds(SIZES)]
    model = WithTree("gat").double().eval()
    loader = made(data)
    for _ in range(2):  # the second time from the cache
        outs = torch.cat([model(batch) for batch in loader])
        wanted = torch.cat([model(cloud) for cloud in data])
        torch.testing.assert_close(outs, wanted, rtol=1e-12, atol=1e-12)


class SpatialParts(ClusterData):
    """Parts that are ranges of nodes, in place of those of METIS, which needs pyg-lib.

    The nodes must be sorted.
    """

    def _metis(self, edge_index, num_nodes):
        return torch.arange(num_nodes) * self.num_parts // num_nodes


def ranges(data, parts=PARTS):
    """Ranges of nodes of equal length."""
    ends = [i * data.num_nodes // parts for i in range(parts + 1)]
    return [data.subgraph(torch.arange(a, b)) for a, b in pairwise(ends)]


def neighbours(data):
    return NeighborLoader(data, [4, 4], batch_size=50)


SAMPLERS = {
    "random nodes": lambda data: RandomNodeLoader(data, PARTS, shuffle=True),
    "all nodes, shuffled": lambda data: RandomNodeLoader(data, 1, shuffle=True),
    "clusters": lambda data: ClusterLoader(SpatialParts(data, PARTS, log=False)),
    "ranges": ranges,
    "neighbours": pytest.param(neighbours, marks=needs_sampler),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=[*SAMPLERS])


@pytest.fixture
def large():
    (cloud,) = clouds([300])
    return cloud


@every_sampler
@pytest.mark.parametrize("transform", [TREE, SORT], ids=["tree", "sorted"])
def test_a_tree_of_the_whole_is_refused_for_parts(sampler, transform, large):
    model = WithTree("gat").double()
    torch.manual_seed(0)
    for part in sampler(transform(large)):
        message = "the tree does not fit its data: .* 'BallTree'"
        with pytest.raises(ValueError, match=message):
            Tree.from_data(part)
        with pytest.raises(ValueError, match=message):
            model(part)
        if part.num_nodes < large.num_nodes:
            with pytest.raises(ValueError, match="the tree does not fit its data"):
                model.on_tree(part, Tree.from_data(transform(large)))


@every_sampler
@pytest.mark.parametrize("before", [None, TREE, SORT], ids=["none", "tree", "sorted"])
def test_a_tree_of_every_part(sampler, before, large):
    """A new tree takes the place of that of the whole."""
    model = WithTree("gat").double().eval()
    torch.manual_seed(0)
    large = large if before is None else before(large)
    large.number = torch.arange(large.num_nodes)
    seen = []
    for part in sampler(large):
        out = model(TREE(part))
        plain = Data(
            x=part.x, pos=part.pos, edge_index=part.edge_index, edge_attr=part.edge_attr
        )
        torch.testing.assert_close(out, model(TREE(plain)), rtol=1e-12, atol=1e-12)
        seen.append(part.number)
    if sampler is not neighbours:
        assert torch.equal(torch.cat(seen).sort().values, large.number)


@needs_sampler
def test_neighbours_get_a_tree_by_the_loader(large):
    model = WithTree("gat").double()
    for batch in NeighborLoader(large, [4, 4], batch_size=50, transform=TREE):
        F.mse_loss(model(batch)[: batch.batch_size], batch.y[: batch.batch_size])


def test_what_a_neighbour_loader_attaches_stays(large):
    """The same attributes, made without the loader: seeds come first."""
    seeds = torch.tensor([7, 250, 31])
    around, *_ = k_hop_subgraph(seeds, 2, large.edge_index)
    nodes = torch.cat([seeds, around[~torch.isin(around, seeds)]])
    part = large.subgraph(nodes)
    own = {
        "n_id": nodes,
        "e_id": torch.arange(part.num_edges),
        "input_id": seeds,
        "batch_size": len(seeds),
        "num_sampled_nodes": [3, 12, len(nodes) - 15],
    }
    after = TREE(part.update(own))
    for name, value in {**own, "pos": part.pos}.items():
        same = after[name] == value
        assert same.all() if isinstance(same, torch.Tensor) else same, name
    model = WithTree("gat").double()
    F.mse_loss(model(after)[: after.batch_size], after.y[: after.batch_size]).backward()


def cut(parts, data):
    """The share of edges that no part has."""
    return 1 - sum(part.num_edges for part in parts) / data.num_edges


def extent(parts):
    """The root mean square distance from the centres of the parts."""
    square = sum((p.pos - p.pos.mean(0)).square().sum() for p in parts)
    return (square / sum(p.num_nodes for p in parts)).sqrt()


@pytest.mark.parametrize("parts", [2, 3, 8, 13])
def test_ranges_of_sorted_nodes_are_compact(parts):
    generator = torch.Generator().manual_seed(0)
    data = Data(pos=torch.rand(2000, 3, generator=generator))
    data = GRAPH(data)
    random, compact = ranges(data, parts), ranges(SORT(data), parts)
    # Cubes would have the extent of the whole, divided by the third root of their
    # number. Parts are boxes, or lie in two of them.
    whole = (data.pos - data.pos.mean(0)).square().sum(1).mean().sqrt()
    assert extent(compact) < 1.5 * whole / parts ** (1 / 3)
    assert extent(random) > 0.95 * whole
    assert cut(compact, data) < 0.25 * cut(random, data)


def test_parts_of_sorted_nodes_are_sorted_again(large):
    """Their nodes keep the numbers that they had in the whole."""
    part = ranges(SORT(large))[1]
    after = SORT(part)
    assert torch.equal(large.pos[after.original_node], after.pos)
    with pytest.raises(ValueError, match="nodes were added, removed or moved"):
        to_original(after.pos, after)
