"""Every job of ``examples/cluster/recipes``, small: the flags of its script train on the CPU.

The parent is a tiny one of the same family, prepared by the commands of the script's header. The
model's sizes are its own, the parallel sizes those of 2 or 4 ranks, and what needs
TransformerEngine is left out; every other flag is the script's.
"""

import importlib
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from grove_megatron.checks.flags import words_of
from grove_megatron.presets.table import PRESETS
from tests.chat_tokenizers import save_chat_tokenizer
from tests.ranks import Ranks

from . import qwen3_models
from .grove_commands import flags_of
from .launching import REPOSITORY
from .weights_folders import done

pytest.importorskip("transformers")

FOLDER = REPOSITORY / "examples" / "cluster" / "recipes"
DATA = REPOSITORY / "tests" / "data"
# The folder of a tiny parent, and ranks.
PARENTS = {
    "grovemoe_33b_adjugates": ("qwen3", 2),
    "grovemoe_33b_four_nodes": ("qwen3", 2),
    "grovemoe_33b_one_node": ("qwen3", 2),
    "grovemoe_33b_sft": ("qwen3", 2),
    "mixtral_8x7b_grove": ("mixtral-tiny", 4),
    "moepp_7b": ("moepp-tiny", 2),
    "qwen1.5_moe_grove": ("qwen2_moe-tiny", 2),
}
EVERY_RUN = "grovemoe_33b_one_node"
CASES = [pytest.param(n, marks=[] if n == EVERY_RUN else [pytest.mark.long]) for n in PARENTS]
# Sizes of the large model, and what needs TransformerEngine: a flag, and words to it.
LEFT_OUT = {
    "--grove-preset": 1,
    "--grove-num-groups": 1,
    "--moe-grouped-gemm": 0,
    "--use-precision-aware-optimizer": 0,
    "--exp-avg-dtype": 1,
    "--exp-avg-sq-dtype": 1,
}
SMALL = {
    "--train-samples": "24",
    "--lr-warmup-samples": "4",
    "--seq-length": "64",
    "--global-batch-size": "4",
    "--expert-model-parallel-size": "2",
    "--pipeline-model-parallel-size": "2",
    "--recompute-modules": "moe",
    "--save-interval": "6",
    "--split": "1,0,0",
    "--eval-iters": "0",
}
# Of a preset, what is of the training: the rest is in the checkpoint's flags.
OF_TRAINING = {"moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_expert_capacity_factor"}
OF_TRAINING |= {"grove_heterogeneous_loss_coeff", "grove_local_tau"}
ROWS = 320


@pytest.fixture(scope="module")
def read_recipe() -> Any:
    sys.path.insert(0, str(FOLDER.parent))
    try:
        return importlib.import_module("recipes").read_recipe
    finally:
        sys.path.remove(str(FOLDER.parent))


def save_parent(name: str, folder: Path) -> Path:
    """A tiny parent with rows for every token of a tokenizer of chats, which is beside it."""
    source = DATA / name if name.endswith("-tiny") else qwen3_models.save("moe", folder / "source")
    target = folder / "parent"
    save_chat_tokenizer(target)
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": ROWS}
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = tensors[tensor]
        tensors[tensor] = rows.repeat(-(-ROWS // len(rows)), 1)[:ROWS].contiguous()
    save_file(tensors, target / "model.safetensors")
    return target


def prepare(header: str, parent: Path, folder: Path) -> None:
    """Run the commands of a script's header, with a tiny parent and in ``folder``."""
    text = header.replace("\\\n#", "")
    commands = [shlex.split(c) for c in re.findall(r"^#   grove (.*)", text, re.MULTILINE)]
    assert [c[0] for c in commands] in (["upcycle", "data"], ["import", "data"])
    for command in commands:
        places = [re.sub(r"^(ckpt|data|corpus)/", rf"{folder}/\1/", word) for word in command]
        if "--hf" in places:
            places[places.index("--hf") + 1] = str(parent)
        done(*places)


def small(flags: list[str], model: list[str]) -> list[str]:
    """The script's flags for a small model: its own, without what is left out, sizes replaced."""
    kept, words = list(model), iter(flags)
    for word in words:
        if word == "--grove-preset":
            settings = PRESETS[next(words)].settings
            of_training = {k: settings[k] for k in OF_TRAINING & settings.keys()}
            # argparse has a list of one.
            kept += words_of(
                {k: v[0] if isinstance(v, list) else v for k, v in of_training.items()}
            )
        elif word in LEFT_OUT:
            for _ in range(LEFT_OUT[word]):
                next(words)
        elif word in SMALL:
            next(words)
            kept += [word, SMALL[word]]
        else:
            kept.append(word)
    return [*kept, "--num-workers", "0"]


@pytest.mark.parametrize("name", CASES)
def test_the_job_of_a_recipe_trains(
    name: str, read_recipe: Any, ranks: Ranks, tmp_path: Path
) -> None:
    parent, world_size = PARENTS[name]
    script = FOLDER / f"{name}.sh"
    text = "".join(f"line {i} of a text that says {i * i} in words.\n" for i in range(400))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text(text)
    (tmp_path / "data").mkdir()
    is_sft = name.endswith("_sft")
    with_header = FOLDER / "grovemoe_33b_four_nodes.sh" if is_sft else script
    prepare(with_header.read_text(), save_parent(parent, tmp_path), tmp_path)
    data = tmp_path / "data" / ("chats.jsonl" if is_sft else "text")
    if is_sft:
        shutil.copytree(tmp_path / "ckpt" / "grove", tmp_path / "ckpt" / "mid-training")
        turns = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
        data.write_text(f"{json.dumps({'messages': turns})}\n" * 400)
    recipe = read_recipe(script, CKPT=str(tmp_path / "ckpt"), DATA=str(data))
    begins, saves = (
        Path(recipe.flags[recipe.flags.index(flag) + 1])
        for flag in ("--pretrained-checkpoint", "--save")
    )
    argv = small(recipe.flags, flags_of(begins))
    folder = tmp_path / "job"
    target = "tests.integration.recorded_run:train"
    job = ranks.run(world_size, target, str(folder), argv, folder=folder).check()
    # On the last stage alone there is a loss.
    losses = [loss["lm loss"] for loss in job.results()[-1]["losses"]]
    assert len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert f"loading release distributed checkpoint from {begins}" in job.log()
    assert (saves / "latest_checkpointed_iteration.txt").read_text() == "6"


def test_every_recipe_has_a_small_one() -> None:
    assert {script.stem for script in FOLDER.glob("*.sh")} == PARENTS.keys()
