"""Points that are distributed in ways that are difficult for a tree."""

import torch
from trees import random_pos


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
