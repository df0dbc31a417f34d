"""The records of several jobs, or everything that is wrong with them."""

from collections.abc import Sequence
from pathlib import Path

from .view import View


def read_all(places: Sequence[Path], run_id: str | None = None) -> tuple[list[View], list[str]]:
    """Read the records of folders.

    Args:
        places: see ``record.find_record``.
        run_id: of the run that is meant, of one record.

    Returns:
        the histories; and every problem, one line each: a record that cannot be read, a run that
        is given twice, also by a copy of its record.
    """
    views: list[View] = []
    problems = []
    if len(places) > 1 and run_id is not None:
        places_given = f"RUN_DIR are ({len(places)}); name one job"
        problems.append(f"--run ({run_id}) is of one record, {places_given}")
        run_id = None
    known: dict[tuple[str, float], Path] = {}
    for place in places:
        try:
            view = View.of(place, run_id)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        last = view.last.run
        before = known.setdefault((last.id, last.started), place)
        if before is not place:
            same = f"is of the same run ({last.id}) as RUN_DIR ({before}); name it once"
            problems.append(f"RUN_DIR ({place}) {same}")
        views.append(view)
    return views, problems
