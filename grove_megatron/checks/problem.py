"""One problem of a command line, a configuration or a file, as everybody who asks gets it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """``flag (value) text``, where the text goes on with the relation and ends with the fix.

    Args:
        flag: what is wrong, as it was spelled: ``--moe-router-topk``, a file, a field.
        value: of it.
        text: ``is not between 1 and --num-experts (8); choose the experts per token``.
        about: the other flags that the text speaks of, which one change may mend as well.
    """

    flag: str
    value: object
    text: str
    about: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = " ".join(map(str, self.value)) if isinstance(self.value, list) else self.value
        return f"{self.flag} ({shown}) {self.text}"
