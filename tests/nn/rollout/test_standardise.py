import copy

import numpy as np
import pytest
import torch

from torch_geometric_erwin.nn.rollout.standardise import Moments, Standardise


def rows(n, offset=0.0):
    generator = torch.Generator().manual_seed(n)
    scale = torch.tensor([1.0, 1e-3, 10.0], dtype=torch.float64)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x * scale + torch.tensor([offset, 2.0, -5.0])


def fitted_to(chunks, noise=0.0):
    scale, moments = Standardise().double(), Moments()
    for chunk in chunks:
        moments.add(chunk)
    scale.measure(moments, noise)
    return scale


@pytest.mark.parametrize("sizes", [[100], [1, 0, 40, 7], [0, 3], [1]])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_moments_are_those_of_all_rows(sizes, noise):
    chunks = [rows(n) for n in sizes]
    scale = fitted_to(chunks, noise)
    every = np.concatenate([chunk.numpy() for chunk in chunks])
    std = np.sqrt(every.var(axis=0) + noise**2)
    std[std == 0] = 1
    np.testing.assert_allclose(scale.mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale.std, std, rtol=1e-12)
    x = rows(5)
    np.testing.assert_allclose(scale(x).numpy() * std + every.mean(0), x, rtol=1e-12)
    assert torch.allclose(scale.inverse(scale(x)), x, rtol=1e-14, atol=1e-14)


def test_digits_are_kept_far_from_zero():
    chunks = [rows(50, offset=1e7), rows(70, offset=1e7)]
    scale = fitted_to(chunks)
    every = torch.cat(chunks) - 1e7
    assert torch.allclose(scale.std[0], every[:, 0].std(correction=0), rtol=1e-7)


def test_nothing_changes_before_statistics_are_measured():
    scale, x = Standardise(), rows(4)
    assert torch.equal(scale(x), x)
    assert torch.equal(scale.inverse(x), x)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("fitted", [True, False])
def test_state_is_loaded(fitted, assign):
    scale, other = fitted_to([rows(9)]), Standardise().double()
    if fitted:  # of another number of channels
        other = fitted_to([rows(9)[:, :2]])
    other.load_state_dict(copy.deepcopy(scale.state_dict()), assign=assign)
    assert torch.equal(other(rows(4)), scale(rows(4)))
    assert [name for name, _ in other.named_buffers()] == ["mean", "std"]


def test_a_part_of_a_state_is_missing_as_usual():
    with pytest.raises(RuntimeError, match="Missing key"):
        Standardise().load_state_dict({"mean": torch.zeros(2)})
