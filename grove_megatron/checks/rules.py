"""Rules that many settings have, and their words: ``--flag (value) relation others; fix``."""

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any

from .flags import flag_of
from .problem import Problem, shown


class Check:
    """Asks settings, each by its name: that of a configuration's field, or of an argument.

    What is not set has no relation to others. ``why`` stands before the fix.

    Args:
        settings: a configuration, or Megatron's argument namespace.
        values: what is made of some of them, to be said in place of what was given.
    """

    def __init__(self, settings: Any, **values: Any) -> None:
        self._settings, self._values = settings, values

    def problem(self, sentence: str, **words: object) -> Problem:
        """``"{fp16} excludes {bf16}; give one of them"`` with each name as ``--flag (value)``.

        Args:
            sentence: begins with the setting that it is of. Text of a user is not part of it.
            words: what stands at the names that are no settings.
        """
        (start, first, _, _), *rest = Formatter().parse(sentence)
        assert not start, sentence
        assert first is not None, sentence
        text, about = "", []
        for between, name, _, _ in rest:
            text += between
            if name in words:
                text += str(words[name])
            elif name is not None:
                text += self.said(name)
                about.append(flag_of(name))
        return Problem(flag_of(first), self._value(first), text.lstrip(), tuple(about))

    def those(self, rules: Mapping[str, object]) -> Iterator[Problem]:
        """The sentences, as of :meth:`problem`, that are so.

        Args:
            rules: every sentence, and whether it is so.
        """
        return (self.problem(sentence) for sentence, is_so in rules.items() if is_so)

    def said(self, name: str) -> str:
        """``--flag (value)``."""
        return f"{flag_of(name)} ({shown(self._value(name))})"

    def missing(self, name: str, fix: str) -> Iterator[Problem]:
        """It has to be given."""
        return self.those({f"{{{name}}} is needed; {fix}": self._value(name) is None})

    def needs(self, name: str, other: str, fix: str, *, why: str = "") -> Iterator[Problem]:
        """It is of use with another alone."""
        value = self._value(name)
        is_so = (value or value == "") and not self._is_given(other)
        return self.those({f"{{{name}}} needs {{{other}}}{why}; {fix}": is_so})

    def excludes(self, name: str, other: str, fix: str, *, why: str = "") -> Iterator[Problem]:
        """Both are not to be given."""
        is_so = self._is_given(name) and self._is_given(other)
        return self.those({f"{{{name}}} excludes {{{other}}}{why}; {fix}": is_so})

    def at_least(
        self, name: str, least: float | str, fix: str = "", *, why: str = ""
    ) -> Iterator[Problem]:
        """It is a number from ``least`` up, or from another setting."""
        value, limit, said = self._value(name), *self._limit(least)
        is_so = value is not None and limit is not None and value < limit
        fix = fix or f"use {least} or more"
        return self.those({f"{{{name}}} is below {said}{why}; {fix}": is_so})

    def at_most(
        self, name: str, most: float | str, fix: str, *, why: str = ""
    ) -> Iterator[Problem]:
        """It is a number up to ``most``, or to another setting."""
        value, limit, said = self._value(name), *self._limit(most)
        is_so = value is not None and limit is not None and value > limit
        return self.those({f"{{{name}}} is above {said}{why}; {fix}": is_so})

    def multiple(self, name: str, of: str, fix: str, *, why: str = "") -> Iterator[Problem]:
        """It is a multiple of another."""
        value, unit = self._value(name), self._value(of)
        is_so = value and unit and value % unit
        return self.those({f"{{{name}}} is not a multiple of {{{of}}}{why}; {fix}": is_so})

    def divides(self, name: str, other: str, fix: str) -> Iterator[Problem]:
        """It divides another."""
        value, whole = self._value(name), self._value(other)
        is_so = value and whole and whole % value
        return self.those({f"{{{name}}} does not divide {{{other}}}; {fix}": is_so})

    def one_of(self, name: str, choices: Sequence[str], fix: str) -> Iterator[Problem]:
        """It is one of a few words."""
        sentence = f"{{{name}}} is not one of ({', '.join(choices)}); {fix}"
        return self.those({sentence: self._value(name) not in choices})

    def finite(self, name: str, fix: str, *, above: bool = False) -> Iterator[Problem]:
        """It is a finite number of 0 or more, or ``above`` it."""
        value, least = self._value(name), "above 0" if above else "of 0 or more"
        is_so = (value > 0 or (value == 0 and not above)) and value < float("inf")
        return self.those({f"{{{name}}} is not a finite number {least}; {fix}": not is_so})

    def _value(self, name: str) -> Any:
        return self._values[name] if name in self._values else getattr(self._settings, name)

    def _limit(self, of: float | str) -> tuple[Any, str]:
        return (self._value(of), f"{{{of}}}") if isinstance(of, str) else (of, f"{of}")

    def _is_given(self, name: str) -> bool:
        value = self._value(name)
        return value is not None and value is not False
