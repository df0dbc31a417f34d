"""The kinds of rows of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..checks.flags import flag_of
from ..checks.problem import Problem

Compare = Literal["neutral", "losses", "math", "layout", "runs"]


@dataclass(frozen=True, kw_only=True)
class Works:
    """A use of one or more switches that a test runs.

    Args:
        name: of the test.
        flags: the switches, as on a command line.
        layout: further flags, of the run it is compared with too.
        ranks: processes.
        simulated: ranks that the one process stands for; 0: none but itself.
        compare: ``neutral``: losses and all gradients are those of the same layout without the
            switches; ``losses``: the losses are, with other rounding some tokens choose other
            experts; ``math``: it computes something else, and with the adjugates' scale at 0 what
            Megatron's own layer computes with the same switches; ``layout``: from the same
            weights, losses and gradient norms are those without the switches; ``runs``: it runs,
            and what it counts adds up.
        tolerance: relative, of losses and, to the largest entry of each, of gradients.
        needs: what there must be: ``cuda``, ``te`` (TransformerEngine, and so CUDA), ``mxfp8``
            (TransformerEngine on a GPU with this format), ``einops``.
        beside_megatron: whether Megatron's own layer can run with these flags; then it is compared
            with at scale 0 whatever ``compare`` says.
        tests: other tests of it, as pytest names them.
        note: what a user should know.
    """

    name: str
    flags: str
    layout: str = ""
    ranks: int = 2
    simulated: int = 0
    compare: Compare = "neutral"
    tolerance: float = 1e-5
    needs: Literal["", "cuda", "te", "mxfp8", "einops"] = ""
    beside_megatron: bool = True
    tests: tuple[str, ...] = ()
    note: str = ""

    @property
    def switches(self) -> list[str]:
        return [word for word in self.flags.split() if word.startswith("--")]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A value that is refused at start.

    Args:
        setting: name of the argument, and of the field of the configuration if it has one.
        flags: an example, as on a command line.
        reason: why, and what to do instead; goes on after ``--flag (value)``.
        when: is this value refused, beside the other settings? By default: is it set?
        of: what does not take it. ``layer``: this package's layer, or the run altogether.
            ``groups``: groups and their adjugates; not tried in a plain MoE with
            ``--grove-dispatch``, so refused there too, without this reason. ``scoring``:
            ``--grove-router-scoring grove`` alone, whose rules are in config.py.
    """

    setting: str
    flags: str
    reason: str
    when: Callable[[Any, Any], bool] = lambda value, settings: bool(value)
    of: Literal["layer", "groups", "scoring"] = "layer"

    @property
    def switch(self) -> str:
        return flag_of(self.setting)

    def problem(self, settings: object) -> Problem | None:
        """The refusal of these settings, or None."""
        value = getattr(settings, self.setting, None)
        if value is None or self.of == "scoring" or not self.when(value, settings):
            return None
        plain = self.of == "groups" and not getattr(settings, "grove_num_groups", None)
        return Problem(self.switch, value, UNTRIED if plain else self.reason)


UNTRIED = "is not supported with --grove-dispatch; remove one of them"
"""Why a plain MoE does not take what is refused beside groups."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What no switch asks for, and works.

    Args:
        what: it is.
        tests: that show it, as pytest names them.
        note: what a user should know.
    """

    what: str
    tests: tuple[str, ...]
    note: str = ""
    switches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ignored:
    """Switches that do nothing to Grove layers: of other models, or of other parts of a model.

    Args:
        switches: their names, blanks between.
        reason: why.
    """

    names: str
    reason: str

    @property
    def switches(self) -> list[str]:
        return self.names.split()


@dataclass(frozen=True)
class Idle:
    """Switches that Megatron takes and does nothing with; said at start, not refused.

    Args:
        names: of the switches, blanks between.
        reason: why, or without what; goes on after ``--flag (value) does nothing``.
        when: beside these settings? By default always.
        group: a group of Megatron's ``--help`` of which this holds for all.
    """

    names: str
    reason: str
    when: Callable[[Any], bool] = lambda settings: True
    group: str = ""

    @property
    def switches(self) -> list[str]:
        return self.names.split()


def idle_without(setting: str, names: str) -> Idle:
    """Switches that are read only beside another one.

    Args:
        setting: of that one.
        names: of the switches, blanks between.
    """
    return Idle(names, f" without {flag_of(setting)}", lambda args: not getattr(args, setting))


@dataclass(frozen=True)
class Area:
    """A part of the table with its heading."""

    title: str
    rows: tuple[Works | Refused | Shown | Ignored | Idle, ...]
