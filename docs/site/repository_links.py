"""Links between files of the repository become links between pages.

Our documents are read in two places: as files, where a link names a file beside this one, and as a
site, where many of those files are shown by a page that includes them. So a link is written for the
file, and here it is turned: to the page that shows its target, heading by heading where several
pages share a file; to a copy of the target where that is a file without a page; and to its bare
text where it is a folder. What does not exist is left to Sphinx, which refuses it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

_FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]`]|`[^`]*`)*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_OWN = re.compile(r"(?<!!)\]\((#[^)\s]+)\)")
_INCLUDE = re.compile(r"^:::\{include\} (\S+)\n((?::[a-z-]+: .*\n)*):::$", re.MULTILINE)
_BESIDE = "\n:::{toctree}\n:hidden:\n:glob:\n*\n:::\n"
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    docs = Path(app.srcdir)
    shown = pages_of_files(docs)

    def page_read(_app: Sphinx, docname: str, content: list[str]) -> None:
        content[0] = linked(content[0], docs / f"{docname}.md", docs / docname, docs, shown)
        if docname.endswith("/README"):  # a table of what is beside it
            content[0] += _BESIDE

    def include_read(_app: Sphinx, path: Path, _parent: str, content: list[str]) -> None:
        # Of the page only its last name is told, which several have: so its folder comes from env.
        page = docs / app.env.docname
        content[0] = linked(content[0], (docs / path).resolve(), page, docs, shown)

    app.connect("source-read", page_read)
    app.connect("include-read", include_read)
    return {"parallel_read_safe": True}


def slug(heading: str) -> str:
    """The anchor that GitHub and MyST give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def included(page: str, folder: Path) -> Iterator[tuple[Path, int, list[str], bool]]:
    """The files that a page includes: from which place, the headings it shows, and if all of it."""
    for match in _INCLUDE.finditer(page):
        path = (folder / match[1]).resolve()
        options = {
            name: value.strip("\"'")
            for name, value in re.findall(r"^:([a-z-]+): (.*)$", match[2], re.MULTILINE)
        }
        start, end = options.get("start-after", ""), options.get("end-before", "")
        text = path.read_text(encoding="utf-8")
        begin = text.index(start) + len(start)
        text = text[begin:]
        text = text[: text.index(end)] if end else text
        # What comes after a heading is under one of the page.
        yield path, begin, _headings(f"{start}\n{text}"), not options


def _headings(text: str) -> list[str]:
    return [slug(heading) for heading in _HEADING.findall(_FENCED.sub("", text))]


def pages_of_files(docs: Path) -> dict[tuple[Path, str], str]:
    """{(file, a heading or nothing): the page that shows it, with ``#`` and its heading there}."""
    some: dict[tuple[Path, str], str] = {}
    first: dict[Path, int] = {}
    whole: dict[tuple[Path, str], str] = {}
    for page in sorted(docs.rglob("*.md")):
        name, text = page.relative_to(docs).as_posix(), page.read_text(encoding="utf-8")
        whole[page.resolve(), ""] = name
        own = _headings(text)
        for path, begin, headings, is_all in included(text, page.parent):
            found = whole if is_all else some
            # Of pages that share a file, that with its beginning stands for it.
            if begin <= first.setdefault(path, begin):
                first[path], found[path, ""] = begin, name
            for n, heading in enumerate(headings):
                # The first may have been left out, for a heading of the page.
                shown = is_all or n or heading in own
                found.setdefault((path, heading), f"{name}#{heading}" if shown else name)
    return some | whole


def linked(
    text: str, source: Path, page: Path, docs: Path, shown: dict[tuple[Path, str], str]
) -> str:
    """A document with its links as they are for the page that shows it.

    Args:
        text: of ``source``, a file of the repository.
        page: path of the page in ``docs``, without a suffix.
    """

    def turned(match: re.Match[str]) -> str:
        target, anchor = (source.parent / match[2]).resolve(), match[3] or ""
        if target.is_dir():
            return match[1]
        found = shown.get((target, anchor.lstrip("#")))
        if found is None and (target, "") in shown:
            found = shown[target, ""] + anchor
        return f"[{match[1]}]({_from(page, docs / found if found else target)})"

    def own(match: re.Match[str]) -> str:
        """A heading of this file that another page shows."""
        found = shown.get((source.resolve(), match[1].lstrip("#")), "")
        if found.startswith(f"{page.relative_to(docs).as_posix()}.md") or not found:
            return match[0]
        return f"]({_from(page, docs / found)})"

    pieces, at = [], 0
    for fence in _FENCED.finditer(text):
        pieces += [_OWN.sub(own, _LINK.sub(turned, text[at : fence.start()])), fence[0]]
        at = fence.end()
    return "".join([*pieces, _OWN.sub(own, _LINK.sub(turned, text[at:]))])


def _from(page: Path, target: Path) -> str:
    return os.path.relpath(target, page.parent)
