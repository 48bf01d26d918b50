"""The prediction of every step: states, statistics, noise, boundaries."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from rollouts import Spy, both, close, every_history, plain_loop, sample
from torch_geometric.data import Batch

from torch_geometric_erwin.nn import Rollout


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
