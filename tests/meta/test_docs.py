"""The documents against the code: flags, paths, make targets, versions of the README's table.

Standard library only, and nothing of the package is imported.
"""

import ast
import re
from math import comb
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("grove_megatron", "patches", "docs", "examples", "tests", ".ci")
# Of Megatron's repository, named in our documents.
FOREIGN = frozenset(
    {"pretrain_gpt.py", "pretrain_hybrid.py", "golden.safetensors", "layer.safetensors"}
)
# Made by a run, by `make install`, or by the commands that move weights.
GENERATED = (
    *("runs/", ".venv", "ckpt/", "release/", "hf/", "config.json", "model.safetensors"),
    *("latest_checkpointed_iteration.txt", "megatron_flags.txt", "grove_manifest.json"),
    *("SUMMARY.md", "log.txt"),
)
# What a file name in a document looks like: a folder in it, or one of these endings.
ENDINGS = (".py", ".md", ".sh", ".toml", ".txt", ".yaml", ".json", ".patch", ".safetensors")


def own_files() -> list[Path]:
    """Everything that belongs to the repository, found without git."""
    # Of a work tree of git, .git is a file.
    files = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]
    for folder in FOLDERS:
        files += [p for p in (ROOT / folder).rglob("*") if p.is_file()]
    return sorted(p for p in files if "__pycache__" not in p.parts)


def documents() -> list[Path]:
    return [p for p in own_files() if p.suffix == ".md"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fields(source: str) -> dict[str, object]:
    """The settings of the dataclasses in config.py: {name: default}."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["GroveTransformerConfig", "JobSettings"]
    return {
        node.target.id: ast.literal_eval(node.value)
        for of_class in classes
        for node in of_class.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.value is not None
    }


def fields_of_parts() -> set[str]:
    """The settings of the dataclasses in the files of parts."""
    files = (ROOT / "grove_megatron" / "parts").rglob("*.py")
    found = (
        re.findall(r"^    (grove_[a-z_]+): ", f.read_text("utf-8"), re.MULTILINE) for f in files
    )
    return {name for names in found for name in names}


def flags(text: str) -> set[str]:
    """Every ``--grove-...`` flag in a text; ``--grove-*`` stands for all and is none."""
    return set(re.findall(r"--grove-[a-z][a-z-]*[a-z]", text))


def flag_table(text: str) -> dict[str, str]:
    """{flag: default} of the rows that begin with a flag, as written."""
    rows = re.findall(r"^\| `(--grove-[a-z-]+)` \| ([^|]+) \|", text, re.MULTILINE)
    return {flag: default.strip().strip("`") for flag, default in rows}


def as_written(default: object) -> str:
    return {"None": "none", "False": "off"}.get(str(default), str(default))


def code(text: str) -> tuple[list[str], list[str]]:
    """The inline code of a text, and the lines of its ``sh`` blocks."""
    lines: list[str] = []

    def keep_shell(block: re.Match[str]) -> str:
        lines.extend(block[2].splitlines() if block[1] == "sh" else [])
        return ""

    prose = re.sub(r"^```(\w*)\n(.*?)^```", keep_shell, text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose), lines


def mentioned_paths(text: str) -> set[str]:
    """What reads as a path of this repository in code and links."""
    inline, shell = code(text)
    words = {word for line in [*inline, *shell] for word in line.split("#")[0].split()}
    words |= set(re.findall(r"\]\(([^)]+)\)", text))
    return {
        word
        for word in words
        if re.fullmatch(r"\.?[A-Za-z0-9_][\w.-]*(/[\w.-]+)*/?", word)
        and ("/" in word or word.endswith(ENDINGS))
        and not word.startswith(("path/", "megatron/", *GENERATED))
        and word not in FOREIGN
    }


def make_targets(text: str) -> set[str]:
    """The targets of the ``make`` commands in code; ``make`` in prose is a verb."""
    inline, shell = code(text)
    found = (re.match(r"make ([a-z][a-z-]*)\b", line.strip()) for line in [*inline, *shell])
    return {match[1] for match in found if match}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_a_flag_in_a_document_is_a_field(document: Path) -> None:
    names = [*fields(read("grove_megatron/config.py")), *fields_of_parts()]
    known = {f"--{name.replace('_', '-')}" for name in names}
    assert flags(document.read_text(encoding="utf-8")) - known == set()


def test_every_field_is_on_the_page_of_flags_with_its_default() -> None:
    settings = fields(read("grove_megatron/config.py"))
    expected = {f"--{n.replace('_', '-')}": as_written(default) for n, default in settings.items()}
    found = flag_table(read("docs/reference/flags.md"))
    assert {flag: found.get(flag) for flag in expected} == expected
    of_parts = {f"--{name.replace('_', '-')}" for name in fields_of_parts()}
    assert found.keys() - expected.keys() == of_parts


def test_the_flags_of_the_guide_are_those_of_the_page() -> None:
    found, first = (
        flag_table(read("docs/reference/flags.md")),
        flag_table(read("docs/guides/train.md")),
    )
    assert first
    assert first.items() <= found.items()


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_a_path_in_a_document_exists(document: Path) -> None:
    missing = [
        path
        for path in sorted(mentioned_paths(document.read_text(encoding="utf-8")))
        if not (ROOT / path).exists() and not (document.parent / path).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_a_make_command_in_a_document_is_a_target(document: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))
    assert make_targets(document.read_text(encoding="utf-8")) - targets == set()


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_prose_is_wrapped_at_100(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 100 and line[0] != "|"] == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    # Put together here, so that this file does not name one.
    folders = re.compile(r"(?<![\w.$}])/(?:" + "|".join(("work", "root", "home", "Users")) + ")/")
    found = []
    for path in own_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # weights
        found += [f"{name_of(path)}:{n}" for n, line in enumerate(lines, 1) if folders.search(line)]
    assert found == []


def _row(text: str, label: str) -> list[float]:
    (row,) = re.findall(rf"^\| {re.escape(label)} \|(.+)\|$", text, re.MULTILINE)
    return [float(cell) for cell in row.split("|")]


def _distinct(parts: int, experts: int = 128, topk: int = 8) -> float:
    """Parts that hold at least one of ``topk`` experts, on average, under uniform routing."""
    return parts * (1 - comb(experts - experts // parts, topk) / comb(experts, topk))


def test_the_rows_of_the_readme_are_those_of_its_formula() -> None:
    text = read("README.md")
    ranks = _row(text, "EP ranks")
    assert _row(text, "rows") == [round(_distinct(int(r)), 2) for r in ranks]
    assert "`R * (1 - comb(E - E//R, K) / comb(E, K))`" in text
    share = {size: 1 - _distinct(128 // size) / 8 for size in (2, 8)}
    assert (
        f"{_distinct(64):.2f} evaluations per token instead of 8, {share[2]:.1%}"
        in text.replace(" %", "%")
    )
    assert f"Group size 8:\n{share[8]:.1%}" in text.replace(" %", "%")


def test_the_tour_has_six_files() -> None:
    tour = read("README.md").split("## Six files to read, in order")[1]
    listed = re.findall(r"^(\d)\. `([\w./]+)`", tour, re.MULTILINE)
    assert [number for number, _ in listed] == list("123456")
    assert all((ROOT / path).is_file() for _, path in listed)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md", "grove_megatron/moe/README.md", "docs/parts/README.md"),
        *("docs/presets/README.md", "docs/presets/mixtral-8x7b.md", "docs/parts/gate-attention.md"),
    ],
)
def test_there_is_something_to_look_at(name: str) -> None:
    assert (ROOT / name) in documents()
    assert mentioned_paths(read(name))


def test_flags_paths_and_commands_are_found() -> None:
    text = (
        "Use `--grove-num-groups` and `--grove-*`; make sure `make test` works.\n"
        "See `tests/unit` and [this](patches/README.md), not `a/<b>` nor `path/to/x.py`.\n"
        "```sh\nmake install  # then examples/x.sh\nPYTHON=p examples/y.sh --flag 1\n```\n"
        "```text\nmake nothing of it/at.all\n```\n"
    )
    assert flags(text) == {"--grove-num-groups"}
    assert make_targets(text) == {"test", "install"}
    assert mentioned_paths(text) == {"tests/unit", "patches/README.md", "examples/y.sh"}
