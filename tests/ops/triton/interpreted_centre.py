"""Centring in Triton's interpreter, which runs kernels on CPU tensors."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_geometric_erwin.ops import centre as reference
from torch_geometric_erwin.ops.triton.centre import centre

CASES = {
    "none": ([], 4),
    "empty": ([0, 0], 4),
    "one": ([1], 1),
    "pairs": ([2, 1, 2, 0, 2], 2),
    "threes": ([3, 3, 1], 3),
    "balls": ([128, 127, 1, 128, 0, 65], 128),
    "many": ([1 + i % 4 for i in range(200)], 4),
    "longer than a tile": ([700, 256, 257], 1000),
}
pytestmark = pytest.mark.usefixtures("fill")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_equals_tensor_maths(name, dim, permuted, dtype):
    lengths, limit = CASES[name]
    rows, lengths = sum(lengths), torch.tensor(lengths, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator, dtype=dtype)
    perm = torch.randperm(rows, generator=generator) if permuted else None
    dense, mean = reference.centre_dense(x.double(), lengths, limit)
    if permuted:
        taken = x.double()[perm]
        _, mean = reference.centre_dense(taken, lengths, limit)
    tolerance = 64 * torch.finfo(dtype).eps

    def compare(actual, expected):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)

    offset, actual = centre(x, lengths, perm, limit, dense=False)
    compare(offset, reference.centre(x.double(), lengths, perm, limit))
    compare(actual, mean)
    if not permuted:
        offset, actual = centre(x, lengths, None, limit, dense=True)
        compare(offset, dense)
        compare(actual, mean)


def test_far_from_the_origin():
    # A grid of halves: exact at 2^20 + i / 2 too, so the same as at the origin.
    x = torch.tensor([[0.0], [0.5], [1.5], [2.0]])
    lengths = torch.tensor([4])
    near, _ = centre(x, lengths, None, 4, False)
    far, mean = centre(x + 2.0**20, lengths, None, 4, False)
    assert torch.equal(near, far)
    assert mean.tolist() == [[2.0**20 + 1.0]]


@pytest.mark.parametrize("permuted", [False, True])
def test_rows_behind_the_last_segment_are_zero(permuted):
    x = torch.rand(700, 3)
    perm = torch.randperm(700) if permuted else None
    offset, _ = centre(x, torch.tensor([20, 7]), perm, 32, False)
    behind = torch.arange(27, 700) if perm is None else perm[27:]
    assert (offset[behind] == 0).all()
    assert not offset.isnan().any()


@pytest.mark.parametrize("lengths", [[8, 9, -3], [3, -9], [-20, 40], [2**40, 5]])
def test_wrong_lengths_stay_within_the_tensors(lengths, monkeypatch):
    guarded, new_empty = [], torch.Tensor.new_empty

    def empty(self, *shape, **kwargs):
        if kwargs:  # the interpreter's own
            return new_empty(self, *shape, **kwargs)
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        memory = self.new_full((4096 + math.prod(shape),), torch.nan)
        guarded.append(memory)
        return memory[2048 : 2048 + math.prod(shape)].view(shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", empty)
    lengths = torch.tensor(lengths)
    for dense in (False, True):
        centre(torch.rand(10, 2), lengths, None, 8, dense)
    assert len(guarded) == 4
    for memory in guarded:
        assert memory[:2048].isnan().all()
        assert memory[-2048:].isnan().all()


@pytest.fixture
def operator():
    """The operator, served by the kernels on the CPU too."""
    library = torch.library.Library("erwin", "IMPL")
    library.impl("centre", centre, "CPU")
    yield torch.ops.erwin.centre
    library._destroy()


@pytest.mark.parametrize(
    ("permuted", "dense"), [(False, False), (False, True), (True, False)]
)
def test_gradients(operator, permuted, dense):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    perm = torch.randperm(6, generator=generator) if permuted else None
    args = (torch.tensor([3, 0, 1, 2]), perm, 3, dense)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: [t.pow(3) for t in operator(x, *args)], (x,))
    torch.library.opcheck(operator.default, (x, *args))
