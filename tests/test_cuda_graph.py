import copy
import threading

import pytest
import torch
from clouds import ragged
from torch_geometric.data import Batch
from torch_geometric.testing import onlyCUDA

from torch_geometric_erwin import masked_mean, pad_batch
from torch_geometric_erwin.cuda_graph import CapturedStep
from torch_geometric_erwin.nn import Erwin

BATCHES = [[40, 27, 0, 5], [21], [80], [1, 1, 2, 1], [0, 9], [30, 30, 30], [2, 60]]


def make(dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    kwargs = {"mp_steps": 1, "norm": "batch", **kwargs}
    return Erwin(2, [8, 16], 3, ball_sizes=8, **kwargs).to(dtype)


def batches(model, dtype=torch.float64, device="cpu"):
    transform = model.tree_transform()
    for sizes in BATCHES:
        clouds = ragged(sizes, dtype=dtype).to_data_list()
        for data in clouds:
            data.y = data.x.sum(1, keepdim=True).expand(-1, 3).sin()
        yield Batch.from_data_list([transform(data) for data in clouds]).to(device)


def training(model, optimizer):
    def step(batch):
        optimizer.zero_grad()
        mask = getattr(batch, "node_mask", None)
        error = (model(batch) - batch.y).square()
        loss = error.mean() if mask is None else masked_mean(error, mask)
        loss.backward()
        optimizer.step()
        return loss

    return step


def train(model, device, captured):
    """The losses of a run; captured batches are padded."""
    lr = torch.tensor(1e-2, device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, capturable=device == "cuda", foreach=False
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    step = training(model, optimizer)
    step = CapturedStep(step, warmup=2) if captured else step
    losses = []
    for batch in batches(model, next(model.parameters()).dtype, device):
        given = pad_batch(batch, 100, 5, 300) if captured else batch
        losses.append(step(given).item())
        schedule.step()
    return losses, step


def assert_same_run(model, device, tolerance):
    twin = copy.deepcopy(model)
    expected, _ = train(model, device, captured=False)
    losses, step = train(twin, device, captured=True)
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    pairs = zip(twin.state_dict().values(), model.state_dict().values(), strict=True)
    for a, b in pairs:
        error = (a.double() - b.double()).norm()
        assert error <= tolerance * (1 + b.double().norm())
    return step


def test_without_a_gpu_steps_are_run():
    step = assert_same_run(make(), "cpu", 1e-8)
    assert repr(step) == "CapturedStep(7 calls, not recorded)"


@onlyCUDA
@pytest.mark.parametrize("kwargs", [{}, {"checkpoint": True}])
def test_replayed_steps_are_those_without_a_graph(kwargs):
    # In float64, because Adam also moves weights with a zero gradient, by rounding
    # errors.
    model = make(backend="sdpa", **kwargs).cuda()
    step = assert_same_run(model, "cuda", 1e-5)
    assert repr(step) == "CapturedStep(7 calls, recorded)"


@onlyCUDA
def test_replayed_prediction():
    model = make(torch.float32).eval().cuda()
    with torch.no_grad():
        step = CapturedStep(model, warmup=1)
        for batch in batches(model, torch.float32, "cuda"):
            other = pad_batch(batch, 100, 5, 300)
            out, expected = step(other)[other.node_mask], model(batch)
            assert (out - expected).norm() <= 1e-5 * expected.norm()


@onlyCUDA
def test_another_thread_pins_memory_during_a_recording():
    def step(batch):
        pinned = []
        thread = threading.Thread(
            target=lambda: pinned.append(torch.empty(2**20).pin_memory())
        )
        thread.start()
        thread.join()
        assert pinned[0].is_pinned()
        return batch.pos.sum()

    model = make(torch.float32)
    first, second, *_ = batches(model, torch.float32, "cuda")
    captured = CapturedStep(step, warmup=1)
    for batch in (first, first, second):
        batch = pad_batch(batch, 100, 5, 300)
        torch.testing.assert_close(captured(batch), batch.pos.sum())


@onlyCUDA
def test_autocast_around_recorded_and_replayed_steps():
    model = make(torch.float32).eval().cuda()
    batch, *_ = batches(model, torch.float32, "cuda")
    batch = pad_batch(batch, 100, 5, 300)
    step = CapturedStep(model, warmup=1)
    with torch.no_grad():
        with torch.autocast("cuda", torch.bfloat16):
            before = [step(batch).clone() for _ in range(2)]
        for p in model.parameters():
            p.mul_(1.5)
        with torch.autocast("cuda", torch.bfloat16):
            expected = model(batch)
            actual = step(batch)
    assert torch.equal(before[0], before[1])
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, before[0])


def test_other_sizes_are_refused():
    model = make().eval()
    step = CapturedStep(model)
    first, second, *_ = batches(model)
    step(pad_batch(first, 100, 5, 300))
    with pytest.raises(ValueError, match=r"must be torch.* of shape .*'pad_batch' ma"):
        step(pad_batch(second, 101, 5, 300))
    batch = pad_batch(second, 100, 5, 300)
    batch.extra = torch.ones(3)
    with pytest.raises(ValueError, match=r"differing: \['extra'\]"):
        step(batch)
    with pytest.raises(ValueError, match="'warmup' must be at least 1"):
        CapturedStep(model, warmup=0)


def test_batches_are_left_alone():
    model = make().eval()
    step = CapturedStep(model)
    first, second = (
        pad_batch(batch, 100, 5, 300) for batch, _ in zip(batches(model), range(2))
    )
    before = first.clone()
    out = step(first).clone()
    assert not torch.equal(step(second), out)
    for name in ("x", "pos", "perm", "node_mask"):
        assert torch.equal(first[name], before[name])
    assert torch.equal(step(first), out)
