import copy
import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from clouds import ragged, randomised
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import GCN, GCNConv, Sequential

from torch_geometric_erwin import ball_tree, knn_graph, pad_batch
from torch_geometric_erwin.nn import MPNN, Erwin, HybridConv, Rollout
from torch_geometric_erwin.transforms import BallTree

SIZES = [20, 0, 1, 8, 9, 7]
every_history = pytest.mark.parametrize("history", [1, 2, 3])
both = pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])


class Spy(torch.nn.Module):
    """A linear model of features and positions, which keeps what it was called with."""

    def __init__(self, in_channels, out_channels=3, dim=3):
        super().__init__()
        generator = torch.Generator().manual_seed(in_channels)
        size = (in_channels + dim, out_channels)
        weight = torch.randn(size, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(0.1 * weight)
        self.calls = []

    def forward(self, x, pos, edge_index=None, *, ptr=None, tree=None):
        self.calls.append({"x": x, "pos": pos, "edge_index": edge_index, "tree": tree})
        parts = [pos] if x is None else [x, pos]
        return torch.cat(parts, dim=-1) @ self.weight


def sample(window, n=10, channels=3, **kwargs):
    """A cloud with the states of a window, in float64."""
    generator = torch.Generator().manual_seed(100 * n + window)
    rand = partial(torch.rand, generator=generator, dtype=torch.float64)
    states = rand(n, window, channels).cumsum(1)
    return Data(pos=rand(n, 3), states=states, **kwargs)


def batch_of(sizes, window, **kwargs):
    return Batch.from_data_list([sample(window, n, **kwargs) for n in sizes])


def plain_loop(model, data, steps, *, moving):
    """What Rollout should do, for a model without noise, statistics and boundaries."""
    states = [*data.states[:, : model.window].unbind(1)]
    weight = model.model.weight
    for _ in range(steps):
        if moving:
            speeds = [b - a for a, b in pairwise(states)]
            seen = [*speeds[len(speeds) - model.history :], states[-1]]
            new_speed = speeds[-1] + torch.cat(seen, dim=-1) @ weight
            states.append(states[-1] + new_speed)
        else:
            seen = [*states[len(states) - model.history :], data.pos]
            states.append(states[-1] + torch.cat(seen, dim=-1) @ weight)
    return torch.stack(states[model.window :], 1)


def close(actual, expected, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1, expected.abs().max())


@both
@pytest.mark.parametrize("n", [0, 1, 2, 10])
@pytest.mark.parametrize("history", [0, 1, 2, 3])
def test_rollout_is_the_plain_loop(history, n, moving):
    if history == 0 and not moving:
        return
    model = Rollout(Spy(3 * history), history, moving=moving)
    data = sample(model.window + 2, n)  # what follows the window is not used
    path = model.rollout(data, steps=4)
    assert path.shape == (n, 4, 3)
    if n > 0:
        close(path, plain_loop(model, data, 4, moving=moving))


def test_a_spring_is_integrated_by_semi_implicit_euler():
    class Spring(torch.nn.Module):
        def forward(self, x, pos, edge_index):
            return -0.01 * pos

    data = sample(2)
    position, speed = data.states[:, 1], data.states[:, 1] - data.states[:, 0]
    expected = []
    for _ in range(50):
        speed = speed - 0.01 * position
        position = position + speed
        expected.append(position)
    data.edge_index = torch.zeros(2, 0, dtype=torch.long)
    path = Rollout(Spring(), history=0, moving=True).rollout(data, 50)
    close(path, torch.stack(expected, 1))


@both
@every_history
def test_features_are_states_then_static_then_of_positions(history, moving):
    spy = Spy(3 * history + 2 + 3)
    model = Rollout(spy, history, moving=moving, features=torch.sin)
    data = sample(model.window, x=torch.rand(10, 2, dtype=torch.float64))
    model.rollout(data, steps=1)
    series = data.states.diff(dim=1) if moving else data.states
    pos = data.states[:, -1] if moving else data.pos
    close(spy.calls[0]["pos"], pos)
    close(spy.calls[0]["x"], torch.cat([series.flatten(1), data.x, pos.sin()], -1))


def test_statistics_scale_what_the_model_sees_and_predicts():
    spy = Spy(6)
    model = Rollout(spy, history=2, moving=True, noise=0.5).double()
    data = sample(9)
    assert model.set_statistics(data) is model
    speed = data.states.diff(dim=1).numpy()
    change = np.diff(speed, axis=1)
    mean = speed.mean(axis=(0, 1)), change.mean(axis=(0, 1))
    std = [np.sqrt(s.var(axis=(0, 1)) + 0.25) for s in (speed, change)]
    path = model.rollout(data, steps=1)
    seen = (speed[:, :2] - mean[0]) / std[0]
    close(spy.calls[0]["x"], torch.from_numpy(seen).flatten(1))
    out = torch.cat([spy.calls[0]["x"], data.states[:, 2]], -1) @ spy.weight
    new = speed[:, 1] + out.detach().numpy() * std[1] + mean[1]
    close(path[:, 0].detach(), data.states[:, 2] + torch.from_numpy(new))


@both
def test_statistics_do_not_depend_on_batches_nor_on_nodes_that_do_not_count(moving):
    model = Rollout(torch.nn.Linear(3, 3), moving=moving).double()
    clouds = [sample(6, n) for n in (5, 9, 1)]
    expected = copy.deepcopy(model.set_statistics(clouds).state_dict())
    for source in (Batch.from_data_list(clouds), iter(clouds[::-1])):
        for name, value in model.set_statistics(source).state_dict().items():
            close(value, expected[name])
    for cloud in clouds:  # a wall, whose changes do not count
        n = cloud.num_nodes
        cloud.boundary_mask = torch.arange(n + 2) >= n
        cloud.states = torch.cat([cloud.states, torch.zeros(2, 6, 3)])
    state = model.set_statistics(clouds).state_dict()
    close(state["change_scale.std"], expected["change_scale.std"])
    assert not torch.equal(state["state_scale.std"], expected["state_scale.std"])


@both
@every_history
def test_training_noise_is_undone_by_the_target(history, moving):
    spy = Spy(3 * history)
    model = Rollout(spy, history, moving=moving, noise=0.3).double()
    model.set_statistics(sample(30, 50))
    data = sample(model.window + 1, 2000)
    out, target = model(data, torch.Generator().manual_seed(0))
    seen, pos = spy.calls[0]["x"], spy.calls[0]["pos"]
    series = data.states.diff(dim=1) if moving else data.states
    recent = model.state_scale.inverse(seen.unflatten(1, (history, 3)))
    walk = recent - series[:, :history]
    steps = torch.arange(1, history + 1, dtype=torch.float64)
    covariance = 0.09 / history * torch.minimum(steps[:, None], steps)
    measured = torch.einsum("nic,njc->ij", walk, walk) / (3 * len(walk))
    assert (measured - covariance).abs().max() < 0.05 * 0.09
    if moving:  # positions add up the noise of velocities
        close(pos - data.states[:, model.window - 1], walk.sum(1))
    else:
        assert torch.equal(pos, data.pos)
    change = target[:, 0] * model.change_scale.std + model.change_scale.mean
    close(recent[:, -1] + change, series[:, history])
    close(out[:, 0], torch.cat([seen, pos], -1) @ spy.weight)
    again = model(data, torch.Generator().manual_seed(0))
    assert torch.equal(again[1], target)
    assert not torch.equal(model(data)[1], target)


@both
def test_there_is_no_noise_in_evaluation_and_in_rollouts(moving):
    noisy = Rollout(Spy(3), moving=moving, noise=0.3)
    silent = Rollout(noisy.model, moving=moving)
    data = sample(4)
    assert not torch.equal(noisy.loss(data), silent.loss(data))
    assert torch.equal(noisy.rollout(data, 3), silent.rollout(data, 3))
    assert torch.equal(noisy.eval().loss(data), silent.loss(data))


@both
@every_history
def test_a_perfect_model_has_no_loss(history, moving):
    model = Rollout(Spy(3 * history), history, moving=moving)
    data = sample(model.window)
    path = model.rollout(data, steps=5)
    data.states = torch.cat([data.states, path], dim=1).detach()
    assert model.loss(data) < 1e-24
    data.states[3, -1] += 1  # is seen in the last step of one node
    close(model.loss(data), torch.tensor(1 / (10 * 5), dtype=torch.float64))


@both
@pytest.mark.parametrize("detach_every", [None, 1, 2])
def test_gradients_through_steps_are_those_of_a_loop(detach_every, moving):
    model = Rollout(Spy(6), 2, moving=moving, detach_every=detach_every)
    data = sample(model.window + 3)
    start = data.states[:, : model.window].clone().requires_grad_()
    later = data.states[:, model.window :]
    data.states = torch.cat([start, later], dim=1)
    wanted = [model.model.weight, start]
    loss = model.loss(data)
    actual = torch.autograd.grad(loss, wanted)

    # The loop compares states, or velocities, after every step.
    states, error = [*start.unbind(1)], 0
    truth = [start[:, -1], *later.unbind(1)]
    for step in range(3):
        if moving:
            speeds = [b - a for a, b in pairwise(states)]
            if detach_every and step % detach_every == 0 and step > 0:
                speeds = [speed.detach() for speed in speeds]
            new = speeds[-1] + torch.cat([*speeds, states[-1]], -1) @ model.model.weight
            error = error + (new - (truth[step + 1] - truth[step])).square().mean() / 3
            new = states[-1] + new
        else:
            seen = torch.cat([*states, data.pos], -1)
            new = states[-1] + seen @ model.model.weight
            error = error + (new - truth[step + 1]).square().mean() / 3
        states = [*states[1:], new]
        if detach_every and (step + 1) % detach_every == 0:
            states = [state.detach() for state in states]
    close(loss, error)
    for a, b in zip(actual, torch.autograd.grad(error, wanted)):
        close(a, b, 1e-10)


@both
def test_boundary_nodes_do_not_move(moving):
    model = Rollout(Spy(3), moving=moving, noise=0.3)
    mask = torch.arange(10) % 3 == 0
    data = sample(model.window, boundary_mask=mask)
    path = model.rollout(data, steps=5)
    last = data.states[:, -1:]
    assert torch.equal(path[mask], last[mask].expand(-1, 5, -1))
    free = sample(model.window)
    free.states = data.states
    close(path[~mask], model.rollout(free, steps=5)[~mask])


@both
def test_boundary_nodes_follow_what_is_given(moving):
    spy = Spy(3)
    model = Rollout(spy, moving=moving)
    mask = torch.arange(10) % 3 == 0
    data = sample(model.window, boundary_mask=mask)
    boundary = torch.rand(10, 4, 3, dtype=torch.float64)
    boundary[~mask] = torch.nan
    path = model.rollout(data, 4, boundary)
    assert torch.equal(path[mask], boundary[mask])
    assert path.isfinite().all()
    (grad,) = torch.autograd.grad(path.sum(), spy.weight)
    assert grad.isfinite().all()
    # The model sees the velocities of walls too.
    every = torch.cat([data.states[mask], boundary[mask]], dim=1)
    series = every.diff(dim=1) if moving else every
    for step, call in enumerate(spy.calls):
        close(call["x"][mask], series[:, step])


@both
def test_boundary_nodes_have_no_noise_and_no_loss(moving):
    spy = Spy(3)
    model = Rollout(spy, moving=moving, noise=0.3)
    mask = torch.arange(10) % 3 == 0
    data = sample(model.window + 2, boundary_mask=mask)
    torch.manual_seed(0)
    loss = model.loss(data)
    series = data.states.diff(dim=1) if moving else data.states
    for step, call in enumerate(spy.calls):
        close(call["x"][mask], series[mask, step])
        if moving:
            close(call["pos"][mask], data.states[mask, step + 1])
    torch.manual_seed(0)
    out, target = model(data)
    close(loss, (out - target)[~mask].square().mean())
    data.boundary_mask = torch.ones_like(mask)
    assert model.loss(data) == 0


def recording_erwin(history, dim=3):
    """Erwin in float64, and the trees and edges that it was called with."""
    model = Erwin(3 * history, [8, 8], 3, ball_sizes=4, mp_steps=0, dim=dim)
    model, calls = randomised(model), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    return model, calls


@pytest.mark.parametrize("carried", [True, False], ids=["its tree", "no tree"])
def test_the_tree_of_every_step_is_one_built_anew(carried):
    erwin, calls = recording_erwin(2)
    model = Rollout(erwin, history=2, moving=True).eval()
    data = batch_of(SIZES, model.window)
    if carried:
        data = erwin.tree_transform()(data)
    with torch.no_grad():
        path = model.rollout(data, steps=3)
    places = [data.states[:, -1], *path.unbind(1)]
    for pos, call in zip(places, calls):
        close(call["pos"], pos)
        new = ball_tree(pos, ptr=data.ptr, ball_sizes=[4, 4], strides=[2])
        for a, b in zip(call["tree"].tensors(), new.tensors(), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(calls[0]["tree"].perm, calls[2]["tree"].perm)


def test_the_tree_of_fixed_points_stays():
    erwin, calls = recording_erwin(1)
    model = Rollout(erwin).eval()
    data = erwin.tree_transform()(batch_of(SIZES, 1))
    model.rollout(data, steps=2)
    assert calls[0]["tree"] is calls[1]["tree"]
    assert torch.equal(calls[0]["tree"].perm, data.perm.long())


@both
def test_gradients_go_through_the_positions_of_erwin(moving):
    erwin = randomised(Erwin(3, [8], 3, ball_sizes=4, mp_steps=0))
    model = Rollout(erwin, moving=moving).eval()
    data = batch_of([9, 0, 6], model.window + 3)
    loss = model.loss(data)
    actual = torch.autograd.grad(loss, [*erwin.parameters()])

    def predict(x, pos):
        tree = ball_tree(pos.detach(), ptr=data.ptr, ball_sizes=4)
        return erwin(x, pos, tree=tree)

    error = 0
    if moving:
        pos = data.states[:, 1]
        speed = pos - data.states[:, 0]
    else:
        field = data.states[:, 0]
    series = data.states.diff(dim=1) if moving else data.states
    for true in series[:, 1:].unbind(1):
        if moving:
            speed = speed + predict(speed, pos)
            pos = pos + speed
            error = error + (speed - true).square().mean() / 3
        else:
            field = field + predict(field, data.pos)
            error = error + (field - true).square().mean() / 3
    close(loss, error)
    for a, b in zip(actual, torch.autograd.grad(error, [*erwin.parameters()])):
        close(a, b, 1e-10)


@both
def test_sorted_nodes_have_the_same_path(moving):
    erwin, _ = recording_erwin(1)
    model = Rollout(erwin, moving=moving).eval()
    data = sample(model.window, 20, boundary_mask=torch.arange(20) % 5 == 0)
    config = erwin.tree_config
    rows = BallTree(config.ball_sizes, config.strides, reorder=True)(data)
    assert not torch.equal(rows.states, data.states)
    path = model.rollout(data, 3)
    close(model.rollout(rows, 3), path[rows.original_node], 1e-10)


@both
def test_windows_share_a_tree(moving):
    erwin, calls = recording_erwin(1)
    model = Rollout(erwin, moving=moving).eval()
    windows = model.windows(erwin.tree_transform()(sample(6, 20)))
    batch = Batch.from_data_list(windows[1:])
    path = model.rollout(batch, 1)
    pos = batch.states[:, 1] if moving else batch.pos
    anew = ball_tree(pos, ptr=batch.ptr, ball_sizes=[4, 4], strides=[2])
    assert torch.equal(calls[-1]["tree"].perm, anew.perm)
    alone = [model.rollout(Data(pos=w.pos, states=w.states), 1) for w in windows[1:]]
    close(path, torch.cat(alone), 1e-10)


@both
def test_a_model_gets_any_tree_that_data_carries(moving):
    spy = Spy(3)
    data = BallTree(8)(sample(2))
    Rollout(spy, moving=moving).rollout(data, steps=1)
    pos = data.states[:, 1] if moving else data.pos
    assert torch.equal(spy.calls[0]["tree"].perm, ball_tree(pos, ball_sizes=8).perm)


def test_edges_of_every_step_are_searched_anew():
    spy = Spy(3)
    model = Rollout(spy, moving=True, graph=partial(knn_graph, k=3))
    data = BallTree(8)(batch_of(SIZES, 2))
    path = model.rollout(data, steps=2)
    first, second = (call["edge_index"] for call in spy.calls)
    assert torch.equal(first, knn_graph(data.states[:, -1], 3, ptr=data.ptr))
    assert torch.equal(second, knn_graph(path[:, 0].detach(), 3, ptr=data.ptr))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("tree", [True, False])
def test_a_graph_is_searched_with_any_layout_and_without_a_tree(tree):
    graph = partial(knn_graph, k=3)
    data = batch_of([16, 8], 2)
    if tree:
        data = BallTree(8, layout="perfect")(data)
    model = Rollout(Spy(3), moving=True, graph=graph)
    close(model.rollout(data, 2), Rollout(Spy(3), moving=True).rollout(data, 2))


@both
@pytest.mark.parametrize("name", ["Erwin", "MPNN"])
def test_a_cloud_does_not_depend_on_the_others(name, moving):
    if name == "Erwin":
        inner = Erwin(3 * 2 + 1, [8, 8], 3, ball_sizes=4, mp_steps=1)
    else:
        inner = MPNN(3 * 2 + 1, 8, 3, num_layers=2)
    model = Rollout(randomised(inner), history=2, moving=moving).eval()
    clouds = []
    for cloud in ragged(SIZES, channels=1).to_data_list():
        states = sample(model.window, cloud.num_nodes).states
        clouds.append(cloud.update({"states": states}))
    with torch.no_grad():
        path = model.rollout(Batch.from_data_list(clouds), steps=3)
        alone = torch.cat([model.rollout(cloud, steps=3) for cloud in clouds])
    assert not torch.allclose(path[:, -1], path[:, 0])
    close(path, alone, 1e-10)


@both
def test_padding_changes_nothing(moving):
    erwin, _ = recording_erwin(1)
    model = Rollout(erwin, moving=moving).eval()
    data = erwin.tree_transform()(batch_of([9, 4], model.window + 2))
    data.boundary_mask = torch.arange(13) % 4 == 0
    padded = pad_batch(data, num_nodes=20, num_graphs=4)
    close(model.loss(padded), model.loss(data), 1e-10)
    close(model.rollout(padded, 2)[:13], model.rollout(data, 2), 1e-10)
    other = copy.deepcopy(model).set_statistics(padded).state_dict()
    for name, value in model.set_statistics(data).state_dict().items():
        close(other[name], value)


@both
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("steps", [1, 4])
def test_windows_are_all_parts_of_a_trajectory(steps, stride, moving):
    model = Rollout(torch.nn.Linear(6, 3), history=2, moving=moving)
    data = sample(11, x=torch.rand(10, 2))
    windows = model.windows(data, steps, stride)
    starts = range(0, 11 - model.window - steps + 1, stride)
    assert len(windows) == len(starts)
    for start, window in zip(starts, windows):
        end = start + model.window
        assert torch.equal(window.states, data.states[:, start : end + steps])
        assert torch.equal(window.pos, data.states[:, end - 1] if moving else data.pos)
        assert window.x is data.x
    assert data.states.size(1) == 11
    assert Batch.from_data_list(windows).states.size(0) == 10 * len(windows)


@both
def test_windows_of_several_trajectories_follow_each_other(moving):
    model = Rollout(torch.nn.Linear(3, 3), moving=moving)
    clouds = [sample(5, 9), sample(7, 4)]
    expected = [window for cloud in clouds for window in model.windows(cloud, 2)]
    for source in (clouds, iter(clouds), tuple(clouds)):
        actual = model.windows(source, 2)
        assert len(actual) == len(expected) == 2 * 5 - 2 * (moving + 1)
        for a, b in zip(actual, expected):
            assert torch.equal(a.states, b.states)
            assert torch.equal(a.pos, b.pos)
    assert model.windows([]) == []
    for wrong in (3, None, [clouds]):
        with pytest.raises(TypeError, match="'data' must be"):
            model.windows(wrong)


def test_the_length_scale_of_points_that_move_is_measured_in_windows():
    inner = Erwin(3, [8], 3, ball_sizes=4, mp_steps=0)
    model = Rollout(inner, moving=True)
    trajectory = Data(states=1e3 * sample(5, 40).states)
    windows = model.windows(trajectory)
    frames = [Data(pos=trajectory.states[:, step]) for step in (1, 2, 3)]
    expected = float(inner.set_length_scale(frames).length_scale)
    assert float(inner.set_length_scale(windows).length_scale) == expected > 100
    with pytest.raises(ValueError, match=r"'data.pos' is missing"):
        inner.set_length_scale(trajectory)


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


def test_text():
    model = Rollout(torch.nn.Linear(2, 2), history=2, noise=1e-3)
    assert str(model) == (
        "Rollout(Linear(in_features=2, out_features=2, bias=True), history=2, "
        "moving=False, noise=0.001)"
    )


BAD = {
    "no states": ({"states": None}, "'data.states' is missing"),
    "too few states": ({"states": torch.rand(10, 2, 3)}, "at least 3 states W, 2 that"),
    "two axes": ({"states": torch.rand(10, 3)}, r"shape \[N, W, C\] .*got \[10, 3\]"),
    "other nodes": ({"pos": torch.rand(9, 3)}, r"'states' .* \[9, W, C\].*'pos'"),
    "other dimension": ({"pos": torch.rand(10, 2)}, r"'pos' must have shape \[10, 3, "),
    "features": ({"x": torch.rand(9, 2)}, r"'x' must have shape \[10, 2\]"),
    "a mask": ({"boundary_mask": torch.ones(9, dtype=torch.bool)}, "'boundary_mask'"),
    "flags": ({"boundary_mask": torch.ones(10)}, "'boundary_mask' must be"),
    "a device": ({"x": torch.rand(10, 2, device="meta")}, "'x' is on meta"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named(name):
    changes, message = BAD[name]
    data = sample(3)
    for key, value in changes.items():
        data[key] = value
    with pytest.raises((TypeError, ValueError), match=message):
        Rollout(Spy(3), moving=True)(data)


TELL_NODES = {
    "pos": torch.rand(7, 3),
    "x": torch.rand(7, 2),
    "boundary_mask": torch.ones(7, dtype=torch.bool),
    "node_mask": torch.ones(7, dtype=torch.bool),
    "batch": torch.zeros(7, dtype=torch.long),
    "ptr": torch.tensor([0, 3, 7]),
    "num_nodes": 7,
}


@both
@pytest.mark.parametrize("name", TELL_NODES)
def test_states_with_time_first_are_blamed(name, moving):
    model = Rollout(torch.nn.Linear(3, 3), moving=moving)
    data = Data(states=torch.rand(5, 7, 3))
    data[name] = TELL_NODES[name]
    methods = (model.loss, model.windows, model.set_statistics)
    for method in (*methods, partial(model.rollout, steps=1)):
        with pytest.raises(ValueError, match=rf"'states' .*'{name}' has .*; swap the"):
            method(data)
    data.states = torch.rand(5, 4, 3)  # other nodes, but not swapped
    with pytest.raises(ValueError, match=rf"\[7, W, C\].*'{name}' has .*4, 3\]\)$"):
        model.loss(data)


CHANGES = pytest.mark.parametrize("scale", [1e-4, 1e4])


@both
@CHANGES
def test_forgotten_statistics_are_told_once(scale, moving):
    model = Rollout(torch.nn.Linear(3, 3), moving=moving).double()
    data = sample(5)
    data.states = scale * data.states
    with pytest.warns(UserWarning, match="call 'model.set_statistics") as told:
        model.loss(data)
    assert len(told) == 1
    assert told[0].filename == __file__
    model.loss(data)  # a warning is an error
    model.set_statistics(data)
    model.loss(data)
    copy.deepcopy(model).loss(data)
    fresh = Rollout(torch.nn.Linear(3, 3), moving=moving).double()
    fresh.load_state_dict(model.state_dict())
    fresh.loss(data)


@both
def test_there_is_no_warning_of_ordinary_changes(moving):
    def new(**kwargs):
        return Rollout(torch.nn.Linear(3, 3), moving=moving, **kwargs).double()

    data = sample(5)
    new().loss(data)
    still = sample(5)
    still.states = torch.zeros_like(still.states)
    new().loss(still)  # nothing to predict
    small = sample(5)
    small.states = 1e-4 * small.states
    new().eval().loss(small)  # no training
    new().rollout(small, 1)
    new(noise=0.1).loss(small)  # what is predicted undoes the noise
    wall = data.clone()
    wall.boundary_mask = torch.arange(10) > 7
    wall.states[wall.boundary_mask] *= 1e6  # is not predicted
    new().loss(wall)


def test_what_functions_return_is_checked():
    model = Rollout(Spy(3), features=lambda pos: pos[:9])
    with pytest.raises(
        ValueError, match=r"'features\(pos\)' must have shape \[10, 3\]"
    ):
        model.rollout(sample(1), 1)
    data = sample(1)
    del data.pos
    with pytest.raises(ValueError, match="'pos' is missing"):
        model.rollout(data, 1)


def test_what_the_model_returns_is_checked():
    with pytest.raises(ValueError, match=r"'model\(x\)' must have shape \[10, 3\]"):
        Rollout(Spy(3, out_channels=2)).rollout(sample(1), 1)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="'history' must be at least 1"):
        Rollout(Spy(3), history=0)
    with pytest.raises(ValueError, match="'moving' must be True"):
        Rollout(Spy(3), graph=knn_graph)
    model = Rollout(Spy(3))
    with pytest.raises(ValueError, match=r"'boundary' must have shape \[10, 2, 3"):
        model.rollout(sample(1), 2, torch.rand(10, 3, 3))
    with pytest.raises(ValueError, match="no 'boundary_mask'"):
        model.rollout(sample(1), 2, torch.rand(10, 2, 3))
