"""Why no page can be drawn, before anything of matplotlib or numpy is imported."""

import importlib.util
from pathlib import Path

from ..checks.problem import Problem


def page_problems(flag: str, page: Path | None, what: str) -> list[Problem]:
    """None where a page can be drawn.

    Args:
        flag: that names the page.
        page: its file, None where the user named none.
        what: is drawn.
    """
    problems = []
    if importlib.util.find_spec("matplotlib") is None:
        fix = "pip install 'grove-megatron[report]'"
        problems.append(Problem("matplotlib", "not installed", f"draws {what}; {fix}"))
    if page is not None and page.suffix != ".html":
        problems.append(Problem(flag, page, "does not end in (.html); name the page"))
    return problems
