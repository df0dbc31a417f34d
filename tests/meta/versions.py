"""The table in README.md of what the tests were run with.

``make test-latest`` runs this with the Python that ran the tests and the record they left:
``python tests/meta/versions.py runs/latest.xml`` puts a row for that Python in the place of its
last one. The row of the pinned versions is that of ``.ci/constraints.txt``. Standard library only.
"""

import platform
import re
import sys
import xml.etree.ElementTree as ET
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "megatron-core", "transformers", "numpy", "safetensors")
PINNED = "pinned, for every change"
_MARKED = re.compile(r"(<!-- versions -->\n).*?(<!-- end -->)", re.DOTALL)


def pinned(constraints: str) -> list[str]:
    """The cells of the pinned versions."""
    found = dict(line.split("==") for line in constraints.splitlines() if "==" in line)
    return ["3.12", *(found.get(name, "") for name in PACKAGES), PINNED]


def row_of_this_python(record: str) -> list[str]:
    """The cells of this Python and what is installed in it, with the outcome.

    Args:
        record: of the tests, in JUnit's format.
    """
    return [platform.python_version(), *map(_installed, PACKAGES), outcome(record)]


def outcome(record: str) -> str:
    suites = ET.fromstring(record).iter("testsuite")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for key in totals:
            totals[key] += int(suite.get(key, "0"))
    failed = totals["failures"] + totals["errors"]
    passed = totals.pop("tests") - sum(totals.values())
    said = [
        f"{passed} passed",
        f"{failed} failed" if failed else "",
        f"{totals['skipped']} skipped",
    ]
    return f"{', '.join(word for word in said if word)}, {date.today()}"


def rows(text: str) -> list[list[str]]:
    """The cells of the table in a document, without its heading."""
    found = _MARKED.search(text)
    lines = [line for line in (found[0] if found else "").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def filled(text: str, constraints: str, new: list[str] | None = None) -> str:
    """The document with the pinned row as it is now, and ``new`` for the same Python's old one."""
    kept = [row for row in rows(text) if row[-1] != PINNED]
    if new is not None:
        kept = [row for row in kept if _minor(row) != _minor(new)] + [new]
    heading = ["Python", *PACKAGES, "`make test`"]
    lines = [heading, ["---"] * len(heading), pinned(constraints), *sorted(kept)]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return _MARKED.sub(lambda match: match[1] + table + match[2], text)


def _minor(row: list[str]) -> str:
    return row[0].rpartition(".")[0]


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def main(records: list[str]) -> None:
    new = row_of_this_python(Path(records[0]).read_text(encoding="utf-8")) if records else None
    readme = ROOT / "README.md"
    constraints = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    text = filled(readme.read_text(encoding="utf-8"), constraints, new)
    readme.write_text(text, encoding="utf-8")
    print("\n".join(" | ".join(row) for row in rows(text)))


if __name__ == "__main__":
    main(sys.argv[1:])
