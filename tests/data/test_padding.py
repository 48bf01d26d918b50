import copy

import pytest
import torch
from clouds import cloud, ragged, randomised
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import (
    CapturedStep,
    Tree,
    masked_mean,
    pad_batch,
    to_original,
)
from torch_geometric_erwin.data.storage import stored_tree
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import BallTree

TRANSFORM = BallTree(ball_sizes=[4, 4], strides=[2])


def batch_of(sizes):
    """Clouds with an attribute of every kind."""
    clouds = []
    for i, data in enumerate(ragged(sizes).to_data_list()):
        n, e = data.num_nodes, data.num_edges
        data.y = torch.arange(n) + 10.0 * i
        data.edge_attr = torch.ones(e, 2)
        data.energy = torch.tensor([float(i)])
        data.label = f"cloud {i}"
        clouds.append(TRANSFORM(data))
    return Batch.from_data_list(clouds)


def test_every_kind_of_attribute():
    batch = batch_of([5, 0, 3])
    out = pad_batch(batch, num_nodes=12, num_graphs=5, num_edges=30)
    assert out.num_graphs == 5
    assert out.num_nodes == 12
    assert out.ptr.tolist() == [0, 5, 5, 8, 12, 12]
    assert out.batch.tolist() == [0] * 5 + [2] * 3 + [3] * 4
    assert out.node_mask.tolist() == [True] * 8 + [False] * 4
    assert out.graph_mask.tolist() == [True] * 3 + [False] * 2
    for name, size in {
        "x": 12,
        "pos": 12,
        "y": 12,
        "edge_attr": 30,
        "energy": 5,
    }.items():
        value, before = out[name], batch[name]
        assert value.dtype == before.dtype
        assert value.shape == (size, *before.shape[1:])
        assert torch.equal(value[: len(before)], before)
        assert not value[len(before) :].any()
    assert torch.equal(out.edge_index[:, :24], batch.edge_index)
    # Added edges lie between added nodes, and are spread over them.
    assert out.edge_index[:, 24:].tolist() == [[8, 9, 10, 11, 8, 9]] * 2
    assert out.label == batch.label


def test_batch_is_left_alone():
    batch = batch_of([5, 3])
    before = copy.deepcopy(batch)
    pad_batch(batch, 12, 5, 30)
    assert batch.keys() == before.keys()
    assert torch.equal(batch.perm, before.perm)
    assert batch.num_graphs == 2
    assert len(batch.to_data_list()) == 2


def test_sizes_depend_on_the_arguments_alone():
    shapes = [
        {
            name: value.shape if isinstance(value, torch.Tensor) else type(value)
            for name, value in pad_batch(batch_of(sizes), 40, 6, 200).stores[0].items()
        }
        for sizes in ([5, 3], [39], [1, 1, 2, 1, 0], [7, 0, 19, 4], [0])
    ]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("sizes", [[5, 0, 3], [1], [12], [0]])
def test_tree_fits(sizes):
    out = pad_batch(batch_of(sizes), 13, 4, 40)
    tree = Tree.from_data(out, TRANSFORM.config)
    tree.validate(13, TRANSFORM.config, out.ptr)
    assert torch.equal(tree.node_ptr, out.ptr)
    assert torch.equal(tree.real, out.graph_mask)
    rows, balls = TRANSFORM.config.padded_sizes(13, 4)
    assert [tree.num_rows(l) for l in range(2)] == rows
    assert [len(lengths) for lengths in tree.ball_len] == balls


def test_a_cloud_of_its_own():
    data = TRANSFORM(cloud(5))
    out = pad_batch(data, 8, 2, 20)
    assert out.ptr.tolist() == [0, 5, 8]


def test_attributes_of_sizes_that_agree():
    # There are as many nodes as edges as clouds. Only the way in which clouds divide
    # them tells which attributes belong to what.
    clouds = []
    for i, (n, e) in enumerate([(2, 0), (0, 1), (1, 2)]):
        clouds.append(
            TRANSFORM(
                Data(
                    pos=torch.rand(n, 3),
                    edge_index=torch.zeros(2, e, dtype=torch.long),
                    weight=torch.ones(e),
                    mass=torch.ones(n),
                    energy=torch.ones(1),
                )
            )
        )
        assert i < 3
    out = pad_batch(Batch.from_data_list(clouds), 7, 6, 5)
    assert (len(out.mass), len(out.energy), len(out.weight)) == (7, 6, 5)


def test_names_with_index_name_added_nodes():
    clouds = [
        TRANSFORM(Data(pos=torch.rand(n, 3), parent_index=torch.arange(n)))
        for n in (3, 2)
    ]
    out = pad_batch(Batch.from_data_list(clouds), 8, 3)
    assert out.parent_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_in_a_loader():
    clouds = [TRANSFORM(cloud(n, seed=n)) for n in (3, 9, 1, 5, 7)]
    loader = DataLoader(clouds, batch_size=2)
    collate = loader.collate_fn
    loader.collate_fn = lambda items: pad_batch(collate(items), 16, 3, 60)
    assert {tuple(batch.ptr.shape) for batch in loader} == {(4,)}
    assert sum(int(batch.node_mask.sum()) for batch in loader) == 25


def test_padded_batch_cannot_be_separated():
    with pytest.raises(RuntimeError, match="Cannot reconstruct"):
        pad_batch(batch_of([5]), 8, 2, 20).to_data_list()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((7, 4, 30), r"'num_nodes' must be at least 8 for a batch with 8 \(got 7\)"),
        ((12, 2, 30), r"'num_graphs' must be at least 3 for a batch with 2 \(got 2\)"),
        ((12, 4, 23), r"'num_edges' must be at least 24 for a batch with 24"),
        ((12, 4), "'num_edges' is missing, the batch has edges"),
        ((8, 4, 30), "'num_nodes' must be above 8: added edges need an added node"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        pad_batch(batch_of([5, 3]), *arguments)


def test_bad_data():
    with pytest.raises(TypeError, match="takes Data and batches of Data"):
        pad_batch(HeteroData(), 8, 2)
    with pytest.raises(ValueError, match="the batch has no tree; apply"):
        pad_batch(ragged([5]), 8, 2, 20)
    batch = batch_of([5, 3])
    with pytest.raises(ValueError, match="padded already"):
        pad_batch(pad_batch(batch, 12, 4, 30), 20, 6, 40)
    batch.box = torch.ones(7)
    with pytest.raises(ValueError, match=r"'box' of shape \[7\] has an entry for neit"):
        pad_batch(batch, 12, 4, 30)
    perfect = BallTree(4, [2], layout="perfect")(ragged([5]))
    with pytest.raises(ValueError, match="padding needs layout='balanced'"):
        pad_batch(perfect, 12, 4, 30)


def test_an_index_of_an_added_cloud_needs_an_added_node():
    clouds = [Data(pos=torch.rand(n, 3), root_index=torch.tensor([0])) for n in (5, 3)]
    batch = TRANSFORM(Batch.from_data_list(clouds))
    out = pad_batch(batch, 9, 4)
    assert out.root_index.tolist() == [0, 5, 8, 8]
    with pytest.raises(ValueError, match=r"'num_nodes' must be above 8: 'root_index'"):
        pad_batch(batch, 8, 4)
    del batch.root_index
    assert pad_batch(batch, 8, 4).ptr.tolist() == [0, 5, 8, 8, 8]


def test_masked_mean_equals_indexing():
    generator = torch.Generator().manual_seed(0)
    for shape in [(6,), (6, 3), (6, 2, 2)]:
        value = torch.randn(*shape, generator=generator, dtype=torch.float64)
        mask = torch.tensor([True, False, True, True, False, False])
        value[~mask] = torch.nan
        torch.testing.assert_close(masked_mean(value, mask), value[mask].mean())
        assert masked_mean(value, mask & False) == 0


PREFIXES = {
    "none": [""],
    "one": ["fine_"],
    "two": ["fine_", "coarse_"],
    "one of two": ["", "coarse_"],
}


def models_for(prefixes):
    """A model per tree; the first one has features of edges."""
    options = {"enc_depths": 1, "dec_depths": 1, "dim": 3}
    fine = Erwin(2, [8, 8], 3, ball_sizes=4, edge_dim=2, mp_steps=1, **options)
    coarse = Erwin(2, [8, 8], 3, ball_sizes=8, mp_steps=0, **options)
    return [randomised(model) for model in (fine, coarse)][: len(prefixes)]


def clouds_with_trees(models, prefixes, reorder):
    transforms = [
        model.tree_transform(prefix=prefix, reorder=reorder and i == 0)
        for i, (model, prefix) in enumerate(zip(models, prefixes, strict=True))
    ]
    clouds = []
    for i, n in enumerate((9, 1, 20)):
        data = cloud(n, seed=i)
        data.edge_attr = torch.rand(data.num_edges, 2, dtype=torch.float64)
        data.number = torch.arange(n)
        data.length = torch.tensor([1.0 + i])
        for transform in transforms:
            data = transform(data)
        clouds.append(data)
    return clouds


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("prefixes", PREFIXES.values(), ids=[*PREFIXES])
def test_every_tree_of_a_batch(prefixes, reorder):
    """From the transform to the model, and back into the order before."""
    models = models_for(prefixes)
    clouds = clouds_with_trees(models, prefixes, reorder)
    loader = DataLoader(clouds, batch_size=3)
    batch = next(iter(loader))
    collate = loader.collate_fn
    loader.collate_fn = lambda items: pad_batch(collate(items), 40, 5, 150)
    padded = next(iter(loader))
    for model, prefix in zip(models, prefixes, strict=True):
        tree = Tree.from_data(padded, prefix=prefix)
        assert tree.config == model.tree_config
        assert torch.equal(tree.real, padded.graph_mask)
        tree.validate(40, tree.config, padded.ptr)
        expected = model(batch)
        out = model(padded)
        torch.testing.assert_close(out[padded.node_mask], expected, rtol=0, atol=1e-12)
        if reorder:
            back = to_original(out, padded)
            assert torch.equal(back[30:], out[30:])
            torch.testing.assert_close(
                back[:30], to_original(expected, batch), rtol=0, atol=1e-12
            )
    with pytest.raises(ValueError, match="padded already"):
        pad_batch(padded, 60, 9, 200)
    if reorder:
        numbers = to_original(padded.number, padded)
        assert numbers[:30].tolist() == [*range(9), 0, *range(20)]
    else:
        with pytest.raises(ValueError, match="its nodes were not sorted"):
            to_original(padded.number, padded)


def test_a_tree_with_a_prefix_beside_attributes_of_its_names():
    """Such as a permeability `perm`, and the refinement `level` of a mesh."""
    data = cloud(5)
    data.perm, data.level = torch.rand(5), torch.arange(5)
    out = pad_batch(BallTree(4, [2], prefix="ball_")(data), 8, 3, 20)
    assert out.perm.tolist() == [*data.perm.tolist(), 0, 0, 0]
    assert out.level.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    assert Tree.from_data(out, prefix="ball_").num_rows(0) == 8


@pytest.mark.parametrize("prefix", ["", "ball_"])
def test_a_tree_with_edges(prefix):
    batch = BallTree(4, [2], prefix=prefix, edges=True)(ragged([5, 3]))
    batch = BallTree(4, prefix="other_")(batch)
    with pytest.raises(ValueError, match="a tree with edges cannot be padded"):
        pad_batch(batch, 12, 4, 30)


@pytest.mark.parametrize("name", ["node_mask", "graph_mask"])
def test_masks_of_the_users_are_not_overwritten(name):
    batch = batch_of([5, 3])
    batch[name] = torch.ones(8, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"'{name}' of the batch would be overwrit"):
        pad_batch(batch, 12, 4, 30)


def test_a_recorded_step_finds_a_tree_by_its_prefix():
    (model,) = models_for(["fine_"])
    step = CapturedStep(lambda batch: masked_mean(model(batch), batch.node_mask))
    for data in clouds_with_trees([model], ["fine_"], reorder=True):
        del data.length  # of the cloud that has one node, it might be the node's
        loss = step(pad_batch(data, 25, 2, 80))
        torch.testing.assert_close(loss, model(data).mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", ["", "fine_"])
def test_compiled_code_finds_the_tree(prefix):
    torch.compiler.reset()
    transform = BallTree(4, [2], prefix=prefix)

    def rows(data):
        tree = stored_tree(data, transform.config)
        return tree.to_rows(data.x), tree.real_rows(1)

    compiled = torch.compile(rows, fullgraph=True, dynamic=True, backend="eager")
    batch = pad_batch(transform(ragged([9, 0, 20])), 40, 5, 150)
    both = pad_batch(BallTree(8, prefix="other_")(transform(ragged([9]))), 40, 5, 150)
    for data in (batch, both):
        if data is both and prefix:  # which one, a text of the data tells
            with pytest.raises(Exception, match="compiled code cannot choose"):
                compiled(data)
            continue
        for a, b in zip(compiled(data), rows(data), strict=True):
            assert torch.equal(a, b)
    torch.compiler.reset()
