"""What a part needs and what it excludes, found by asking the rules."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from ..checks.flags import flag_of
from ..checks.problem import Problem
from ..config import grove_problems
from ..parts import registry
from ..parts.part import Part
from ..parts.slots import flag_fields
from . import small

# Beside what asks for every other part.
CANDIDATES = (
    "--moe-router-enable-expert-bias",
    "--moe-router-num-groups 4 --moe-router-group-topk 2",
    "--moe-expert-capacity-factor 1",
    "--moe-expert-capacity-factor 1 --moe-router-fusion",
    "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1",
    "--moe-router-load-balancing-type sinkhorn --moe-aux-loss-coeff 0",
    "--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 0.1",
    "--moe-z-loss-coeff 0.1",
    "--moe-z-loss-coeff 0.1 --moe-router-fusion",
    "--moe-router-fusion",
    "--moe-router-pre-softmax",
    "--moe-router-topk-scaling-factor 2",
    "--moe-router-force-load-balancing",
    "--moe-input-jitter-eps 0.01",
    "--moe-enable-routing-replay",
    "--overlap-moe-expert-parallel-comm",
    "--mlp-chunks-for-training 2",
    "--mtp-num-layers 1",
)
_WITHOUT_GROUPS: dict[str, object] = {
    "grove_num_groups": None,
    "grove_adjugate_ffn_hidden_size": None,
    "grove_dispatch": True,
}


@dataclass(frozen=True)
class Refused:
    """A command line that is refused.

    Args:
        flags: left out of it, or added.
        why: what is said, each with its fix.
    """

    flags: str
    why: tuple[Problem, ...]


def needed(part: Part) -> Iterator[Refused]:
    """The flags of ``tried`` without which the part is refused."""
    words = _of_flags(part.tried)
    for flags in words:
        args = small.parsed(" ".join(other for other in words if other != flags))
        if part.is_on(args) and (why := _problems(args)):
            yield Refused(flags, tuple(why))


def excluded(part: Part) -> Iterator[Refused]:
    """Flags that are refused beside the part and not without it, each reason once."""
    said: list[Problem] = []
    for flags, other in _candidates(part):
        why = [p for p in _refused_beside(part, flags, other) if p not in said]
        said += why
        if why:
            yield Refused(flags, tuple(why))


def _candidates(part: Part) -> list[tuple[str, Part | None]]:
    """Few flags first, so that a reason stands at what it is of."""
    others = [(other.tried, other) for other in registry.parts() if other is not part]
    found: list[tuple[str, Part | None]] = [*((flags, None) for flags in CANDIDATES), *others]
    return sorted(found, key=lambda pair: len(_of_flags(pair[0])))


def _refused_beside(part: Part, flags: str, other: Part | None) -> list[Problem]:
    own, beside = small.given(part.tried), small.given(flags)
    found: list[Problem] = []
    with_groups: dict[str, object] = {}
    for model in (with_groups, _WITHOUT_GROUPS):
        only = _with(model, own)
        if not part.is_on(only) or _problems(only):
            # Not in this model, whatever is beside it.
            continue
        both = _with(model, own, beside)
        if other is not None and other.slot == part.slot and not part.is_on(both):
            # In its place.
            continue
        others = _of_others(part, _with(model, beside))
        found += [p for p in _problems(both) if p not in others and p not in found]
    return found


def _of_others(part: Part, args: Namespace) -> list[Problem]:
    """What is said where the part is not; where it is by default, what does not name it."""
    name = flag_of(registry.setting(part)) if part.switch or part.slot in flag_fields() else None
    return [p for p in _problems(args) if not (part.is_on(args) and name in (p.flag, *p.about))]


def _with(*changes: dict[str, object]) -> Namespace:
    args = small.parsed()
    for change in changes:
        vars(args).update(change)
    return args


def _problems(args: Namespace) -> list[Problem]:
    return grove_problems(args, num_experts=args.num_experts)


def _of_flags(text: str) -> list[str]:
    """Each flag with its values."""
    return [f"--{flag}".strip() for flag in f" {text}".split(" --")[1:]]
