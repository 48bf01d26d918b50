"""Models and searches get what they name, and rollouts are modules."""

import copy
import pickle
from functools import partial

import pytest
import torch
from clouds import randomised
from rollouts import SIZES, Spy, batch_of, both, close, sample
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import GCN, GCNConv, Sequential

from torch_geometric_erwin import knn_graph
from torch_geometric_erwin.nn import Erwin, HybridConv, Rollout
from torch_geometric_erwin.transforms import BallTree


def test_models_of_pyg_get_what_they_name():
    torch.manual_seed(0)
    inner = GCN(3, 8, 2, out_channels=3).double()
    model = Rollout(inner)
    data = batch_of([5, 4], 1)
    data.edge_index = torch.tensor([[0, 1, 5, 6], [1, 0, 6, 5]])
    data.edge_attr = torch.rand(4, 2)  # GCN takes none
    path = model.rollout(data, 2)
    one = data.states[:, 0] + inner(data.states[:, 0], data.edge_index)
    close(path, torch.stack([one, one + inner(one, data.edge_index)], 1))

    class Clouds(torch.nn.Module):
        def forward(self, x, batch):
            return x + batch[:, None]

    expected = 2 * data.states[:, 0] + data.batch[:, None]
    close(Rollout(Clouds()).rollout(data, 1)[:, 0], expected)


def test_edge_features_are_passed_on_unless_edges_are_searched():
    class Edges(torch.nn.Module):
        def forward(self, x, edge_index, edge_attr=None):
            self.seen = edge_attr
            return x

    edge_index = torch.zeros(2, 4, dtype=torch.long)
    data = sample(2, edge_index=edge_index, edge_attr=torch.rand(4, 2))
    inner = Edges()
    Rollout(inner, moving=True).rollout(data, 1)
    assert inner.seen is data.edge_attr
    Rollout(inner, moving=True, graph=partial(knn_graph, k=1)).rollout(data, 1)
    assert inner.seen is None
    inner.edge_dim = 0  # as models say that they take none
    Rollout(inner, moving=True).rollout(data, 1)
    assert inner.seen is None


class PassesDistances(torch.nn.Module):
    """Adds up edge features that it needs."""

    edge_dim = 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x, edge_index, edge_attr):
        zero = torch.zeros(len(x), 3, dtype=x.dtype)
        return self.weight * zero.index_add(0, edge_index[1], edge_attr)


def relative(pos, ptr):
    """Edges and what leads from one end to the other."""
    edge_index = knn_graph(pos.detach(), 3, ptr=ptr)
    return edge_index, pos[edge_index[0]] - pos[edge_index[1]]


def test_a_search_may_return_edge_features_too():
    model = Rollout(PassesDistances(), moving=True, graph=relative)
    data = batch_of(SIZES, 5)
    data.edge_attr = "not used"
    path, loss = model.rollout(data, steps=3), model.loss(data)
    states = [*data.states[:, :2].unbind(1)]
    speed, error = states[1] - states[0], 0
    truth = data.states.diff(dim=1)
    for step in range(3):
        edge_index, edge_attr = relative(states[-1], data.ptr)
        pull = torch.zeros_like(speed).index_add(0, edge_index[1], edge_attr)
        speed = speed + model.model.weight * pull
        states.append(states[-1] + speed)
        error = error + (speed - truth[:, step + 1]).square().mean() / 3
    close(path, torch.stack(states[2:], 1))
    grads = [torch.autograd.grad(x, model.model.weight)[0] for x in (loss, error)]
    close(*grads, 1e-10)  # through the features, which depend on positions


def test_erwin_gets_edge_features_of_every_step():
    inner = Erwin(3, [8, 8], 3, ball_sizes=4, mp_steps=1, edge_dim=3)
    model = Rollout(randomised(inner), moving=True, graph=relative).eval()
    data = batch_of(SIZES, 2)
    with torch.no_grad():
        path = model.rollout(data, 2)
        alone = [model.rollout(cloud, 2) for cloud in data.to_data_list()]
    close(path, torch.cat(alone), 1e-10)


GRAPHS = {
    "batch": lambda pos, batch: knn_graph(pos, 3, batch),
    "batch by name": lambda points, *, batch=None: knn_graph(points, 3, batch),
    "ptr": lambda pos, ptr: knn_graph(pos, 3, ptr=ptr),
    "either": lambda pos, batch=None, ptr=None: knn_graph(pos, 3, batch, ptr=ptr),
    "tree": lambda pos, ptr, tree: knn_graph(pos, 3, ptr=ptr, tree=tree),
    "all": lambda pos, **kwargs: knn_graph(pos, 3, **kwargs),
    "all and batch": lambda pos, batch, **kwargs: knn_graph(
        pos, 3, batch, tree=kwargs["tree"]
    ),
    "partial": partial(knn_graph, k=3),
}


class Graph(torch.nn.Module):
    def forward(self, pos, batch):
        return knn_graph(pos, 3, batch)


@pytest.mark.parametrize("clouds", ["batch", "ptr", "one"])
@pytest.mark.parametrize("name", [*GRAPHS, "module"])
def test_a_search_gets_what_it_names(name, clouds):
    spy = Spy(3)
    model = Rollout(spy, moving=True, graph=GRAPHS.get(name) or Graph())
    data = BallTree(8)(sample(2) if clouds == "one" else batch_of(SIZES, 2))
    ptr = None if clouds == "one" else data.ptr
    if clouds == "ptr":
        pos, states = data.pos, data.states
        data = Data(pos=pos, states=states, ptr=ptr)
        if name in ("tree", "all", "all and batch"):
            data = BallTree(8)(data)
    model.rollout(data, steps=1)
    expected = knn_graph(data.states[:, 1], 3, ptr=ptr)
    assert torch.equal(spy.calls[0]["edge_index"], expected)


@pytest.mark.parametrize(
    ("edge_dim", "result", "message"),
    [
        (0, lambda e: (e, e, e), "edge_index or .*got a tuple of 3"),
        (0, lambda e: None, r"'graph\(pos\)' must be .*'NoneType'"),
        (0, lambda e: e + 100, r"'graph\(pos\)'"),
        (0, lambda e: (e, torch.rand(30, 1)), "edge_index alone.*no edge features"),
        (1, lambda e: e, "edge_attr.*takes 1 edge features.*edge_index alone"),
        (1, lambda e: (e, None), "edge_attr.*takes 1 edge features"),
        (1, lambda e: (e, torch.rand(29, 1)), r"'graph\(pos\)\[1\]'.*30.*29"),
        (1, lambda e: (e, [1.0]), r"'graph\(pos\)\[1\]' must be a tensor"),
    ],
)
def test_what_a_search_returns_is_checked(edge_dim, result, message):
    inner = Erwin(3, [8], 3, ball_sizes=4, edge_dim=edge_dim).double()

    def graph(pos):
        return result(knn_graph(pos, 3))

    model = Rollout(inner, moving=True, graph=graph)
    with pytest.raises((TypeError, ValueError), match=message):
        model.rollout(sample(2), steps=1)


def hybrid(channels):
    return HybridConv(channels, GCNConv(channels, channels), ball_size=8, norm=None)


class Hybrids(torch.nn.Module):
    """A network as a user writes it, around layers that share a tree."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([hybrid(3), hybrid(3)])

    def forward(self, x, pos, edge_index, batch=None, tree=None):
        for layer in self.layers:
            x = layer(x, pos, edge_index, batch, tree)
        return x


def hybrid_sequential():
    arguments = "x, pos, edge_index, batch, tree"
    layers = [(hybrid(3), f"{arguments} -> x") for _ in range(2)]
    return Sequential(arguments, [*layers, (torch.nn.Linear(3, 3), "x -> x")])


@both
@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("make", [Hybrids, hybrid_sequential])
def test_networks_of_hybrid_layers(make, tree, moving):
    torch.manual_seed(0)
    inner = randomised(make())
    graph = partial(knn_graph, k=3) if moving else None
    model = Rollout(inner, moving=moving, graph=graph).eval()
    clouds = [sample(model.window, n) for n in (20, 1, 9)]
    for cloud in clouds:
        cloud.edge_index = knn_graph(cloud.pos, 3)
    transform = BallTree(8) if tree else lambda cloud: cloud
    data = Batch.from_data_list([transform(cloud) for cloud in clouds])
    seen = []
    first = inner.layers[0] if isinstance(inner, Hybrids) else inner[0]
    first.register_forward_pre_hook(lambda _, args: seen.append(args))
    path, seen = model.rollout(data, steps=2), [*seen]
    # Each step by hand, with a tree built anew by the layers themselves.
    pos = data.states[:, -1] if moving else data.pos
    last = data.states[:, -1]
    speed = data.states[:, -1] - data.states[:, 0]
    for step in range(2):
        assert (seen[step][4] is not None) == tree
        edge_index = data.edge_index
        if moving:
            edge_index = knn_graph(pos, 3, data.batch)
        out = inner(speed if moving else last, pos, edge_index, data.batch, None)
        speed = speed + out
        last = last + (speed if moving else out)
        pos = last if moving else pos
        close(path[:, step], last, 1e-10)


@both
def test_a_network_of_one_cloud_gets_no_batch(moving):
    inner = randomised(hybrid_sequential())
    graph = partial(knn_graph, k=3) if moving else None
    model = Rollout(inner, moving=moving, graph=graph).eval()
    data = sample(model.window)
    data.edge_index = knn_graph(data.pos, 3)
    path = model.rollout(data, 2)
    close(path, model.rollout(Batch.from_data_list([data]), 2), 1e-10)


def test_clouds_given_by_offsets_alone_reach_models_that_take_batch():
    class Clouds(torch.nn.Module):
        def forward(self, x, batch=None):
            return x + batch[:, None]

    data = batch_of([3, 0, 2], 1)
    expected = Rollout(Clouds()).rollout(data, 1)
    alone = Data(states=data.states, ptr=data.ptr)
    assert torch.equal(Rollout(Clouds()).rollout(alone, 1), expected)


def test_what_a_model_needs_is_named():
    with pytest.raises(ValueError, match="'edge_index' is missing, which 'model' need"):
        Rollout(Hybrids().double()).rollout(sample(1), 1)
    with pytest.raises(ValueError, match="'edge_index' is missing, which 'model' need"):
        Rollout(hybrid_sequential()).rollout(sample(1), 1)


def test_an_argument_that_nobody_gives_is_named():
    class Typed(torch.nn.Module):
        def forward(self, x, pos, particle_type, *, scale=1.0):
            return x

    with pytest.raises(TypeError, match=r"'model' needs 'particle_type', .*'pos', "):
        Rollout(Typed())
    with pytest.raises(TypeError, match=r"'graph' needs 'k', .*\['batch', "):
        Rollout(torch.nn.Linear(2, 2), moving=True, graph=knn_graph)


def test_a_node_store_is_data_too():
    model, data = Rollout(Spy(3), moving=True, noise=0.1), sample(4)
    hetero = HeteroData()
    hetero["atom"].update({"pos": data.pos, "states": data.states})
    assert torch.equal(model.rollout(hetero["atom"], 2), model.rollout(data, 2))
    model.eval()
    assert torch.equal(model.loss(hetero["atom"]), model.loss(data))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
def test_copies_predict_the_same(make):
    def new():
        inner = Erwin(3, [8], 3, ball_sizes=4, mp_steps=1)
        return Rollout(inner, moving=True, graph=partial(knn_graph, k=2)).double()

    model, data = new(), sample(6)
    model.set_statistics(data)
    other = make(model)
    expected = model.rollout(data, 2)
    assert torch.equal(other.rollout(data, 2), expected)
    fresh = new()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.rollout(data, 2), expected)
    fresh.reset_parameters()
    assert not torch.equal(fresh.rollout(data, 2), expected)
    assert torch.equal(fresh.state_scale.mean, model.state_scale.mean)


def test_float32():
    model = Rollout(Erwin(3, [8], 3, ball_sizes=4, mp_steps=0), moving=True)
    data = sample(4)
    data.states = data.states.float()
    model.set_statistics(data)
    assert model.rollout(data, 2).dtype == torch.float32
    model.loss(data).backward()
    with pytest.raises(TypeError, match=r"'x' is torch.float64, the model's weights"):
        model.rollout(sample(4), 2)
