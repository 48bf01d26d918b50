"""Workers that build trees, and models that train in several processes."""

import os
import socket
import sys
from contextlib import closing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from composition.hybrids import TREE, B, C, WithTree, clouds
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch, Dataset
from torch_geometric.loader import DataLoader

from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import BallTree

# A forked process starts at once; users and Lightning start new ones.
FORK = pytest.param(
    "fork", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
)
STARTS = [FORK, pytest.param("spawn", marks=pytest.mark.slow)]
every_start = pytest.mark.parametrize("start", STARTS)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SIZES = [30, 0, 1, B, 17, 9]
MODELS = ["Erwin", "hybrid"]


def make(name, norm="graph"):
    torch.manual_seed(0)
    if name == "hybrid":
        return WithTree("gat", norm=norm).double()
    kwargs = {"ball_sizes": B, "strides": 4, "mp_steps": 1, "norm": norm}
    return Erwin(C, [8, 8], 4, enc_depths=1, dec_depths=1, **kwargs).double()


def transform_of(model):
    return model.tree_transform() if isinstance(model, Erwin) else TREE


class Clouds(Dataset):
    """A data set whose transform is applied when a worker reads a cloud."""

    def __init__(self, transform):
        super().__init__(transform=transform)
        self.clouds = clouds(SIZES)

    def len(self):
        return len(self.clouds)

    def get(self, idx):
        return self.clouds[idx]


@every_start
@pytest.mark.parametrize("reorder", [False, True])
def test_workers_build_trees(start, reorder):
    model = make("hybrid")
    dataset = Clouds(BallTree(ball_sizes=B, reorder=reorder))
    loader = DataLoader(dataset, 3, num_workers=1, multiprocessing_context=start)
    for batch, wanted in zip(loader, DataLoader(dataset, 3), strict=True):
        for name in sorted(wanted.keys()):
            same = batch[name] == wanted[name]
            assert same.all() if isinstance(same, torch.Tensor) else same, name
        assert torch.equal(model(batch), model(wanted))


def free_port():
    with closing(socket.socket()) as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def share(name, rank):
    """Every second cloud; the loss is a process's part of the mean over all nodes."""
    transform, data = transform_of(make(name)), clouds(SIZES)
    batch = Batch.from_data_list([transform(cloud) for cloud in data[rank::2]])
    return batch, 4 * sum(SIZES)


def loss_of(model, batch, count):
    return F.mse_loss(model(batch), batch.y, reduction="sum") / count


def train(rank, name, norm, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = DistributedDataParallel(make(name, norm))
    batch, count = share(name, rank)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        (2 * loss_of(model, batch, count)).backward()  # their mean is the sum
        if step == 0:
            grads = [p.grad.clone() for p in model.parameters()]
        optimiser.step()
    state = model.module.state_dict()
    torch.save({"grads": grads, "state": state}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@every_start
@pytest.mark.parametrize("name", MODELS)
def test_distributed_data_parallel(start, name, tmp_path):
    args = (name, "graph", free_port(), str(tmp_path))
    start_processes(train, args, nprocs=2, start_method=start)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model = make(name)
    for rank in range(2):
        loss_of(model, *share(name, rank)).backward()
    for a, b, p in zip(one["grads"], other["grads"], model.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-12)
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), key
