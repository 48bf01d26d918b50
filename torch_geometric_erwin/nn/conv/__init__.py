r"""Message-passing layers."""

from torch_geometric_erwin.nn.conv.hybrid_conv import HybridConv
from torch_geometric_erwin.nn.conv.mpnn_conv import MPNNConv

__all__ = ["HybridConv", "MPNNConv"]
