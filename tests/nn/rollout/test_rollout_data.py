"""Trees, edges, padding and windows of the data that a rollout reads."""

import copy
from functools import partial

import pytest
import torch
from clouds import ragged, randomised
from rollouts import SIZES, Spy, batch_of, both, close, recording_erwin, sample
from torch_geometric.data import Batch, Data

from torch_geometric_erwin import ball_tree, knn_graph, pad_batch
from torch_geometric_erwin.nn import MPNN, Erwin, Rollout
from torch_geometric_erwin.transforms import BallTree


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
