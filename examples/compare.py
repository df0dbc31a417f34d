"""Train several models on the same text with the same seeds, and compare what they learned.

    examples/compare.py routers      # or: make compare
    examples/compare.py moepp        # or: make compare-moepp

``routers``: selectors and gates of routers beside a plain top-k, all else being the same. A token
goes to 2 of 16 experts, or, where a router gives it one, to 1 of 8 that are twice as wide: experts
have as many parameters in total, and a token uses as many of them; the command refuses others. What
gates have is counted in the table: the one of two layers adds 9 % to the parameters of a token, all
others less than 3 %. Two arms have Grove groups: a token uses as many parameters there, too, but
experts are narrower by what adjugates take, so that there are 7 % fewer in total.

``moepp``: a plain MoE, Grove MoE, MoE++ and both together. Their experts are as wide as makes the
parameters that a token uses on average the same, embedding and all (what training balances them
to; what they really used is in the table). All parameters together are not the same: experts that
a token meets less often are wider. The balance losses pull equally hard: that of MoE++ has no
factor experts / experts per token, which Megatron's has.

The text is the source code of the Python standard library of the machine, one token per byte. Each
run is one rank of Megatron's whole training path; on a CPU as many run at a time as there are
cores. In ``runs/compare-routers`` or ``runs/compare-moepp`` (``--out``) they leave

* ``table.md`` and ``results.json``: losses of a validation set, the spread of the seeds; of routers
  their balance and speed, of MoE++ the floating-point operations spent, counted from the experts
  and adjugates that tokens went to;
* ``comparison.png``: of routers, differences to the plain one; of MoE++, loss against operations;
* ``comparison.html``, of routers: the table, what each of them is, and what all experts did;
* ``<model>-<seed>/``: the record of every run, for ``grove report``, and its log.

A finished run is not made again: the same command goes on where it was stopped.
"""

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import compare_flops
import compare_routers
import numpy as np
from compare_arms import COMPARISONS, COUNTS, Comparison, refuse_unlike
from compare_runs import Runs, jobs, write
from pretrain_text import ROOT, VOCABULARY, choose_placement, last_lines, prepare_data

FIGURES = ROOT / "docs" / "parts" / "figures.json"


def main() -> int:
    """Train what is missing, compare; the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    of = _comparison(options)
    out = (options.out or ROOT / "runs" / f"compare-{options.what}").resolve()
    started = time.monotonic()
    prepare_data(out / "data", held_out=of.held_out)
    write_counts(out / "data")
    everything = jobs(of, out)
    todo = [job for job in everything if not job.is_done]
    if len(todo) < len(everything):
        print(f"{len(everything) - len(todo)} of {len(everything)} runs were finished before")
    call = time.strftime("%Y-%m-%d %H:%M:%S")
    if todo and (failed := Runs(todo, of.iterations, call).run(_at_a_time())):
        log = failed.folder / "log.txt"
        print(f"{failed.arm.name}, seed {failed.seed}, failed; {log} ends:", file=sys.stderr)
        with log.open(errors="replace") as lines:
            sys.stderr.writelines(last_lines(lines))
        return 1
    reported = compare_flops if options.what == "moepp" else compare_routers
    print("\n".join(reported.report(of, everything, out)))
    if options.update:
        figures = compare_routers.figures(json.loads((out / "results.json").read_text()))
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        write(FIGURES, json.dumps({"command": _command(options), **figures}, indent=1) + "\n")
        print(f"{FIGURES}: the figures of parts")
    print(f"{time.monotonic() - started:.0f} s")
    return 0


def write_counts(data: Path) -> None:
    """How often each token id is in the text, for balanced hash tables."""
    tokens = np.fromfile(data / "text.bin", dtype=np.uint16)
    counts = np.bincount(tokens, minlength=VOCABULARY).tolist()
    write(data / COUNTS, json.dumps(counts) + "\n")


def _comparison(options: argparse.Namespace) -> Comparison:
    of = COMPARISONS[options.what]
    if options.iterations:
        of = replace(of, iterations=options.iterations)
    if options.seeds:
        of = replace(of, seeds=tuple(range(1, options.seeds + 1)))
    if options.what == "routers":
        refuse_unlike(of.arms)
    return of


def _command(options: argparse.Namespace) -> str:
    """What gives the same figures again."""
    given = [f"--{n} {v}" for n in ("iterations", "seeds") if (v := getattr(options, n))]
    return f"examples/compare.py {options.what} {' '.join(given)}" if given else "make compare"


def _at_a_time() -> int:
    return 1 if choose_placement().device != "CPU" else max(1, len(os.sched_getaffinity(0)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(COMPARISONS), help="models to compare")
    parser.add_argument("--out", type=Path, help="folder of the results (runs/compare-WHAT)")
    many = ", ".join(f"{name} {of.iterations}" for name, of in COMPARISONS.items())
    parser.add_argument("--iterations", type=int, help=f"training steps of each ({many})")
    parser.add_argument(
        "--seeds", type=int, choices=range(1, 6), help="how many seeds of each, from 1 on (3)"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="of routers: write their figures into docs/parts/figures.json",
    )
    options = parser.parse_args()
    if options.iterations is not None and options.iterations < 10:
        parser.error(f"--iterations ({options.iterations}) is below 10; train longer")
    if options.update and options.what != "routers":
        parser.error(f"--update is of routers, not of {options.what}; remove it")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
