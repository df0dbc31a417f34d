import re
from dataclasses import fields
from types import SimpleNamespace

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig

from grove_megatron.config import (
    GroveTransformerConfig,
    grove_defaults,
    grove_problems,
    has_adjugates,
    has_grove_layers,
    is_checked,
)
from grove_megatron.switches import refused

from .conftest import in_lines

grove_problems = in_lines(grove_problems)

GROVE = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 8"
BIASED = f"{GROVE} --moe-router-enable-expert-bias"
DECAYING = f"{BIASED} --grove-bias-rate-decay-style linear --grove-bias-rate-decay-iters 5"

# Flags, and the one line that refuses them.
REFUSED = [
    (
        "--grove-adjugate-ffn-hidden-size 8",
        "--grove-adjugate-ffn-hidden-size (8) is set without --grove-num-groups (None); set the "
        "number of groups, or remove it",
    ),
    (
        "--grove-num-groups 0 --grove-adjugate-ffn-hidden-size 8",
        "--grove-adjugate-ffn-hidden-size (8) is set without --grove-num-groups (0); set the",
    ),
    (
        "--grove-num-groups 3 --grove-adjugate-ffn-hidden-size 8",
        "--grove-num-groups (3) does not divide --num-experts (8); use one of 1, 2, 4, 8",
    ),
    (
        "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 15 --expert-tensor-parallel-size 2",
        "--grove-adjugate-ffn-hidden-size (15) is not a multiple of "
        "--expert-tensor-parallel-size (2)",
    ),
    (
        "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 15 --tensor-model-parallel-size 2",
        "--grove-adjugate-ffn-hidden-size (15) is not a multiple of "
        "--expert-tensor-parallel-size (2)",
    ),
    (
        "--grove-num-groups -2 --grove-adjugate-ffn-hidden-size 8",
        "--grove-num-groups (-2) is negative; leave it out for a plain MoE",
    ),
    (
        f"{GROVE} --expert-model-parallel-size 3",
        "--expert-model-parallel-size (3) does not divide --grove-num-groups (4); a group and its "
        "adjugate stay on one rank, so use one of 1, 2, 4",
    ),
    (
        f"{GROVE} --expert-model-parallel-size 8",
        "--expert-model-parallel-size (8) does not divide --grove-num-groups (4); a group",
    ),
    (
        "--grove-num-groups 4",
        "--grove-adjugate-ffn-hidden-size (None) is not positive beside --grove-num-groups (4); "
        "give the width of an adjugate expert",
    ),
    (
        "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 0",
        "--grove-adjugate-ffn-hidden-size (0) is not positive beside --grove-num-groups (4); give",
    ),
    (
        f"{GROVE} --grove-adjugate-scale -0.1",
        "--grove-adjugate-scale (-0.1) is not a finite number of 0 or more",
    ),
    (
        f"{GROVE} --grove-adjugate-scale 0.6",
        "--grove-adjugate-scale (0.6) is above groups / experts (0.5); lower it, or pass "
        "--grove-allow-scale-above-bound",
    ),
    (
        f"{GROVE} --moe-router-topk 1",
        "--moe-router-topk (1) with --grove-router-scoring (grove) leaves the router without a "
        "gradient: the softmax over one selected logit is constant; use 2 or more, or "
        "--grove-router-scoring softmax",
    ),
    (
        f"{GROVE} --moe-router-fusion",
        "--moe-router-fusion (True) computes Megatron's score functions, not "
        "--grove-router-scoring (grove); remove it, or use --grove-router-scoring softmax",
    ),
    (
        f"{GROVE} --moe-router-load-balancing-type sinkhorn",
        "--moe-router-load-balancing-type (sinkhorn) selects experts itself and so excludes "
        "--grove-router-scoring (grove); use aux_loss, none or an expert bias, or "
        "--grove-router-scoring softmax",
    ),
    (
        f"{GROVE} --moe-router-load-balancing-type quantile_balancing",
        "--moe-router-load-balancing-type (quantile_balancing) selects experts itself and so",
    ),
    (
        f"{GROVE} --grove-metrics-interval -1",
        "--grove-metrics-interval (-1) is below 0; use a number of iterations, or 0 for no metrics",
    ),
    (
        f"{GROVE} --grove-stall-minutes 0",
        "--grove-stall-minutes (0.0) is not a finite number above 0; give minutes, 5 for one",
    ),
    (
        f"{GROVE} --grove-stall-minutes nan",
        "--grove-stall-minutes (nan) is not a finite number above 0; give minutes, 5 for one",
    ),
    (
        f"{GROVE} --grove-stall-minutes 5 --grove-failure-watch off",
        "--grove-stall-minutes (5.0) needs the connections that --grove-failure-watch (off) takes "
        "away; remove one of them",
    ),
    (
        f"{GROVE} --grove-stall-minutes 5 --inprocess-restart",
        "--grove-stall-minutes (5.0) excludes --inprocess-restart",
    ),
    (
        f"{GROVE} --grove-stall-minutes 10",
        "--grove-stall-minutes (10.0) is not below --distributed-timeout-minutes (10), after which "
        "collectives end the job; give less",
    ),
    (
        f"{GROVE} --grove-metrics-interval 0 --grove-metrics-dir metrics",
        "--grove-metrics-dir (metrics) gets nothing at --grove-metrics-interval (0); remove one of",
    ),
    (
        f"{GROVE} --grove-metrics-interval 0 --grove-metrics-coactivation",
        "--grove-metrics-coactivation (True) is not counted at --grove-metrics-interval (0); "
        "remove one of them",
    ),
    (
        "--grove-dispatch --grove-metrics-coactivation --num-experts 520",
        "--grove-metrics-coactivation (True) counts every pair of --num-experts (520), 4 MiB of "
        "each report in --num-layers (2) layers; it is for at most 512, remove it",
    ),
    (
        "--grove-metrics-coactivation",
        "--grove-metrics-coactivation (True) is set without --grove-num-groups (None) or "
        "--grove-dispatch (False); give one of them, or remove it",
    ),
    (
        "--grove-metrics-interval 10",
        "--grove-metrics-interval (10) is set without --grove-num-groups (None) or "
        "--grove-dispatch (False); give one of them, or remove it",
    ),
    (
        "--grove-dispatch --grove-router-scoring softmax",
        "--grove-router-scoring (softmax) is set without --grove-num-groups (None); set the number",
    ),
    (
        "--grove-dispatch --expert-model-parallel-size 3",
        "--expert-model-parallel-size (3) does not divide --num-experts (8); use one of 1, 2, 4, 8",
    ),
    (
        "--grove-dispatch --moe-token-dispatcher-type flex",
        "--moe-token-dispatcher-type (flex) is not supported with --grove-dispatch; remove one of",
    ),
    (
        "--grove-dispatch --grove-kernel grouped --transformer-impl transformer_engine",
        "--grove-kernel (grouped) would replace the experts of --transformer-impl (transformer_en",
    ),
    (
        f"{GROVE} --grove-bias-update-rule sign",
        "--grove-bias-update-rule (sign) is set without --moe-router-enable-expert-bias (False), "
        "so there is no bias to move; add that, or remove it",
    ),
    (
        f"{GROVE} --grove-bias-rate-decay-style cosine",
        "--grove-bias-rate-decay-style (cosine) is set without --moe-router-enable-expert-bias",
    ),
    (
        f"{BIASED} --grove-bias-rate-decay-style linear",
        "--grove-bias-rate-decay-iters (None) is not 1 or more beside "
        "--grove-bias-rate-decay-style (linear); give the iterations of the decay",
    ),
    (
        f"{BIASED} --grove-bias-rate-decay-style step --grove-bias-rate-decay-iters 0",
        "--grove-bias-rate-decay-iters (0) is not 1 or more beside "
        "--grove-bias-rate-decay-style (step); give",
    ),
    (
        f"{BIASED} --grove-bias-rate-decay-iters 100",
        "--grove-bias-rate-decay-iters (100) is set beside --grove-bias-rate-decay-style "
        "(constant), which does not read it; choose another style, or remove it",
    ),
    (
        f"{BIASED} --grove-bias-rate-min 1e-4",
        "--grove-bias-rate-min (0.0001) is set beside --grove-bias-rate-decay-style (constant)",
    ),
    (
        f"{DECAYING} --grove-bias-rate-min 2e-3",
        "--grove-bias-rate-min (0.002) is not between 0 and --moe-router-bias-update-rate (0.001), "
        "from which the rate decays; use 0 to stop the bias",
    ),
    (
        f"{DECAYING} --grove-bias-rate-min -0.0001",
        "--grove-bias-rate-min (-0.0001) is not between 0 and --moe-router-bias-update-rate (0.00",
    ),
    (
        f"{DECAYING} --grove-bias-rate-min nan",
        "--grove-bias-rate-min (nan) is not between 0 and --moe-router-bias-update-rate (0.001)",
    ),
    (
        f"{BIASED} --moe-router-bias-update-rate -0.001",
        "--moe-router-bias-update-rate (-0.001) is not a finite number of 0 or more; the paper's "
        "value is 0.001",
    ),
    (
        f"{BIASED} --moe-router-bias-update-rate inf",
        "--moe-router-bias-update-rate (inf) is not a finite number of 0 or more; the",
    ),
    (
        f"{GROVE} --grove-group-aux-loss-coeff -0.1",
        "--grove-group-aux-loss-coeff (-0.1) is not a finite number of 0 or more; 0 is none",
    ),
    (
        f"{GROVE} --grove-group-aux-loss-coeff nan",
        "--grove-group-aux-loss-coeff (nan) is not a finite number of 0 or more",
    ),
    (
        "--grove-num-groups 1 --grove-adjugate-ffn-hidden-size 8 --grove-adjugate-scale 0.1 "
        "--grove-group-aux-loss-coeff 0.1",
        "--grove-group-aux-loss-coeff (0.1) has nothing to balance with --grove-num-groups (1); "
        "remove it",
    ),
    (
        f"{GROVE} --grove-router-scoring softmax --moe-router-load-balancing-type sinkhorn "
        "--grove-group-aux-loss-coeff 0.1",
        "--grove-group-aux-loss-coeff (0.1) is set beside --moe-router-load-balancing-type "
        "(sinkhorn), which takes no auxiliary loss; remove one of them",
    ),
]

ACCEPTED = [
    "",
    "--grove-num-groups 0",
    GROVE,
    "--grove-num-groups 1 --grove-adjugate-ffn-hidden-size 1 --grove-adjugate-scale 0.125",
    "--grove-num-groups 8 --grove-adjugate-ffn-hidden-size 8 --expert-model-parallel-size 8",
    f"{GROVE} --grove-adjugate-scale 0",
    f"{GROVE} --grove-adjugate-scale 0.5",
    f"{GROVE} --grove-adjugate-scale 0.6 --grove-allow-scale-above-bound",
    f"{GROVE} --grove-router-scoring softmax --moe-router-topk 1",
    f"{GROVE} --grove-router-scoring softmax --moe-router-fusion",
    f"{GROVE} --grove-router-scoring softmax --moe-router-load-balancing-type sinkhorn",
    f"{GROVE} --moe-router-load-balancing-type aux_loss seq_aux_loss --moe-aux-loss-coeff 0.1 0.1",
    f"{BIASED} --grove-bias-update-rule sign --moe-router-bias-update-rate 0",
    f"{DECAYING} --grove-bias-rate-min 1e-3",
    f"{BIASED} --grove-bias-rate-decay-style step --grove-bias-rate-decay-iters 1",
    f"{GROVE} --grove-group-aux-loss-coeff 0.01",
    "--multi-latent-attention --moe-token-dispatcher-type flex --moe-shared-expert-overlap",
    f"{GROVE} --moe-token-dispatcher-type allgather",
    f"{GROVE} --grove-dispatch",
    "--grove-dispatch",
    "--grove-dispatch --grove-num-groups 0 --expert-model-parallel-size 8 --moe-router-topk 1",
    "--grove-dispatch --grove-kernel megatron --grove-metrics-interval 3 --moe-router-fusion",
    "--grove-dispatch --moe-router-load-balancing-type sinkhorn",
]


@pytest.mark.parametrize(("flags", "line"), REFUSED, ids=[flags for flags, _ in REFUSED])
def test_a_wrong_setting_is_refused_in_one_line_with_its_fix(parse, flags, line):
    args = parse(flags)
    (problem,) = grove_problems(args, num_experts=args.num_experts)
    assert problem.startswith(line)


@pytest.mark.parametrize("flags", ACCEPTED)
def test_a_right_setting_is_not_refused(parse, flags):
    args = parse(flags)
    assert grove_problems(args, num_experts=args.num_experts) == []


def test_dispatch_of_a_dense_model_is_refused(parse):
    args = parse("--grove-dispatch")
    (problem,) = grove_problems(args, num_experts=None)
    assert problem.startswith(
        "--grove-dispatch (True) is set for a dense model, --num-experts (None)"
    )


def test_groups_of_a_dense_model_are_refused(parse):
    (problem,) = grove_problems(parse(GROVE), num_experts=None)
    assert problem.startswith(
        "--grove-num-groups (4) is set for a dense model, --num-experts (None); set --num-experts, "
        "or remove the --grove-* flags"
    )


def test_balancing_types_are_looked_at_one_by_one(parse):
    args = parse(f"{GROVE} --moe-router-load-balancing-type aux_loss sinkhorn")
    (problem,) = grove_problems(args, num_experts=args.num_experts)
    assert problem.startswith("--moe-router-load-balancing-type (sinkhorn) selects")


def test_all_problems_are_named_at_once(parse):
    args = parse(
        "--grove-num-groups 3 --grove-adjugate-scale 7 --moe-router-topk 1 --moe-router-fusion "
        "--moe-latent-size 8 --use-megatron-fsdp --expert-model-parallel-size 2"
    )
    problems = grove_problems(args, num_experts=args.num_experts)
    assert [line.split()[0] for line in problems] == [
        "--grove-num-groups",
        "--expert-model-parallel-size",
        "--grove-adjugate-ffn-hidden-size",
        "--grove-adjugate-scale",
        "--moe-router-topk",
        "--moe-router-fusion",
        "--moe-latent-size",
        "--use-megatron-fsdp",
    ]


def test_every_flag_that_a_refusal_names_exists():
    from argparse import ArgumentParser

    from megatron.training.arguments import add_megatron_arguments

    from grove_megatron.arguments import add_grove_arguments

    parser = add_grove_arguments(add_megatron_arguments(ArgumentParser()))
    lines = [*(line for _, line in REFUSED), *(row.reason for row in refused())]
    named = {flag for line in lines for flag in re.findall(r"--[a-z][a-z0-9-]*[a-z0-9]", line)}
    assert len(named) > 20
    assert named <= set(parser._option_string_actions)


def test_the_flags_keep_their_names_and_defaults(parse):
    args = parse("")
    assert {name: getattr(args, name) for name in grove_defaults()} == {
        "grove_num_groups": None,
        "grove_dispatch": False,
        "grove_adjugate_ffn_hidden_size": None,
        "grove_adjugate_scale": 0.05,
        "grove_allow_scale_above_bound": False,
        "grove_router_scoring": "grove",
        "grove_kernel": "auto",
        "grove_hierarchical_dispatch": False,
        "grove_placement": None,
        "grove_metrics_interval": None,
        "grove_metrics_dir": None,
        "grove_metrics_coactivation": False,
        "grove_failure_watch": "on",
        "grove_stall_minutes": None,
        "grove_router_selector": "topk",
        "grove_sinkhorn_iterations": 20,
        "grove_base_precision": 0.02,
        "grove_expert_choice_sees_future": False,
        "grove_hash_table": "random",
        "grove_hash_seed": 42,
        "grove_hash_counts": None,
        "grove_hash_vocabulary": None,
        "grove_reinforce_coeff": 1.0,
        "grove_reinforce_baseline_coeff": 0.01,
        "grove_expert_capacity": None,
        "grove_capacity_scope": "rank",
        "grove_capacity_first_choices": False,
        "grove_adaptive_aux_loss": False,
        "grove_adaptive_decay": 0.99,
        "grove_adaptive_slope": 0.2,
        "grove_adaptive_max": 0.01,
        "grove_adaptive_capacity": 1.0,
        "grove_bias_update_rule": None,
        "grove_bias_level": "experts",
        "grove_bias_rate_decay_style": "constant",
        "grove_bias_rate_decay_iters": None,
        "grove_bias_rate_min": 0.0,
        "grove_group_aux_loss_coeff": 0.0,
        "grove_group_score": "megatron",
        "grove_aux_loss_counts": "scores",
        "grove_logit_bias": False,
        "grove_logit_norm": "none",
        "grove_logit_norm_scale": 1.0,
        "grove_logit_norm_eps": 1e-6,
        "grove_noisy_topk": False,
        "grove_second_expert_threshold": None,
        "grove_device_loss_coeff": 0.0,
        "grove_communication_loss_coeff": 0.0,
        "grove_loss_devices": None,
        "grove_importance_loss_coeff": 0.0,
        "grove_load_loss_coeff": 0.0,
        "grove_constant_experts": 0,
        "grove_copy_experts": 0,
        "grove_zero_experts": 0,
        "grove_zero_expert_weight": "own",
        "grove_topk_scaled_input": False,
        "grove_whole_qk_norm": False,
        "grove_gating_residual": False,
        "grove_router_gate": "linear",
        "grove_heterogeneous_loss_coeff": 0.0,
        "grove_local_tau": 0.75,
        "grove_preset": None,
        "grove_train_only": None,
        "grove_print_arguments": "changed",
    }


def test_the_parser_refuses_an_unknown_scoring(parse, capsys):
    with pytest.raises(SystemExit):
        parse(f"{GROVE} --grove-router-scoring Grove")
    assert "invalid choice: 'Grove'" in capsys.readouterr().err


def plain(**settings) -> dict:
    return {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_moe_experts": 8,
        "moe_router_topk": 2,
        "moe_token_dispatcher_type": "alltoall",
        "add_bias_linear": False,
        **settings,
    }


def grove(**settings) -> GroveTransformerConfig:
    settings = {"grove_num_groups": 4, "grove_adjugate_ffn_hidden_size": 8, **settings}
    return GroveTransformerConfig(**plain(**settings))


@pytest.mark.parametrize("absent", [{}, {"grove_num_groups": 0}], ids=["absent", "zero"])
def test_without_groups_it_is_a_plain_transformer_config(absent):
    ours, megatrons = GroveTransformerConfig(**plain(**absent)), TransformerConfig(**plain())
    assert isinstance(ours, TransformerConfig)
    assert not has_grove_layers(ours)
    for field in fields(TransformerConfig):
        mine, theirs = getattr(ours, field.name), getattr(megatrons, field.name)
        if callable(theirs) and not isinstance(theirs, type):  # initialisers, made per config
            assert callable(mine), field.name
        else:
            assert mine == theirs, field.name


@pytest.mark.parametrize(
    ("config", "layers", "adjugates"),
    [
        (grove, True, True),
        (lambda: GroveTransformerConfig(**plain(grove_dispatch=True)), True, False),
        (lambda: TransformerConfig(**plain()), False, False),
        (SimpleNamespace, False, False),
    ],
    ids=["groups", "dispatch", "megatron", "nothing"],
)
def test_what_a_config_asks_for(config, layers, adjugates):
    asked = config()
    assert has_grove_layers(asked) is is_checked(asked) is layers
    assert has_adjugates(asked) is adjugates


def test_a_config_raises_with_all_problems_in_one_message():
    with pytest.raises(ValueError, match=r"does not divide --num-experts \(8\).*; --grove-adju"):
        grove(grove_num_groups=3, grove_adjugate_ffn_hidden_size=None)


def test_grove_scoring_takes_an_expert_bias_where_megatron_wants_a_score_function_with_one():
    assert grove(moe_router_enable_expert_bias=True).moe_router_enable_expert_bias
    with pytest.raises(ValueError, match="Expert bias for aux-loss-free"):
        grove(moe_router_enable_expert_bias=True, grove_router_scoring="softmax")


def test_softmax_scoring_leaves_megatrons_score_function_alone():
    assert grove(grove_router_scoring="softmax").moe_router_score_function == "softmax"


def test_a_config_refuses_an_unknown_scoring():
    with pytest.raises(ValueError, match="grove-router-scoring"):
        grove(grove_router_scoring="Grove")


def test_a_config_refuses_an_unknown_rule_and_an_unknown_decay():
    with pytest.raises(
        ValueError, match=r"rule \(RMS\) is not one of \(rms, sign, error\); use rms"
    ):
        grove(moe_router_enable_expert_bias=True, grove_bias_update_rule="RMS")
    with pytest.raises(
        ValueError, match=r"\(wsd\) is not one of \(constant, linear, cosine, step\)"
    ):
        grove(moe_router_enable_expert_bias=True, grove_bias_rate_decay_style="wsd")


def test_a_scale_that_is_not_a_number_is_refused(parse):
    args = parse(f"{GROVE} --grove-adjugate-scale nan")
    assert grove_problems(args, num_experts=args.num_experts)
