"""Runs on a rank: generation where ranks, each for itself, would choose other tokens."""

import os
from pathlib import Path
from typing import Any

from tests.ranks import write_result


def apart(folder: str, hf: str, flags: list[str]) -> None:
    """Every rank's sampling gives its rank; what each rank has generated then."""
    from megatron.core.inference.text_generation_controllers import text_generation_controller

    from grove_megatron.inference.generation import Sampling, build
    from grove_megatron.inference.model import source_of
    from grove_megatron.runtime import cpu

    rank = int(os.environ["RANK"])

    def sample(self: Any, last_token_logits: Any, *args: Any, **kwargs: Any) -> Any:
        return last_token_logits.argmax(-1) * 0 + rank + 5

    with cpu():
        source, load = source_of(Path(hf), None, None)
        text_generation_controller.TextGenerationController.sample_from_logits = sample
        engine = build(
            source.architecture, load, flags, vocab_size=128, batch_size=2, length=8, ends=[]
        )
        write_result(folder, engine.generate([[1, 2], [3]], 3, Sampling()))
