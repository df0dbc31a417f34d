"""Everything that would go wrong later, found before a process group or a model exists."""

import importlib
from argparse import Namespace

from ..arguments import LAYER_SPEC
from ..config import grove_problems, is_grove
from ..layer_spec import grove_layer_spec
from ..runtime import cpu_is_active
from .cpu_arguments import cpu_problems


def preflight(args: Namespace) -> list[str]:
    """Problems of a parsed, not yet validated command line, one line each.

    Args:
        args: Megatron's namespace with the Grove flags.
    """
    problems = grove_problems(args, num_experts=args.num_experts)
    problems += _spec_problems(args)
    if is_grove(args) and args.yaml_cfg is not None:
        problems.append(
            f"--yaml-cfg ({args.yaml_cfg}) replaces the command line and with it the --grove-* "
            "flags; use flags"
        )
    if cpu_is_active():
        problems += cpu_problems(args)
    return problems


def _spec_problems(args: Namespace) -> list[str]:
    """Megatron only logs a spec it cannot import, and trains its default layer instead."""
    if args.spec is None:
        return []
    ours = " ".join(LAYER_SPEC)
    shown = " ".join(args.spec)
    if len(args.spec) != 2:
        if args.spec == ["local"] and not is_grove(args):
            return []  # Megatron's own spelling, beside --attention-backend local
        return [f"--spec ({shown}) is not a module and a name; use --spec {ours}"]
    module_name, name = args.spec
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        return [
            f"--spec ({shown}) names a module that does not import ({error}); use --spec {ours}"
        ]
    if name not in vars(module):
        return [f"--spec ({shown}) names nothing in {module_name}; use --spec {ours}"]
    if is_grove(args) and vars(module)[name] is not grove_layer_spec:
        return [
            f"--spec ({shown}) is not the Grove layer that --grove-num-groups "
            f"({args.grove_num_groups}) asks for; use --spec {ours}, or remove the --grove-* flags"
        ]
    return []
