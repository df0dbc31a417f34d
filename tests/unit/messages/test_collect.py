"""Messages are collected from the source, whatever makes them, and what is kept is what is said."""

from pathlib import Path

import pytest

from grove_megatron.messages import __main__ as command
from grove_megatron.messages import collect, entries, page
from grove_megatron.messages.collect import collected
from grove_megatron.messages.entries import Entry
from grove_megatron.messages.installed import is_there, unsaid
from grove_megatron.messages.source import PACKAGE, Source

RULES = (PACKAGE / "checks" / "rules.py").read_text(encoding="utf-8")


def texts(folder: Path, code: str) -> list[str]:
    """What a module with this code says."""
    (folder / "checks").mkdir()
    (folder / "checks" / "rules.py").write_text(RULES)
    (folder / "config.py").write_text(code)
    return collected(Source(folder)).get("config", [])


CASES = """
def f(a):
    raise ValueError(f"the width ({a}) is odd; use another")
=> the width (…) is odd; use another

def f(a):
    return Problem("--a", a, "is odd; use another")
=> --a (…) is odd; use another

def f(a):
    return Problem("--a", UNSAID, ", which is odd")
=> --a, which is odd

def f(c):
    yield c.problem("{lr} has {what} of it; add it", what=c.x)
=> --lr (…) has … of it; add it

def f(c):
    fix = "add it" if c.x else "leave it"
    yield from c.needs("lr", "seed", fix)
=> --lr (…) needs --seed (…); add it
=> --lr (…) needs --seed (…); leave it

def f(c):
    both = ("lr", "seed")
    yield from c.excludes(*both, "drop one")
=> --lr (…) excludes --seed (…); drop one

_N = {"lr": "say how fast", "seed": "say a number"}
def f(c):
    for name, fix in _N.items():
        yield from c.missing(name, fix)
=> --lr (…) is needed; say how fast
=> --seed (…) is needed; say a number

def f(c):
    rules = {f"{{{n}}} is beside it; remove it": c.x for n in ("lr", "seed")}
    yield from c.those(rules)
=> --lr (…) is beside it; remove it
=> --seed (…) is beside it; remove it

def _bad(name, why):
    return Problem(f"--{name}", 1, f"{why}; correct it")
def f():
    return [_bad("a", "is of no use"), _bad("b", "is too long")]
=> --a (…) is of no use; correct it
=> --b (…) is too long; correct it

def f(x):
    said = "nothing was found here"
    if x:
        said += ", look elsewhere"
    return said
=> nothing was found here, look elsewhere
=> nothing was found here

def f(x):
    fix = "use the other one"
    if x:
        fix = "never with the rest"
        raise ValueError(f"this is first; {fix}")
    raise ValueError(f"that is second; {fix}")
=> this is first; never with the rest
=> that is second; use the other one

def f(add):
    add("--lr", help="what this option is good for")

def f(x):
    print(f"grove_megatron: the {x} was left out of it")
=> grove_megatron: the … was left out of it

def f():
    'A docstring of many plain words.'
    assert f, "an invariant of many words"

T = "kept at the top of a module"

R = Refused(setting="moe_x", flags="--moe-x", reason="is not tried; remove it")
=> --moe-x (…) is not tried; remove it

R = Idle("--a --b", ": nothing reads it")
=> --a (…) does nothing: nothing reads it
=> --b (…) does nothing: nothing reads it
"""


@pytest.mark.parametrize("case", CASES.strip().split("\n\n"))
def test_a_message_is_read_wherever_it_is_made(tmp_path: Path, case: str) -> None:
    code, *said = case.split("\n=> ")
    assert sorted(texts(tmp_path, code)) == sorted(said)


def test_what_is_kept_is_what_the_source_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = collected()
    assert sum(map(len, found.values())) > 1500
    assert "--port (…) is in use on …; give another" in found["examples/cluster/launch"]
    assert "… is not a clone of Megatron-LM: it has no …" in found["patches/apply"]
    monkeypatch.setattr(command, "collected", lambda: found)
    assert command.check() == []
    # A new message; a page that is not as it is to be; a note of no message.
    more = found | {"config": [*found["config"], "a message that is new here"]}
    monkeypatch.setattr(command, "collected", lambda: more)
    assert [line.split(":")[0] for line in command.check()] == [
        "messages.json",
        "docs/troubleshooting/README.md",
        "docs/troubleshooting/start.md",
    ]
    stale = tmp_path / "notes.toml"
    stale.write_text('[[note]]\nwords = "nobody says this"\nnote = "x"\n')
    monkeypatch.setattr(page, "notes", lambda: entries.notes(stale))
    assert "no message begins with 'nobody says this'" in page.unused_notes(found)[0]
    assert not collect.is_kept(more)


def test_megatron_and_torch_say_what_they_are_said_to_say() -> None:
    known = entries.foreign()
    assert len(known) > 30
    assert all(entry.note for entry in known)
    there = [
        entry for entry in known if entry.source.startswith(("megatron/", "torch/distributed"))
    ]
    assert len(there) > 15
    assert all(map(is_there, there))
    assert [*unsaid(known)] == []
    wrong = Entry("Megatron needs a banana", "megatron/training/initialize.py", is_ours=False)
    assert len([*unsaid([wrong])]) == 1
