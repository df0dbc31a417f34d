"""A patched ``pretrain_gpt.py`` trains like an unpatched one under ``grove_megatron.run``."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.chat_tokenizers import chat_tokenizer

from .launching import REPOSITORY, Finished, launch, reported_steps, tiny_model, torchrun

CLONE = Path(os.environ.get("MEGATRON_LM", ""))
APPLY = REPOSITORY / "patches" / "apply.py"
FIM_TOKENS = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]

pytestmark = pytest.mark.skipif(
    not (CLONE / "pretrain_gpt.py").is_file() or "MEGATRON_LM" not in os.environ,
    reason="MEGATRON_LM names no folder with a pretrain_gpt.py",
)


def _scripts(folder: Path) -> Path:
    """The clone's entry script without the clone's Megatron: the installed one is used."""
    folder.mkdir()
    for name in ("pretrain_gpt.py", "gpt_builders.py", "model_provider.py"):
        shutil.copy(CLONE / name, folder)
    return folder / "pretrain_gpt.py"


def _patched(folder: Path) -> Path:
    clone = folder / "clone"
    (clone / "megatron" / "core").mkdir(parents=True)
    info = Path("megatron", "core", "package_info.py")
    shutil.copy(CLONE / info, clone / info)
    shutil.copy(CLONE / "pretrain_gpt.py", clone)
    done = launch([sys.executable, str(APPLY), "apply", str(clone)], timeout=600)
    assert done.code == 0, done.output
    script = _scripts(folder / "patched")
    shutil.copy(clone / "pretrain_gpt.py", script)
    return script


def _train(*entry: str) -> Finished:
    flags = [*tiny_model(), "--expert-model-parallel-size", "2", "--train-iters", "3"]
    return launch(torchrun(*entry, *flags), GROVE_RUNTIME="cpu")


@pytest.mark.long
def test_losses_are_those_of_the_unpatched_script(tmp_path: Path) -> None:
    patched = _train(str(_patched(tmp_path)))
    assert patched.code == 0, patched.output
    unpatched = _train("-m", "grove_megatron.run", str(_scripts(tmp_path / "unpatched")))
    assert unpatched.code == 0, unpatched.output
    assert sorted(reported_steps(patched.output)) == [1, 2, 3]
    assert reported_steps(patched.output) == reported_steps(unpatched.output)


@pytest.mark.long
def test_patched_script_under_run_enters_the_runtime_once(tmp_path: Path) -> None:
    done = _train("-m", "grove_megatron.run", str(_patched(tmp_path)))
    assert done.code == 0, done.output
    assert sorted(reported_steps(done.output)) == [1, 2, 3]
    assert done.output.count("grove_megatron: runtime CPU") == 1


def test_patched_script_refuses_what_cannot_work(tmp_path: Path) -> None:
    done = launch(
        torchrun(str(_patched(tmp_path)), *tiny_model(), "--grove-num-groups", "3"),
        GROVE_RUNTIME="cpu",
    )
    assert done.code != 0
    assert "--grove-num-groups (3) does not divide --num-experts (8)" in done.output


# ------------------------------------------------------------------------------ text, conversations


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, conversations, and text that the clone's own tool has prepared."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("files")
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": FIM_TOKENS})
    tokenizer.save_pretrained(folder / "tokenizer")
    lines = [{"text": f"line {i} of a text that says {i * i} in words. " * 3} for i in range(60)]
    (folder / "text.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    turns = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    (folder / "chats.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 40)
    prepare = [sys.executable, str(CLONE / "tools" / "preprocess_data.py"), "--append-eod"]
    named = {"input": "text.jsonl", "output-prefix": "text", "tokenizer-model": "tokenizer"}
    prepare += [word for flag, name in named.items() for word in (f"--{flag}", f"{folder / name}")]
    done = launch(
        [*prepare, "--tokenizer-type", "HuggingFaceTokenizer", "--workers", "1"],
        PYTHONPATH=f"{CLONE}:{REPOSITORY}",
    )
    assert done.code == 0, done.output
    return folder


def _of_files(folder: Path, *data: str) -> list[str]:
    """The tiny model on files: a later flag wins, but for --mock-data, which is taken out."""
    model = [word for word in tiny_model() if word != "--mock-data"]
    own = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{folder}/tokenizer"]
    own += ["--expert-model-parallel-size", "2", "--train-iters", "3", "--eval-iters", "0"]
    return [*model, *own, "--data-cache-path", f"{folder}/cache", *data]


def _both(tmp_path: Path, flags: list[str]) -> tuple[Finished, Finished]:
    """The patched script, and the unpatched one under grove_megatron.run."""
    patched = launch(torchrun(str(_patched(tmp_path)), *flags), GROVE_RUNTIME="cpu")
    script = str(_scripts(tmp_path / "unpatched"))
    run = launch(torchrun("-m", "grove_megatron.run", script, *flags), GROVE_RUNTIME="cpu")
    return patched, run


@pytest.mark.long
@pytest.mark.parametrize("fim", [False, True], ids=["text", "fim"])
def test_data_of_the_clones_tool_gives_the_same_losses(
    fim: bool, files: Path, tmp_path: Path
) -> None:
    data = ["--data-path", f"{files}/text_text_document"]
    data += ["--fim-data", "--fim-rate", "0.9", "--fim-spm-rate", "0.5"] if fim else []
    patched, run = _both(tmp_path, _of_files(files, *data))
    assert patched.code == run.code == 0, patched.output + run.output
    assert sorted(reported_steps(patched.output)) == [1, 2, 3]
    assert reported_steps(patched.output) == reported_steps(run.output)


@pytest.mark.long
def test_conversations_are_refused_without_transformer_engine(files: Path, tmp_path: Path) -> None:
    """Both say the same; with TransformerEngine, which needs a GPU, neither has been run."""
    flags = _of_files(files, "--sft", "--data-path", f"{files}/chats.jsonl")
    for finished in _both(tmp_path, flags):
        assert finished.code != 0
        assert "--sft (True) packs conversations, which the attention of" in finished.output
        assert "1 problem, nothing was started" in finished.output


@pytest.mark.long
def test_doctor_reads_the_data_of_the_clones_tool(files: Path) -> None:
    flags = _of_files(files, "--data-path", f"{files}/text_text_document")
    doctor = [sys.executable, "-m", "grove_megatron", "doctor", "--world-size", "2"]
    done = launch([*doctor, *flags], GROVE_RUNTIME="cpu")
    assert done.code == 0, done.output
    assert "no problem found" in done.output
    wrong = [word.replace("text_text_document", "text_other") for word in flags]
    done = launch([*doctor, *wrong], GROVE_RUNTIME="cpu")
    assert done.code == 2
    assert "text_other.idx" in done.output


@pytest.mark.long
def test_a_failure_of_the_patched_script_is_told_once_for_the_job(tmp_path: Path) -> None:
    """The failure watch is there, as under grove_megatron.run."""
    script = _patched(tmp_path)
    text = script.read_text()
    place = "    args = get_args()\n\n    config = core_gpt_dataset_config_from_args(args)\n"
    assert text.count(place) == 1
    fails = "    if os.environ['RANK'] == '1':\n        raise RuntimeError('planted')\n"
    script.write_text(text.replace(place, f"    import os\n\n{fails}{place}"))
    done = _train(str(script))
    assert done.code != 0
    assert done.output.count("\ngrove_megatron: rank 1") == 1, done.output
