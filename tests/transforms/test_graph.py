import copy
import pickle
import re

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, Data
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.loader import DataLoader
from torch_geometric.utils import is_undirected, to_undirected

from torch_geometric_erwin.neighbors import knn_graph, radius_graph
from torch_geometric_erwin.transforms.graph import TreeKNNGraph, TreeRadiusGraph

SIZES = [37, 5, 0, 1, 64]
TRANSFORMS = [
    TreeKNNGraph(k=4),
    TreeKNNGraph(k=4, force_undirected=True),
    TreeKNNGraph(k=4, loop=True, flow="target_to_source"),
    TreeRadiusGraph(r=0.8),
    TreeRadiusGraph(r=0.8, loop=True, max_num_neighbors=3, flow="target_to_source"),
]
each_transform = pytest.mark.parametrize("transform", TRANSFORMS)


def cloud(n):
    generator = torch.Generator().manual_seed(n)
    return Data(
        pos=torch.randn(n, 3, generator=generator),
        edge_index=torch.zeros(2, 7, dtype=torch.int64),
        edge_attr=torch.zeros(7, 2),
    )


def clouds():
    return [cloud(n) for n in SIZES]


def test_graphs_of_one_cloud():
    data = cloud(50)
    pos = data.pos
    directed = knn_graph(pos, 4)
    assert torch.equal(TreeKNNGraph(4)(data).edge_index, directed)
    undirected = TreeKNNGraph(4, force_undirected=True)(data).edge_index
    assert torch.equal(undirected, to_undirected(directed, num_nodes=50))
    assert is_undirected(undirected)
    assert not is_undirected(directed)
    looped = TreeKNNGraph(4, loop=True, flow="target_to_source")(data).edge_index
    assert torch.equal(looped, knn_graph(pos, 4, loop=True, flow="target_to_source"))

    assert torch.equal(TreeRadiusGraph(0.8)(data).edge_index, radius_graph(pos, 0.8))
    kwargs = {"loop": True, "max_num_neighbors": 3, "flow": "target_to_source"}
    capped = TreeRadiusGraph(0.8, **kwargs)(data).edge_index
    assert torch.equal(capped, radius_graph(pos, 0.8, **kwargs))


def test_defaults_are_those_of_pyg_but_for_the_limit():
    ours, theirs = TreeKNNGraph(), T.KNNGraph()
    for name in ("k", "loop", "force_undirected", "flow"):
        assert getattr(ours, name) == getattr(theirs, name)
    ours, theirs = TreeRadiusGraph(1.0), T.RadiusGraph(1.0)
    for name in ("loop", "flow"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.max_num_neighbors is None


@each_transform
def test_edge_attr_is_removed_and_the_input_is_kept(transform):
    data = cloud(20)
    out = transform(data)
    assert "edge_attr" not in out
    assert data.edge_index.size(1) == 7
    assert data.edge_attr.size(0) == 7
    assert out.validate()


@each_transform
def test_batch_of_graphs_is_graph_of_the_batch(transform):
    alone = [transform(data) for data in clouds()]
    batch = transform(Batch.from_data_list(clouds()))
    assert torch.equal(batch.edge_index, Batch.from_data_list(alone).edge_index)


@each_transform
def test_batch_separates_into_its_graphs(transform):
    before = Batch.from_data_list(clouds())
    separated = transform(before).to_data_list()
    for data, expected in zip(separated, clouds(), strict=True):
        assert torch.equal(data.edge_index, transform(expected).edge_index)
        assert "edge_attr" not in data
    for data, expected in zip(before.to_data_list(), clouds(), strict=True):
        assert torch.equal(data.edge_index, expected.edge_index)


@each_transform
def test_batch_without_edges_before(transform):
    data_list = [Data(pos=data.pos) for data in clouds()]
    for data, expected in zip(
        transform(Batch.from_data_list(data_list)).to_data_list(), clouds(), strict=True
    ):
        assert torch.equal(data.edge_index, transform(expected).edge_index)


@each_transform
def test_sorted_batch_vector_without_ptr(transform):
    batch = Batch.from_data_list(clouds())
    data = Data(pos=batch.pos, batch=batch.batch)
    assert torch.equal(transform(data).edge_index, transform(batch).edge_index)


@each_transform
def test_functional_names_compose_copy_and_pickle(transform):
    for same in (copy.copy(transform), pickle.loads(pickle.dumps(transform))):
        assert same(cloud(20)).edge_index.equal(transform(cloud(20)).edge_index)
    composed = T.Compose([T.Center(), transform])
    assert composed(cloud(20)).edge_index.size(1) > 0
    name = {TreeKNNGraph: "tree_knn_graph", TreeRadiusGraph: "tree_radius_graph"}
    pipe = getattr(DatasetAdapter([cloud(20)]), name[type(transform)])
    (data,) = list(pipe(**vars(transform)))
    assert data.edge_index.equal(transform(cloud(20)).edge_index)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_after_threads_in_the_parent(context):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        transform = TreeKNNGraph(4)
        transform(cloud(5000))  # enough points for two threads
        dataset = Transformed([cloud(2000), cloud(2001)], transform)
        loader = DataLoader(
            dataset, num_workers=1, multiprocessing_context=context, timeout=120
        )
        for expected, batch in zip(dataset, loader, strict=True):
            assert torch.equal(batch.edge_index, expected.edge_index)
    finally:
        torch.set_num_threads(before)


class Transformed(torch.utils.data.Dataset):
    def __init__(self, data_list, transform):
        self.data_list, self.transform = data_list, transform

    def __len__(self):
        return len(self.data_list)

    def __getitem__(self, index):
        return self.transform(self.data_list[index])


def test_repr():
    assert str(TreeKNNGraph(k=10)) == (
        "TreeKNNGraph(k=10, loop=False, force_undirected=False, "
        "flow='source_to_target')"
    )
    assert str(TreeRadiusGraph(r=0.5, max_num_neighbors=9)) == (
        "TreeRadiusGraph(r=0.5, loop=False, max_num_neighbors=9, "
        "flow='source_to_target')"
    )


def test_repr_tells_every_argument_and_builds_the_transform_again():
    # PyG compares the representations of the old and the new `pre_transform`.
    assert len({repr(transform) for transform in TRANSFORMS}) == len(TRANSFORMS)
    for transform in TRANSFORMS:
        assert vars(eval(repr(transform))) == vars(transform)


def test_repr_does_not_depend_on_the_type_of_a_number():
    assert str(TreeKNNGraph(k=np.int64(5))) == str(TreeKNNGraph(k=5))
    assert str(TreeRadiusGraph(r=np.float32(2))) == str(TreeRadiusGraph(r=2))


@each_transform
def test_unsorted_batch_vector(transform):
    data = Data(pos=torch.rand(3, 3), batch=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"'batch' must be sorted \(entry 2 is 0 "):
        transform(data)


@each_transform
def test_no_positions(transform):
    name = type(transform).__name__
    with pytest.raises(ValueError, match=f"'{name}' needs .*'data.pos' is missing"):
        transform(Data(x=torch.rand(3, 3)))


@each_transform
def test_other_objects(transform):
    name = type(transform).__name__
    with pytest.raises(TypeError, match=f"'{name}' works on Data, .*got 'dict'"):
        transform({"pos": torch.rand(3, 3)})


@pytest.mark.parametrize(
    ("transform", "function", "kwargs"),
    [
        (TreeKNNGraph, knn_graph, {"k": 0}),
        (TreeKNNGraph, knn_graph, {"k": 2.0}),
        (TreeKNNGraph, knn_graph, {"k": 1, "flow": "up"}),
        (TreeRadiusGraph, radius_graph, {"r": -1.0}),
        (TreeRadiusGraph, radius_graph, {"r": "1"}),
        (TreeRadiusGraph, radius_graph, {"r": 1.0, "max_num_neighbors": 0}),
        (TreeRadiusGraph, radius_graph, {"r": 1.0, "flow": "up"}),
    ],
)
def test_bad_arguments_are_refused_at_construction(transform, function, kwargs):
    with pytest.raises((TypeError, ValueError)) as expected:
        function(torch.rand(5, 3), **kwargs)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        transform(**kwargs)
