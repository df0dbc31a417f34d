"""``--grove-preset`` on a command line: what it fills in, what contradicts it, what is said."""

import copy
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from ..checks.flags import flag_of
from ..checks.problem import Problem
from .preset import Preset, spelled
from .table import MEGATRONS, PRESETS

_FLAG = "--grove-preset"


def read_presets(parser: ArgumentParser) -> None:
    """Have ``parser`` take the settings of a preset for its defaults.

    What is on the command line still wins, so that :func:`preset_problems` sees it.
    """
    original = parser.parse_known_args

    def parse_known_args(
        words: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> Any:
        words = sys.argv[1:] if words is None else [*words]
        filled = Namespace() if namespace is None else namespace
        if preset := _named(words):
            for name, value in preset.settings.items():
                if not hasattr(filled, name):
                    setattr(filled, name, copy.copy(value))
        # A default is for what the namespace has not.
        return original(words, filled)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]


def _named(words: Sequence[str]) -> Preset | None:
    """The preset of a command line; None also where the parser refuses what it says."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(_FLAG, nargs="?")
    return PRESETS.get(parser.parse_known_args(words)[0].grove_preset)


def preset_problems(args: Namespace) -> Iterator[Problem]:
    """Settings that are not those of the preset: of the command line, or of a checkpoint.

    Args:
        args: parsed, with what ``--use-checkpoint-args`` has restored, and not yet validated.
    """
    if (preset := _of(args)) is None:
        return
    unsaid = {name: MEGATRONS[name] for name in MEGATRONS if name not in preset.settings}
    for name, value in {**preset.settings, **unsaid}.items():
        given = getattr(args, name)
        if given != value:
            text = f"differs from {_FLAG} ({preset.name}), which has {spelled(name, value)}"
            # What a checkpoint has restored is on no command line.
            text += f"; remove {_FLAG}" if args.use_checkpoint_args else "; remove one of them"
            yield Problem(flag_of(name), spelled(name, given), text, (_FLAG,))


def preset_notices(args: Namespace) -> Iterator[str]:
    """What the preset stands for, and what is not as it was released, one line each."""
    if (preset := _of(args)) is None:
        return
    said = f"{_FLAG} ({preset.name})"
    yield f"{said} is {' '.join(preset.flags())}"
    active = "" if preset.active is None else f", {preset.active:,} of them active for a token"
    yield f"{said}: the released model has {preset.released:,} parameters{active}"
    if preset.built != preset.released:
        less = preset.released - preset.built
        count = f"{abs(less):,} {'fewer' if less > 0 else 'more'}"
        yield f"{said}: the model of its flags alone has {preset.built:,}, {count}"
    for one in preset.differs:
        count = f" ({one.parameters:+,} parameters)" if one.parameters else ""
        yield f"{said}: the released model has {one.what}{count}"


def _of(args: Namespace) -> Preset | None:
    return PRESETS.get(getattr(args, "grove_preset", None) or "")
