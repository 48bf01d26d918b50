"""Encodings of absolute positions, compared with plain maths."""

import copy
import math

import pytest
import torch
from clouds import ragged, randomised
from torch_geometric.data import Data

from torch_geometric_erwin.nn import MPNN, Erwin, FourierEncoding, LinearEncoding
from torch_geometric_erwin.nn.pos_encoding import make_encoding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_fourier_features_equal_definition(n, dim, count, dtype):
    encode = FourierEncoding(dim, 4, num_frequencies=count).to(dtype)
    pos = 20 * torch.randn(n, dim, generator=torch.Generator().manual_seed(n))
    pos = pos.to(dtype).requires_grad_()
    rows = [
        [
            wave(2 * math.pi * p / 2**k)
            for wave in (math.sin, math.cos)
            for p in row
            for k in range(1, count + 1)
        ]
        for row in pos.tolist()
    ]
    waves = torch.tensor(rows, dtype=torch.float64).view(n, 2 * count * dim)
    expected = waves @ encode.lin.weight.double().T + encode.lin.bias.double()
    actual = encode(pos)
    assert actual.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        actual.double(), expected, rtol=tolerance, atol=tolerance
    )
    actual.square().sum().backward()
    assert pos.grad.shape == pos.shape
    assert pos.grad.isfinite().all()


def test_the_period_is_the_longest_wavelength():
    encode = FourierEncoding(2, 8, num_frequencies=3).double()
    pos = torch.rand(5, 2).double()
    torch.testing.assert_close(encode(pos + 8), encode(pos))
    assert not torch.allclose(encode(pos + 4), encode(pos))


def test_linear_encoding_is_a_linear_map():
    encode = LinearEncoding(2, 8)
    pos = torch.rand(5, 2)
    expected = pos @ encode.lin.weight.T + encode.lin.bias
    torch.testing.assert_close(encode(pos), expected)


def test_names_and_callables():
    assert repr(make_encoding("linear", 2, 8)) == "LinearEncoding(2, 8)"
    own = make_encoding(lambda dim, channels: torch.nn.Linear(dim, channels), 2, 8)
    assert isinstance(own, torch.nn.Linear)
    for wrong, kind, message in (
        ("sine", ValueError, r"'pos_encoding' must be one of \['linear', 'fourier'\]"),
        (torch.nn.Linear(2, 8), TypeError, "'pos_encoding' must be a name or a call"),
        (lambda dim: dim, TypeError, "'pos_encoding' must take the dimension and"),
        (lambda dim, channels: dim, TypeError, "'pos_encoding' must make a module"),
    ):
        with pytest.raises(kind, match=message):
            make_encoding(wrong, 2, 8)


def erwin(pos_encoding=None, **kwargs):
    torch.manual_seed(0)
    model = Erwin(
        *(2, [8, 8], 3),
        ball_sizes=4,
        mp_steps=1,
        pos_encoding=pos_encoding,
        **kwargs,
    )
    return model.double().eval()


def mpnn(pos_encoding=None):
    torch.manual_seed(0)
    return MPNN(2, 8, 3, num_layers=1, pos_encoding=pos_encoding).double().eval()


@pytest.mark.parametrize("make", [erwin, mpnn])
@pytest.mark.parametrize("pos_encoding", [None, "linear", "fourier", LinearEncoding])
def test_only_an_encoding_shows_where_a_cloud_is(make, pos_encoding):
    model, data = make(pos_encoding), ragged([13, 0, 5])
    moved = data.clone()
    moved.pos = data.pos + torch.tensor([0.5, -0.25, 1.0])
    same = torch.allclose(model(moved), model(data), rtol=1e-9, atol=1e-9)
    assert same == (pos_encoding is None)
    if pos_encoding is not None:
        model(data).square().sum().backward()
        encode = model.embed.pos_encoding
        assert all((p.grad != 0).all() for p in encode.parameters())


@pytest.mark.parametrize("pos_encoding", ["linear", "fourier"])
def test_the_encoding_is_added_to_the_first_features(pos_encoding):
    model, data = randomised(erwin(pos_encoding)).eval(), ragged([13, 0, 5])
    embed = model.embed
    start = embed.start(data.x) + embed.pos_encoding(data.pos)
    expected = embed.convs[0](start, data.pos, data.edge_index)
    actual = embed(data.x, data.pos, data.edge_index)
    torch.testing.assert_close(actual, expected)


def test_positions_are_in_units_of_the_length_scale():
    model, data = erwin("fourier"), ragged([13, 5])
    expected = model(data)
    data.pos = 8 * data.pos
    model.set_length_scale(8.0)
    torch.testing.assert_close(model(data), expected)


def test_an_encoding_of_other_width_is_named():
    model = erwin(lambda dim, channels: torch.nn.Linear(dim, 3))
    message = r"'pos_encoding\(pos\)' must have shape \[13, 8\] \(got \[13, 3\]\)"
    with pytest.raises(ValueError, match=message):
        model(ragged([13]))


def test_low_precision_and_compilation():
    model = erwin("fourier", rotate=0.0).float()
    data = ragged([30, 13], dtype=torch.float32)
    expected = model(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(data) - expected).norm() < 0.05 * expected.norm()
    half = model.to(torch.bfloat16)
    out = half(Data(data.x.bfloat16(), data.edge_index, pos=data.pos, ptr=data.ptr))
    assert (out - expected).norm() < 0.1 * expected.norm()
    encode, pos = FourierEncoding(3, 8), 60 * torch.rand(50, 3)
    expected, half = encode(pos), copy.deepcopy(encode).bfloat16()
    assert (half(pos) - expected).norm() < 0.01 * expected.norm()
    compiled = torch.compile(encode, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        pos = torch.rand(n, 3)
        torch.testing.assert_close(compiled(pos), encode(pos))
