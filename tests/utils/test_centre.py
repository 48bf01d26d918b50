import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_geometric_erwin.utils.centre import centre, centre_dense


def rows(*shape, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_centre_dense(offset):
    # The original's distances are wrong far from the origin.
    lengths = torch.tensor([2, 0, 5, 1])
    pos = rows(8, 3) + offset
    dense, mean = centre_dense(pos, lengths, 5)
    for i, part in enumerate(pos.split(lengths.tolist())):
        if len(part) == 0:
            assert (dense[i] == 0).all()
            continue
        # float64 resolves 1e-10 at 1e6.
        torch.testing.assert_close(mean[i], part.mean(0), rtol=0, atol=1e-9)
        expected = part - part.mean(0)
        torch.testing.assert_close(dense[i, : len(part)], expected, rtol=0, atol=1e-9)
        assert (dense[i, len(part) :] == 0).all()


def test_centre_dense_of_a_cloud_far_away_in_float32():
    # A grid with spacing 1/2: also exact at 2^20 + i / 2, so results equal those at 0.
    pos = torch.tensor([[0.0], [0.5], [1.5], [2.0]])
    lengths = torch.tensor([4])
    near, _ = centre_dense(pos, lengths, 4)
    far, mean = centre_dense(pos + 2.0**20, lengths, 4)
    assert torch.equal(near, far)
    assert mean.tolist() == [[2.0**20 + 1.0]]


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("lengths", [[], [0], [1], [3, 0, 4, 1], [4, 4]])
def test_centre(lengths, permuted):
    n = sum(lengths)
    x, perm = rows(n, 2), torch.randperm(n)
    order = perm if permuted else torch.arange(n)
    expected = torch.empty_like(x)
    for places in order.split(lengths):
        expected[places] = x[places] - x[places].mean(0)
    lengths = torch.tensor(lengths, dtype=torch.int64)
    actual = centre(x, lengths, perm if permuted else None, limit=4)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("permuted", [False, True])
def test_gradients(permuted):
    x, lengths = rows(6, 2, requires_grad=True), torch.tensor([3, 0, 1, 2])
    perm = torch.randperm(6) if permuted else None
    for check in (gradcheck, gradgradcheck):
        assert check(lambda x: centre(x, lengths, perm, limit=3).pow(3), (x,))
        assert check(lambda x: centre_dense(x, lengths, 3)[1].pow(3), (x,))
