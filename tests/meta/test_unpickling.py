"""A file of somebody else runs nothing: no module reads one in a way that could."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import grove_megatron

ROOT = Path(grove_megatron.__file__).parent
# Reads with a list of what may be named.
THE_ONE = "checkpoint/pickles.py"
RUN_WHAT_THEY_READ = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "numpy.load", "np.load", "yaml.load"),
    *("yaml.unsafe_load", "yaml.full_load", "FileSystemReader", "dcp.load", "joblib.load"),
    *("shelve.open", "marshal.loads", "eval", "exec"),
}


def calls(source: str) -> Iterator[tuple[int, str, ast.Call | None]]:
    """Line and name of everything that is called or subclassed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.lineno, ast.unparse(base), None) for base in node.bases)


def unsafe(source: str) -> list[str]:
    found = []
    for line, name, call in calls(source):
        given = {} if call is None else {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name in RUN_WHAT_THEY_READ:
            found.append(f"line {line}: {name}")
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(f"line {line}: torch.load without weights_only=True")
        if name.endswith(".from_pretrained") and given.get("trust_remote_code") != "False":
            found.append(f"line {line}: {name} without trust_remote_code=False")
    return found


def test_no_module_reads_what_could_run() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), line)
        for path in ROOT.rglob("*.py")
        for line in unsafe(path.read_text())
    }
    assert {place for place in found if place[0] != THE_ONE} == set()
    assert {line.partition(": ")[2] for _, line in found} == {"pickle.Unpickler"}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(f)",
        "class A(pickle.Unpickler): pass",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "FileSystemReader(folder)",
        "AutoModel.from_pretrained(folder)",
        "eval(text)",
    ],
)
def test_what_could_run_is_found(source: str) -> None:
    assert len(unsafe(source)) == 1
