"""Train several models on the same text with the same seeds, and compare what they learned.

    examples/compare.py moepp        # or: make compare-moepp

``moepp``: a plain MoE, Grove MoE, MoE++ and both together. Their experts are as wide as makes the
parameters that a token uses on average the same, embedding and all (what training balances them
to; what they really used is in the table). All parameters together are not the same: experts that
a token meets less often are wider. The balance losses pull equally hard: that of MoE++ has no
factor experts / experts per token, which Megatron's has.

The text is the source code of the Python standard library of the machine, one token per byte. Each
run is one rank of Megatron's whole training path; on a CPU as many run at a time as there are
cores. In ``runs/compare-moepp`` (``--out``) they leave

* ``table.md`` and ``results.json``: losses of a validation set, the spread of the seeds, and the
  floating-point operations spent, counted from the experts and adjugates that tokens went to;
* ``comparison.png``: loss against operations;
* ``<model>-<seed>/``: the record of every run, for ``grove report``, and its log.

A finished run is not made again: the same command goes on where it was stopped.
"""

import argparse
import hashlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from pretrain_text import (
    KERNELS,
    MODEL,
    OPTIMIZER,
    ROOT,
    SEQUENCE_LENGTH,
    VOCABULARY,
    RunLog,
    choose_placement,
    last_lines,
    prepare_data,
    running,
)
from tqdm import tqdm

from grove_megatron.model.architecture import Model
from grove_megatron.planner.flops import flops_per_token
from grove_megatron.report.measures import active_parameters, mean, per_layer
from grove_megatron.report.view import View, validations

ITERATIONS = 180
BATCH = 8
SEEDS = (1, 2, 3)
EVALUATIONS = 4
# Files of which every evaluation of every run reads all.
HELD_OUT = 6
# Two-sided 95 % of Student's t, by degrees of freedom.
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}

# --------------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Arm:
    """One model: its experts, and the flags of its routing and balance."""

    name: str
    width: int
    flags: str
    groups: int = 0
    adjugate_width: int = 0
    local: int = 0
    tau: float = 1.0
    experts: int = 16
    topk: int = 4

    def words(self) -> list[str]:
        """Its part of the command line."""
        size = f"--num-experts {self.experts} --moe-router-topk {self.topk}"
        size += f" --moe-ffn-hidden-size {self.width}"
        return f"{size} {self.flags}".split()

    def model(self) -> Model:
        """Its sizes, to count parameters and operations."""
        sizes = _sizes(MODEL)
        heads = sizes["num-attention-heads"]
        return Model(
            hidden_size=sizes["hidden-size"],
            num_attention_heads=heads,
            num_query_groups=heads,
            head_dim=sizes["hidden-size"] // heads,
            vocab_size=VOCABULARY,
            moe_layers=(True,) * sizes["num-layers"],
            num_experts=self.experts,
            moe_ffn_hidden_size=self.width,
            topk=self.topk,
            local_experts=self.local,
            local_tau=self.tau,
            num_groups=self.groups,
            adjugate_ffn_hidden_size=self.adjugate_width,
        )


def _sizes(flags: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"--([a-z-]+) (\d+)\b", flags)}


_GROUPS = {"groups": 8, "adjugate_width": 18}
_GROVE = "--grove-num-groups 8 --grove-adjugate-ffn-hidden-size 18"
_BALANCED = "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2"
_MOEPP = """
    --grove-zero-experts 1 --grove-copy-experts 1 --grove-constant-experts 2
    --grove-gating-residual --grove-heterogeneous-loss-coeff 0.05 --grove-local-tau 0.75
    --moe-router-load-balancing-type none
"""
_LOCAL = {"local": 4, "tau": 0.75}

ARMS = {
    "moepp": (
        Arm("plain", 96, f"--grove-dispatch {_BALANCED}"),
        Arm("Grove", 80, f"{_GROVE} {_BALANCED}", **_GROUPS),
        Arm("MoE++", 128, f"--grove-dispatch {_MOEPP}", **_LOCAL),
        Arm("Grove x MoE++", 111, f"{_GROVE} {_MOEPP}", **_GROUPS, **_LOCAL),
    ),
}

# --------------------------------------------------------------------------- the runs


@dataclass
class Job:
    """One model and one seed.

    Attributes:
        folder: of its record, its log and, once it is finished, ``done.json``.
    """

    arm: Arm
    seed: int
    folder: Path
    command: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """By the same command, on the same text, and its record is there."""
        try:
            told = json.loads((self.folder / "done.json").read_text())
            curve(self)
        except (OSError, ValueError):
            return False
        return bool(told == self._told())

    def finish(self) -> None:
        """Say so, once its record can be read."""
        curve(self)
        _write(self.folder / "done.json", json.dumps(self._told()) + "\n")

    def _told(self) -> list[str]:
        """What makes it the run it is, and not the folder it lies in."""
        manifest = (self.folder.parent / "data" / "manifest.json").read_bytes()
        words = [word for word in self.command if str(self.folder.parent) not in word]
        return [*words, version("grove-megatron"), hashlib.sha256(manifest).hexdigest()]


def jobs(arms: Sequence[Arm], out: Path, iterations: int) -> list[Job]:
    """Seed by seed, so that an early end leaves every model alike."""
    found = []
    for seed in SEEDS:
        for arm in arms:
            name = re.sub(r"[^A-Za-z0-9+]+", "-", arm.name)
            job = Job(arm, seed, out / f"{name}-{seed}")
            job.command = _command(job, out / "data", iterations)
            found.append(job)
    return found


def _command(job: Job, data: Path, iterations: int) -> list[str]:
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 1"
    shared = """
        --moe-token-dispatcher-type alltoall --moe-router-dtype fp32
        --tokenizer-type NullTokenizer --make-vocab-size-divisible-by 1
        --full-validation --multiple-validation-sets
        --num-workers 1 --log-interval 5
    """
    run = f"""
        --micro-batch-size {BATCH} --global-batch-size {BATCH} --train-iters {iterations}
        --vocab-size {VOCABULARY} --eval-interval {max(1, iterations // EVALUATIONS)}
    """
    flags = " ".join([MODEL, OPTIMIZER, KERNELS, shared, run]).split()
    paths = ["--train-data-path", str(data / "text"), "--valid-data-path", str(data / "valid")]
    paths += ["--grove-metrics-dir", str(job.folder)]
    # Of two values the last counts.
    words = [*torchrun.split(), "-m", "grove_megatron.pretrain", *flags, *job.arm.words()]
    return [sys.executable, *words, "--seed", str(job.seed), *paths]


class Runs:
    """Jobs that run side by side, with one line of progress, and end together.

    Args:
        todo: what to run.
        iterations: of each.
    """

    def __init__(self, todo: Sequence[Job], iterations: int) -> None:
        self._todo, self._total = todo, len(todo) * iterations
        self._live: set[subprocess.Popen[str]] = set()
        self._stop = Event()

    def run(self, at_a_time: int) -> Job | None:
        """The job that failed, or None."""
        bar = tqdm(
            total=self._total,
            desc=f"{len(self._todo)} runs, {at_a_time} at a time",
            mininterval=0.5 if sys.stderr.isatty() else 30,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed} gone, {remaining} left",
        )
        with bar, ThreadPoolExecutor(at_a_time) as pool:
            jobs_of = {pool.submit(self._run, job, bar): job for job in self._todo}
            try:
                finished, _ = wait(jobs_of, return_when=FIRST_EXCEPTION)
            finally:
                # After a Ctrl-C too, of which one is enough.
                before = signal.signal(signal.SIGINT, signal.SIG_IGN)
                self._stop.set()
                for process in [*self._live]:
                    process.terminate()
                pool.shutdown(wait=True, cancel_futures=True)
                signal.signal(signal.SIGINT, before)
        return next((jobs_of[one] for one in finished if one.exception()), None)

    def _run(self, job: Job, bar: Any) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        # Of a run that was stopped: its weights are gone.
        (job.folder / "routing.jsonl").unlink(missing_ok=True)
        seen, log = 0, RunLog()
        with (job.folder / "log.txt").open("w") as raw, running(job.command) as process:
            self._live.add(process)
            # Begun while the others were told to end.
            if self._stop.is_set():
                return
            for line in process.stdout or ():
                raw.write(line)
                for step in log.read(line):
                    bar.update(step.number - seen)
                    seen = step.number
            status = process.wait()
            self._live.discard(process)
        if status and not self._stop.is_set():
            raise RuntimeError(f"exit status {status}")
        if not status:
            job.finish()


# --------------------------------------------------------------------------- what came out


@dataclass(frozen=True)
class Curve:
    """What a run spent and learned.

    Attributes:
        parameters: of the model.
        flops: spent until each of its evaluations.
        losses: of the validation set there, nats per token.
        active: parameters that an average token used.
        experts: experts with an FFN of an average token and layer.
    """

    parameters: int
    flops: list[float]
    losses: list[float]
    active: float
    experts: float


def curve(job: Job) -> Curve:
    """From the record of a run; every number of it was counted or measured."""
    view, model = View.of(job.folder), job.arm.model()
    spent, at = 0.0, {0: 0.0}
    met, active, weights = [], [], []
    for interval in view.intervals:
        layers = per_layer(interval)
        experts = mean(layers["pairs_per_token"])
        groups = mean(layers["groups_per_token"]) if job.arm.groups else 0.0
        tokens = interval.iterations * BATCH * SEQUENCE_LENGTH
        spent += tokens * flops_per_token(model, SEQUENCE_LENGTH, groups, experts)
        at[interval.iteration] = spent
        met.append(experts)
        active.append(active_parameters(interval))
        weights.append(tokens)
    made = {e.iteration: e.losses["lm loss"] for e in validations(view)}
    iterations = sorted(made)
    steps, flops = [*at], [*at.values()]
    return Curve(
        parameters=sum(view.last.run.parameters),
        flops=[float(np.interp(i, steps, flops)) for i in iterations],
        losses=[made[i] for i in iterations],
        active=float(np.average(active, weights=weights)),
        experts=float(np.average(met, weights=weights)),
    )


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of their mean; infinite for one value."""
    if len(values) < 2:
        return math.inf
    deviation = statistics.stdev(values)
    return T_95[len(values) - 1] * deviation / math.sqrt(len(values))


def at_flops(one: Curve, flops: float) -> float:
    """Loss when that much was spent, between two evaluations."""
    return float(np.interp(flops, one.flops, one.losses))


def summarize(arms: Sequence[Arm], curves: Mapping[tuple[str, int], Curve]) -> dict[str, Any]:
    """Figures of every model, and its differences to the first, seed by seed."""
    first = arms[0].name
    everyone = [[curves[arm.name, seed] for seed in SEEDS] for arm in arms]
    # All have spent it.
    common = min(one.flops[-1] for own in everyone for one in own)
    rows = []
    for arm, own in zip(arms, everyone, strict=True):
        last = [one.losses[-1] for one in own]
        equal = [at_flops(one, common) for one in own]
        base = [curves[first, seed] for seed in SEEDS]
        by_tokens = [a - b.losses[-1] for a, b in zip(last, base, strict=True)]
        by_flops = [a - at_flops(b, common) for a, b in zip(equal, base, strict=True)]
        rows.append(
            {
                "name": arm.name,
                "parameters": own[0].parameters,
                "active": statistics.mean(one.active for one in own),
                "experts_per_token": statistics.mean(one.experts for one in own),
                "flops": statistics.mean(one.flops[-1] for one in own),
                "loss": statistics.mean(last),
                "losses": last,
                "difference": statistics.mean(by_tokens),
                "difference_95": half_width(by_tokens),
                "loss_at_equal_flops": statistics.mean(equal),
                "difference_at_equal_flops": statistics.mean(by_flops),
                "difference_at_equal_flops_95": half_width(by_flops),
            }
        )
    return {"equal_flops": common, "seeds": list(SEEDS), "models": rows}


def table_of(summary: Mapping[str, Any], iterations: int) -> list[str]:
    """Markdown, with what the numbers can and cannot say."""
    models, flops = summary["models"], summary["equal_flops"]
    first, seeds = models[0]["name"], len(summary["seeds"])
    lines = [
        f"| Model | Parameters | Active | FFNs a token | TFLOP | Loss | Less {first} | "
        f"Less {first} at {flops / 1e12:.2f} TFLOP |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in models:
        spread = max(one["losses"]) - min(one["losses"])
        cells = [
            one["name"],
            f"{one['parameters']:,}",
            f"{one['active']:,.0f}",
            f"{one['experts_per_token']:.2f}",
            f"{one['flops'] / 1e12:.2f}",
            f"{one['loss']:.4f} ({spread:.4f} between seeds)",
            _difference(one, "difference"),
            _difference(one, "difference_at_equal_flops"),
        ]
        if one["name"] == first:
            cells[-2:] = ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    tokens = iterations * BATCH * SEQUENCE_LENGTH
    return [
        *lines,
        "",
        f"Validation loss in nats per byte after {tokens:,} bytes; means of {seeds} seeds, which "
        f"also order the text. Differences are of the same seed, with the 95 % interval of their "
        f"mean by Student's t: where it reaches over 0, {seeds} seeds do not tell the two apart. "
        f"It is not widened for {2 * (len(models) - 1)} of them being looked at.",
    ]


def _difference(one: Mapping[str, Any], name: str) -> str:
    return f"{one[name]:+.4f} ± {one[f'{name}_95']:.4f}"


def plot(arms: Sequence[Arm], curves: Mapping[tuple[str, int], Curve], file: Path) -> None:
    """Loss against operations: a line for the mean, a band from the best to the worst seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from grove_megatron.report import draw

    with draw.style():
        figure, (whole, end) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
        for arm, colour in zip(
            arms, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False
        ):
            own = [curves[arm.name, seed] for seed in SEEDS]
            flops = np.mean([one.flops for one in own], axis=0) / 1e12
            losses = np.array([one.losses for one in own])
            for axes in (whole, end):
                axes.plot(flops, losses.mean(0), color=colour, marker="o", ms=4, label=arm.name)
                axes.fill_between(flops, losses.min(0), losses.max(0), color=colour, alpha=0.2)
        for axes in (whole, end):
            axes.set_xlabel("operations of training, TFLOP")
            axes.set_ylabel("validation loss, nats per byte")
        finals = [curves[arm.name, seed] for arm in arms for seed in SEEDS]
        later = [loss for one in finals for loss in one.losses[len(one.losses) // 2 :]]
        whole.set_title("The whole training")
        end.set_title("Its second half")
        end.set_xlim(left=min(one.flops[len(one.flops) // 2] for one in finals) / 1e12)
        end.set_ylim(min(later) - 0.01, max(later) + 0.01)
        whole.legend()
        figure.savefig(file)
        plt.close(figure)


# --------------------------------------------------------------------------- the command


def main() -> int:
    """Train what is missing, compare; the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arms = ARMS[options.what]
    out = (options.out or ROOT / "runs" / f"compare-{options.what}").resolve()
    started = time.monotonic()
    prepare_data(out / "data", held_out=HELD_OUT)
    everything = jobs(arms, out, options.iterations)
    todo = [job for job in everything if not job.is_done]
    if len(todo) < len(everything):
        print(f"{len(everything) - len(todo)} of {len(everything)} runs were finished before")
    if todo and (failed := Runs(todo, options.iterations).run(_at_a_time())):
        log = failed.folder / "log.txt"
        print(f"{failed.arm.name}, seed {failed.seed}, failed; {log} ends:", file=sys.stderr)
        with log.open(errors="replace") as lines:
            sys.stderr.writelines(last_lines(lines))
        return 1
    curves = {(job.arm.name, job.seed): curve(job) for job in everything}
    summary = summarize(arms, curves)
    table = table_of(summary, options.iterations)
    results = summary | {
        "curves": [{"model": n, "seed": s, **asdict(c)} for (n, s), c in curves.items()]
    }
    _write(out / "results.json", json.dumps(results, indent=1) + "\n")
    _write(out / "table.md", "\n".join(table) + "\n")
    plot(arms, curves, out / "comparison.new.png")
    (out / "comparison.new.png").replace(out / "comparison.png")
    print("\n".join(table))
    print(f"{time.monotonic() - started:.0f} s; {out}: table.md, results.json, comparison.png")
    return 0


def _at_a_time() -> int:
    return 1 if choose_placement().device != "CPU" else max(1, len(os.sched_getaffinity(0)))


def _write(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(ARMS), help="models to compare")
    parser.add_argument("--out", type=Path, help="folder of the results (runs/compare-WHAT)")
    parser.add_argument(
        "--iterations", type=int, default=ITERATIONS, help=f"training steps of each ({ITERATIONS})"
    )
    options = parser.parse_args()
    if options.iterations < 10:
        parser.error(f"--iterations ({options.iterations}) is below 10; train longer")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
