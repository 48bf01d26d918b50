"""The same tree from every number of threads, instruction set and process."""

import pytest
import torch
from comparisons import assert_same, orders
from distributions import clustered, few_values, uniform
from instruction_sets import computed_with
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.transforms import Compose
from trees import offsets, random_pos

from torch_geometric_erwin import ball_tree
from torch_geometric_erwin.transforms import BallTree


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
    found = computed_with(level, tmp_path / "args", "comparisons", "orders", cases)
    for actual, expected in zip(found, orders(cases), strict=True):
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)


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
