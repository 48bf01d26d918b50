import matplotlib as mpl
import pytest
import torch

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.visualization import ball_of_row, plot_ball_tree

mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("sizes", [[0], [1], [37], [20, 0, 5, 33]])
def test_ball_of_row_counts_every_balls_points(sizes):
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    pos = torch.rand(int(ptr[-1]), 3)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=[4, 4, 2], strides=[2, 3])
    for level, span in enumerate([1, 2, 6]):
        ball = ball_of_row(tree, level)
        assert torch.equal(ball, ball.sort().values)
        points = torch.bincount(ball, minlength=len(tree.ball_len[level]))
        # A ball of n rows holds at most n * span points; n - 1 of its rows are full.
        assert bool((points <= tree.ball_len[level] * span).all())
        assert bool((points > (tree.ball_len[level] - 1) * span).all())


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("sizes", [[100], [40, 0, 7, 53]])
def test_points_of_a_ball_share_a_colour(sizes, layout, ax):
    pos, ptr = torch.rand(100, 3), torch.tensor([0, *sizes]).cumsum(0)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=16, layout=layout)
    mask = pos[:, 2] < 0.5
    plot_ball_tree(pos, tree, mask=mask, axes=(0, 1), ax=ax)
    drawn = ax.collections[0]
    assert torch.allclose(
        torch.tensor(drawn.get_offsets()).float(), pos[mask][:, :2], atol=1e-6
    )
    colours = torch.tensor(drawn.get_array())
    ball = torch.empty(100, dtype=torch.long)
    start = ptr[:-1].repeat_interleave(tree.level[:, 0])
    ball[tree.perm + start] = ball_of_row(tree, 0)
    same_ball = ball[mask][:, None] == ball[mask]
    assert torch.equal(colours[:, None] == colours, same_ball)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 1}, r"'level' must be at most 0 \(got 1\)"),
        ({"level": -1}, r"got -1"),
        ({"axes": (0, 3)}, r"'axes' must be coordinates of 'pos' \(got \(0, 3\)"),
    ],
)
def test_bad_arguments(arguments, message, ax):
    pos = torch.rand(10, 3)
    with pytest.raises(ValueError, match=message):
        plot_ball_tree(pos, ball_tree(pos, ball_sizes=4), ax=ax, **arguments)


def test_a_tree_of_other_points_is_refused(ax):
    tree = ball_tree(torch.rand(10, 3), ball_sizes=4)
    with pytest.raises(ValueError, match="does not fit its data"):
        plot_ball_tree(torch.rand(20, 3), tree, ax=ax)
    with pytest.raises(ValueError, match="'tree' is on meta, 'pos' is on cpu"):
        plot_ball_tree(torch.rand(10, 3), tree.to("meta"), ax=ax)
