"""The operators of a model whose bits depend on the number of threads."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from torch_geometric_erwin import knn_graph, knn_interpolate
from torch_geometric_erwin.nn import Erwin

# Sums over rows that PyTorch or oneDNN divides into one part per thread: statistics of
# a batch, gradients of weights and biases.
VARYING = {
    "aten.native_batch_norm.default",
    "aten.native_batch_norm_backward.default",
    "aten.native_layer_norm_backward.default",
    "aten.sum.default",
    "aten.sum.dim_IntList",
    "erwin.linear.default",
}
VIEWS = ("view", "slice", "select", "transpose", "expand", "split", ".t.", "detach")


class Twice(TorchDispatchMode):
    """Runs every operator on two threads and on one; records those that differ."""

    def __init__(self):
        super().__init__()
        self.seen, self.varying = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(function)
        self.seen.add(name)
        if "empty" in name or any(view in name for view in VIEWS):
            return function(*args, **kwargs)
        # An operator may write to its arguments.
        copies = tree_map(
            lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (args, kwargs)
        )
        torch.set_num_threads(1)
        alone = function(*copies[0], **copies[1])
        torch.set_num_threads(2)
        result = function(*args, **kwargs)
        for a, b in zip(tree_leaves(result), tree_leaves(alone), strict=True):
            if isinstance(a, torch.Tensor) and not torch.equal(a, b):
                self.varying.add(name)
        return result


@pytest.fixture
def twice():
    before = torch.get_num_threads()
    yield Twice()
    torch.set_num_threads(before)


@pytest.mark.parametrize("block_norm", ["rms", "graph"])
def test_operators_of_a_model_and_its_gradients(twice, block_norm):
    torch.manual_seed(0)
    x, pos = torch.randn(3000, 16), torch.rand(3000, 3)
    edge_index, batch = knn_graph(pos, 8), torch.zeros(3000).long()
    config = {"ball_sizes": [64, 32], "enc_depths": 1, "dec_depths": 1, "mp_steps": 1}
    model = Erwin(16, [32, 64], **config, block_norm=block_norm)
    pos.requires_grad_()
    with twice:
        model(x, pos, batch=batch, edge_index=edge_index).square().sum().backward()
    ours = {"erwin.ball_attention_packed.default", "erwin.message.default"}
    assert ours <= twice.seen
    assert {"erwin.ball_attention_backward.default"} <= twice.seen
    assert {"erwin.message_backward.default"} <= twice.seen
    assert twice.varying <= VARYING


def test_operators_of_second_derivatives(twice):
    torch.manual_seed(0)
    x, pos = torch.randn(3000, 8), torch.rand(3000, 3, requires_grad=True)
    edge_index = knn_graph(pos, 8)
    model = Erwin(8, [16], ball_sizes=64, enc_depths=1, mp_steps=1)
    with twice:
        energy = model(x, pos, edge_index).square().sum()
        (force,) = torch.autograd.grad(energy, pos, create_graph=True)
        force.square().sum().backward()
    assert twice.varying <= VARYING


def test_operators_of_interpolation(twice):
    torch.manual_seed(0)
    x, pos_x, pos_y = torch.randn(3000, 32), torch.rand(3000, 3), torch.rand(4000, 3)
    inputs = [tensor.requires_grad_() for tensor in (x, pos_x, pos_y)]
    with twice:
        knn_interpolate(*inputs, k=4).square().sum().backward()
    assert twice.varying <= VARYING
