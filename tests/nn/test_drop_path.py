import pytest
import torch
from clouds import ragged

from torch_geometric_erwin import Level
from torch_geometric_erwin.nn import DropPath, Erwin

SIZES = [40, 0, 1, 25]


def level_of(clouds, rows):
    ptr = torch.arange(clouds + 1) * rows
    pos = torch.zeros(clouds * rows, 2)
    return Level.build(pos, torch.full((clouds,), rows), ball_size=rows, ptr=ptr)


def test_a_branch_is_kept_or_left_out_for_a_whole_cloud():
    torch.manual_seed(0)
    level = level_of(clouds=4000, rows=3)
    out = DropPath(0.25)(torch.ones(12_000, 2, dtype=torch.float64), level)
    clouds = out.view(4000, 6)
    assert (clouds == clouds[:, :1]).all()
    assert set(clouds.unique().tolist()) == {0.0, 1 / 0.75}
    kept = (clouds[:, 0] > 0).double().mean()
    assert abs(kept - 0.75) < 0.03  # four standard deviations of 0.007
    assert torch.equal(DropPath(0.25).eval()(out, level), out)


@pytest.mark.parametrize("value", [1, 1.5, -0.1, float("nan")])
def test_bad_probabilities(value):
    with pytest.raises(ValueError, match="must be at least 0 and below 1"):
        DropPath(value)
    with pytest.raises(ValueError, match="'dropout' must be at least 0 and below 1"):
        Erwin(0, [8, 8], ball_sizes=8, mp_steps=0, dropout=value)


@pytest.mark.parametrize("kwargs", [{"dropout": 0.3}, {"drop_path": 0.3}])
def test_recomputed_blocks_draw_the_same_numbers(kwargs):
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = Erwin(2, [8, 8], ball_sizes=8, checkpoint=checkpoint, **kwargs)
        batch = ragged(SIZES, dtype=torch.float32)
        torch.manual_seed(1)
        model(batch).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_is_left_out_in_evaluation():
    batch = ragged(SIZES, dtype=torch.float32)
    torch.manual_seed(0)
    plain = Erwin(2, [8, 8], ball_sizes=8).eval()
    torch.manual_seed(0)
    model = Erwin(2, [8, 8], ball_sizes=8, dropout=0.5, drop_path=0.5)
    torch.manual_seed(1)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(batch), plain(batch))
