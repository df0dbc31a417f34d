"""What ``grove_megatron.run`` rebinds; the runs themselves are in tests/integration."""

from argparse import Namespace
from typing import Any

import pytest
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

from grove_megatron.training import entry

from .command_lines import parsed


@pytest.mark.parametrize(("given", "used"), [(None, "of the attempt"), ("theirs", "theirs")])
def test_a_script_without_a_store_gets_that_of_the_attempt(
    given: Any, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Megatron calls it; scripts with in-process restart have a store of their own."""
    called: list[Any] = []
    patch = next(p for p in entry.ENTRY.patches if p.name == "store-of-attempt")
    monkeypatch.setattr(entry, "get_args", lambda: Namespace(lr=1))
    monkeypatch.setattr(entry, "group_store", lambda args: "of the attempt")
    patched = patch.make(lambda *given, **named: called.append((given, named)))
    patched("embedding", "position", given, skip_model_parallel_init=False)
    assert called == [(("embedding", "position", used), {"skip_model_parallel_init": False})]


def test_a_tokenizer_with_more_ids_than_rows_is_refused_before_there_is_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensor-parallel ranks would mask the ids between, and go on."""
    args = parsed("--padded-vocab-size 64")
    monkeypatch.setattr(entry, "get_args", lambda: args)
    tokenizer = build_tokenizer(args)
    monkeypatch.setattr(entry, "get_tokenizer", lambda: tokenizer)
    patch = next(p for p in entry.ENTRY.patches if p.name == "store-of-attempt")
    called: list[Any] = []
    patched = patch.make(lambda *given: called.append(given))
    with pytest.raises(SystemExit):
        patched("embedding", "position", "store")
    assert called == []
    args.padded_vocab_size = 128
    patched("embedding", "position", "store")
    assert len(called) == 1
