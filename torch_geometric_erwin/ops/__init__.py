r"""The operators of :obj:`torch.library`, each in a file with its fake.

The public functions that call them check their arguments. The operators themselves
check values that could lead to a wrong access to memory, because checks outside of them
do not see values while a graph is traced: that positions are finite, and the offsets.
"""
