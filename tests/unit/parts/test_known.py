"""What is made from the rows of parts knows every part: flags, help, doctor, checks, metrics."""

import re
from pathlib import Path

import pytest

import grove_megatron.parts
from grove_megatron.checks.flags import flag_of
from grove_megatron.config import has_adjugates
from grove_megatron.moe.router import loss_names
from grove_megatron.parts import registry
from grove_megatron.parts.page import PAGE
from grove_megatron.parts.part import Part
from grove_megatron.training.doctor import diagnose
from tests.unit.training.command_lines import parsed
from tests.unit.training.test_rules import SOUND

DISPATCH = "--grove-num-groups 0 --grove-dispatch"
PLAIN = re.sub(r"--grove-\S+ \S+ ?", "", SOUND) + " --grove-dispatch"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def name_of(part: Part) -> str:
    return f"{part.slot}-{part.name}"


def test_every_file_of_parts_is_found_and_declares_what_it_is():
    folder = Path(grove_megatron.parts.__file__).parent
    files = [p for p in folder.rglob("*.py") if p.parent != folder and p.name != "__init__.py"]
    assert len(files) > 8
    assert all("\nPARTS = (" in path.read_text(encoding="utf-8") for path in files)
    names = [name_of(part) for part in registry.parts()]
    assert len(names) == len(set(names))
    for part in registry.parts():
        assert re.search(r"\d{4}\.\d{5}|megatron-core 0\.19", part.source), part.name
        assert part.tried.startswith("--"), part.name


@pytest.mark.parametrize("part", registry.parts(), ids=name_of)
def test_the_doctor_takes_it_with_groups_and_in_a_plain_moe(part):
    found = diagnose(f"{SOUND} {part.tried}".split(), None, "cpu")
    assert found.problems == []
    assert part in registry.active(parsed(part.tried))
    # Megatron has a bias beside scores of its own that take one.
    sigmoid = "--moe-router-score-function sigmoid" if part.slot == "schedule" else ""
    plain = diagnose(f"{PLAIN} {part.tried} {sigmoid}".split(), None, "cpu")
    if part.needs_groups and part.slot == "loss":
        assert [p for p in plain.problems if "without --grove-num-groups" in str(p)]
    elif part.slot not in ("scoring", "update"):
        assert plain.problems == []


@pytest.mark.parametrize("part", registry.parts(), ids=name_of)
def test_the_page_and_the_readme_of_flags_have_it(part):
    page = PAGE.read_text(encoding="utf-8")
    assert re.search(rf"^\| {part.name} \|.*{re.escape(part.source)}", page, re.MULTILINE)
    if part.switch and part.switch.startswith("grove_"):
        assert f"| `{flag_of(part.switch)}` |" in page


def test_without_flags_only_what_megatron_and_the_paper_do_is_there():
    args = parsed("")
    assert has_adjugates(args)
    found = {name_of(part) for part in registry.active(args)}
    assert found == {"selector-topk", "scoring-grove", "counts-scores"}
    plain = {name_of(part) for part in registry.active(parsed(DISPATCH))}
    assert plain == {"selector-topk", "scoring-softmax", "counts-scores"}


def test_the_tracker_is_told_the_names_of_losses():
    flags = "--grove-group-aux-loss-coeff 0.1 --grove-importance-loss-coeff 0.1"
    names = loss_names(parsed(flags))
    assert sorted(names) == ["group_load_balancing_loss", "importance_loss"]
    assert loss_names(parsed(f"--grove-num-groups 0 {flags}")) == []


REFUSED = {
    "--grove-logit-norm sample --grove-logit-norm-scale 0": (
        "--grove-logit-norm-scale (0.0) is not a finite number above 0; 1 is the paper's"
    ),
    "--grove-logit-norm sample --grove-logit-norm-eps inf": (
        "--grove-logit-norm-eps (inf) is not a finite number above 0; 1e-6 is small"
    ),
    "--grove-logit-norm-scale 2": (
        "--grove-logit-norm-scale (2.0) is set without --grove-logit-norm (none), which reads it; "
        "give that, or remove it"
    ),
    "--grove-second-expert-threshold 0": (
        "--grove-second-expert-threshold (0.0) is not a finite number above 0; 0.5 is GShard's"
    ),
    "--grove-second-expert-threshold 0.5 --moe-router-topk 1 --moe-router-pre-softmax": (
        "--grove-second-expert-threshold (0.5) needs a second expert, --moe-router-topk (1); use "
        "2 or more, or remove it"
    ),
    "--grove-group-score top2": (
        "--grove-group-score (top2) needs --moe-router-num-groups (None) and "
        "--moe-router-group-topk (None); give both, or remove it"
    ),
    "--grove-group-score top2 --moe-router-num-groups 8 --moe-router-group-topk 2": (
        "--grove-group-score (top2) adds the two best experts of a group, and "
        "--moe-router-num-groups (8) of --num-experts (8) have 1; use max"
    ),
    "--grove-aux-loss-counts first --moe-router-load-balancing-type global_aux_loss "
    "--moe-aux-loss-coeff 0.1": (
        "--grove-aux-loss-counts (first) is not summed over a global batch by "
        "--moe-router-load-balancing-type (global_aux_loss), which counts all of a token's "
        "experts; use aux_loss or seq_aux_loss"
    ),
    "--grove-aux-loss-counts routed --moe-router-load-balancing-type none": (
        "--grove-aux-loss-counts (routed) is of losses, and there is none; give "
        "--moe-router-load-balancing-type aux_loss, or remove it"
    ),
    "--grove-zero-experts -1": "--grove-zero-experts (-1) is negative; 0 is none",
    "--grove-copy-experts 1 --moe-router-topk 1 --moe-router-pre-softmax": (
        "--moe-router-topk (1) leaves a token with one expert, which may be one without an FFN, "
        "--grove-zero-experts, --grove-copy-experts and --grove-constant-experts; use 2 or more"
    ),
    "--grove-zero-experts 1 --grove-copy-experts 1 --moe-router-num-groups 4 "
    "--moe-router-group-topk 2 --grove-group-score max": (
        "--moe-router-num-groups (4) is over blocks of --num-experts, and --grove-zero-experts, "
        "--grove-copy-experts and --grove-constant-experts are beside them; remove it or them"
    ),
    "--grove-zero-expert-weight others": (
        "--grove-zero-expert-weight (others) needs --grove-zero-experts (0); give some, or remove "
        "it"
    ),
    "--grove-zero-experts 1 --grove-zero-expert-weight others --moe-router-pre-softmax": (
        "--moe-router-pre-softmax (True) does nothing beside --grove-zero-expert-weight (others), "
        "with which weights sum to 1; remove one of them"
    ),
    "--grove-gating-residual --fake-process-group --pipeline-model-parallel-size 2": (
        "--grove-gating-residual (True) excludes --fake-process-group (True) with several pipeline "
        "stages, which are told each other's shapes; remove one of them"
    ),
    "--grove-heterogeneous-loss-coeff 0.1": (
        "--grove-heterogeneous-loss-coeff (0.1) is of experts with an FFN and without, "
        "--grove-zero-experts, --grove-copy-experts or --grove-constant-experts; give some, or "
        "remove it"
    ),
    "--grove-zero-experts 1 --grove-heterogeneous-loss-coeff 0.1 --grove-local-tau 0": (
        "--grove-local-tau (0.0) is not a finite number above 0; 0.75 is the paper's"
    ),
    "--grove-zero-experts 1 --moe-expert-capacity-factor 1 --grove-local-tau -1": (
        "--grove-local-tau (-1.0) is not a finite number above 0; 0.75 is the paper's"
    ),
    "--grove-local-tau 0.5": (
        "--grove-local-tau (0.5) is set without --grove-heterogeneous-loss-coeff (0.0), which "
        "reads it; give that, or remove it"
    ),
    "--grove-gating-residual --num-layers 1": (
        "--grove-gating-residual (True) needs two MoE layers, and --num-layers (1) with "
        "--moe-layer-freq (1) have 1; add layers, or remove it"
    ),
    "--grove-device-loss-coeff 0.1": (
        "--grove-device-loss-coeff (0.1) needs the number of devices, --grove-loss-devices (None) "
        "or --moe-router-num-groups (None); give one"
    ),
    "--grove-device-loss-coeff 0.1 --grove-loss-devices 3": (
        "--grove-loss-devices (3) is not 2 or more that divide --num-experts (8); correct it"
    ),
    "--grove-device-loss-coeff nan --grove-loss-devices 4": (
        "--grove-device-loss-coeff (nan) is not a finite number of 0 or more; 0 is none"
    ),
    "--grove-loss-devices 4": (
        "--grove-loss-devices (4) is set without --grove-device-loss-coeff (0.0) or "
        "--grove-communication-loss-coeff (0.0), which reads it; give that, or remove it"
    ),
    "--grove-communication-loss-coeff 0.1 --grove-loss-devices 4": (
        "--grove-communication-loss-coeff (0.1) is of tokens that are limited to some devices, "
        "--moe-router-group-topk (None); give it, or remove this"
    ),
    "--grove-communication-loss-coeff 0.1 --grove-loss-devices 2 --moe-router-num-groups 4 "
    "--moe-router-group-topk 2": (
        "--grove-loss-devices (2) is not --moe-router-num-groups (4), of which tokens are limited "
        "to some; remove it"
    ),
    "--grove-importance-loss-coeff -1": (
        "--grove-importance-loss-coeff (-1.0) is not a finite number of 0 or more; 0 is none"
    ),
    "--grove-load-loss-coeff 0.1": (
        "--grove-load-loss-coeff (0.1) is an expectation over noise, --grove-noisy-topk (False); "
        "give it, or remove this"
    ),
    "--grove-load-loss-coeff 0.1 --grove-noisy-topk --moe-router-topk 8": (
        "--grove-load-loss-coeff (0.1) has nothing to choose with --moe-router-topk (8) of "
        "--num-experts (8); use fewer, or remove it"
    ),
    "--grove-load-loss-coeff 0.1 --grove-noisy-topk --moe-router-enable-expert-bias": (
        "--grove-load-loss-coeff (0.1) is of a choice by the logits alone and so excludes "
        "--moe-router-enable-expert-bias (True); remove one of them"
    ),
    "--grove-router-selector base": (
        "--grove-router-selector (base) gives a token one expert, not --moe-router-topk (2); use 1"
    ),
    "--grove-router-selector base --moe-router-topk 1 --moe-expert-capacity-factor 1": (
        "--moe-expert-capacity-factor (1.0) is set beside --grove-router-selector (base), which "
        "gives every expert as many tokens; remove one of them"
    ),
    "--grove-router-selector base --moe-router-topk 1 --grove-base-precision 2": (
        "--grove-base-precision (2.0) is above 1, with which nothing is compared; 0.02 is the "
        "authors'"
    ),
    "--grove-router-selector hash --moe-router-enable-expert-bias": (
        "--moe-router-enable-expert-bias (True) is set beside --grove-router-selector (hash), "
        "which selects experts by a rule of its own; remove one of them"
    ),
    "--grove-router-selector hash --grove-hash-table balanced": (
        "--grove-hash-counts (None) is needed for --grove-hash-table (balanced); make it with "
        "grove data --check PREFIX --counts FILE"
    ),
    "--grove-router-selector hash --grove-hash-counts x.json": (
        "--grove-hash-counts (x.json) is not read with --grove-hash-table (random); use balanced, "
        "or remove it"
    ),
    "--grove-router-selector hash --grove-logit-bias": (
        "--grove-logit-bias (True) is of logits, and --grove-router-selector (hash) has none; "
        "remove it"
    ),
    "--grove-router-selector hash --grove-router-gate attention": (
        "--grove-router-gate (attention) is of logits, and --grove-router-selector (hash) has "
        "none; remove it"
    ),
    "--grove-router-selector hash --moe-z-loss-coeff 1e-3": (
        "--moe-z-loss-coeff (0.001) is of logits, and --grove-router-selector (hash) has none; "
        "remove it"
    ),
    "--grove-router-selector hash --moe-input-jitter-eps 0.01": (
        "--moe-input-jitter-eps (0.01) is of a router that reads tokens, and "
        "--grove-router-selector (hash) reads their ids; remove it"
    ),
    "--grove-router-selector expert_choice": (
        "--grove-router-selector (expert_choice) lets the choice of a token depend on those after "
        "it, which a causal model has not when it generates; if that is meant, add "
        "--grove-expert-choice-sees-future"
    ),
    "--grove-router-selector expert_choice --grove-expert-choice-sees-future "
    "--moe-enable-routing-replay": (
        "--moe-enable-routing-replay (True) is set beside --grove-router-selector "
        "(expert_choice), which selects experts by a rule of its own; remove one of them"
    ),
    "--grove-router-selector sinkhorn --moe-router-load-balancing-type aux_loss "
    "--moe-aux-loss-coeff 0.1": (
        "--moe-aux-loss-coeff (0.1) is of a loss that balances scores, and --grove-router-selector "
        "(sinkhorn) reads none; use 0"
    ),
    "--grove-router-selector sinkhorn --grove-sinkhorn-iterations 0": (
        "--grove-sinkhorn-iterations (0) is below 1; 20 balance most logits"
    ),
    "--grove-router-selector sinkhorn --moe-router-num-groups 4 --moe-router-group-topk 2": (
        "--moe-router-group-topk (2) is set beside --grove-router-selector (sinkhorn), which "
        "selects experts by a rule of its own; remove one of them"
    ),
    "--grove-router-selector sinkhorn --grove-router-scoring softmax": (
        "--grove-router-scoring (softmax) is read by no router with --grove-router-selector "
        "(sinkhorn); remove it"
    ),
    "--grove-router-selector sinkhorn --grove-importance-loss-coeff 0.1": (
        "--grove-importance-loss-coeff (0.1) is set beside --grove-router-selector (sinkhorn), "
        "which selects experts by a rule of its own and weighs them so; remove one of them"
    ),
    "--grove-router-selector sinkhorn --grove-zero-experts 1": (
        "--grove-zero-experts (1) is set beside --grove-router-selector (sinkhorn), which selects "
        "experts by a rule of its own and weighs them so; remove one of them"
    ),
    "--grove-router-selector reinforce --mtp-num-layers 1": (
        "--mtp-num-layers (1) have losses of their own, which --grove-router-selector (reinforce) "
        "would not learn from; remove one of them"
    ),
    "--grove-router-selector reinforce --grove-reinforce-coeff -1": (
        "--grove-reinforce-coeff (-1.0) is not a finite number of 0 or more; 1 is the gradient of "
        "the expected loss"
    ),
    "--grove-sinkhorn-iterations 5": (
        "--grove-sinkhorn-iterations (5) is set beside --grove-router-selector (topk), which does "
        "not read it; use sinkhorn, or remove it"
    ),
    "--grove-router-selector sinkhorn --grove-hash-seed 1": (
        "--grove-hash-seed (1) is set beside --grove-router-selector (sinkhorn), which does not "
        "read it; use hash, or remove it"
    ),
    "--grove-capacity-scope sequence": (
        "--grove-capacity-scope (sequence) is set without --moe-expert-capacity-factor (None) or "
        "--grove-expert-capacity (None), which reads it; give that, or remove it"
    ),
    "--grove-expert-capacity 2 --moe-expert-capacity-factor 1": (
        "--grove-expert-capacity (2) and --moe-expert-capacity-factor (1.0) both say how many "
        "tokens an expert takes; give one of them"
    ),
    "--moe-expert-capacity-factor 1 --grove-capacity-first-choices": (
        "--grove-capacity-first-choices (True) is of an order, and --moe-token-drop-policy (probs) "
        "has another; use --moe-token-drop-policy position"
    ),
    "--grove-expert-capacity 2 --grove-zero-experts 1": (
        "--grove-expert-capacity (2) says nothing of experts without an FFN, which take more; use "
        "--moe-expert-capacity-factor"
    ),
    "--grove-router-selector hash --moe-expert-capacity-factor 1": (
        "--moe-token-drop-policy (probs) chooses by weights, which are all alike with "
        "--grove-router-selector (hash); use position"
    ),
    "--grove-router-selector hash --grove-hash-table balanced --grove-hash-counts no/such.json": (
        "--grove-hash-counts (no/such.json) cannot be read: No such file or directory; correct it"
    ),
    "--grove-router-selector hash --grove-hash-vocabulary 5": (
        "--grove-hash-vocabulary (5) is below the 96 token ids of the model, some of which would "
        "have no expert; leave it out"
    ),
    "--grove-router-selector sinkhorn --moe-router-score-function sqrtsoftplus": (
        "--moe-router-score-function (sqrtsoftplus) is read by no router with "
        "--grove-router-selector (sinkhorn); remove it"
    ),
    "--grove-adaptive-aux-loss --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1 "
    "--moe-expert-capacity-factor 1 --grove-adaptive-capacity 3": (
        "--grove-adaptive-capacity (3.0) is of experts without a capacity, and there is one, of "
        "which what is dropped is counted; remove it"
    ),
    "--grove-adaptive-aux-loss --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1 "
    "--grove-zero-experts 1": (
        "--grove-adaptive-aux-loss (True) without a capacity counts as if all experts had the "
        "same, and those without an FFN take more; give --moe-expert-capacity-factor"
    ),
    "--grove-adaptive-aux-loss --moe-router-load-balancing-type none aux_loss "
    "--moe-aux-loss-coeff 0.1 0": (
        "--grove-adaptive-aux-loss (True) begins at --moe-aux-loss-coeff (0.1 0.0), which is "
        "none; give a weight above 0"
    ),
    "--grove-adaptive-aux-loss": (
        "--grove-adaptive-aux-loss (True) begins at --moe-aux-loss-coeff (0.0), which is none; "
        "give a weight above 0"
    ),
    "--grove-adaptive-aux-loss --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1 "
    "--grove-adaptive-decay 2": (
        "--grove-adaptive-decay (2.0) is not between 0 and 1; 0.99 is the paper's"
    ),
    "--moe-expert-capacity-factor 1 --grove-capacity-scope sequence --context-parallel-size 2 "
    "--moe-token-drop-policy position": (
        "--context-parallel-size (2) gives a rank two parts of a sequence, not in a line with "
        "those of others, and --grove-capacity-scope (sequence) is by position; use "
        "--moe-token-drop-policy probs"
    ),
    "--moe-router-enable-expert-bias --grove-bias-level groups --grove-zero-experts 1": (
        "--grove-bias-level (groups) is of groups of experts with an FFN, and "
        "--grove-zero-experts, --grove-copy-experts and --grove-constant-experts have none; remove "
        "it or them"
    ),
    "--grove-bias-level groups": (
        "--grove-bias-level (groups) is set without --moe-router-enable-expert-bias (False), so "
        "there is no bias to move; add that, or remove it"
    ),
}


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ("[1, -2]", "it holds no list of whole numbers, how often each token id is there"),
        ('{"a": 1}', "it holds no list of whole numbers, how often each token id is there"),
        ("[0, 0]", "all its counts (2) are 0"),
        (str([1] * 97), "it counts 97 token ids, and the model has 96"),
    ],
)
def test_counts_of_something_else_are_refused(counts, why, tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(counts)
    flags = f"--grove-router-selector hash --grove-hash-table balanced --grove-hash-counts {file}"
    (problem,) = diagnose(f"{SOUND} {flags}".split(), None, "cpu").problems
    assert str(problem) == (
        f"--grove-hash-counts ({file}) is of no use for this model: {why}; make one with grove "
        "data --check PREFIX --counts FILE"
    )


@pytest.mark.parametrize("flags", REFUSED)
def test_a_part_without_what_it_needs_is_refused(flags):
    assert [str(p) for p in diagnose(f"{SOUND} {flags}".split(), None, "cpu").problems] == [
        REFUSED[flags]
    ]


OWN = "--moe-router-load-balancing-type sinkhorn --moe-aux-loss-coeff 0"


@pytest.mark.parametrize(
    ("flags", "own", "flag"),
    [
        ("--grove-importance-loss-coeff 0.1", OWN, "--grove-importance-loss-coeff (0.1)"),
        ("--grove-second-expert-threshold 0.5", OWN, "--grove-second-expert-threshold (0.5)"),
        ("--grove-aux-loss-counts routed", OWN, "--grove-aux-loss-counts (routed)"),
        ("--grove-noisy-topk --moe-z-loss-coeff 0.1", OWN, "--grove-noisy-topk (True)"),
    ],
)
def test_what_selects_experts_itself_excludes_other_selection(flags, own, flag):
    problems = [str(p) for p in registry.problems(parsed(f"{DISPATCH} {own} {flags}"))]
    (problem,) = problems
    assert problem.startswith(f"{flag} is set beside --moe-router-load-balancing-type (sinkhorn), ")
    assert problem.endswith("; remove one of them")


def test_a_fused_router_has_dropped_what_losses_are_to_see():
    flags = "--moe-router-fusion --moe-expert-capacity-factor 1 --grove-importance-loss-coeff 0.1"
    (problem,) = map(str, registry.problems(parsed(f"{DISPATCH} {flags}")))
    assert problem == (
        "--grove-importance-loss-coeff (0.1) is set beside --moe-router-fusion (True), which drops "
        "what it selects before losses see it; remove one of them"
    )
