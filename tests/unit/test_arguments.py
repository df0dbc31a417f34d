"""The command line: frozen, documented, and what it selects."""

import argparse

import pytest
from megatron.training.arguments import add_megatron_arguments

from grove_megatron.arguments import (
    IMPORTED,
    LAYER_SPEC,
    add_grove_arguments,
    contradictions,
    restore_grove_arguments,
    select_layer,
    unknown_problems,
    yaml_problems,
)
from grove_megatron.config import NOT_OF_THE_WEIGHTS, layer_defaults
from grove_megatron.presets.table import PRESETS

from .conftest import in_lines

contradictions = in_lines(contradictions)
restore_grove_arguments = in_lines(restore_grove_arguments)
yaml_problems = in_lines(yaml_problems)


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return add_grove_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))


def test_the_flags_are_these_and_no_others(parser: argparse.ArgumentParser) -> None:
    found = {
        action.option_strings[0]: (action.default, action.choices)
        for action in parser._actions
        if action.dest.startswith("grove_")
    }
    assert found == {
        "--grove-num-groups": (None, None),
        "--grove-dispatch": (False, None),
        "--grove-adjugate-ffn-hidden-size": (None, None),
        "--grove-adjugate-scale": (0.05, None),
        "--grove-allow-scale-above-bound": (False, None),
        "--grove-router-scoring": ("grove", ("grove", "softmax")),
        "--grove-kernel": ("auto", ("auto", "megatron", "grouped", "triton")),
        "--grove-hierarchical-dispatch": (False, None),
        "--grove-placement": (None, None),
        "--grove-metrics-interval": (None, None),
        "--grove-metrics-dir": (None, None),
        "--grove-metrics-coactivation": (False, None),
        "--grove-failure-watch": ("on", ("on", "off")),
        "--grove-stall-minutes": (None, None),
        "--grove-preset": (None, tuple(PRESETS)),
        "--grove-train-only": (None, None),
        "--grove-print-arguments": ("changed", ("changed", "all")),
        "--grove-router-selector": (
            "topk",
            ("base", "expert_choice", "hash", "reinforce", "sinkhorn", "topk"),
        ),
        "--grove-sinkhorn-iterations": (20, None),
        "--grove-base-precision": (0.02, None),
        "--grove-expert-choice-sees-future": (False, None),
        "--grove-hash-table": ("random", ("random", "balanced")),
        "--grove-hash-seed": (42, None),
        "--grove-hash-counts": (None, None),
        "--grove-hash-vocabulary": (None, None),
        "--grove-reinforce-coeff": (1.0, None),
        "--grove-reinforce-baseline-coeff": (0.01, None),
        "--grove-expert-capacity": (None, None),
        "--grove-capacity-scope": ("rank", ("rank", "sequence")),
        "--grove-capacity-first-choices": (False, None),
        "--grove-adaptive-aux-loss": (False, None),
        "--grove-adaptive-decay": (0.99, None),
        "--grove-adaptive-slope": (0.2, None),
        "--grove-adaptive-max": (0.01, None),
        "--grove-adaptive-capacity": (1.0, None),
        "--grove-bias-update-rule": (None, ("rms", "sign", "error")),
        "--grove-bias-level": ("experts", ("experts", "groups")),
        "--grove-bias-rate-decay-style": (
            "constant",
            ("constant", "linear", "cosine", "step"),
        ),
        "--grove-bias-rate-decay-iters": (None, None),
        "--grove-bias-rate-min": (0.0, None),
        "--grove-group-aux-loss-coeff": (0.0, None),
        "--grove-group-score": ("megatron", ("megatron", "max", "top2")),
        "--grove-aux-loss-counts": ("scores", ("scores", "routed", "first")),
        "--grove-logit-bias": (False, None),
        "--grove-logit-norm": ("none", ("none", "population", "sample")),
        "--grove-logit-norm-scale": (1.0, None),
        "--grove-logit-norm-eps": (1e-6, None),
        "--grove-noisy-topk": (False, None),
        "--grove-second-expert-threshold": (None, None),
        "--grove-device-loss-coeff": (0.0, None),
        "--grove-communication-loss-coeff": (0.0, None),
        "--grove-loss-devices": (None, None),
        "--grove-importance-loss-coeff": (0.0, None),
        "--grove-load-loss-coeff": (0.0, None),
        "--grove-constant-experts": (0, None),
        "--grove-copy-experts": (0, None),
        "--grove-zero-experts": (0, None),
        "--grove-zero-expert-weight": ("own", ("own", "others")),
        "--grove-topk-scaled-input": (False, None),
        "--grove-whole-qk-norm": (False, None),
        "--grove-gating-residual": (False, None),
        "--grove-router-gate": ("linear", ("linear", "two_layer", "attention")),
        "--grove-heterogeneous-loss-coeff": (0.0, None),
        "--grove-local-tau": (0.75, None),
    }


def test_help_prints_every_flag_and_its_text(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    assert "--grove-num-groups" in text
    assert "each group has one adjugate expert" in text
    assert "--moe-router-topk" in text


def test_asking_for_groups_selects_the_layer(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--grove-num-groups", "4"])
    select_layer(args)
    assert args.spec == list(LAYER_SPEC)


@pytest.mark.parametrize("flags", [[], ["--grove-num-groups", "0"]])
def test_without_groups_megatron_chooses_the_layer(
    flags: list[str], parser: argparse.ArgumentParser
) -> None:
    args = parser.parse_args(flags)
    select_layer(args)
    assert args.spec is None


def test_a_spec_that_was_given_stays(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--grove-num-groups", "4", "--spec", "a.b", "c"])
    select_layer(args)
    assert args.spec == ["a.b", "c"]


def test_a_checkpoint_fills_in_what_was_not_given(parser: argparse.ArgumentParser) -> None:
    saved = parser.parse_args(["--grove-num-groups", "4", "--grove-adjugate-scale", "0.3"])
    args = parser.parse_args(["--grove-num-groups", "4"])
    assert restore_grove_arguments(args, saved) == []
    assert (args.grove_num_groups, args.grove_adjugate_scale) == (4, 0.3)


def test_a_checkpoint_does_not_overrule_a_flag_silently(parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--grove-num-groups", "4"])
    (problem,) = restore_grove_arguments(args, parser.parse_args([]))
    assert problem.startswith("--grove-num-groups (4) differs from --grove-num-groups of the")


def test_a_checkpoint_of_a_run_without_the_plugin_is_a_plain_one(
    parser: argparse.ArgumentParser,
) -> None:
    args = parser.parse_args(["--grove-adjugate-scale", "0.3"])
    (problem,) = restore_grove_arguments(args, argparse.Namespace(num_experts=8))
    assert "--grove-adjugate-scale of the checkpoint (0.05)" in problem


def test_the_same_settings_do_not_contradict(parser: argparse.ArgumentParser) -> None:
    flags = ["--grove-num-groups", "4", "--grove-adjugate-ffn-hidden-size", "8"]
    assert contradictions(parser.parse_args(flags), parser.parse_args(flags)) == []
    no_groups = parser.parse_args(["--grove-num-groups", "0"])
    assert contradictions(no_groups, argparse.Namespace()) == []


def test_every_setting_that_makes_another_model_contradicts(
    parser: argparse.ArgumentParser,
) -> None:
    flags = ["--grove-num-groups", "4", "--grove-adjugate-ffn-hidden-size", "8"]
    other = ["--grove-adjugate-scale", "0.1", "--grove-router-scoring", "softmax"]
    problems = contradictions(parser.parse_args([*flags, *other]), argparse.Namespace())
    assert [line.split()[0] for line in problems] == [
        "--grove-num-groups",
        "--grove-adjugate-ffn-hidden-size",
        "--grove-adjugate-scale",
        "--grove-router-scoring",
    ]


# Of every setting that describes the weights: two values.
OF_THE_WEIGHTS = {
    "grove_num_groups": (4, 2),
    "grove_adjugate_ffn_hidden_size": (8, 16),
    "grove_adjugate_scale": (0.1, 0.2),
    "grove_router_scoring": ("softmax", "grove"),
    "grove_group_score": ("max", "megatron"),
    "grove_logit_bias": (True, False),
    "grove_logit_norm": ("sample", "none"),
    "grove_logit_norm_scale": (1.5, 1.0),
    "grove_noisy_topk": (True, False),
    "grove_constant_experts": (2, 0),
    "grove_copy_experts": (1, 0),
    "grove_zero_experts": (1, 2),
    "grove_zero_expert_weight": ("others", "own"),
    "grove_topk_scaled_input": (True, False),
    "grove_gating_residual": (True, False),
    "grove_whole_qk_norm": (True, False),
    "grove_router_gate": ("two_layer", "linear"),
    "grove_router_selector": ("hash", "topk"),
    "grove_hash_table": ("balanced", "random"),
    "grove_hash_seed": (7, 42),
    "grove_hash_vocabulary": (100, 96),
    "grove_adaptive_aux_loss": (True, False),
}


SAME = {name: here for name, (here, _) in OF_THE_WEIGHTS.items()}
NO_GROUPS = {name: layer_defaults()[name] for name in OF_THE_WEIGHTS}


@pytest.mark.parametrize("name", OF_THE_WEIGHTS)
def test_a_contradiction_names_both_values(name: str) -> None:
    here, there = OF_THE_WEIGHTS[name]
    saved = argparse.Namespace(**SAME | {name: there})
    (problem,) = contradictions(argparse.Namespace(**SAME), saved)
    flag = f"--{name.replace('_', '-')}"
    assert problem.startswith(f"{flag} ({here}) differs from {flag} of the checkpoint ({there}); ")


# Settings of Megatron's that no shape shows: default, another value.
FORGETTABLE = {
    "--norm-epsilon": ("layernorm_epsilon", 1e-5, 1e-6),
    "--qk-layernorm": ("qk_layernorm", False, True),
    "--rotary-base": ("rotary_base", 10000, 1000000),
    "--rotary-percent": ("rotary_percent", 1.0, 0.5),
    "--moe-router-topk": ("moe_router_topk", 2, 8),
    "--moe-router-pre-softmax": ("moe_router_pre_softmax", False, True),
}


@pytest.mark.parametrize("flag", FORGETTABLE)
def test_a_flag_of_the_model_that_was_left_out_contradicts(flag: str) -> None:
    name, default, saved = FORGETTABLE[flag]
    left_out = argparse.Namespace(**SAME, **{name: default})
    checkpoint = argparse.Namespace(**SAME, **{name: saved})
    (problem,) = contradictions(left_out, checkpoint)
    assert problem.startswith(
        f"{flag} ({default}, the default) differs from {flag} of the checkpoint ({saved}); "
    )
    assert contradictions(checkpoint, checkpoint) == []
    # Megatron's own checkpoints are as Megatron treats them.
    plain = argparse.Namespace(**{name: saved})
    assert contradictions(argparse.Namespace(**NO_GROUPS, **{name: default}), plain) == []
    # What was imported has its values from the model's config.
    imported = argparse.Namespace(**{name: saved, IMPORTED: True})
    assert contradictions(argparse.Namespace(**NO_GROUPS, **{name: default}), imported) == [problem]


def test_another_value_than_the_default_is_meant() -> None:
    given = argparse.Namespace(**SAME, rotary_base=5000000)
    assert contradictions(given, argparse.Namespace(**SAME, rotary_base=1000000)) == []


@pytest.mark.parametrize(
    ("name", "restored"), [("layernorm_epsilon", 1e-6), ("qk_layernorm", True)]
)
def test_what_megatron_does_not_restore_is_restored(name: str, restored: object) -> None:
    _, default, _ = next(entry for entry in FORGETTABLE.values() if entry[0] == name)
    args = argparse.Namespace(**SAME, **{name: default})
    assert restore_grove_arguments(args, argparse.Namespace(**SAME, **{name: restored})) == []
    assert getattr(args, name) == restored


def test_the_defaults_are_megatrons(parser: argparse.ArgumentParser) -> None:
    from megatron.training.arguments import add_megatron_arguments

    args = add_megatron_arguments(argparse.ArgumentParser()).parse_args([])
    assert {name: getattr(args, name) for name, _, _ in FORGETTABLE.values()} == {
        name: default for name, default, _ in FORGETTABLE.values()
    }


def test_a_setting_of_another_version_is_named() -> None:
    saved = argparse.Namespace(
        **SAME, grove_metrics_interval=5, grove_imported=True, grove_new_part="on", grove_gone=None
    )
    (problem,) = map(str, unknown_problems(saved))
    assert problem.startswith(
        "--grove-new-part (on) is a setting of the checkpoint that this grove_megatron does not "
        "know; load it with "
    )


def test_every_setting_is_one_of_the_weights_or_known_not_to_be() -> None:
    assert {*OF_THE_WEIGHTS, *NOT_OF_THE_WEIGHTS} == set(layer_defaults())


@pytest.mark.parametrize("given", [["--yaml-cfg", "a.yaml"], ["--yaml-cfg=a.yaml"]])
def test_a_yaml_file_beside_grove_flags_is_refused(given: list[str]) -> None:
    (problem,) = yaml_problems([*given, "--grove-num-groups", "4"])
    assert problem.startswith("--yaml-cfg (a.yaml) replaces the command line")
    assert yaml_problems(given, own_script=True) == yaml_problems(["--grove-num-groups", "4"]) == []
    (problem,) = yaml_problems(given)
    assert " is not read by grove_megatron.pretrain or grove doctor; " in problem
