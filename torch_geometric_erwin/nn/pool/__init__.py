r"""Coarsening and refinement layers."""

from torch_geometric_erwin.nn.pool.ball_pooling import BallPooling, BallUnpooling

__all__ = ["BallPooling", "BallUnpooling"]
