"""A message that somebody has seen finds its entry."""

import re
import time

import pytest
from typer.testing import CliRunner

from grove_megatron.cli import app
from grove_megatron.messages.command import INSTRUCTIONS, explain
from grove_megatron.messages.entries import Entry, entries
from grove_megatron.messages.match import lookup, nearest
from grove_megatron.training.doctor import diagnose
from tests.unit.messages.asserted import asserted
from tests.unit.parts import test_known
from tests.unit.training.test_rules import SOUND

# Asked for where no message of the package is meant: Megatron's or a library's, which it does not
# list, and those that a test makes up.
NOT_OURS = {
    "--lr (None) is needed; give it",
    "--lr-warmup-init (1.0) needs --lr (None); give it",
    "could not determine a constructor for the tag",
    "not supported in FusedLayerNorm",
    "Expert bias for aux-loss-free",
    "a.md:5 shows a line that a command of two lines",
    "a quote is not closed",
    "git (absent, or no checkout) lists no files here; release from a checkout",
}
# Asked for by words that end, or begin, within what is known only when it is said.
CUT = {
    "--mock-data (True) excludes --data-path (a)",
    "--data-cache-path (None) puts an index of samples into",
    "--num-layers-per-virtual-pipeline-stage (1) and --num-virtual-stages",
    "grove_zero_expert_weight (the default) of",
    "line (1) is not a line of a record; it is damaged",
    "line (2) is not a line of a record; it is damaged",
    "p80 (inf) are not in order",
    "Pool needs a GPU",
    "several machines (a GPU, b GPU)",
    "groups (4) of --routing (",
    "plans are not what counts",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_every_message_that_a_test_asks_for_is_found() -> None:
    found = [*asserted()]
    assert len(found) > 400
    known = entries()
    missing = [
        f"{where}: {text}"
        for where, text in found
        if text not in NOT_OURS | CUT and not lookup(text, known)
    ]
    assert missing == []
    # Nothing is excused that is not asked for.
    assert {text for _, text in found} >= NOT_OURS | CUT


# What ends of messages begin with that tell no one to do anything.
NO_INSTRUCTIONS = set(
    """a all an did drops each every for if it kernels largest less more no nothing on one only
    padding safetensors searched selective srun the their there they this to waiting weight while
    with without writes""".split()
)

BAD = [
    *test_known.REFUSED,
    "--num-layers 0 --seq-length 7 --lr fast --zzz 1",
    "--num-layers 3 --pipeline-model-parallel-size 2",
    "--tensor-model-parallel-size 2 --hidden-size 33",
    "--expert-model-parallel-size 3",
    "--context-parallel-size 2",
    "--grove-num-groups 3",
    "--grove-adjugate-scale 9",
    "--grove-adjugate-ffn-hidden-size 0",
    "--grove-kernel triton",
    "--grove-preset mixtral-8x7b",
    "--grove-train-only ( nothing",
    "--fp16 --bf16",
    "--overlap-param-gather",
    "--recompute-granularity full",
    "--moe-token-dispatcher-type flex",
    "--moe-pad-expert-input-to-capacity",
    "--use-megatron-fsdp --async-save",
    "--split 0,0,0",
    "--eval-interval 0 --log-interval 0 --eval-iters -1",
    "--save-retain-interval 4 --save /proc/x --save-interval 2",
    "--load nowhere --finetune --exit-on-missing-checkpoint",
    "--data-path nothing/here",
    "--tokenizer-type HuggingFaceTokenizer --tokenizer-model nowhere/at/all",
    "--multi-latent-attention --yaml-cfg x.yaml",
    "--spec nothing.here at_all",
    "--sft --mock-data --reset-position-ids",
    "--moe-router-topk 99 --num-experts 4",
    "--global-batch-size 3 --micro-batch-size 2",
    "--lr-warmup-iters 9 --lr-decay-iters 3 --min-lr 1",
    "--rampup-batch-size 1 1 1 --freeze-all-layers",
    "--fp8-format hybrid --cuda-graph-impl local",
]


def test_every_problem_of_many_bad_command_lines_is_found() -> None:
    known = entries()
    problems = [
        str(problem)
        for flags in BAD
        for problem in diagnose(f"{SOUND} {flags}".split(), None, "cpu").problems
    ]
    assert len({text.split(" (")[0] for text in problems}) > 40
    # What is found is that message, not one that shares words with it: nothing of it is left over.
    missing = [text for text in problems if not _whole(text, lookup(text, known))]
    assert missing == []


def _whole(text: str, found: list[Entry]) -> bool:
    line = " ".join(text.split())
    return any(
        re.fullmatch(".*".join(re.escape(piece) for piece in entry.pieces), line) for entry in found
    )


ONE = Entry("--a (…) does not divide --b (…); use one of …", "config", "a note")
TWO = Entry("--a (…) does not divide --c (…); remove it", "config")
THREE = Entry("rank … (…) was lost: killed", "failure/message")
FEW = Entry("… has a damaged header: …", "checkpoint/safetensors_io")
BYTES = Entry("… is not …, byte for byte", "benchmarks/data")
LONG = Entry(
    "no progress on any rank for … s (--s …): … … the job goes on", "failure/stall", "a note"
)
WITHIN = Entry("… (…) is in layer …, at …", "failure/stall_table")
ONE_WORD = Entry("ChildFailedError", "torch/x.py", "a note", is_ours=False)
ALONE = Entry("one by one", "training/installed")
EVERY = (ALONE, ONE, TWO, THREE, FEW, BYTES, LONG, WITHIN, ONE_WORD)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("--a (3) does not divide --b (8); use one of 1, 2", [ONE]),
        ("--a (3) does not divide --c (8); remove it", [TWO]),
        ("ValueError: --a (3) does not divide --b (8); use one of 1", [ONE]),
        ("grove_megatron: rank 3 (node1) was lost: killed", [THREE]),
        (
            "  2. --a (3) does not divide --b (8); use one of 1\n"
            "  3. --a (1) does not divide --c (",
            [ONE, TWO],
        ),
        ("--a (3) does not divide --b", [ONE]),
        ("--a (3) does not\ndivide --b (8); use\none of 1", [ONE]),
        ("does not divide --c", [TWO]),
        ("--a (3) divides", []),
        ("--a (3) does not equal --b (8); use one of 1", []),
        ("x--a (3) does not divide --d (8); use one of 1", []),
        ("nothing at all", []),
        # Of few words: the whole line, or nothing.
        ("/x is not a clone of it: it has no /y", []),
        ("x (3) is not y", []),
        ("they came one by one to us", []),
        ("one by one", [ALONE]),
        ("x has a damaged header: 3", [FEW]),
        # The first line of several, which has what stands in holes of others.
        ("no progress on any rank for 300 s (--s 5): rank 1 (vm) is in layer 1, at x", [LONG]),
        ("rank 1 (vm) is in layer 1, at x", [WITHIN]),
        ("x.errors.ChildFailedError: ", [ONE_WORD]),
    ],
)
def test_a_message_is_found_and_no_other(text: str, found: list[Entry]) -> None:
    assert lookup(text, EVERY) == found


def test_a_long_log_takes_seconds() -> None:
    known = entries()
    said = "RuntimeError: No rendezvous handler for x://"
    words = [word for entry in known[:800] for word in entry.words]
    lines = [f"iteration {n} of 100000 took {n % 97} ms" for n in range(60_000)]
    # No two of these are of one shape.
    lines += [f"{words[n % 997]} {words[n % 1009]} {words[n % 1013]}" for n in range(40_000)]
    began = time.monotonic()
    found = lookup("\n".join([said, *lines]), known)
    assert found[0].text.startswith("No rendezvous handler")
    assert time.monotonic() - began < 60


def test_what_to_do_is_an_instruction(capsys: pytest.CaptureFixture[str]) -> None:
    tails = {
        fix.split(" ")[0].rstrip(",:")
        for entry in entries()
        if entry.is_ours and "; " in entry.text
        for fix in [entry.text.rpartition("; ")[2]]
    }
    assert tails >= INSTRUCTIONS
    # A word that is new here is a verb, which goes into INSTRUCTIONS, or gives no order.
    others = {word for word in tails - INSTRUCTIONS if word.isalpha() and word.islower()}
    assert others - NO_INSTRUCTIONS == set()
    explain(["--grove-zero-experts (-1) is negative; 0 is none"])
    assert "To do" not in capsys.readouterr().out
    explain(["--port (1) is in use on here; give another"])
    assert "To do: give another." in capsys.readouterr().out


def test_the_nearest_are_similar_and_best_first() -> None:
    near = nearest("--a (3) dose not divides --b (8); use one", [THREE, TWO, ONE])
    assert near == [ONE, TWO]
    assert nearest("the weather of tomorrow", [ONE, TWO, THREE]) == []


def test_the_command_says_what_to_do_or_that_nothing_is_known() -> None:
    runner = CliRunner()
    said = runner.invoke(
        app, ["explain", "--", "--grove-num-groups (3) does not divide --num-experts (8)"]
    )
    assert said.exit_code == 0
    assert (
        "Flags and the start of a job (grove_megatron/checks/experts.py; about --grove-num-groups)"
        in said.stdout
    )
    assert "divisor of the experts" in " ".join(said.stdout.split())
    log = "Traceback ...\nRuntimeError: No rendezvous handler for x://\n"
    said = runner.invoke(app, ["explain"], input=log)
    assert said.exit_code == 0
    assert "said by torch" in said.stdout
    near = runner.invoke(app, ["explain", "No rendezvous handle for env"])
    assert near.exit_code == 0
    assert near.stdout.startswith("No message is that; the most similar:")
    assert runner.invoke(app, ["explain", "the weather of tomorrow"]).exit_code == 1
