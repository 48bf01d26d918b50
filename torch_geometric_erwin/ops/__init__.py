r"""The native operators, one :obj:`torch.library` op (with its fake) a file.

The public functions built on them check their arguments. Operators check values that a
traced graph does not have and that memory depends on: finite positions, and offsets.
"""
