r"""Message-passing layers."""

from torch_geometric_erwin.nn.conv.mpnn_conv import MPNNConv

__all__ = ["MPNNConv"]
