"""Every parser of Megatron's reads the sources of its configuration classes, for their help."""

import ast
import functools
import inspect
import sys
from types import SimpleNamespace


def read_sources_once() -> None:
    """In this process, if it has imported Megatron, and in those that it forks."""
    inspect.getsource = functools.cache(inspect.getsource)
    if module := sys.modules.get("megatron.training.argument_utils"):
        module.ast = SimpleNamespace(**{**vars(ast), "parse": functools.cache(ast.parse)})
