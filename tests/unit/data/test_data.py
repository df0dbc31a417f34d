"""Text into Megatron's files: the bytes of its own tool, whatever happens on the way."""

import gzip
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from grove_megatron.cli import app
from grove_megatron.data import build as building
from grove_megatron.data.build import Options, build
from grove_megatron.data.check import check
from grove_megatron.data.manifest import read_manifest
from grove_megatron.data.tokenizers import fingerprint
from grove_megatron.parts.selector.hash import read_counts

# Of the documents and the tokenizer below, as tools/preprocess_data.py of Megatron-LM core_v0.19.0
# wrote them with --append-eod --workers 2.
BIN = "52c84920b17ea6cd693fe1c2ca2cfcf69dc6f7121247127526eb926e22786aae"
IDX = "ab8493e4e8a159f818f419bc9f8cf4bc4fe4958ad34174d2579d4b65af48fae9"
WORDS = ["the", "tree", "über", "1", "2", "3", ".", "a", "\N{PILE OF POO}", "else"]
TEXTS = [" ".join((WORDS * 7)[i % 11 : i % 11 + i % 13]) for i in range(100)]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["a", "über", "tree", "\N{PILE OF POO}", "1", "2", "3", ".", "the"]
    ids = {"<end>": 0, "<unk>": 1} | {word: i for i, word in enumerate(words, 2)}
    own = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<end>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return str(folder)


def lines_of(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "in.jsonl"
    file.write_text(lines_of(TEXTS), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_SEGMENT", 16)
    monkeypatch.setattr(building, "_CHUNK", 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_files_are_those_of_megatrons_tool(
    workers: int, lines: Path, tokenizer: str, tmp_path: Path
) -> None:
    counts = build([lines], Options(tmp_path / "out", tokenizer, workers=workers))
    assert (counts.documents, counts.empty, counts.tokens) == (100, 8, 674)
    assert sha256(tmp_path / "out.bin") == BIN
    assert sha256(tmp_path / "out.idx") == IDX
    assert not (tmp_path / "out.incomplete").exists()
    said = read_manifest(tmp_path / "out")
    assert said is not None
    assert (said["documents"], said["tokens"], said["bin_sha256"]) == (100, 674, BIN)
    assert said["tokenizer"]["fingerprint"] == fingerprint(tokenizer)
    assert (said["tokenizer"]["size"], said["tokenizer"]["end"]) == (11, 0)


@pytest.mark.parametrize("form", ["gz", "files", "parquet", "zst", "datasets"])
def test_the_same_documents_in_another_form_are_the_same_files(
    form: str, tokenizer: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if form == "gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines_of(TEXTS).encode()))
    elif form == "zst":
        zstandard = pytest.importorskip("zstandard")
        (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines_of(TEXTS).encode()))
    elif form == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.table({"text": TEXTS}), folder / "a.parquet")
    elif form == "datasets":
        datasets = pytest.importorskip("datasets", reason="pip install 'grove-megatron[data]'")
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "a")
    else:
        for i, first in enumerate(range(0, 100, 30)):
            part = lines_of(TEXTS[first : first + 30])
            (folder / f"{i}.jsonl").write_text(f"\n{part}\n", encoding="utf-8")
    build([folder], Options(tmp_path / "out", tokenizer))
    assert sha256(tmp_path / "out.bin") == BIN
    assert sha256(tmp_path / "out.idx") == IDX


def documents_of(prefix: Path) -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    found = IndexedDataset(str(prefix))
    return [found[i].tolist() for i in range(len(found))]


def test_bytes_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aü\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    build([tmp_path / "a.txt", tmp_path / "b.txt"], Options(tmp_path / "out", "bytes"))
    assert documents_of(tmp_path / "out") == [[97, 0xC3, 0xBC, 10, 256], [98, 256]]
    build([tmp_path / "b.txt"], Options(tmp_path / "bare", "bytes", append_end=False))
    assert documents_of(tmp_path / "bare") == [[98]]


def test_a_document_is_in_one_part_by_what_it_says(
    lines: Path, tokenizer: str, tmp_path: Path
) -> None:
    again = tmp_path / "again.jsonl"
    again.write_text(lines_of(TEXTS[::-1]), encoding="utf-8")
    parts = {}
    for name, source in (("one", lines), ("two", again)):
        build([source], Options(tmp_path / name, tokenizer, valid=0.3))
        parts[name] = {
            part: sorted(map(tuple, documents_of(tmp_path / f"{name}_{part}")))
            for part in ("train", "valid")
        }
    assert parts["one"] == parts["two"]
    assert not set(parts["one"]["train"]) & set(parts["one"]["valid"])
    assert 10 < len(parts["one"]["valid"]) < 50
    assert read_manifest(tmp_path / "one_valid")["split"] == {"part": "valid", "valid": 0.3}


class Killed(BaseException):
    """As a signal would end it."""


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_command_that_was_stopped_goes_on(
    after: int, lines: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, original = Options(tmp_path / "out", tokenizer), building._segment
    made: list[int] = []

    def until(batch: Any, *rest: Any) -> None:
        if len(made) == after:
            # In the middle of a segment: what it has written stays behind.
            rest[-1].data(len(made), "train").write_bytes(b"half")
            raise Killed
        original(batch, *rest)
        made.append(len(batch))

    monkeypatch.setattr(building, "_segment", until)
    with pytest.raises(Killed):
        build([lines], options)
    assert not (tmp_path / "out.bin").exists()

    def counted(batch: Any, *rest: Any) -> None:
        original(batch, *rest)
        made.append(len(batch))

    monkeypatch.setattr(building, "_segment", counted)
    build([lines], options)
    assert sum(made) == 100
    assert (sha256(tmp_path / "out.bin"), sha256(tmp_path / "out.idx")) == (BIN, IDX)


def test_other_options_do_not_go_on_in_what_is_there(
    lines: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_join", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ValueError, match=r"cannot be written: full; the same command goes on"):
        build([lines], Options(tmp_path / "out", tokenizer))
    monkeypatch.undo()
    assert (tmp_path / "out.incomplete" / "000003.train.bin").is_file()
    counts = build([lines], Options(tmp_path / "out", "bytes"))
    assert counts.tokens == sum(len(text.encode()) + 1 for text in TEXTS if text)
    assert not (tmp_path / "out.incomplete").exists()


def test_a_kill_between_names_leaves_what_goes_on(
    lines: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, named = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".idx":
            raise Killed
        named.append(target)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        build([lines], Options(tmp_path / "out", tokenizer))
    assert tmp_path / "out.bin" in named
    monkeypatch.undo()
    build([lines], Options(tmp_path / "out", tokenizer))
    assert (sha256(tmp_path / "out.bin"), sha256(tmp_path / "out.idx")) == (BIN, IDX)
    assert read_manifest(tmp_path / "out")["tokens"] == 674
    assert not (tmp_path / "out.incomplete").exists()


def test_two_commands_do_not_write_the_same_files(
    lines: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said = Options(tmp_path / "out", tokenizer), []
    original = building._segment

    def meanwhile(*arguments: Any) -> None:
        with pytest.raises(ValueError, match="is being written by another command") as error:
            build([lines], options)
        said.append(error)
        original(*arguments)

    monkeypatch.setattr(building, "_segment", meanwhile)
    build([lines], options)
    assert said
    assert sha256(tmp_path / "out.bin") == BIN


def test_a_segment_that_was_damaged_is_not_published(
    lines: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_join", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        build([lines], Options(tmp_path / "out", tokenizer))
    monkeypatch.undo()
    cut(tmp_path / "out.incomplete" / "000002.train.bin", 2)
    with pytest.raises(ValueError, match="not those that were written"):
        build([lines], Options(tmp_path / "out", tokenizer))
    (tmp_path / "out.incomplete" / "state.json").write_text("{")
    build([lines], Options(tmp_path / "out", tokenizer))
    assert sha256(tmp_path / "out.bin") == BIN


def test_a_worker_that_is_killed_ends_the_command(
    lines: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_encode", _killed)
    with pytest.raises(ValueError, match="of which one was killed"):
        build([lines], Options(tmp_path / "out", tokenizer, workers=2))


def _killed(texts: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_part_without_a_document_is_refused(lines: Path, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--valid \(1e-09\) leaves no token for .*out_valid"):
        build([lines], Options(tmp_path / "out", tokenizer, valid=1e-9))
    assert not list(tmp_path.glob("out_*"))


# ------------------------------------------------------------------------------------ bad input


def refused(*arguments: Any) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exit_code == 2, done.output
    assert "nothing was made" in done.stderr
    return done.stderr


BAD = [
    ("{", ":3 is not JSON"),
    ("[1]", ":3 is no JSON object but a list"),
    ('{"content": "x", "id": 1}', ":3 has no field text, of (content, id)"),
    ('{"text": 3}', ":3 has text that is no text but int"),
    ("[" * 100_000, ":3 is not JSON"),
    (r'{"text": "a\ud800"}', ":3 has text with half of a surrogate pair at character 1"),
    ('{"text": "' + "a" * 9000 + '"}', ":3 is not below 0 MiB long"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_what_is_no_document_is_named_and_skipped_when_asked(
    line: str, said: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(line) < 1e5:
        monkeypatch.setattr("grove_megatron.data.documents._LONGEST", 4000)
    file = tmp_path / "in.jsonl"
    first, rest = lines_of(TEXTS[:2]), lines_of(TEXTS[2:])
    file.write_text(f"{first}{line}\n{rest}", encoding="utf-8")
    make = [file, "--output", tmp_path / "out", "--tokenizer", tokenizer, "--workers", 1]
    shown = refused(*make)
    assert f"{file}{said}" in shown
    assert "places that are no document (1)" in shown
    assert not (tmp_path / "out.bin").exists()
    corrected = tmp_path / "corrected"
    build([file], Options(corrected, tokenizer, skip_bad=True))
    assert sha256(tmp_path / "corrected.bin") == BIN
    done = CliRunner().invoke(app, ["data", *map(str, make), "--skip-bad"])
    assert done.exit_code == 0, done.output
    assert "1 places skipped" in done.stderr
    assert sha256(tmp_path / "out.bin") == BIN


def test_a_line_that_was_corrected_is_read_again(tokenizer: str, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(lines_of(TEXTS).replace("{", "[", 1), encoding="utf-8")
    make = [file, "--output", tmp_path / "out", "--tokenizer", tokenizer]
    assert "places that are no document (1)" in refused(*make)
    # Of the same size.
    file.write_text(lines_of(TEXTS), encoding="utf-8")
    build([file], Options(tmp_path / "out", tokenizer))
    assert sha256(tmp_path / "out.bin") == BIN


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet"])
def test_a_file_that_is_cut_short_is_named(kind: str, tokenizer: str, tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": hashlib.sha256(b"%d" % i).hexdigest()}) for i in range(99))
    file = tmp_path / {"gz": "in.jsonl.gz", "zst": "in.jsonl.zst"}.get(kind, "in.parquet")
    if kind == "gz":
        file.write_bytes(gzip.compress(text.encode()))
    elif kind == "zst":
        file.write_bytes(pytest.importorskip("zstandard").compress(text.encode()))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": TEXTS}), file)
    cut(file, 40)
    shown = refused(file, "--output", tmp_path / "out", "--tokenizer", tokenizer)
    assert f"INPUT ({file}) cannot be read: " in shown


def test_all_frames_of_a_file_are_read(tokenizer: str, tmp_path: Path) -> None:
    compress = pytest.importorskip("zstandard").compress
    parts = [lines_of(TEXTS[:50]), lines_of(TEXTS[50:])]
    (tmp_path / "in.jsonl.zst").write_bytes(b"".join(compress(p.encode()) for p in parts))
    build([tmp_path / "in.jsonl.zst"], Options(tmp_path / "out", tokenizer))
    assert sha256(tmp_path / "out.bin") == BIN


def test_an_input_twice_is_refused(lines: Path, tokenizer: str, tmp_path: Path) -> None:
    make = ["--output", tmp_path / "out", "--tokenizer", tokenizer]
    assert "is there twice" in refused(lines, lines, *make)


def test_a_text_keeps_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"a\r\nb")
    build([tmp_path], Options(tmp_path / "out", "bytes"))
    assert np.fromfile(tmp_path / "out.bin", np.uint16).tolist() == [*b"a\r\nb", 256]


def test_all_bad_lines_are_counted_and_the_first_are_shown(tokenizer: str, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(lines_of(TEXTS) + "{\n" * 40, encoding="utf-8")
    shown = refused(file, "--output", tmp_path / "out", "--tokenizer", tokenizer)
    assert "places that are no document (40)" in shown
    assert "and 30 more" in shown
    assert shown.count("is not JSON") == 10


def test_inputs_that_are_none_are_named_together(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "folder").mkdir()
    names = ["empty.jsonl", "a.csv", "folder", "none.jsonl"]
    make = ["--output", tmp_path / "out", "--tokenizer", tokenizer]
    shown = refused(*(tmp_path / name for name in names), *make)
    said = ("is empty", "is none of .jsonl", "has no file of .jsonl", "is not there")
    assert all(line in shown for line in said)
    assert "4 problems" in shown
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "INPUT (absent) is needed"),
        (["a.jsonl", "--output", "x", "--tokenizer", "y", "--valid", 1], "--valid (1.0) is not"),
        (["a.jsonl", "--output", "x", "--tokenizer", "bytes", "--workers", 0], "--workers (0)"),
        (["--check", "x", "--tokenizer", "y"], "--check (x) is beside what makes files"),
        (["--vocab-size", 4], "--vocab-size (4) does nothing without --check"),
        (["--counts", "c.json"], "--counts (c.json) does nothing without --check"),
        (["--check", "nothing/here"], "--check (nothing/here) lacks nothing/here.bin"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments: list[Any], said: str) -> None:
    assert said in refused(*arguments)


def test_what_is_there_is_not_overwritten(lines: Path, tokenizer: str, tmp_path: Path) -> None:
    make = [lines, "--output", tmp_path / "out", "--tokenizer", tokenizer]
    assert CliRunner().invoke(app, ["data", *map(str, make)]).exit_code == 0
    assert "is there already" in refused(*make)


def test_a_tokenizer_without_an_end_is_refused(lines: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    own = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    folder = tmp_path / "tokenizer"
    transformers.PreTrainedTokenizerFast(tokenizer_object=own).save_pretrained(folder)
    make = [lines, "--output", tmp_path / "out", "--tokenizer", folder]
    assert "has no token for the end of a document" in refused(*make)
    done = CliRunner().invoke(app, ["data", *map(str, make), "--no-append-eod"])
    assert done.exit_code == 0, done.output


# ---------------------------------------------------------------------------------------- looking


@pytest.fixture
def made(lines: Path, tokenizer: str, tmp_path: Path) -> Path:
    build([lines], Options(tmp_path / "made", tokenizer))
    return tmp_path / "made"


def test_files_that_are_whole_have_no_problem(made: Path) -> None:
    found, problems = check(made)
    assert problems == []
    assert (found.documents, found.empty, found.tokens, found.largest) == (100, 8, 674, 10)
    assert check(made, 11)[1] == []
    assert "token (10) that is not below (10)" in check(made, 10)[1][0]


def test_tokens_are_counted_for_a_balanced_table(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grove_megatron.data.check._BLOCK", 64)
    file = tmp_path / "counts.json"
    command = ["data", "--check", str(made), "--vocab-size", "14", "--counts", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    counts = json.loads(file.read_text())
    ids = np.fromfile(made.with_name("made.bin"), check(made)[0].dtype)
    assert counts == [int((ids == token).sum()) for token in range(14)]
    assert sum(counts) == 674
    assert read_counts(str(file)) == counts
    assert not list(tmp_path.glob("*.new"))


def test_tokens_of_damaged_files_are_not_counted(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    command = ["data", "--check", str(made), "--vocab-size", "10", "--counts", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 1
    assert not file.exists()
    no_folder = ["data", "--check", str(made), "--counts", str(tmp_path / "no" / "c.json")]
    assert CliRunner().invoke(app, no_folder).exit_code == 2


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (lambda p: cut(p.with_name("made.bin"), 2), "that are not those of its index (1348)"),
    "longer": (lambda p: grow(p.with_name("made.bin")), "has bytes (1350)"),
    "another": (lambda p: flip(p.with_name("made.bin")), "another SHA-256"),
    "order": (lambda p: swap(p.with_name("made.idx")), "not one behind the other"),
}


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0\0")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def swap(file: Path) -> None:
    """The first two places of sequences, behind 34 bytes of header and 92 lengths of 4 bytes."""
    content = bytearray(file.read_bytes())
    start = 34 + 92 * 4
    pointers = np.frombuffer(content[start : start + 16], np.int64)[::-1]
    content[start : start + 16] = pointers.tobytes()
    file.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(kind: str, made: Path) -> None:
    damage, said = DAMAGE[kind]
    damage(made)
    done = CliRunner().invoke(app, ["data", "--check", str(made), "--json"])
    assert done.exit_code == 1, done.output
    assert any(said in line for line in json.loads(done.stdout.splitlines()[-1])["problems"])


@pytest.mark.parametrize("length", [0, 20, 100])
def test_an_index_that_is_cut_short_is_named(length: int, made: Path) -> None:
    file = made.with_name("made.idx")
    file.write_bytes(file.read_bytes()[:length])
    assert "is no index of Megatron's, or is cut short" in refused("--check", made)


def test_files_without_a_token_are_a_problem(made: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    empty = made.with_name("empty")
    IndexedDatasetBuilder(f"{empty}.bin").finalize(f"{empty}.idx")
    assert "has no token" in check(empty)[1][0]


@pytest.mark.parametrize("lacks", ["tokenizer", "bin_sha256"])
def test_a_manifest_that_is_damaged_is_named(lacks: str, made: Path) -> None:
    manifest = made.with_name("made.json")
    said = json.loads(manifest.read_text())
    del said[lacks]
    manifest.write_text(json.dumps(said))
    (problem,) = check(made)[1]
    assert f"{manifest} is a manifest that lacks" in problem
    manifest.write_text('["of somebody else"]')
    assert check(made)[1] == []


def test_a_tokenizer_saved_again_is_the_same(tokenizer: str, tmp_path: Path) -> None:
    def said(change: dict[str, Any], name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        content = json.loads((Path(tokenizer) / "tokenizer.json").read_text()) | change
        (folder / "tokenizer.json").write_text(json.dumps(content, indent=3))
        return fingerprint(str(folder))

    assert said({}, "same") == fingerprint(tokenizer)
    assert said({"padding": {"strategy": {"Fixed": 8}}}, "padded") == fingerprint(tokenizer)
    assert said({"normalizer": {"type": "NFC"}}, "other") != fingerprint(tokenizer)
