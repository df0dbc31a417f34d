"""What a Hugging Face folder is taken for."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from grove_megatron.checkpoint.hf_config import config_of
from grove_megatron.checkpoint.hf_files import SINGLE
from grove_megatron.checkpoint.source import hf_source, refuse_parts

from .architectures import DENSE
from .stored_weights import random_weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write(folder: Path, head: torch.Tensor | None) -> None:
    """A tied model; ``head`` is written beside its weights."""
    tensors = random_weights(DENSE)
    # Bytes are compared: NaN is not equal to itself.
    tensors[EMBEDDING][0, 0] = torch.nan
    if head is None:
        head = tensors[EMBEDDING].clone()
    save_file({**tensors, HEAD: head}, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config_of(DENSE, None, "float32")))


def test_a_tied_matrix_that_is_stored_twice_is_one(tmp_path: Path) -> None:
    assert DENSE.tied_embeddings
    write(tmp_path, None)
    source = hf_source(tmp_path)
    assert source.refusals() == []
    assert HEAD not in source.infos()


@pytest.mark.parametrize(
    "head",
    [
        torch.ones(DENSE.vocab_size, DENSE.hidden_size),
        torch.ones(DENSE.vocab_size + 1, DENSE.hidden_size),
        torch.ones(DENSE.vocab_size, DENSE.hidden_size, dtype=torch.bfloat16),
    ],
)
def test_another_head_of_a_tied_model_is_named(head: torch.Tensor, tmp_path: Path) -> None:
    write(tmp_path, head)
    (problem,) = hf_source(tmp_path).refusals()
    assert problem.startswith(f"{HEAD} in {SINGLE} is not known to the model; --skip {HEAD}")
    assert hf_source(tmp_path).refusals(frozenset({HEAD})) == []


def test_parts_that_no_hugging_face_model_has_are_refused_together(tmp_path: Path) -> None:
    own = Namespace(grove_num_groups=4, grove_router_scoring="softmax", grove_kernel="grouped")
    refuse_parts(own, str(tmp_path))
    refuse_parts(Namespace(), str(tmp_path))
    parts = {"grove_logit_norm": "sample", "grove_noisy_topk": True, "grove_new_part": 3}
    with pytest.raises(
        ValueError, match=r"no Hugging Face model has it that is made here; keep"
    ) as error:
        refuse_parts(Namespace(**vars(own) | parts), str(tmp_path))
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.split(" is not its default")[0].strip() for line in lines) == [
        "--grove-logit-norm (sample)",
        "--grove-new-part (3)",
        "--grove-noisy-topk (True)",
    ]
