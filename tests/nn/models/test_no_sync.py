"""The host never waits: forward and backward passes read no value from the device."""

import copy

import pytest
import torch
from clouds import ragged
from devices import without_values
from torch_geometric.data import Batch, Data
from torch_geometric.testing import onlyCUDA

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import MPNN, Erwin

# Batches in training with gradients of positions: clouds depend on each other, as told.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in training, a norm over the batch:UserWarning"
)

SIZES = [20, 0, 30, 1]
MODELS = {
    "no messages": {"mp_steps": 0},
    "messages": {"mp_steps": 2},
    "no rotation": {"mp_steps": 1, "rotate": 0.0},
    "flat": {"mp_steps": 1, "strides": 1, "hidden_channels": [8, 8]},
    "perfect": {"mp_steps": 1, "layout": "perfect"},
    "coarse": {"mp_steps": 0, "decode": False},
    "recomputed": {"mp_steps": 1, "checkpoint": True},
    "forces": {"mp_steps": 1, "backend": "reference"},
    "reference": {"mp_steps": 0, "backend": "reference"},
    "preferred": {"mp_steps": 0, "backend": None},
    "norms of rows": {"mp_steps": 0, "norm": "layer"},
    "norms of clouds": {"mp_steps": 0, "norm": "graph"},
}
every_model = pytest.mark.parametrize("name", MODELS)
every_mode = pytest.mark.parametrize("training", [True, False])


def make(name):
    torch.manual_seed(0)
    options = {"hidden_channels": [8, 16], "backend": "sdpa", "norm": "batch"}
    options |= MODELS[name]
    return Erwin(2, out_channels=3, ball_sizes=8, **options)


def batch_for(model):
    """A batch with its tree, as from a data loader."""
    transform = model.tree_transform()
    clouds = ragged(SIZES, dtype=torch.float32).to_data_list()
    return Batch.from_data_list([transform(data) for data in clouds])


def tensors_of(model, data):
    """The arguments that the model takes instead of data."""
    tree = Tree.from_data(data, model.tree_config)
    return (data.x, data.pos, data.edge_index), {"ptr": data.ptr, "tree": tree}


def rows_of(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_read_raises(device):
    """Checks that reading a value raises; otherwise the tests below show nothing."""
    with without_values(device) as move:
        x = move(torch.ones(3))
        for read in (
            lambda: float(x.sum()),
            lambda: bool((x > 0).all()),
            lambda: x.nonzero().size(0),
            lambda: x.cpu().tolist(),
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read()


@every_model
def test_prediction_on_a_gpu_reads_nothing(name):
    model = make(name).eval()
    data = batch_for(model)
    with without_values("cuda") as move:
        model, data = move(model), move(data)
        out = rows_of(model(data))
        args, kwargs = tensors_of(model, data)
        assert rows_of(model(*args, **kwargs)).shape == out.shape
    assert out.device.type == "cuda"


@every_mode
@every_model
def test_training_step_reads_nothing(name, training):
    model = make(name)
    data = batch_for(model)
    with without_values("meta") as move:
        model, data = move(model.train(training)), move(data)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        data.pos.requires_grad_(name == "forces")
        rows_of(model(data)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_one_cloud_without_offsets_reads_nothing(device):
    model = make("messages").eval()
    data = model.tree_transform()(ragged([20], dtype=torch.float32)[0])
    assert isinstance(data, Data)
    with without_values(device) as move:
        assert move(model)(move(data)).shape == (20, 3)


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_baseline_reads_nothing(device):
    model = MPNN(2, 8, 3, num_layers=2)
    data = ragged(SIZES, dtype=torch.float32)
    with without_values(device) as move:
        assert move(model)(move(data)).shape == (sum(SIZES), 3)


@onlyCUDA
@every_mode
@every_model
@pytest.mark.parametrize("batched", [True, False])
def test_nothing_waits_for_a_gpu(name, training, batched):
    model = make(name).train(training).cuda()
    data = batch_for(model).cuda()
    data = data if batched else data[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)
    for step in range(3):  # the first one allocates memory and initialises libraries
        torch.cuda.set_sync_debug_mode("error" if step > 0 else "default")
        try:
            optimizer.zero_grad()
            rows_of(model(data)).square().mean().backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@onlyCUDA
@every_model
def test_a_gpu_computes_what_the_host_does(name):
    model = make(name)
    data = batch_for(model)
    expected = rows_of(copy.deepcopy(model)(data))
    out = rows_of(model.cuda()(data.cuda())).cpu()
    assert (out - expected).norm() <= 1e-4 * expected.norm()
