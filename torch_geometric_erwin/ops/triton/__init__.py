r"""Ball attention on CUDA devices, in Triton.

Only :mod:`~torch_geometric_erwin.ops.ball_attention` imports the modules of this
folder, when an operator gets its first CUDA tensor: the package does not need Triton.
"""
