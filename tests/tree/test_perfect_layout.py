"""The layout of the original implementation, compared with its output."""

from math import prod
from pathlib import Path

import pytest
import torch
from trees import offsets, random_pos

from torch_geometric_erwin import ball_tree

DATA = Path(__file__).parents[1] / "data"
SHARED = Path(__file__).parents[3] / "shared" / "parity"
ORIGINAL = [
    *[DATA / f"tiny_{name}.pt" for name in ["d2_rot0_mp0", "d2_rot45_levels3"]],
    *[DATA / f"tiny_{name}.pt" for name in ["d3_rot30_flat", "d3_rot45_mp2"]],
    *[SHARED / f"d2_rot45_{name}.pt" for name in ["mp0_odd", "mp3_stride1"]],
    *[SHARED / f"d3_{name}.pt" for name in ["rot0_mp0_p2one", "rot45_mp0_latent"]],
    *[SHARED / f"d3_rot45_mp3_{name}.pt" for name in ["odd", "strides42"]],
]


@pytest.mark.parametrize("path", ORIGINAL, ids=lambda path: path.stem)
def test_perfect_layout_is_the_original_tree(path):
    if not path.exists():
        pytest.skip(f"the file '{path.name}' is not in '../shared/parity'")
    run = torch.load(path, weights_only=True)
    config, ptr = run["config"], offsets(run["sizes"])
    tree = ball_tree(
        run["pos"],
        ptr=ptr,
        ball_sizes=config["ball_sizes"],
        strides=config["strides"],
        rotate=config["rotate"],
        layout="perfect",
    )
    # Leaf pairs are equal except for the order inside, and so are the points below a
    # row of any level. A ball of the rotated tree is compared as a set of such rows.
    points = [tree.global_perm(), run["tree_idx"]]
    pairs = [p.view(-1, 2).sort(dim=1).values for p in points]
    assert torch.equal(*pairs)
    assert torch.equal(tree.mask, run["tree_mask"])
    for l, size in enumerate(config["ball_sizes"]):
        assert (tree.ball_len[l] == size).all()
        if not config["rotate"]:
            continue
        span = prod(config["strides"][:l])
        orders = [tree.global_perm_rot(l), run["tree_idx_rot"][l]]
        ours, theirs = (
            [
                sorted(sorted(row) for row in ball)
                for ball in p.view(-1, span)[order].view(-1, size, span).tolist()
            ]
            for p, order in zip(points, orders)
        )
        assert ours == theirs


def test_perfect_layout_repeats_lone_points():
    tree = ball_tree(
        torch.tensor([[2.0], [0.0], [1.0]]), ball_sizes=2, layout="perfect"
    )
    assert tree.perm.tolist() == [1, 1, 2, 0]
    assert tree.mask.tolist() == [True, False, True, True]


def test_layouts_agree_on_powers_of_two():
    for n in [1, 2, 64]:
        pos = random_pos(n)
        balanced, perfect = (
            ball_tree(pos, ball_sizes=8, strides=[2, 2], layout=layout)
            for layout in ["balanced", "perfect"]
        )
        assert torch.equal(balanced.perm, perfect.perm)
        assert all(map(torch.equal, balanced.perm_rot, perfect.perm_rot))
        assert all(map(torch.equal, balanced.ball_len, perfect.ball_len))
        assert perfect.mask.all()
