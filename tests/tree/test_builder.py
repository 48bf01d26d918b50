"""Trees of clouds of any size and dimension, compared with the oracle."""

import pytest
import torch
from comparisons import assert_equals_oracle, assert_same, tensors
from torch_geometric.testing import onlyCUDA
from trees import ALL_SIZES, LAYOUTS, MIXED, offsets, random_pos

from torch_geometric_erwin import Tree, ball_tree


def split(tree, ptr):
    """The trees of each cloud alone."""
    rows = torch.nn.functional.pad(tree.level.cumsum(0), (0, 0, 1, 0))
    balls = [
        torch.searchsorted(lengths.cumsum(0), rows[:, l].contiguous(), right=True)
        for l, lengths in enumerate(tree.ball_len)
    ]

    def part(tensors, ends, i):
        return tuple(t[e[i] : e[i + 1]] for t, e in zip(tensors, ends))

    return [
        Tree(
            *part([tree.perm], rows.T, i),
            ptr[i : i + 2] - ptr[i],
            tree.level[i : i + 1],
            part(tree.ball_len, balls, i),
            part(tree.group_len, rows.T[1:], i),
            part(tree.perm_rot, rows.T, i),
            None if tree.mask is None else part([tree.mask], rows.T, i)[0],
            tree.config,
        )
        for i in range(ptr.size(0) - 1)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("layout", "ball_sizes", "strides"), LAYOUTS)
def test_any_cloud_size(layout, ball_sizes, strides, dtype):
    ptr = offsets(ALL_SIZES)
    assert_equals_oracle(
        random_pos(int(ptr[-1]), dtype=dtype),
        ptr,
        ball_sizes=ball_sizes,
        strides=strides,
        layout=layout,
    )


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0, 45, -30.0])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_any_dimension_and_rotation(dim, rotate, layout):
    ptr = offsets(MIXED)
    for dtype in [torch.float32, torch.float64]:
        pos = random_pos(int(ptr[-1]), dim, dtype=dtype)
        config = {"ball_sizes": 8, "strides": [2, 2], "layout": layout}
        tree = assert_equals_oracle(pos, ptr, rotate=rotate, **config)
        assert len(tree.perm_rot) == (3 if rotate else 0)


def test_a_negative_angle_turns_the_other_way():
    pos = random_pos(100, dim=2)
    left, right = (ball_tree(pos, ball_sizes=8, rotate=a) for a in [30, -30])
    assert torch.equal(left.perm, right.perm)
    assert not torch.equal(left.perm_rot[0], right.perm_rot[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_exactly(dtype):
    ptr = offsets(MIXED)
    pos = random_pos(int(ptr[-1]), dtype=dtype)  # many equal coordinates
    tree = assert_equals_oracle(pos, ptr, ball_sizes=8, strides=[2])
    assert_same(
        tree, ball_tree(pos.double().float(), ptr=ptr, ball_sizes=8, strides=[2])
    )


def test_float64_keys_see_what_float32_rounds_away():
    pos = 1.0 + torch.tensor([[2.0], [1.0], [0.0]], dtype=torch.float64) * 1e-12
    assert ball_tree(pos, ball_sizes=1).perm.tolist() == [2, 1, 0]
    assert ball_tree(pos.float(), ball_sizes=1).perm.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "view",
    [
        lambda pos: pos.T.contiguous().T,
        lambda pos: pos.repeat_interleave(2, dim=0)[::2],
        lambda pos: torch.cat([pos, pos], dim=1)[:, :3],
        lambda pos: pos[:, [0]].expand(-1, 3),
    ],
    ids=["transposed", "strided rows", "sliced columns", "expanded"],
)
def test_any_memory_layout(view):
    ptr = offsets(MIXED)
    pos = view(random_pos(int(ptr[-1])))
    assert not pos.is_contiguous()
    tree = ball_tree(pos, ptr=ptr.repeat_interleave(2)[::2], ball_sizes=8, strides=[2])
    assert_same(tree, ball_tree(pos.contiguous(), ptr=ptr, ball_sizes=8, strides=[2]))


@pytest.mark.parametrize(
    ("n", "ball_sizes", "expected"),
    [
        (
            1000,
            (128, 128, 128, 128, 128),
            [[128] * 7 + [104], [128, 128, 128, 116], [128, 122], [125], [63]],
        ),
        (
            1000,
            (128, 128, 128, 64, 32),
            [[128] * 7 + [104], [128, 128, 128, 116], [128, 122], [64, 61], [32, 31]],
        ),
        (37, (128, 128, 128, 128, 128), [[37], [19], [10], [5], [3]]),
    ],
)
def test_worked_examples(n, ball_sizes, expected):
    pos = random_pos(n)
    tree = assert_equals_oracle(
        pos, offsets([n]), ball_sizes=ball_sizes, strides=[2, 2, 2, 2]
    )
    assert [balls.tolist() for balls in tree.ball_len] == expected
    assert tree.level.tolist() == [[sum(balls) for balls in expected]]


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("ball_sizes", [128, (128, 128, 128, 64, 32)])
def test_published_configurations(ball_sizes, layout):
    ptr = offsets([1500, 0, 37, 129])
    assert_equals_oracle(
        random_pos(1666),
        ptr,
        ball_sizes=ball_sizes,
        strides=[2, 2, 2, 2],
        layout=layout,
    )


@pytest.mark.parametrize(
    ("layout", "ball_sizes", "strides"),
    [
        ("balanced", (8, 8, 8), (2, 2)),
        ("balanced", (7, 5), (3,)),
        ("perfect", (8, 8), (2,)),
    ],
)
def test_a_cloud_alone_equals_the_cloud_in_a_batch(layout, ball_sizes, strides):
    # In the original, a ball contains several clouds if these are smaller than a ball.
    ptr = offsets(ALL_SIZES[::-1])
    pos = random_pos(int(ptr[-1]))
    config = {"ball_sizes": ball_sizes, "strides": strides, "layout": layout}
    batch = ball_tree(pos, ptr=ptr, **config)
    for i, part in enumerate(split(batch, ptr)):
        assert_same(ball_tree(pos[ptr[i] : ptr[i + 1]], **config), part)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_order_is_a_function_of_the_coordinates(layout):
    # In the original, the two points of a leaf pair keep the order of the input.
    config = {"ball_sizes": 8, "strides": [2, 2], "layout": layout}
    for n in [2, 3, 37, 300]:
        pos, shuffle = random_pos(n), torch.randperm(n)
        tree, shuffled = ball_tree(pos, **config), ball_tree(pos[shuffle], **config)
        assert torch.equal(shuffle[shuffled.perm], tree.perm)
        for a, b in zip(tree.perm_rot, shuffled.perm_rot, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_order_on_a_grid_is_a_function_of_the_coordinates_on_request(layout):
    axis = torch.arange(7.0)
    pos = torch.cartesian_prod(axis, axis[:6], axis[:5])
    pos = torch.cat([pos, pos[::3]])  # coincident points are interchangeable
    shuffle = torch.randperm(pos.size(0), generator=torch.Generator().manual_seed(0))
    config = {"ball_sizes": 8, "strides": [2, 2], "layout": layout}

    def orders(ties):
        trees = [ball_tree(p, ties=ties, **config) for p in (pos, pos[shuffle])]
        return [pos[trees[0].perm], *trees[0].perm_rot], [
            pos[shuffle][trees[1].perm],
            *trees[1].perm_rot,
        ]

    for a, b in zip(*orders("coordinates"), strict=True):
        assert torch.equal(a, b)
    before, after = orders("index")
    assert not torch.equal(before[0], after[0])


def test_no_clouds():
    tree = ball_tree(
        torch.empty(0, 3), ptr=torch.tensor([0]), ball_sizes=8, strides=[2]
    )
    assert tree.level.shape == (0, 2)
    assert tree.node_ptr.tolist() == [0]
    assert [t.numel() for t in tensors(tree)] == [0, 1, *[0] * 6]
    assert tree.order().perm.numel() == 0
    assert [level.num_rows for level in tree.levels(torch.empty(0, 3))] == [0, 0]


def test_positions_that_need_a_gradient():
    pos = random_pos(50)
    tree = ball_tree(pos.clone().requires_grad_(), ball_sizes=8, strides=[2])
    assert_same(tree, ball_tree(pos, ball_sizes=8, strides=[2]))


@onlyCUDA
def test_positions_on_a_gpu():
    ptr = offsets(MIXED)
    pos = random_pos(int(ptr[-1]))
    expected = ball_tree(pos, ptr=ptr, ball_sizes=8, strides=[2], layout="perfect")
    tree = ball_tree(
        pos.cuda(), ptr=ptr.cuda(), ball_sizes=8, strides=[2], layout="perfect"
    )
    assert all(t.is_cuda for t in tensors(tree))
    assert_same(tree.to("cpu"), expected)
    tree.validate(pos.size(0), tree.config, ptr.cuda())


def test_clouds_given_as_pyg_does():
    for sizes in ([5, 0, 0, 9], [0, 3], []):
        pos, ptr = random_pos(sum(sizes)), offsets(sizes)
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes).long())
        config = {"ball_sizes": 4, "strides": [2]}
        assert_same(ball_tree(pos, batch, **config), ball_tree(pos, ptr=ptr, **config))
    pos = random_pos(4)
    with pytest.raises(ValueError, match="row offsets of clouds are given as 'ptr='"):
        ball_tree(pos, torch.tensor([0, 4]), ball_sizes=2)
    with pytest.raises(ValueError, match="'batch' and 'ptr' say the same"):
        ball_tree(pos, torch.zeros(4).long(), ptr=torch.tensor([0, 4]), ball_sizes=2)


def test_bad_ties():
    with pytest.raises(ValueError, match=r"'ties' must be one of .* \(got 'random'\)"):
        ball_tree(torch.rand(4, 3), ball_sizes=2, ties="random")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_position_that_is_not_finite_is_refused_with_its_row(value):
    pos = torch.zeros(10, 2)
    pos[7, 1] = value
    with pytest.raises(
        ValueError, match=rf"'pos' must be finite \(row 7 is \[0.0, {value}"
    ):
        ball_tree(pos, ball_sizes=2)


def test_a_malformed_ptr_is_refused():
    with pytest.raises(ValueError, match="'ptr' must end at the number of rows 10"):
        ball_tree(torch.zeros(10, 2), ptr=offsets([4, 5]), ball_sizes=2)
