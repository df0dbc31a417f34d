"""What ``grove_megatron.run`` rebinds; the runs themselves are in tests/integration."""

from argparse import Namespace
from typing import Any

import pytest

from grove_megatron.training import entry


@pytest.mark.parametrize(("given", "used"), [(None, "of the attempt"), ("theirs", "theirs")])
def test_a_script_without_a_store_gets_that_of_the_attempt(
    given: Any, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Megatron calls it; scripts with in-process restart have a store of their own."""
    called: list[Any] = []
    patch = next(p for p in entry.ENTRY.patches if p.name == "store-of-attempt")
    monkeypatch.setattr("megatron.training.get_args", lambda: Namespace(lr=1))
    monkeypatch.setattr(entry, "group_store", lambda args: "of the attempt")
    patched = patch.make(lambda *given, **named: called.append((given, named)))
    patched("embedding", "position", given, skip_model_parallel_init=False)
    assert called == [(("embedding", "position", used), {"skip_model_parallel_init": False})]
