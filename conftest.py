from importlib.util import find_spec

# Their doctests are collected where they can be imported.
collect_ignore = [] if find_spec("triton") else ["torch_geometric_erwin/ops/triton"]
