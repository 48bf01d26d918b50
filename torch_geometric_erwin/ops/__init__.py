r"""The native operators, one :obj:`torch.library` op (with its fake) a file.

Operators check nothing; the public functions built on them do.
"""
