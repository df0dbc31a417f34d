"""Why no page can be drawn, before anything of matplotlib or numpy is imported."""

import importlib.util
from pathlib import Path


def page_problems(flag: str, page: Path | None, what: str) -> list[str]:
    """One line each; none where a page can be drawn.

    Args:
        flag: that names the page.
        page: its file, None where the user named none.
        what: is drawn.
    """
    problems = []
    if importlib.util.find_spec("matplotlib") is None:
        problems.append(
            f"matplotlib (not installed) draws {what}; pip install 'grove-megatron[report]'"
        )
    if page is not None and page.suffix != ".html":
        problems.append(f"{flag} ({page}) does not end in (.html); name the page")
    return problems
