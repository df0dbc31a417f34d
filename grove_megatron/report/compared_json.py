"""A comparison for machines."""

from collections.abc import Sequence
from math import isfinite, nan
from typing import Any

from .compared import Compared, Row, spread
from .systems import System, differing, settings_of


def as_json(of: Compared) -> dict[str, Any]:
    """What :func:`compared` found, for machines: all figures of every run, None for no number."""
    views = [row.view for row in of.every_row]
    settings = list(differing(views))

    def of_run(row: Row) -> dict[str, Any]:
        figures = {name: _number(row.figures.get(name, nan)) for name in of.names()}
        view, own = row.view, settings_of(row.view.last.run)
        return {
            "run_dir": None if view.place is None else str(view.place),
            "name": view.name,
            "run": view.last.run.id,
            "seed": row.seed,
            "iterations": [row.first, row.last],
            "train_iterations": row.train_iterations,
            "settings": {name: own.get(name) for name in settings},
            "figures": figures,
        }

    def of_system(system: System, rows: Sequence[Row]) -> dict[str, Any]:
        spreads = {name: spread(rows, name) for name in of.names()}
        return {
            "name": system.name,
            "seeds": len(rows),
            **{
                which: {name: _number(getattr(one, which)) for name, one in spreads.items()}
                for which in ("mean", "low", "high")
            },
            "runs": [of_run(row) for row in rows],
        }

    made = [of_system(system, rows) for system, rows in zip(of.systems, of.rows, strict=True)]
    return {"window": of.window, "common": of.common, "systems": made}


def _number(value: float) -> float | None:
    return value if isfinite(value) else None
