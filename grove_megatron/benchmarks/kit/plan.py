"""Which items a number of seconds is enough for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .items import ITEMS, Item

START = 25.0
"""Seconds to unpack the wheels and to import Megatron; an estimate, as those of the items."""
END = 3.0
"""Seconds kept to end what runs and to write the summary."""


@dataclass(frozen=True)
class Planned:
    """An item with when it begins, or with why it is left out."""

    item: Item
    begins: float | None
    why: str = ""

    @property
    def ends(self) -> float:
        assert self.begins is not None, "left out"
        return self.begins + self.item.expected


def smallest(items: Sequence[Item] = ITEMS) -> int:
    """The fewest whole seconds with which anything is run."""
    return int(START + END + min(item.least for item in items)) + 1


def seconds_of(word: str) -> float:
    """What was given as SECONDS.

    Raises:
        ValueError: no number, or too few seconds for any item.
    """
    try:
        seconds = float(word)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"SECONDS ({word}) is not a number above (0); give one, such as 480")
    if seconds < smallest():
        raise ValueError(
            f"SECONDS ({word}) is below ({smallest()}), which is the least with which an item is "
            "begun; give more"
        )
    return seconds


def is_begun(item: Item, left: float) -> str | None:
    """None, or why an item is not begun with so many seconds left."""
    if left < item.least + END:
        return f"{max(left - END, 0):.0f} s were left of the {item.least:.0f} s it needs"
    return None


def plan(
    seconds: float,
    items: Sequence[Item] = ITEMS,
    there: Callable[[str], bool] = lambda module: True,
) -> list[Planned]:
    """What runs if every item takes what it is expected to.

    An item that the time may not suffice for is begun if its ``least`` is there: what it finds
    before it is ended is kept.

    Args:
        there: is a module installed?
    """
    now, found = START, []
    for item in items:
        if item.needs and not there(item.needs):
            found.append(Planned(item, None, f"needs {item.needs} (not installed)"))
        elif why := is_begun(item, seconds - now):
            found.append(Planned(item, None, why))
        else:
            found.append(Planned(item, now))
            now = min(now + item.expected, seconds - END)
    return found


def shown(seconds: float, planned: Sequence[Planned]) -> str:
    """The plan as text."""
    lines = [f"{seconds:.0f} s; estimates for one H100", f"{'at':>6}  {'takes':>6}  item"]
    lines.append(f"{0:6.0f}  {START:6.0f}  unpack the wheels, import Megatron")
    for one in planned:
        if one.begins is None:
            lines.append(f"{'-':>6}  {one.item.expected:6.0f}  {one.item.name}: {one.why}")
            continue
        cut = " (may be cut off)" if one.ends > seconds - END else ""
        what = " ".join(one.item.words)
        lines.append(
            f"{one.begins:6.0f}  {one.item.expected:6.0f}  {one.item.name}{cut}  {what}".rstrip()
        )
    return "\n".join(lines)
