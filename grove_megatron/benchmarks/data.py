"""``grove bench data``: text into tokens, beside Megatron-LM's own tool with as many processes."""

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TOOL = Path("tools") / "preprocess_data.py"
_WORDS = 30_000
_TOKENS = 8_000


def measure(megatron_lm: Path, megabytes: int, workers: int, rounds: int) -> dict[str, float]:
    """Both on the same text, in turns; medians.

    Args:
        megatron_lm: a clone of Megatron-LM.
        megabytes: of text, in documents of some 3 KB.
        workers: processes of each.
        rounds: how often each runs.

    Returns:
        Seconds of each, and the speed of ours over theirs.

    Raises:
        ValueError: there is no such tool, or the files differ.
    """
    if not (megatron_lm / _TOOL).is_file():
        raise ValueError(f"--megatron-lm ({megatron_lm}) has no {_TOOL}; name a clone")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "grove bench data needs transformers (not installed); pip install 'grove-megatron[hf]'"
        )
    with tempfile.TemporaryDirectory(prefix="grove-data-") as name:
        folder = Path(name)
        text, tokenizer = _corpus(folder, megabytes)
        commands = {
            "ours": [
                *(sys.executable, "-m", "grove_megatron", "data", str(text)),
                *("--output", str(folder / "ours"), "--tokenizer", str(tokenizer)),
                *("--workers", str(workers)),
            ],
            "theirs": [
                *(sys.executable, str(megatron_lm / _TOOL), "--input", str(text)),
                *("--output-prefix", str(folder / "theirs"), "--workers", str(workers)),
                *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer)),
                "--append-eod",
            ],
        }
        seconds: dict[str, list[float]] = {which: [] for which in commands}
        for number in range(rounds):
            # Each is first as often.
            for which in sorted(commands, reverse=bool(number % 2)):
                for made in [*folder.glob("ours*"), *folder.glob("theirs*")]:
                    if made.name.startswith(which):
                        made.unlink()
                seconds[which].append(_timed(commands[which], megatron_lm))
            _same(folder)
    ours, theirs = (statistics.median(seconds[which]) for which in ("ours", "theirs"))
    return {"seconds": ours, "seconds_of_megatron_lm": theirs, "speed_ratio": theirs / ours}


def _corpus(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """JSON lines of random words, and a tokenizer that was trained on some of them."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(_WORDS)]
    text, size = folder / "text.jsonl", 0
    with text.open("w") as file:
        while size < megabytes << 20:
            line = json.dumps({"text": " ".join(rng.choices(words, k=500))}) + "\n"
            size += file.write(line)
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=_TOKENS, special_tokens=["<end>"], show_progress=False)
    own.train_from_iterator([" ".join(words)], trainer)
    place = folder / "tokenizer"
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>").save_pretrained(
        place
    )
    return text, place


def _timed(command: list[str], megatron_lm: Path) -> float:
    environment = os.environ | {"PYTHONPATH": str(megatron_lm), "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return seconds


def _same(folder: Path) -> None:
    for suffix in (".bin", ".idx"):
        ours, theirs = folder / f"ours{suffix}", folder / f"theirs_text_document{suffix}"
        if ours.read_bytes() != theirs.read_bytes():
            raise ValueError(f"{ours.name} is not {theirs.name}, byte for byte")
