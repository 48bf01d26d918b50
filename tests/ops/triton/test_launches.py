"""Which kernels a call launches and compiles, on a GPU that does not exist."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from messages import EPS, inputs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from torch_geometric_erwin.ops.edges import Edges
from torch_geometric_erwin.ops.triton import attention, message


class Driver:
    """Compiles for an H100 but launches nothing; tensors stay on the CPU."""

    device = 1000  # no other code uses the kernels compiled for this number

    def __init__(self):
        self.utils = self
        self.launched = []
        self.compiled = []

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device):
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name, *_):
        self.compiled.append(name)
        return 0, 0, 0, 0, 1024

    def launcher_cls(self, source, metadata):
        return lambda *_: self.launched.append(metadata.name)


@pytest.fixture
def gpu():
    gpu = Driver()
    driver.set_active(gpu)
    yield gpu
    driver.set_active(None)  # the machine's own driver, if it has one


def at(t, offset):
    """The same values at an address that is a multiple of 16 bytes, or is not."""
    place = t.new_empty(t.numel() + 4)
    place = place[-place.data_ptr() % 16 // t.element_size() + offset :]
    return place[: t.numel()].view_as(t).copy_(t)


def attend(balls, ball_size, pos_grad=False, offset=0, permuted=True):
    n = sum(balls)
    qkv, grad = torch.zeros(n, 3, 2, 32).bfloat16(), torch.zeros(n, 2, 32).bfloat16()
    pos, ball_len = at(torch.zeros(n, 3), offset), at(torch.tensor(balls), offset)
    perm = at(torch.arange(n), offset) if permuted else None
    args = (*qkv.unbind(1), pos, ball_len, torch.zeros(2), perm, ball_size, 1.0)
    out, *saved = attention.forward(*args)
    attention.backward(grad, out, *saved, *args, pos_grad)


def test_kernels_of_attention(gpu):
    attend([16, 3], 16)
    assert gpu.launched == ["prepare_kernel", "forward_kernel", "keys_kernel"]
    gpu.launched.clear()
    attend([16, 3], 16, pos_grad=True)
    assert gpu.launched[2:] == ["keys_kernel", "queries_kernel"]


def test_other_batches_compile_nothing(gpu):
    attend([16, 3], 16)
    gpu.compiled.clear()
    for balls in ([1], [16], [16] * 16, [5] * 7):
        for offset in (0, 1):
            attend(balls, 16, offset=offset)
    assert gpu.compiled == []
    attend([16, 3], 16, permuted=False)  # what does show
    assert gpu.compiled == ["prepare_kernel", "forward_kernel", "keys_kernel"]


def test_other_graphs_compile_nothing(gpu):
    def step(nodes, num_edges, offset):
        rows, edge_index, grad = inputs(nodes, num_edges, 16, 3)
        rows[2] = at(rows[2], offset)
        edges = Edges(edge_index, nodes)
        tables = (*edge_index, *edges.by(1), *edges.by(0))
        args = (*rows, EPS, *(at(t, offset) for t in tables))
        message.forward(*args)
        message.backward(*args, grad)

    step(20, 50, 0)
    kernels = ["forward_kernel", "target_kernel", "source_kernel"]
    assert gpu.compiled == gpu.launched == kernels
    for nodes, num_edges in ((1, 1), (16, 16), (33, 64), (7, 100)):
        for offset in (0, 1):
            step(nodes, num_edges, offset)
    assert gpu.compiled == kernels
