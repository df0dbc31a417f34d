"""The site: links between files as links between pages, every README on a page, and pictures."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .fences import ROOT, documents, read

DOCS = ROOT / "docs"
PICTURES = sorted(path.stem for path in (DOCS / "pictures").glob("*.svg"))


def _module(folder: str, name: str) -> ModuleType:
    """A module of the site, which is no package."""
    sys.path.insert(0, str(DOCS / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def links() -> ModuleType:
    pytest.importorskip("sphinx")
    return _module("site", "repository_links")


FILES = {
    "README.md": "# A\n\n## What it is\n\n[b](b/README.md#more) [own](#how)\n\n## How\n\ntext\n",
    "b/README.md": "# B\n\n## More\n\n[up](../README.md#what-it-is) [code](x.py) [all](../b)\n",
    "b/x.py": "",
    "docs/index.md": "# Site\n\n:::{include} ../README.md\n:start-after: '# A'\n:end-before: "
    "'## How'\n:::\n",
    "docs/deep/how.md": "# How to\n\n:::{include} ../../README.md\n:start-after: '## How'\n:::\n",
    "docs/deep/b.md": ":::{include} ../../b/README.md\n:::\n",
}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "docs"


@pytest.mark.parametrize(
    ("file", "page", "text", "expected"),
    [
        # To the page that includes the file, and its heading.
        ("README.md", "index", "[b](b/README.md#more)", "[b](deep/b.md#more)"),
        ("b/README.md", "deep/b", "[up](../README.md)", "[up](../index.md)"),
        ("b/README.md", "deep/b", "[u](../README.md#what-it-is)", "[u](../index.md#what-it-is)"),
        # Two pages share a file: the one that has the heading; the page's own stands for it.
        ("README.md", "index", "[own](#how)", "[own](deep/how.md)"),
        ("README.md", "index", "[own](#what-it-is)", "[own](#what-it-is)"),
        # A file without a page, a folder, and what is left alone.
        ("b/README.md", "deep/b", "[code](x.py)", "[code](../../b/x.py)"),
        ("b/README.md", "deep/b", "[all](../b), more", "all, more"),
        ("README.md", "index", "[w](https://x.org/a)", "[w](https://x.org/a)"),
        ("README.md", "index", "![p](b/x.py)", "![p](b/x.py)"),
        ("README.md", "index", "```sh\n[b](b/README.md)\n```", "```sh\n[b](b/README.md)\n```"),
        # Missing: Sphinx looks for it and refuses.
        ("README.md", "index", "[n](none.md)", "[n](../none.md)"),
        ("b/README.md", "deep/b", "[n](../README.md#none)", "[n](../index.md#none)"),
    ],
)
def test_a_link_goes_to_the_page_of_its_file(
    file: str, page: str, text: str, expected: str, docs: Path, links: ModuleType
) -> None:
    shown = links.pages_of_files(docs)
    assert links.linked(text, docs.parent / file, docs / page, docs, shown) == expected


def test_every_readme_is_on_a_page(links: ModuleType) -> None:
    shown = {path for path, _ in links.pages_of_files(DOCS)}
    assert [name for name in documents() if (ROOT / name).resolve() not in shown] == []


def test_a_page_begins_with_what_its_reader_gets() -> None:
    """A heading and a paragraph, before another heading, a list or code."""
    for name in documents():
        if name.startswith("docs/") and not read(name).startswith(":::"):
            heading, blank, text = read(name).splitlines()[:3]
            assert heading.startswith("# "), name
            assert not blank, name
            assert re.match(r"[A-Z*`]|:::\{include\}", text), name


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_what_the_code_says(name: str) -> None:
    """Not how it is drawn, which depends on matplotlib: what, as the picture carries it."""
    pytest.importorskip("matplotlib")
    picture, style = _module("pictures", name), _module("pictures", "style")
    svg = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert style.facts_in(svg) == picture.facts(), "python docs/pictures/draw.py draws it anew"


def test_every_picture_is_drawn_and_shown_with_words() -> None:
    drawn = re.findall(r'"(\w+)": \w+', read_picture("draw.py"))
    assert sorted(drawn) == PICTURES
    shown = [
        match
        for name in documents()
        for match in re.findall(r"!\[([^\]]+)\]\(\.\./pictures/(\w+)\.svg\)", read(name))
    ]
    assert sorted(name for _, name in shown) == PICTURES
    # Whoever cannot see it reads what it shows.
    assert all(len(words) > 80 for words, _ in shown)


def read_picture(name: str) -> str:
    return (DOCS / "pictures" / name).read_text(encoding="utf-8")


def test_numbers_beside_pictures_are_those_drawn() -> None:
    pytest.importorskip("matplotlib")
    text = " ".join(read("docs/concepts/rows.md").split())
    rows = _module("pictures", "rows").facts()["rows"]
    for ranks, value in rows.items():
        assert f"{value:.2f} at {ranks}" in text
    nodes = _module("pictures", "nodes").facts()["pays_from"]
    two, four, eight = (f"{nodes[n]:g}" for n in ("2", "4", "8"))
    assert f"from a ratio of {two} with 2 nodes, {four} with 4 and {eight} with 8" in text
