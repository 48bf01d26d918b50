import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.ball_tree import balanced, maximal
from oracles.ball_tree import ball_tree as oracle
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.testing import onlyCUDA
from torch_geometric.transforms import Compose
from trees import ALL_SIZES, CONFIGS, LAYOUTS, MIXED, offsets, random_pos

from torch_geometric_erwin import Tree, TreeConfig, ball_tree
from torch_geometric_erwin.ops.ball_tree import rotation_matrix
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.builder import build_tree

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared" / "parity"
ORIGINAL = [
    *[DATA / f"tiny_{name}.pt" for name in ["d2_rot0_mp0", "d2_rot45_levels3"]],
    *[DATA / f"tiny_{name}.pt" for name in ["d3_rot30_flat", "d3_rot45_mp2"]],
    *[SHARED / f"d2_rot45_{name}.pt" for name in ["mp0_odd", "mp3_stride1"]],
    *[SHARED / f"d3_{name}.pt" for name in ["rot0_mp0_p2one", "rot45_mp0_latent"]],
    *[SHARED / f"d3_rot45_mp3_{name}.pt" for name in ["odd", "strides42"]],
]


def tensors(tree):
    return [t for t in pytree.tree_leaves(tree) if t is not None]


def assert_same(a, b):
    assert a.config == b.config
    for x, y in zip(tensors(a), tensors(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def assert_equals_oracle(pos, ptr, **kwargs):
    tree = ball_tree(pos, ptr=ptr, **kwargs)
    config = tree.config
    keys = pos if pos.dtype == torch.float64 else pos.float()
    rotation = rotation_matrix(config.rotate, pos.size(1)).numpy()
    expected = oracle(
        keys.numpy(),
        ptr.tolist(),
        config.ball_sizes,
        config.strides,
        rotation if config.rotate else None,
        config.layout,
        kwargs.get("ties", "index"),
    )
    assert tree.perm.tolist() == expected.perm.tolist()
    assert tree.level.tolist() == expected.level.tolist()
    assert [t.tolist() for t in tree.ball_len] == expected.ball_len
    assert [t.tolist() for t in tree.group_len] == expected.group_len
    assert [t.tolist() for t in tree.perm_rot] == [
        rows.tolist() for rows in expected.perm_rot
    ]
    if config.layout == "perfect":
        assert tree.mask.tolist() == expected.mask.tolist()
    else:
        assert tree.mask is None
    assert tree.node_ptr.tolist() == ptr.tolist()
    assert tree.runs == ()
    tree.validate(pos.size(0), config, ptr)
    tree.validate(pos.size(0), config)
    return tree


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


def coincident(n, dim):
    return torch.zeros(n, dim)


def duplicates(n, dim):
    return random_pos(n, dim)[torch.arange(n) % 7]


def grid(n, dim):
    return torch.randint(-2, 3, (n, dim), generator=torch.Generator().manual_seed(n))


def signed_zeros(n, dim):
    return torch.where(grid(n, dim) > 0, 0.0, -0.0)


def uniform(n, dim):
    return random_pos(n, dim, seed=1).abs()


def clustered(n, dim):
    return random_pos(16, dim, seed=2)[torch.arange(n) % 16] + 0.01 * random_pos(n, dim)


def far_point(n, dim):
    # All other points fall into the same cell of the range.
    pos = uniform(n, dim)
    pos[n // 2] = 1e9
    return pos


def many_magnitudes(n, dim):
    return random_pos(n, dim) * torch.exp2(-60 * uniform(n, dim))


def denormal(n, dim):
    return random_pos(n, dim) * 1e-40


def huge(n, dim):
    return random_pos(n, dim).clamp(-3, 3) * 1e38  # extents and sums overflow


def one_constant_axis(n, dim):
    pos = uniform(n, dim)
    pos[:, 0] = -2.0
    return pos


def few_values(n, dim):
    return (20 * random_pos(n, dim)).round()


def periodic_outliers(n, dim):
    pos = uniform(n, dim)
    pos[::8] += 100  # a sample of every eighth point has another distribution
    return pos


KINDS = [
    *[uniform, clustered, far_point, many_magnitudes, denormal, huge],
    *[one_constant_axis, few_values, signed_zeros, coincident, periodic_outliers],
]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the oracle
@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("make", KINDS)
def test_any_distribution_of_points(make, dim, layout):
    # Sizes below and above those at which sorting and splitting change their method.
    sizes = [16, 17, 24, 25, 64, 65, 66, 130, 257]
    pos = torch.cat([make(n, dim) for n in sizes])
    config = {"ball_sizes": [16, 8], "strides": [2], "layout": layout}
    if make is huge:  # rotations overflow to both infinities, which the oracle lacks
        config["rotate"] = 0.0
    for dtype in [torch.float32, torch.float64]:
        assert_equals_oracle(pos.to(dtype), offsets(sizes), **config)


@pytest.mark.parametrize(
    ("n", "make"),
    [
        *[(16_384, far_point), (16_385, clustered)],
        *[(33_000, few_values), (33_000, periodic_outliers)],
    ],
)
def test_large_clouds(n, make, num_threads):
    num_threads(2)
    config = {"ball_sizes": 128, "strides": [2]}
    assert_equals_oracle(make(n, 3), offsets([n]), **config)


@pytest.mark.parametrize("n", [16_385, 32_768, 32_769, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("make", KINDS)
def test_large_clouds_on_two_threads(n, make, num_threads):
    pos = make(n, 3)
    config = {"ball_sizes": 1024, "strides": [2]}
    num_threads(1)
    tree = ball_tree(pos, **config)
    num_threads(2)
    assert_same(ball_tree(pos, **config), tree)
    assert_splits(balanced(n, 1024, [2]), pos.numpy(), tree.perm.numpy())


def assert_splits(node, pos, perm):
    """Large nodes are split along their widest axis, by coordinate and index."""
    if len(perm) <= 2048:
        return
    left, right = node.children
    ids = np.sort(perm)
    with np.errstate(over="ignore"):
        axis = np.argmax(pos[ids].max(0) - pos[ids].min(0))
    expected = ids[np.argsort(pos[ids, axis], kind="stable")]
    assert np.array_equal(np.sort(perm[: left.rows]), np.sort(expected[: left.rows]))
    assert_splits(left, pos, perm[: left.rows])
    assert_splits(right, pos, perm[left.rows :])


@pytest.mark.parametrize("ties", ["index", "coordinates"])
@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("make", [coincident, duplicates, grid, signed_zeros])
def test_ties(make, layout, ties):
    ptr = offsets(MIXED)
    # On a grid, rotated coordinates and centroids of three may differ only by rounding.
    strides = [2, 2] if layout == "perfect" else [3, 2]
    for dim in [1, 2, 3]:
        pos = make(int(ptr[-1]), dim).float()
        assert_equals_oracle(
            pos, ptr, ball_sizes=4, strides=strides, layout=layout, ties=ties
        )


def test_coincident_points_keep_their_order():
    tree = ball_tree(torch.ones(21, 3), ball_sizes=4, strides=[2])
    assert torch.equal(tree.perm, torch.arange(21))
    assert all(torch.equal(p, torch.arange(p.size(0))) for p in tree.perm_rot)


def test_negative_zero_counts_as_zero():
    pos = torch.tensor([[0.0], [-0.0], [0.0], [-0.0]])
    assert ball_tree(pos, ball_sizes=1).perm.tolist() == [0, 1, 2, 3]


def test_lowest_axis_wins_a_tie_of_extents():
    pos = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert ball_tree(pos, ball_sizes=1).perm.tolist() == [0, 1]


def test_huge_finite_coordinates():
    pos = random_pos(200) / random_pos(200).abs().max() * 3e38  # sums overflow
    tree = ball_tree(pos, ball_sizes=8, strides=[2, 2])
    for rows in [tree.perm, *tree.perm_rot]:
        assert torch.equal(rows.sort().values, torch.arange(rows.size(0)))


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


configs = st.integers(0, 4).flatmap(
    lambda strides: st.tuples(
        st.lists(st.integers(1, 40), min_size=strides + 1, max_size=strides + 1),
        st.lists(st.integers(1, 5), min_size=strides, max_size=strides),
    )
)


def tables(n, ball_sizes, strides):
    # Boundaries do not depend on coordinates; a line is fastest to build.
    pos = torch.arange(n, dtype=torch.float64).unsqueeze(1)
    return ball_tree(pos, ball_sizes=ball_sizes, strides=strides, rotate=0)


@given(st.integers(0, 1000), configs)
def test_invariants_of_every_configuration(n, config):
    ball_sizes, strides = config
    tree = tables(n, ball_sizes, strides)
    runs = set()
    for l, size in enumerate(ball_sizes):
        span = prod(strides[:l])
        rows = -(-n // span)
        assert tree.level[0, l] == rows == tree.num_rows(l)
        fills = tree.ball_len[l]
        assert fills.sum() == rows
        assert ((fills >= 1) & (fills <= size)).all()
        groups = [] if l == len(strides) else [tree.group_len[l]]
        for group in groups:
            assert group.sum() == rows
            assert (group[:-1] == strides[l]).all()
            assert ((group >= 1) & (group <= strides[l])).all()
        for lengths in [fills, *groups]:
            ends = (lengths.cumsum(0) * span).clamp(max=n).tolist()
            runs.update(zip([0, *ends], ends))
    # Runs are nodes of one tree, so two of them are nested or disjoint.
    open_ends = []
    for start, end in sorted(runs, key=lambda run: (run[0], -run[1])):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1]
        open_ends.append(end)


@st.composite
def dividing_configs(draw):
    """Strides whose product divides the ball size, as in all published models."""
    strides = draw(st.lists(st.integers(1, 4), max_size=3))
    size = prod(strides) * draw(st.integers(1, 8))
    levels = range(len(strides) + 1)
    doublings = [draw(st.integers(0, 3)) for _ in levels]
    ball_sizes = [size << doublings[0]]
    for l in levels[1:]:  # B_l S_l = 2^j B_0
        ball_sizes.append((ball_sizes[0] << doublings[l]) // prod(strides[:l]))
    return ball_sizes, strides


@given(st.integers(1, 20_000), dividing_configs())
def test_ball_counts_are_as_small_as_can_be(n, config):
    ball_sizes, strides = config
    tree = tables(n, ball_sizes, strides)
    for l, size in enumerate(ball_sizes):
        rows = int(tree.level[0, l])
        assert tree.ball_len[l].size(0) == -(-rows // size)
    blocks = -(-tree.ball_len[0] // prod(strides))
    assert blocks.max() - blocks.min() <= 1


@given(st.integers(1, 2_000), dividing_configs())
def test_invariants_of_the_definition(n, config):
    (size, *_), strides = config
    block = prod(strides)
    root = balanced(n, size, strides)

    def depth(node):
        if node.rows <= size:
            return 0
        left, right = node.children
        balls = len(maximal(left, lambda rows: rows <= size))
        assert balls & (balls - 1) == 0
        assert node.rows / 3 - block <= left.rows <= 2 * node.rows / 3 + block
        return 1 + max(depth(left), depth(right))

    assert depth(root) == (-(-n // size) - 1).bit_length()


@pytest.mark.parametrize(
    ("low", "high", "waste"), [(4_000, 16_000, 0.017), (16_000, 100_000, 0.004)]
)
def test_dense_view_wastes_little(low, high, waste):
    # Empty slots per point for log-uniform sizes, with balls of 256. On average half a
    # ball is empty, which gives 128 <1/n>. The numbers are exact to 0.1 %.
    sizes = np.geomspace(low, high, 51).astype(int)
    balls = [tables(n, 256, [2, 2]).ball_len[0].size(0) for n in sizes]
    assert np.mean(np.array(balls) * 256 / sizes - 1) == pytest.approx(waste, abs=5e-4)


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_same_bits_on_any_number_of_threads(layout, num_threads):
    # A cloud of more than 32,768 points is split by all threads together.
    pos, ptr = random_pos(60_000), offsets([40_000, 5, 0, 3_000, 16_995])
    config = {"ball_sizes": 128, "strides": [2, 2], "layout": layout}
    num_threads(1)
    expected = ball_tree(pos, ptr=ptr, **config)
    for threads in [2, 3, 4]:
        num_threads(threads)
        assert_same(ball_tree(pos, ptr=ptr, **config), expected)


# This process uses the best one; a level that the processor lacks changes nothing.
@pytest.mark.parametrize("level", ["default", "avx2"])
def test_same_bits_with_every_instruction_set(level, tmp_path):
    # Sizes with every remainder after division by 4 and 16, the records per vector
    # step.
    cases = [
        (make(sum(sizes), dim), offsets(sizes))
        for make in (uniform, few_values, clustered)
        for dim in (2, 3)
        for sizes in ([16_385, 16_391], [36_866], [40_007])
    ]
    path = tmp_path / "trees.pt"
    torch.save(cases, path)
    script = (
        "import sys; path, *sys.path[:0] = sys.argv[1:]; import torch, test_tree; "
        "torch.save([test_tree.tensors_of(*c) for c in torch.load(path)], path)"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": level}
    args = [sys.executable, "-c", script, str(path), *sys.path]
    subprocess.run(args, check=True, env=environment)
    for case, expected in zip(cases, torch.load(path), strict=True):
        for a, b in zip(tensors_of(*case), expected, strict=True):
            assert torch.equal(a, b)


def tensors_of(pos, ptr):
    tree = ball_tree(pos, ptr=ptr, ball_sizes=128, strides=[2])
    return [tree.perm, *tree.perm_rot]


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


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python >= 3.12
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_after_a_multi_threaded_build(method, num_threads):
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform cannot {method}")
    num_threads(2)
    clouds = [Data(pos=random_pos(20_000, seed=seed)) for seed in range(3)]
    config = {"ball_sizes": 128, "strides": [2]}
    expected = [ball_tree(data.pos, **config) for data in clouds]
    loader = DataLoader(
        clouds,
        collate_fn=Compose([BallTree(**config)]),
        num_workers=1,
        multiprocessing_context=method,
        timeout=120,  # seconds; a deadlock would hang
    )
    for (data,), tree in zip(loader, expected, strict=True):
        assert torch.equal(data.perm, tree.perm)
        assert torch.equal(data.perm_rot_1, tree.perm_rot[1])


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


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("sizes", [[], [0], [1], [9, 0, 33], [5, 12, 0]])
def test_update_is_the_tree_of_moved_points(sizes, layout):
    ptr = offsets(sizes)
    pos, moved = (random_pos(int(ptr[-1]), seed=seed) for seed in (1, 2))
    config = {"ball_sizes": 8, "strides": [2], "layout": layout}
    tree, expected = (ball_tree(p, ptr=ptr, **config) for p in (pos, moved))
    for max_points in (None, max(sizes, default=0)):
        updated = tree.update(moved, max_points)
        assert_same(updated, expected)
        assert updated.config == tree.config
        assert updated.node_ptr is tree.node_ptr
        assert all(a is b for a, b in zip(updated.ball_len, tree.ball_len))


def test_update_refuses_other_nodes():
    tree = ball_tree(random_pos(10), ball_sizes=4)
    with pytest.raises(ValueError, match=r"each of the tree's 10 nodes \(got 9\)"):
        tree.update(random_pos(9))
    with pytest.raises(ValueError, match="finite"):
        tree.update(torch.full((10, 3), float("nan")))


@pytest.mark.parametrize("padded", [False, True])
def test_update_refuses_larger_clouds(padded):
    sizes, pos = [6, 10], random_pos(16)
    tree = ball_tree(pos, ptr=offsets(sizes), ball_sizes=4)
    if padded:
        sizes, pos = [6, 10, 4], random_pos(20)
        tree = tree.pad(20, 3)
    assert_same(tree.update(pos, max_points=10), tree.update(pos))
    with pytest.raises(ValueError, match=r"'max_points' must be at least 10"):
        tree.update(pos, max_points=9)
    for value, error in ((-1, ValueError), (10.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="'max_points' must be"):
            tree.update(pos, max_points=value)
    with pytest.raises(ValueError, match="'pos' is on meta, the tree is on cpu"):
        tree.update(pos.to("meta"))


@pytest.mark.parametrize("padded", [False, True])
def test_other_clouds_are_refused(padded):
    sizes, tree = [6, 10], ball_tree(random_pos(16), ptr=offsets([6, 10]), ball_sizes=4)
    if padded:
        sizes, tree = [6, 10, 4], tree.pad(20, 3)
    tree.validate(sum(sizes), tree.config, offsets(sizes))
    tree.validate(sum(sizes), tree.config, offsets(sizes), values=False)
    message = "'ptr' must be the offsets of the clouds that the tree was built for"
    for others in ([7, 9, 4], [16, 0, 4], [16, 4], [6, 10, 0, 4]):
        others = others if padded else others[:-1]
        same_number, own = len(others) == len(sizes), offsets(sizes).tolist()
        found = rf", {own}".replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(ValueError, match=message + (found if same_number else ",")):
            tree.validate(sum(sizes), tree.config, offsets(others))
        # An error that a device reports is not a ValueError.
        error = RuntimeError if same_number else ValueError
        with pytest.raises(error, match=message):
            tree.validate(sum(sizes), tree.config, offsets(others), values=False)


def test_update_is_compiled_with_the_model():
    def function(pos, tree):
        tree = tree.update(pos)
        return pos[tree.perm] * 2.0, tree.perm_rot[1]

    torch.compiler.reset()
    compiled = torch.compile(
        function, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for n in [9, 30, 50]:
        tree = ball_tree(random_pos(n), ball_sizes=4, strides=[2])
        pos = random_pos(n, seed=1)
        for a, b in zip(compiled(pos, tree), function(pos, tree), strict=True):
            assert torch.equal(a, b)


def test_rows_of_a_batch():
    ptr = offsets([5, 0, 3])
    pos = random_pos(8)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=2, strides=[2])
    assert tree.level.tolist() == [[5, 3], [0, 0], [3, 2]]
    assert tree.num_rows(0) == 8
    assert tree.num_rows(1) == 5
    assert tree.batch(0).tolist() == [0, 0, 0, 0, 0, 2, 2, 2]
    assert tree.batch(1).tolist() == [0, 0, 0, 2, 2]
    assert tree.num_nodes == 8
    assert tree.node_ptr.tolist() == tree.ptr().tolist() == [0, 5, 5, 8]
    assert tree.ptr(1).tolist() == [0, 3, 3, 5]
    assert tree.global_perm().tolist() == [
        *tree.perm[:5].tolist(),
        *(tree.perm[5:] + 5).tolist(),
    ]
    assert tree.global_perm_rot(1).tolist() == [
        *tree.perm_rot[1][:3].tolist(),
        *(tree.perm_rot[1][3:] + 3).tolist(),
    ]


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, 45.0])
@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 30, 1], [0, 16, 0]])
def test_all_rows_of_a_batch_at_once(sizes, rotate, layout):
    ptr = offsets(sizes)
    options = {"ball_sizes": 4, "strides": [2, 2], "rotate": rotate, "layout": layout}
    tree = ball_tree(random_pos(sum(sizes)), ptr=ptr, **options)
    order = tree.order()
    assert torch.equal(order.perm, tree.global_perm())
    assert len(order.perm_rot) == (3 if rotate else 0)
    for l, actual in enumerate(order.perm_rot):
        assert torch.equal(actual, tree.global_perm_rot(l))
    assert order.num_nodes == tree.num_nodes == sum(sizes)
    assert order.repeats == (layout == "perfect")
    assert tree.order(sum(sizes)).num_nodes == sum(sizes)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
@pytest.mark.parametrize("rotate", [0.0, -12.5])
@pytest.mark.parametrize("runs", [(), ([2, 8], [1])])
def test_tree_is_a_nest_of_tensors(runs, layout, rotate):
    config = TreeConfig(4, [2], rotate, layout, runs=runs)
    tree = build_tree(random_pos(20), None, config)
    leaves, spec = pytree.tree_flatten(tree)
    count = 6 + (2 if rotate else 0) + (layout == "perfect") + sum(map(len, runs))
    assert len(tensors(tree)) == count
    assert_same(pytree.tree_unflatten(leaves, spec), tree)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(tree)]
    assert len(paths) == len(set(paths)) == len(leaves)
    for other in [
        copy.copy(tree),
        copy.deepcopy(tree),
        pickle.loads(pickle.dumps(tree)),
        tree.to("cpu"),
        pytree.treespec_loads(pytree.treespec_dumps(spec)).unflatten(leaves),
    ]:
        assert_same(other, tree)


def test_tree_is_loaded_as_weights_are(tmp_path):
    tree = ball_tree(random_pos(20), ball_sizes=4, strides=[2])
    torch.save(tree, tmp_path / "tree.pt")
    assert_same(torch.load(tmp_path / "tree.pt", weights_only=True), tree)


def without_the_last_row(tree):
    return dataclasses.replace(tree, perm=tree.perm[:-1])


def of_another_cloud(tree):
    other = build_tree(random_pos(12), offsets([5, 7]), tree.config)
    return dataclasses.replace(other, node_ptr=tree.node_ptr)


def with_a_repeated_row(tree):
    return dataclasses.replace(tree, perm=torch.tensor([0] * 6 + [0] * 6))


def with_a_row_outside(tree):
    return dataclasses.replace(tree, perm=torch.tensor([*range(6), *range(1, 7)]))


def with_filtered_balls(tree):
    return dataclasses.replace(tree, ball_len=(tree.ball_len[0][:-1], tree.ball_len[1]))


def with_filtered_groups(tree):
    return dataclasses.replace(tree, group_len=(tree.group_len[0][:-1],))


def with_a_filtered_rotation(tree):
    return dataclasses.replace(tree, perm_rot=(tree.perm_rot[0], tree.perm_rot[1][1:]))


def with_one_cloud(tree):
    return dataclasses.replace(tree, node_ptr=torch.tensor([0, 12]))


def with_offsets_of_fewer_nodes(tree):
    return dataclasses.replace(tree, node_ptr=torch.tensor([0, 6, 11]))


def with_descending_offsets(tree):
    return dataclasses.replace(tree, node_ptr=torch.tensor([0, 13, 12]))


def with_a_run_less(tree):
    return dataclasses.replace(tree, runs=((tree.runs[0][0][1:],), tree.runs[1]))


def with_other_runs(tree):
    return dataclasses.replace(tree, runs=((tree.runs[0][0].flip(0),), tree.runs[1]))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (with_one_cloud, r"'level' has shape \[2, 2\], expected \[1, 2\]"),
        (with_offsets_of_fewer_nodes, "'node_ptr' must end at the number of rows 12"),
        (with_descending_offsets, "'node_ptr' must not descend .entry 1 is 13"),
        (without_the_last_row, "'perm' has 11 entries for 12 nodes"),
        (of_another_cloud, "'level' has 5 rows on level 0 of cloud 0, not 6"),
        (with_a_repeated_row, "'perm' is not .* of cloud 0"),
        (with_a_row_outside, "'perm' is not .* of cloud 1"),
        (with_filtered_balls, "'ball_len_0' has 3 entries, expected 4"),
        (with_filtered_groups, "'perm_rot_1' has 6 entries for 5 rows"),
        (with_a_filtered_rotation, "'perm_rot_1' has 5 entries for 6 rows"),
        (with_a_run_less, "'runs_0' has 3 entries, expected 4"),
        (with_other_runs, "'runs_0' has 2 at 0, expected 4"),
    ],
)
@pytest.mark.parametrize("ptr", [None, offsets([6, 6])], ids=["own", "given"])
def test_a_stale_tree_is_refused(damage, problem, ptr):
    config = TreeConfig(4, [2], runs=[[5], [3]])
    tree = build_tree(random_pos(12), offsets([6, 6]), config)
    tree.validate(12, config, ptr)
    with pytest.raises(
        ValueError, match=f"does not fit its data: {problem}.*'BallTree'"
    ):
        damage(tree).validate(12, config, ptr)


def test_a_stale_mask_is_refused():
    tree = ball_tree(random_pos(6), ball_sizes=4, layout="perfect")
    tree.validate(6, tree.config, offsets([6]))
    stale = dataclasses.replace(tree, mask=torch.ones(8, dtype=torch.bool))
    with pytest.raises(ValueError, match="'mask' does not keep a row for every node"):
        stale.validate(6, tree.config, offsets([6]))


def damaged(tree):
    """The tree with one number of one table changed, or two of them exchanged."""
    leaves, spec = pytree.tree_flatten(tree)
    for i, table in enumerate(leaves):
        if table is None:
            continue
        for place in {0, table.numel() // 2, table.numel() - 1} - {-1}:
            flat = table.flatten().clone()
            values = [int(flat[place]) + 1, int(flat[place]) - 1, -1, 2**62, len(flat)]
            if table.dtype == torch.bool:
                values = [~flat[place]]
            for value in values:
                other = flat.clone()
                other[place] = value
                if torch.equal(flat, other):
                    continue
                new = [*leaves[:i], other.view(table.shape), *leaves[i + 1 :]]
                yield pytree.tree_unflatten(new, spec)


def across_clouds(tree):
    """The tree with a run that includes rows of two clouds; totals are unchanged."""
    for name in ("ball_len", "group_len", "runs"):
        tables, spec = pytree.tree_flatten(getattr(tree, name))
        for l, table in enumerate(tables):
            for i in range(len(table) - 1):
                moved = table.clone()
                moved[i] += 1
                moved[i + 1] -= 1
                new = [*tables[:l], moved, *tables[l + 1 :]]
                yield dataclasses.replace(
                    tree, **{name: pytree.tree_unflatten(new, spec)}
                )
    for l in range(len(tree.perm_rot)):
        ends = tree.level[:, l].cumsum(0)
        for i, end in enumerate(ends[:-1].tolist()):
            # Rows of the next cloud, counted from the start of this one.
            rows, size = tree.perm_rot[l].clone(), int(tree.level[i, l])
            if 0 < end < len(rows) and size > 0:
                rows[end - 1], rows[end] = rows[end] + size, rows[end - 1] - size
                tables = [*tree.perm_rot]
                tables[l] = rows
                yield dataclasses.replace(tree, perm_rot=tuple(tables))


@pytest.mark.parametrize("sizes", [[1], [2], [8, 9], [7, 0, 1, 30, 16], [0, 17, 17]])
@pytest.mark.parametrize(
    ("layout", "padded"), [("balanced", 0), ("balanced", 50), ("perfect", 0)]
)
@pytest.mark.parametrize("runs", [(), ([4, 16], [], [1])])
def test_no_number_of_a_tree_may_change(runs, layout, padded, sizes):
    n = sum(sizes)
    ptr, config = offsets(sizes), TreeConfig(8, [2, 2], layout=layout, runs=runs)
    tree = build_tree(random_pos(n), ptr, config)
    if padded:
        tree = tree.pad(n + padded, len(sizes) + 2)
        ptr = torch.tensor([*ptr, n + padded, n + padded])
    tree.validate(n + padded, config, ptr)
    count = 0
    for wrong in (*damaged(tree), *across_clouds(tree)):
        count += 1
        with pytest.raises(ValueError, match="does not fit its data"):
            wrong.validate(n + padded, config)
    assert count > 20


def test_shapes_are_checked_without_values():
    tree = ball_tree(random_pos(12), ptr=offsets([6, 6]), ball_sizes=4)
    other = dataclasses.replace(tree, node_ptr=offsets([5, 7]))
    for ptr in (None, offsets([5, 7])):
        other.validate(12, tree.config, ptr, values=False)
        with pytest.raises(ValueError, match=r"'level' has 6 rows .*, not 5"):
            other.validate(12, tree.config, ptr)
    with pytest.raises(ValueError, match="'perm' has 12 entries for 13 nodes"):
        tree.validate(13, tree.config, offsets([6, 7]), values=False)


def test_a_tree_for_other_ball_sizes_is_refused():
    tree = ball_tree(random_pos(12), ball_sizes=4)
    with pytest.raises(ValueError, match=r"'balls=4 .* needed is 'balls=8 .*transform"):
        tree.validate(12, TreeConfig(8, ()), offsets([12]))


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


MALFORMED = {
    "int32 perm": (lambda t: {"perm": t.perm.int()}, "'perm' is torch.int32"),
    "perm of two dimensions": (lambda t: {"perm": t.perm[None]}, "2 dimensions"),
    "missing level": (
        lambda t: {"ball_len": t.ball_len[:1]},
        "'ball_len' has 1 tables, expected 2",
    ),
    "no rotated tree": (
        lambda t: {"perm_rot": ()},
        "'perm_rot' has 0 tables, expected 2",
    ),
    "another device": (
        lambda t: {"level": t.level.to("meta")},
        "'level' is on meta, the nodes on cpu",
    ),
    "int32 node_ptr": (
        lambda t: {"node_ptr": t.node_ptr.int()},
        "'node_ptr' is torch.int32",
    ),
    "runs that nobody asked for": (
        lambda t: {"runs": ((t.ball_len[0],), ())},
        "'runs' has 1 tables, expected 0",
    ),
}


@pytest.mark.parametrize("change, message", MALFORMED.values(), ids=[*MALFORMED])
def test_a_malformed_tree_is_refused(change, message):
    tree = ball_tree(torch.rand(20, 3), ball_sizes=[4, 4], strides=[2])
    tree = dataclasses.replace(tree, **change(tree))
    ptr = torch.tensor([0, 20])
    with pytest.raises(ValueError, match=message):
        tree.validate(20, tree.config, ptr, values=False)


def run_sizes(levels):
    sizes = st.lists(st.integers(1, 60), max_size=2)
    return st.just([]) | st.lists(sizes, min_size=levels, max_size=levels)


@st.composite
def padded_cases(draw):
    levels = draw(st.integers(1, 4))
    config = TreeConfig(
        draw(st.lists(st.integers(1, 40), min_size=levels, max_size=levels)),
        draw(st.lists(st.integers(1, 6), min_size=levels - 1, max_size=levels - 1)),
        draw(st.sampled_from([0.0, 45.0])),
        runs=draw(run_sizes(levels)),
    )
    sizes = draw(st.lists(st.integers(0, 300), max_size=5))
    extra = draw(st.integers(0, 100)), draw(st.integers(1, 3))
    return config, sizes, extra


def assert_padded(tree, config, sizes, num_nodes, num_clouds):
    padded = tree.pad(num_nodes, num_clouds)
    rows, balls = config.padded_sizes(num_nodes, num_clouds)
    padded.validate(
        num_nodes,
        config,
        offsets([*sizes, num_nodes - sum(sizes), *[0] * (num_clouds - len(sizes) - 1)]),
    )
    assert padded.real.tolist() == [i < len(sizes) for i in range(num_clouds)]
    assert padded.level[: len(sizes)].tolist() == tree.level.tolist()
    for l in range(config.num_levels):
        assert padded.num_rows(l) == rows[l]
        assert len(padded.ball_len[l]) == balls[l]
        before = tree.num_rows(l)
        assert padded.real_rows(l).tolist() == [i < before for i in range(rows[l])]
        runs = [(tree.ball_len[l], padded.ball_len[l], config.ball_sizes[l])]
        if l > 0:
            groups = tree.group_len[l - 1], padded.group_len[l - 1]
            runs.append((*groups, config.strides[l - 1]))
        for i, size in enumerate(config.runs_of(l)):
            own, lengths = tree.runs[l][i], padded.runs[l][i]
            assert len(lengths) == config.padded_runs(l, size, rows[l], num_clouds)
            runs.append((own, lengths, size))
        for own, lengths, size in runs:
            # No run contains both real and added rows.
            assert torch.equal(lengths[: len(own)], own)
            assert all(0 <= n <= size for n in lengths.tolist())
        if config.rotate:
            perm = padded.global_perm_rot(l)
            assert torch.equal(perm[:before], tree.global_perm_rot(l))
            assert perm[before:].tolist() == [*range(before, rows[l])]


@given(padded_cases())
def test_padded_tree(case):
    config, sizes, (nodes, clouds) = case
    tree = build_tree(random_pos(sum(sizes)), offsets(sizes), config)
    assert_padded(tree, config, sizes, sum(sizes) + nodes, len(sizes) + clouds)


@pytest.mark.parametrize("balls, strides", CONFIGS, ids=str)
def test_any_cloud_is_padded_to_the_same_sizes(balls, strides):
    config = TreeConfig(balls, strides, runs=[[2, 32]] * len(balls))
    for n in ALL_SIZES:
        tree = build_tree(random_pos(n), None, config)
        for num_nodes in (n, n + 1, n + 17):
            assert_padded(tree, config, [n], num_nodes, 2)


@given(padded_cases())
def test_padded_tree_of_moved_points(case):
    config, sizes, (nodes, clouds) = case
    n = sum(sizes)
    num_nodes, num_clouds = n + nodes, len(sizes) + clouds
    pos, moved = random_pos(num_nodes), random_pos(num_nodes, seed=1)
    padded = build_tree(pos[:n], offsets(sizes), config).pad(num_nodes, num_clouds)
    expected = build_tree(moved[:n], offsets(sizes), config)
    assert_same(padded.update(moved), expected.pad(num_nodes, num_clouds))
    with pytest.raises(ValueError, match=f"for each of the tree's {num_nodes} nodes"):
        padded.update(random_pos(num_nodes + 1))


def test_what_cannot_be_padded():
    tree = ball_tree(random_pos(10), ball_sizes=4)
    with pytest.raises(ValueError, match=r"'num_clouds' must be above 1, the clouds"):
        tree.pad(20, 1)
    with pytest.raises(ValueError, match=r"'num_nodes' must be at least 10"):
        tree.pad(9, 2)
    with pytest.raises(ValueError, match="the tree is padded already"):
        tree.pad(20, 2).pad(30, 3)
    with pytest.raises(ValueError, match=r"padding needs layout='balanced'"):
        ball_tree(random_pos(10), ball_sizes=4, layout="perfect").pad(20, 2)


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
