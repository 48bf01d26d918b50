r"""The cases by name."""

from importlib import import_module
from pkgutil import iter_modules

from benchmark.runner import Case


def all_cases() -> dict[str, Case]:
    r"""Imports all modules of this folder and returns the cases in their ``CASES``."""
    modules = [import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__)]
    cases = [case for module in modules for case in module.CASES]
    return {case.name: case for case in sorted(cases, key=lambda case: case.name)}
