"""The host never waits: a step of a rollout reads no value from the device."""

import copy

import pytest
import torch
from devices import without_values
from torch_geometric.data import Batch, Data
from torch_geometric.testing import onlyCUDA

from torch_geometric_erwin import CapturedStep, pad_batch
from torch_geometric_erwin.nn import Erwin, Rollout

SIZES = [20, 0, 30, 1]
both = pytest.mark.parametrize("moving", [False, True], ids=["fixed", "moving"])
DEPTHS = {"enc_depths": [2, 1], "dec_depths": 1}


def make(moving, layout="balanced", **kwargs):
    torch.manual_seed(0)
    # From the second step on, positions have a gradient, which this backend supports.
    options = {"layout": layout, "backend": "reference", "mp_steps": 0, **kwargs}
    inner = Erwin(2 * 3, [8, 8], 3, ball_sizes=8, **DEPTHS, **options)
    return Rollout(inner, history=2, moving=moving, noise=0.1)


def batch_for(model):
    """A batch with its tree and a boundary, as from a data loader."""
    transform = model.model.tree_transform()
    clouds = [
        transform(
            Data(
                pos=torch.rand(n, 3),
                states=torch.rand(n, model.window + 2, 3),
                boundary_mask=torch.arange(n) % 4 == 0,
            )
        )
        for n in SIZES
    ]
    return Batch.from_data_list(clouds)


@pytest.mark.parametrize(
    "moving, layout",
    [(False, "balanced"), (True, "balanced"), (True, "perfect")],
)
@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_rollout_reads_nothing(device, moving, layout):
    model = make(moving, layout).eval()
    data = batch_for(model)
    model.set_statistics(data)
    with without_values(device) as move:
        model, data = move(model), move(data)
        assert model.rollout(data, 1).shape == (sum(SIZES), 1, 3)
        boundary = data.states[:, :2]
        assert model.rollout(data, 2, boundary).shape == (sum(SIZES), 2, 3)


@both
def test_training_step_reads_nothing(moving):
    model = make(moving)
    data = batch_for(model)
    model.set_statistics(data)
    with without_values("meta") as move:
        model, data = move(model), move(data)
        model.loss(data).backward()
    assert all(p.grad is not None for p in model.parameters())


@both
def test_a_step_over_padded_batches_can_be_captured(moving):
    """On the CPU nothing is recorded, but batches are copied in the same way."""
    model = make(moving).eval()  # without noise, to compare
    other = copy.deepcopy(model)
    losses = []

    def step(batch):
        model.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        return loss

    captured = CapturedStep(step)
    for seed in range(3):
        torch.manual_seed(seed)
        batch = pad_batch(batch_for(model), num_nodes=60, num_graphs=6)
        losses.append(captured(batch))
        assert torch.equal(losses[-1], other.loss(batch).detach())
    assert len(set(map(float, losses))) == 3


@onlyCUDA
@both
@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_a_gpu(training, moving):
    model = make(moving).train(training).cuda()
    data = batch_for(model).cuda()
    for step in range(3):  # the first one allocates memory and initialises libraries
        torch.cuda.set_sync_debug_mode("error" if step > 0 else "default")
        try:
            model.loss(data).backward()
            with torch.no_grad():
                model.rollout(data, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@onlyCUDA
@both
def test_a_gpu_computes_what_the_host_does(moving):
    model = make(moving).eval()
    data = batch_for(model)
    with torch.no_grad():
        expected = model.rollout(data, 3), model.loss(data)
        model, data = model.cuda(), data.cuda()
        for a, b in zip((model.rollout(data, 3), model.loss(data)), expected):
            assert (a.cpu() - b).norm() <= 1e-4 * b.norm()


@onlyCUDA
@both
def test_a_recorded_step_has_new_noise_in_every_replay(moving):
    model = make(moving).cuda()
    batch = pad_batch(batch_for(model), num_nodes=60, num_graphs=6).cuda()

    def step(batch):
        loss = model.loss(batch)
        loss.backward()
        return loss

    captured = CapturedStep(step)
    losses = [float(captured(batch)) for _ in range(8)]
    assert len(set(losses)) == 8
    with torch.no_grad():
        expected = torch.stack([model.loss(batch) for _ in range(64)])
    assert abs(sum(losses[4:]) / 4 - expected.mean()) < 4 * expected.std()
