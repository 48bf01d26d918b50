"""Erwin with message passing beside its mixers, on every level."""

import copy
from dataclasses import replace

import pytest
import torch
from clouds import cloud, ragged, randomised
from compiled import no_recompilation
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    GINEConv,
    PointNetConv,
    SAGEConv,
    TransformerConv,
)
from torch_geometric.transforms import FaceToEdge, ToUndirected

from torch_geometric_erwin import Tree, ball_tree, to_original
from torch_geometric_erwin.nn import Erwin, MPNNConv

SIZES = [13, 0, 1, 30, 2]


def gcn(channels):
    return GCNConv(channels, channels)


def gine(channels):
    return GINEConv(torch.nn.Linear(channels, channels), edge_dim=3)


CONVS = {
    "features": gcn,
    "positions": lambda c: PointNetConv(torch.nn.Linear(c + 3, c)),
    "ours": MPNNConv,
    "edge features": gine,
    "per level": [MPNNConv, None, gine],
    "coarse": [None, gcn, gcn],
}


def make(conv, edge_dim=0, **kwargs):
    torch.manual_seed(0)
    depths = {"enc_depths": 1, "dec_depths": 1, "mp_steps": 0}
    sizes = {"ball_sizes": 4, "strides": 2, "edge_dim": edge_dim}
    kwargs = {**sizes, **depths, **kwargs}
    return randomised(Erwin(2, [8, 12, 8], 3, conv=conv, **kwargs)).eval()


def data_of(sizes=SIZES, edge_dim=3, dtype=torch.float64):
    clouds = ragged(sizes, dtype=dtype).to_data_list()
    for seed, data in enumerate(clouds):
        generator = torch.Generator().manual_seed(seed)
        shape = (data.num_edges, edge_dim)
        data.edge_attr = torch.randn(shape, generator=generator, dtype=dtype)
    return Batch.from_data_list(clouds)


def by_hand(model, data):
    """The U-Net on levels whose edges were collected in a dictionary."""
    tree = Tree.from_data(model.tree_transform()(data), model.tree_config)
    levels = []
    for l, level in enumerate(replace(tree, edges=(), edge_means=()).levels(data.pos)):
        row, groups = tree.row_of_node(l).tolist(), {}
        pairs = data.edge_index.T.tolist()
        for e, (i, j) in enumerate(pairs):
            key = (row[i], row[j]) if l else (row[i], row[j], e)
            if l == 0 or key[0] != key[1]:
                groups.setdefault(key, []).append(e)
        keys = [*groups] if l == 0 else sorted(groups)
        edges = torch.tensor([key[:2] for key in keys]).view(-1, 2).T
        means = [data.edge_attr[groups[key]].mean(0) for key in keys]
        means = torch.stack(means) if means else data.edge_attr[:0]
        attr = means if model.edge_dim else None
        levels.append(replace(level, edge_index=edges, edge_attr=attr))
    x = model.embed(data.x, data.pos, data.edge_index)
    return model.head(tree.to_nodes(model._unet(tree.to_rows(x), levels)))


@pytest.mark.parametrize("name", CONVS)
def test_equals_definition(name):
    conv = CONVS[name]
    model = make(conv, edge_dim=3 if "edge features" in name or "per" in name else 0)
    if name == "per level":  # the layer that takes edge features gets them
        model = make([lambda c: MPNNConv(c, 3, 3), None, gine], edge_dim=3)
    data = data_of()
    expected = by_hand(model, data)
    torch.testing.assert_close(model(data), expected, rtol=1e-10, atol=1e-10)
    whole = model.tree_transform()(data)
    assert torch.equal(model(whole), model(data))
    clouds = [model.tree_transform()(d) for d in data.to_data_list()]
    assert torch.equal(model(Batch.from_data_list(clouds)), model(data))
    tree = Tree.from_data(whole, model.tree_config)
    features = {"edge_attr": data.edge_attr} if model.edge_dim else {}
    args = (data.x, data.pos, data.edge_index)
    assert torch.equal(model(*args, tree=tree, **features), model(data))
    bare = replace(tree, edges=(), edge_means=())
    assert torch.equal(model(*args, tree=bare, **features), model(data))


def test_every_parameter_gets_a_gradient_and_edges_matter():
    model, data = make(gine, edge_dim=3), data_of([30, 41])
    out = model(data)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    other = data.clone()
    other.edge_attr = other.edge_attr + 1
    assert not torch.allclose(model(other), out)
    other.edge_attr = data.edge_attr.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(other).square().sum(), other.edge_attr)
    assert (grad != 0).any(1).all()


def test_a_cloud_does_not_depend_on_others():
    model, data = make(gine, edge_dim=3), data_of()
    alone = torch.cat([model(d) for d in data.to_data_list()])
    torch.testing.assert_close(model(data), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("sizes", [[0], [1], [5, 0, 1]], ids=str)
def test_no_edges_with_features(sizes, attached):
    conv = [lambda c: MPNNConv(c, 3, 3), gine, lambda c: GATv2Conv(c, c, edge_dim=3)]
    model = make(conv, edge_dim=3, mp_steps=1)
    clouds = ragged(sizes).to_data_list()
    for data in clouds:
        data.edge_index = data.edge_index[:, :0]
        data.edge_attr = torch.empty(0, 3, dtype=torch.float64)
    batch = Batch.from_data_list(clouds)
    out = model(model.tree_transform()(batch) if attached else batch)
    assert out.shape == (sum(sizes), 3)
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_checkpoints_change_nothing():
    data = data_of([30])
    model = make([MPNNConv, gcn, None], checkpoint=True).train()
    other = make([MPNNConv, gcn, None]).train()
    for one in (model, other):
        one(data).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None, name
        else:
            torch.testing.assert_close(p.grad, q.grad)


def test_coarse_edges_are_enough_for_coarse_layers():
    model = make([None, gcn, gcn])
    data = data_of()
    tree = Tree.from_data(model.tree_transform()(data), model.tree_config)
    assert torch.equal(model(data.x, data.pos, tree=tree), model(data))
    with pytest.raises(ValueError, match=r"'edge_index' is missing, .* coarse levels"):
        model(data.x, data.pos, ptr=data.ptr)
    del data.edge_index
    with pytest.raises(ValueError, match=r"'data\.edge_index' is missing"):
        model.tree_transform()(data)


def test_message_passing_on_level_0_needs_edges():
    data = data_of()
    with pytest.raises(ValueError, match="'edge_index' is missing") as caught:
        make([gcn, None, None])(data.x, data.pos)
    assert "mp_steps" not in str(caught.value)


def test_a_mesh_without_edges_is_sent_to_its_faces():
    mesh = Data(x=torch.rand(4, 2), pos=torch.rand(4, 3))
    mesh.face = torch.tensor([[0, 1], [1, 2], [2, 3]])
    message = "'edge_index' is missing.* the transform 'FaceToEdge'"
    fine, coarse = make([gcn, None, None]).float(), make([None, gcn, gcn]).float()
    for call in (fine, coarse):
        with pytest.raises(ValueError, match=message):
            call(mesh)
    with pytest.raises(ValueError, match=r"'data\.edge_index' is .* 'FaceToEdge'"):
        coarse.tree_transform()(mesh)
    edges = FaceToEdge(remove_faces=False)
    assert fine(fine.tree_transform()(edges(mesh))).shape == (4, 3)


def test_mixers_see_the_edges():
    seen = []

    class Mixer(torch.nn.Module):
        def __init__(self, channels, heads, ball_size, dim):
            super().__init__()

        def forward(self, x, level):
            seen.append((level.edge_index, level.edge_attr))
            return x

    data = data_of()
    model = make(None, attention=Mixer, edge_dim=3)
    plain = ball_tree(data.pos, ptr=data.ptr, ball_sizes=[4] * 3, strides=2)
    tree = plain.with_edges(data.edge_index, data.edge_attr)
    levels = tree.levels(data.pos, data.edge_index, data.edge_attr)
    model(data.x, data.pos, data.edge_index, tree=tree, edge_attr=data.edge_attr)
    for (edges, means), level in zip(seen, levels, strict=False):
        assert torch.equal(edges, level.edge_index)
        assert torch.equal(means, level.edge_attr)
    seen.clear()
    model(data.x, data.pos, data.edge_index, tree=plain, edge_attr=data.edge_attr)
    assert torch.equal(seen[0][0], levels[0].edge_index)
    assert seen[1][0] is None


def test_layers_that_take_no_edge_features_do_not_get_them():
    data = data_of()
    model = make(lambda c: GATv2Conv(c, c))  # takes 'edge_attr', but has no weights
    whole = model.tree_transform()(data)
    assert torch.equal(model(whole), model(data))
    with_features = make(lambda c: SAGEConv(c, c), edge_dim=3)
    assert torch.equal(with_features(data), make(lambda c: SAGEConv(c, c))(data))


BAD = {
    "a module": ({"conv": GCNConv(8, 8)}, TypeError, "'conv' must be a callable"),
    "a name": ({"conv": "gcn"}, TypeError, "'conv' must be a callable"),
    "two for three": ({"conv": [gcn, gcn]}, ValueError, "one layer or 3 (got 2)"),
    "no module": ({"conv": lambda c: c}, TypeError, "'conv' must make a module"),
    "no arguments": ({"conv": lambda: None}, TypeError, "'conv' must take a number of"),
    "edge_dim": ({"edge_dim": -1}, ValueError, "'edge_dim' must be at least 0"),
}


@pytest.mark.parametrize(("kwargs", "kind", "message"), BAD.values(), ids=[*BAD])
def test_bad_arguments(kwargs, kind, message):
    with pytest.raises(kind) as caught:
        make(**{"conv": None, **kwargs})
    assert message in str(caught.value)


@pytest.mark.parametrize("layer", [GATv2Conv, TransformerConv])
def test_layers_without_edge_dim_do_not_get_features_of_edges(layer):
    model = make(lambda c: layer(c, c), edge_dim=3)
    data = data_of()
    out = model(data)
    torch.testing.assert_close(model(data, edge_attr=10 * data.edge_attr), out)
    torch.testing.assert_close(model(model.tree_transform()(data)), out)


def test_bad_edge_features():
    model, data = make(gine, edge_dim=3), data_of()
    args = (data.x, data.pos, data.edge_index)
    for attr, kind, message in (
        (None, ValueError, "'edge_attr' is missing, the model takes 3 edge features"),
        (data.edge_attr[1:], ValueError, r"'edge_attr' must have shape \[138, 3\]"),
        (data.edge_attr[:, 1:], ValueError, r"'edge_attr' must have shape \[138, 3\]"),
        (data.edge_attr.int(), TypeError, "'edge_attr' must be floating-point"),
        (data.edge_attr.float(), TypeError, r"'edge_attr' is torch\.float32, the mod"),
    ):
        with pytest.raises(kind, match=message):
            model(*args, ptr=data.ptr, edge_attr=attr)
    tree = ball_tree(data.pos, ptr=data.ptr, ball_sizes=[4] * 3, strides=2)
    tree = tree.with_edges(data.edge_index, data.edge_attr[:, 1:])
    with pytest.raises(ValueError, match="the edges of the tree have 2 features"):
        model(*args, tree=tree, edge_attr=data.edge_attr)
    with pytest.raises(ValueError, match="'edge_index' is missing beside 'edge_attr'"):
        make([None, gcn, gcn], edge_dim=3)(
            data.x, data.pos, tree=tree, edge_attr=data.edge_attr
        )
    with pytest.raises(ValueError, match=r"conv.* must have shape"):
        make(lambda c: GCNConv(c, c + 1))(data)


def test_compiled_model_reads_the_edges_of_the_data():
    torch.manual_seed(0)  # two levels of one block: compiling more takes long
    sizes = {"ball_sizes": 4, "enc_depths": 1, "mp_steps": 0, "rotate": 0.0}
    model = Erwin(2, [8, 8], 3, conv=gine, edge_dim=3, decode=False, **sizes).eval()
    transform = model.tree_transform()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    torch.compiler.reset()
    for step, sizes in enumerate([[40, 27, 0, 5], [21, 13, 50], [9, 30]]):
        clouds = data_of(sizes, dtype=torch.float32).to_data_list()
        batch = Batch.from_data_list([transform(data) for data in clouds])
        with no_recompilation(step):
            torch.testing.assert_close(compiled(batch)[0], model(batch)[0])
    bare = Batch.from_data_list(clouds)
    tree = Tree.from_data(batch, model.tree_config)
    bare = (bare.x, bare.pos, bare.edge_index)
    tree = replace(tree, edges=(), edge_means=())
    attr = batch.edge_attr
    torch.compiler.reset()
    with pytest.raises(Exception, match="reason: a compiled model that passes messag"):
        compiled(*bare, tree=tree, edge_attr=attr)


def test_edge_features_in_the_embedding_come_from_data_and_by_name():
    torch.manual_seed(0)
    model = Erwin(2, [8, 8], 3, ball_sizes=4, mp_steps=2, edge_dim=3)
    model, data = randomised(model).eval(), data_of()
    args = (data.x, data.pos, data.edge_index, data.batch)
    expected = model(*args, edge_attr=data.edge_attr)
    assert torch.equal(model(data), expected)
    assert not torch.allclose(model(*args, edge_attr=data.edge_attr + 1), expected)
    one = Erwin(2, [8, 8], 3, ball_sizes=4, mp_steps=1, edge_dim=1).double()
    attr = data.edge_attr[:, 0]
    assert torch.equal(one(*args, edge_attr=attr), one(*args, edge_attr=attr[:, None]))


def test_weights_without_new_parts_keep_their_names():
    plain = Erwin(2, [8, 8], 3, ball_sizes=4)
    other = Erwin(
        2, [8, 8], 3, ball_sizes=4, conv=gcn, edge_dim=3, pos_encoding="linear"
    )
    added = other.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= other.state_dict().keys()
    parts = (".conv.", ".lin_edge.", ".pos_encoding.")
    assert all(any(part in f".{name}" for part in parts) for name in added)
    fresh = copy.deepcopy(other)
    randomised(other).reset_parameters()
    for name, p in other.named_parameters():
        scale = fresh.get_parameter(name).abs().max()
        assert p.abs().max() <= 2 * scale + 1e-6, name


def test_repr():
    model = Erwin(2, [8, 8], 3, ball_sizes=4, conv=[None, gcn], edge_dim=3)
    assert repr(model).endswith(", conv=[None, gcn], edge_dim=3)")
    assert "edges=True" in repr(model.tree_transform())
    assert "edges" not in repr(Erwin(2, [8, 8], 3, ball_sizes=4).tree_transform())


def test_a_level_without_pooling_keeps_its_rows():
    torch.manual_seed(0)
    model = Erwin(2, [8, 8], 3, ball_sizes=4, strides=1, conv=gcn, mp_steps=0)
    model, data = randomised(model).eval(), cloud(20)
    data.edge_attr = torch.ones(60, 1).double()
    torch.testing.assert_close(model(data), by_hand(model, data))


def test_edges_beside_data_are_those_of_every_level():
    conv = lambda c: GINEConv(torch.nn.Linear(c, c), edge_dim=3)  # noqa: E731
    model = make(conv, edge_dim=3)
    data = model.tree_transform()(data_of())
    edges, attr = data.edge_index[:, ::2], data.edge_attr[::2]
    given = {"ptr": data.ptr, "x": data.x, "pos": data.pos}
    for others in (
        {"edge_index": edges, "edge_attr": attr},
        {"edge_attr": 10 * data.edge_attr},
        {"edge_index": data.edge_index, "edge_attr": data.edge_attr},
    ):
        expected = model(**{"edge_index": data.edge_index, **given, **others})
        torch.testing.assert_close(model(data, **others), expected)
        # In compiled code there is no time for it.
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with pytest.raises(
            Exception, match=r"pass 'tree=tree.with_edges\(edge_index\)"
        ):
            compiled(data, **others)


def test_edges_that_changed_inside_data_are_refused():
    transform = make(gine, edge_dim=3).tree_transform()
    model, data = make(gine, edge_dim=3), transform(data_of())
    undirected = ToUndirected()(data.clone())
    for changed, message in (
        (undirected, r"edges of cloud \d are not"),
        (
            data.clone().update({"edge_attr": 10 * data.edge_attr}),
            "'edge_attr' are not",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(changed)
        assert model(transform(changed)).shape == (data.num_nodes, 3)
    data = data_of()
    late = transform(Data(x=data.x, pos=data.pos, edge_index=data.edge_index))
    late.edge_attr = data.edge_attr
    with pytest.raises(ValueError, match="such as 'Distance', before 'BallTree"):
        model(late)


def test_the_transform_takes_what_is_not_of_the_model():
    model, data = make(gine, edge_dim=3), data_of()
    data.perm = torch.rand(data.num_nodes)  # a permeability
    with pytest.raises(ValueError, match="'perm' of the data is not of a tree"):
        model.tree_transform()(data)
    options = {"ties": "coordinates", "reorder": True, "prefix": "own_"}
    transform = model.tree_transform(**options)
    assert {name: getattr(transform, name) for name in options} == options
    assert transform.config == model.tree_config
    assert transform.edges
    ordered = transform(data)
    out = to_original(model(ordered), ordered)
    del data.perm
    torch.testing.assert_close(out, model(data))


def test_swapped_arguments_and_other_dimensions_are_named():
    model, data = make(gcn), data_of()
    x, pos, edge_index = data.x, data.pos, data.edge_index
    with pytest.raises(TypeError, match=r"arguments are \(x, pos, edge_index, batch"):
        model(x, edge_index, data.batch)
    with pytest.raises(ValueError, match=r"'pos' must have 3 .*'dim=2'"):
        model(x, pos[:, :2], edge_index)


@pytest.mark.parametrize("edge_dim", [0, 2])
def test_a_layer_for_other_edge_features_is_refused(edge_dim):
    """Its features of edges would be left out without a word."""
    for layer in (GATv2Conv, TransformerConv):
        with pytest.raises(ValueError, match=r"edge_dim=3.*must have 'edge_dim=3' too"):
            make(lambda c, kind=layer: kind(c, c, edge_dim=3), edge_dim=edge_dim)
