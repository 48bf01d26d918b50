"""Configurations of trees."""

import pytest
import torch

from torch_geometric_erwin import TreeConfig, ball_tree


@pytest.mark.parametrize(
    "config",
    [
        TreeConfig(128, (2, 2)),
        TreeConfig((128, 64), 2),
        TreeConfig([8], rotate=0),
        TreeConfig((7, 5), (3,), rotate=-12.5),
        TreeConfig((8, 4), (2,), layout="perfect"),
        TreeConfig((8, 4), (2,), runs=[[8, 3], []]),
        TreeConfig((8, 4), (2,), layout="perfect", runs=[[], [1, 16]]),
        TreeConfig(8, (), runs=[[2]]),
    ],
)
def test_config_is_read_from_its_text(config):
    assert TreeConfig.parse(str(config)) == config
    assert hash(TreeConfig.parse(str(config))) == hash(config)
    assert config.num_levels == len(config.strides) + 1


def test_config_repeats_scalars():
    assert TreeConfig(128, (2, 2)).ball_sizes == (128, 128, 128)
    assert TreeConfig((8, 4, 2), 2).strides == (2, 2)
    assert TreeConfig(128, ()) == TreeConfig([128])
    assert TreeConfig(8, (), rotate=45) == TreeConfig(8, ())
    assert str(TreeConfig(8, (), rotate=-0.0)) == str(TreeConfig(8, (), rotate=0))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((128, 2), ValueError, r"number of levels is unknown.*128 and 2"),
        (([], ()), ValueError, r"1 to 16 levels \(got 0\)"),
        (([8] * 17, 2), ValueError, r"1 to 16 levels \(got 17\)"),
        (
            ([8, 8, 8], [2]),
            ValueError,
            r"'ball_sizes' has 3 values and 'strides' 1: .* \(got \[8, 8, 8\]",
        ),
        (([8, 0], 2), ValueError, r"'ball_sizes' must be at least 1 \(got 0\)"),
        ((8, [-2]), ValueError, r"'strides' must be at least 1 \(got -2\)"),
        (([8.0], ()), TypeError, r"'ball_sizes' must hold integers \(got 8.0\)"),
        ((8.0, [2]), TypeError, r"'ball_sizes' must hold integers \(got 8.0\)"),
        (([8, 8], 2.0), TypeError, r"'strides' must hold integers \(got 2.0\)"),
        ((True, [2]), TypeError, r"'ball_sizes' must hold integers \(got True\)"),
        ((8, (), "45"), ValueError, r"'rotate' must be an angle .* \(got '45'\)"),
        ((8, (), float("nan")), ValueError, r"'rotate' must be an angle .* \(got nan"),
        ((8, (), 1e3), ValueError, r"'rotate' must be an angle .* \(got 1000.0\)"),
        ((8, (), 45, "ball"), ValueError, r"'layout' must be one of .* \(got 'ball'\)"),
        (
            (12, [2], 45, "perfect"),
            ValueError,
            r"powers of two in 'ball_sizes' \(got 12",
        ),
        ((8, [3], 45, "perfect"), ValueError, r"powers of two in 'strides' \(got 3\)"),
        ((2**40, ()), ValueError, r"'ball_sizes' must be at most"),
        ((8, [2**16, 2**16]), ValueError, r"product of 'strides' must be at most"),
    ],
)
def test_bad_configuration(args, error, message):
    with pytest.raises(error, match=message):
        TreeConfig(*args)
    with pytest.raises(error, match=message):
        ball_tree(
            torch.rand(4, 3),
            **dict(zip(["ball_sizes", "strides", "rotate", "layout"], args)),
        )
