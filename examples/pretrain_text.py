"""Pretrain a small Grove MoE model on real text, with Megatron's whole training path.

The text is the source code of the Python standard library of the machine, one token per byte.
``torchrun`` starts two expert-parallel ranks: on two GPUs, or on the CPU where there is none; a
single GPU gets one rank. Takes about a minute on two CPU cores and leaves, in
``runs/pretrain``:

* ``loss.png`` and ``summary.json``: the losses, the model's size and what crossed the ranks;
* ``checkpoint/``: Megatron's distributed checkpoint of the last iteration;
* ``log.txt``: everything the ranks printed, of the latest run, also of one that failed;
* ``data/``: the tokens, made once and used again.

Every run starts from random weights. The results of an earlier run stay until a new one succeeded.
"""

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]

# --------------------------------------------------------------------------- what is trained

SEQUENCE_LENGTH = 256
GLOBAL_BATCH_SIZE = 8
ITERATIONS = 80
EVAL_INTERVAL = 10
EVAL_BATCHES = 4

MODEL = f"""
    --num-layers 4 --hidden-size 128 --num-attention-heads 4 --ffn-hidden-size 256
    --seq-length {SEQUENCE_LENGTH} --max-position-embeddings {SEQUENCE_LENGTH}
    --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0
"""
EXPERTS = """
    --num-experts 16 --moe-router-topk 4 --moe-ffn-hidden-size 96
    --grove-num-groups 8 --grove-adjugate-ffn-hidden-size 16
    --moe-token-dispatcher-type alltoall --moe-router-dtype fp32
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-3
    --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-3
"""
OPTIMIZER = """
    --lr 2e-3 --min-lr 2e-4 --lr-decay-style cosine --lr-warmup-fraction 0.1
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --seed 1234
"""
# Plain torch instead of the kernels of TransformerEngine and Apex, which need not be installed.
KERNELS = """
    --transformer-impl local --attention-backend unfused --no-masked-softmax-fusion
    --no-gradient-accumulation-fusion --no-persist-layer-norm --no-rope-fusion
"""

# --------------------------------------------------------------------------- text to tokens

END_OF_DOCUMENT = 256
VOCABULARY = 257  # the bytes and END_OF_DOCUMENT; Megatron's NullTokenizer ends with its last id
MAX_BYTES = 4_000_000
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "site-packages", "__pycache__"})


def tokenize(text: bytes) -> np.ndarray:
    """One document: its bytes as ids 0 to 255, then the end-of-document id; uint16."""
    tokens = np.full(len(text) + 1, END_OF_DOCUMENT, dtype=np.uint16)
    tokens[:-1] = np.frombuffer(text, dtype=np.uint8)
    return tokens


def detokenize(tokens: Iterable[int]) -> list[bytes]:
    """The documents in a run of tokens; the last one may be incomplete."""
    documents = [bytearray()]
    for token in tokens:
        if token == END_OF_DOCUMENT:
            documents.append(bytearray())
        else:
            documents[-1].append(token)
    return [bytes(document) for document in documents if document]


def source_files(library: Path, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Modules of a source tree, at most ``max_bytes`` of them, in an order that never changes.

    They are shuffled with a fixed seed: Megatron takes the validation part from the end, which
    then resembles the rest instead of being the packages late in the alphabet.
    """
    found = sorted(
        path
        for path in library.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(library).parts)
        and path.stat().st_size > 0
    )
    random.Random(0).shuffle(found)
    chosen, total = [], 0
    for path in found:
        total += path.stat().st_size
        if total > max_bytes:
            break
        chosen.append(path)
    return chosen


def prepare_data(folder: Path, held_out: int = 0) -> Path:
    """Write the standard library as Megatron's ``text.bin`` and ``text.idx``; return the prefix.

    A complete folder of the same sources is used again; a folder becomes complete by its rename.

    Args:
        held_out: how many files, the last ones, become ``valid.bin`` and ``valid.idx`` instead.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = source_files(library)
    manifest = {
        "library": str(library),
        "held_out": held_out,
        "files": {str(f.relative_to(library)): f.stat().st_size for f in files},
    }
    if _read_json(folder / "manifest.json") == manifest:
        return folder / "text"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as name:
        staging = Path(name)
        (staging / "new").mkdir()
        sets = {"text": files[: len(files) - held_out], "valid": files[len(files) - held_out :]}
        for name_of_set, of_set in sets.items():
            if of_set:
                _write_indexed(staging / "new" / name_of_set, (f.read_bytes() for f in of_set))
        (staging / "new" / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        replace(staging / "new", folder)
    return folder / "text"


def _write_indexed(prefix: Path, documents: Iterable[bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional packages that Megatron looks for
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        tokens = tokenize(document)
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def replace(new: Path, old: Path) -> None:
    """Put ``new``, a file or a folder, in the place of ``old``.

    A folder cannot be replaced in one step, so the old one first moves beside the new one, into
    the temporary folder that disappears with it.
    """
    if old.is_dir():
        old.rename(new.with_name(f"{new.name}.replaced"))
    new.replace(old)


# --------------------------------------------------------------------------- where it runs


@dataclass(frozen=True)
class Placement:
    """How many ranks, on which device."""

    ranks: int
    device: str

    def describe(self) -> str:
        """One phrase for the table."""
        if self.ranks == 1:
            return f"rank, on one {self.device}: no row leaves it"
        return f"ranks, on {self.device}"


def choose_placement() -> Placement:
    """Two expert-parallel ranks, except on a machine with exactly one GPU."""
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("GROVE_RUNTIME") != "cpu" else 0
    if gpus == 0:
        return Placement(ranks=2, device="CPU")
    return Placement(ranks=min(gpus, 2), device=torch.cuda.get_device_name(0))


def training_command(
    placement: Placement, data: Path, checkpoint: Path, iterations: int
) -> list[str]:
    """The ``torchrun`` command line; ``--save`` without ``--load``, so no run continues another."""
    torchrun = f"-m torch.distributed.run --standalone --nproc-per-node {placement.ranks}"
    run = f"""
        --expert-model-parallel-size {placement.ranks}
        --micro-batch-size {GLOBAL_BATCH_SIZE // placement.ranks}
        --global-batch-size {GLOBAL_BATCH_SIZE} --train-iters {iterations}
        --tokenizer-type NullTokenizer --vocab-size {VOCABULARY} --make-vocab-size-divisible-by 1
        --split 90,10,0 --num-workers 1
        --eval-interval {min(EVAL_INTERVAL, iterations)} --eval-iters {EVAL_BATCHES}
        --log-interval 1 --ckpt-format torch_dist --save-interval {iterations + 1}
    """
    flags = " ".join([MODEL, EXPERTS, OPTIMIZER, KERNELS, run]).split()
    paths = ["--data-path", str(data), "--save", str(checkpoint)]
    return [sys.executable, *torchrun.split(), "-m", "grove_megatron.pretrain", *flags, *paths]


# --------------------------------------------------------------------------- reading the log

_ITERATION = re.compile(
    r"iteration +(?P<iteration>\d+)/ *\d+ \|"
    r".*?elapsed time per iteration \(ms\): (?P<ms>[\d.]+) \|"
    r".*?global batch size: +(?P<batch>\d+) \|"
    r".*?lm loss: (?P<loss>[\d.E+-]+) \|"
)
_VALIDATION = re.compile(
    r"validation loss at iteration (?P<iteration>\d+)(?: on validation set)? \| "
    r"lm loss value: (?P<loss>[\d.E+-]+)"
)
_SUMMARY = re.compile(r"grove_megatron summary: (?P<json>\{[^{}]*\})")


@dataclass(frozen=True)
class Iteration:
    """One training step, as Megatron logs it; loss in nats per token."""

    number: int
    loss: float
    seconds: float
    samples: int


@dataclass
class RunLog:
    """What is read from the output of a run, line by line.

    Ranks share one pipe, so a physical line may hold several records.
    """

    iterations: list[Iteration] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def read(self, line: str) -> list[Iteration]:
        """Take the records out of a line; return the training steps among them."""
        steps = [
            Iteration(int(m["iteration"]), float(m["loss"]), float(m["ms"]) / 1e3, int(m["batch"]))
            for m in _ITERATION.finditer(line)
        ]
        self.iterations += steps
        for match in _VALIDATION.finditer(line):
            self.validation[int(match["iteration"])] = float(match["loss"])
        for match in _SUMMARY.finditer(line):
            self.summary = json.loads(match["json"])
        return steps


# --------------------------------------------------------------------------- running it


class Progress:
    """One live line: iteration, loss, speed and the time that is left."""

    def __init__(self, iterations: int) -> None:
        self.recent: deque[float] = deque(maxlen=10)
        self.bar = tqdm(
            total=iterations,
            desc="starting Megatron",
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar:24}|{postfix}",
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )

    def show(self, step: Iteration) -> None:
        """Move to a step that was logged."""
        self.recent.append(step.seconds)
        mean = sum(self.recent) / len(self.recent)
        left = round(mean * (self.bar.total - step.number))
        speed = step.samples * SEQUENCE_LENGTH / mean
        finished = step.number == self.bar.total
        self.bar.set_description("evaluating, saving" if finished else "training", refresh=False)
        self.bar.set_postfix_str(
            f"loss {step.loss:.3f}, {speed:,.0f} tokens/s, {left // 60}:{left % 60:02} left",
            refresh=False,
        )
        self.bar.update(step.number - self.bar.n)


def train(command: list[str], log_file: Path, iterations: int) -> tuple[int, RunLog]:
    """Run the ranks, show their progress, keep their output; return the exit status and records."""
    log = RunLog()
    progress = Progress(iterations)
    with log_file.open("w") as raw, running(command) as process:
        for line in process.stdout or ():
            raw.write(line)
            raw.flush()
            for step in log.read(line):
                progress.show(step)
        status = process.wait()
    progress.bar.close()
    return status, log


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """``torchrun`` as a context: leaving it in any way, Ctrl-C included, ends every rank.

    It gets a session of its own, so that a Ctrl-C reaches only this process, and one signal
    reaches ``torchrun``, which then ends its ranks.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=45)  # torchrun itself gives its ranks 30 s
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


# --------------------------------------------------------------------------- results


def summarize(log: RunLog, placement: Placement, seconds: float) -> dict[str, Any]:
    """The figures of a finished run; every one of them was measured or counted by it."""
    losses = [step.loss for step in log.iterations]
    validation = sorted(log.validation.items())
    if not losses or not validation or "rows_per_token" not in log.summary:
        raise RuntimeError(
            f"the log of the run has {len(losses)} iterations, {len(validation)} validation losses "
            f"and the summary {log.summary}; its format differs from the one read here"
        )
    last = losses[-10:]
    return {
        "iterations": log.iterations[-1].number,
        "tokens": sum(step.samples for step in log.iterations) * SEQUENCE_LENGTH,
        "train_loss_first": losses[0],
        "train_loss_last": sum(last) / len(last),
        "valid_loss_first": validation[0][1],
        "valid_loss_first_iteration": validation[0][0],
        "valid_loss": validation[-1][1],
        "rows_per_token": log.summary["rows_per_token"],
        # Megatron's own all-to-all sends one row for every expert a token is routed to.
        "stock_rows_per_token": log.summary["routed_pairs_per_token"],
        "params_total": log.summary["params_total"],
        "params_active": log.summary["params_active"],
        "expert_parallel_size": placement.ranks,
        "device": placement.device,
        "seconds": seconds,
    }


def print_table(summary: dict[str, Any], placement: Placement) -> None:
    """The summary for a reader."""
    from rich.console import Console
    from rich.table import Table

    s = summary
    rows, stock = s["rows_per_token"], s["stock_rows_per_token"]
    table = Table(
        title="Grove MoE pretrained on the Python standard library",
        title_style="bold",
        show_header=False,
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("train loss", f"{s['train_loss_first']:.3f}", "nats per byte, iteration 1")
    table.add_row("", f"{s['train_loss_last']:.3f}", "mean of the last 10 iterations")
    table.add_row(
        "validation loss",
        f"{s['valid_loss_first']:.3f}",
        f"nats per byte, iteration {s['valid_loss_first_iteration']}",
    )
    table.add_row("", f"{s['valid_loss']:.3f}", f"iteration {s['iterations']}", end_section=True)
    table.add_row("parameters", f"{s['params_total']:,}", "total")
    table.add_row("", f"{s['params_active']:,}", "active for an average token", end_section=True)
    table.add_row("rows sent", f"{rows:.2f}", "per token and layer")
    table.add_row("", f"{stock:.2f}", "Megatron's own all-to-all", end_section=True)
    table.add_row("expert parallel", str(s["expert_parallel_size"]), placement.describe())
    table.add_row("time", f"{s['seconds']:.0f} s", "from start to finish")
    Console().print(table)


def plot(log: RunLog, file: Path) -> None:
    """Draw the training loss of every iteration and the validation points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(
        [step.number for step in log.iterations],
        [step.loss for step in log.iterations],
        color="tab:blue",
        linewidth=1.2,
        label="training",
    )
    axes.plot(
        list(log.validation),
        list(log.validation.values()),
        "o",
        color="tab:orange",
        markersize=5,
        label="validation (files not trained on)",
    )
    uniform = math.log(VOCABULARY)
    axes.axhline(
        uniform, color="gray", linestyle=":", linewidth=1, label=f"guessing: ln {VOCABULARY}"
    )
    tokens = GLOBAL_BATCH_SIZE * SEQUENCE_LENGTH
    axes.set_xlabel(f"iteration ({tokens:,} bytes of text each)")
    axes.set_ylabel("cross-entropy loss (nats per byte)")
    axes.set_title("A small Grove MoE learns the source of the Python standard library")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main() -> int:
    """Prepare, train, report; the exit status."""
    started = time.monotonic()
    options = _options()
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGHUP, _exit_on_signal)
    out: Path = options.out.resolve()
    data = prepare_data(out / "data")
    placement = choose_placement()
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out) as name:
        new = Path(name)
        command = training_command(placement, data, new / "checkpoint", options.iterations)
        status, log = train(command, out / "log.txt", options.iterations)
        if status:
            print_tail(out / "log.txt")
            return status if status > 0 else 128 - status
        plot(log, new / "loss.png")
        summary = summarize(log, placement, seconds=time.monotonic() - started)
        (new / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        for result in ("checkpoint", "loss.png", "summary.json"):
            replace(new / result, out / result)
    print_table(summary, placement)
    print(f"{out}: loss.png, summary.json, checkpoint, log.txt")
    return 0


def print_tail(log_file: Path) -> None:
    """The end of the log of a failed run."""
    with log_file.open(errors="replace") as log:
        reason = last_lines(log)
    print(f"training failed; the whole output is in {log_file}; its end:", file=sys.stderr)
    sys.stderr.writelines(reason)


def last_lines(log: Iterable[str], count: int = 30) -> list[str]:
    """The last lines of the ranks: ``torchrun`` adds a screen about itself to every failure."""
    kept: deque[str] = deque(maxlen=count)
    for line in log:
        kept.append(line)
        if "failed (exitcode:" in line:
            break
    return list(kept)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "pretrain", help="folder of the results"
    )
    parser.add_argument(
        "--iterations", type=int, default=ITERATIONS, help=f"training steps ({ITERATIONS})"
    )
    options = parser.parse_args()
    if options.iterations < 1:
        parser.error(f"--iterations ({options.iterations}) is below 1; train at least one step")
    return options


def _exit_on_signal(number: int, _frame: object) -> None:
    """Leave by an exception, so that the ranks end and temporary folders go."""
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
