import json
from dataclasses import replace

from hypothesis import given, settings

from grove_megatron.planner.inputs import Layout, Sizes
from grove_megatron.planner.memory import stage_memory
from grove_megatron.planner.report import COLUMNS, plan, plan_lines

from .models import GROVE_33B, QWEN3_30B, jobs, training

ON_64 = Sizes(
    model=GROVE_33B,
    layout=Layout(expert=8, world=64),
    training=training(sequence_length=8192, microbatches=8, distributed_optimizer=True),
)


def as_one_line(sizes: Sizes) -> str:
    return " ".join(" ".join(plan_lines(sizes)).split())


def test_a_plan_says_what_a_launch_will_do():
    text = as_one_line(ON_64)
    for said in (
        "48 layers, all with 128 experts, 8 a token, in 64 groups of 2 with an adjugate each",
        "32,948,041,728: 1,541,093,376 dense, 28,991,029,248 in experts, 2,415,919,104 in adj",
        "3,504,027,648 to 3,655,022,592 a token; 3,646,700,036 expected, with 7.780 adjugates",
        "64 = tensor 1 x pipeline 1 x context 1 x data 64; experts: tensor 1 x pipeline 1 x "
        "expert 8 x data 8",
        "EP ranks 0: experts 0 to 15, groups and adjugates 0 to 7 1: experts 16 to 31, groups and "
        "adjugates 8 to 15 ... 7: experts 112 to 127, groups and adjugates 56 to 63",
        "5.339 a token and layer, one to every rank it needs, its own included",
        "Megatron's all-to-all sends 8",
        "5,466,961,920 parameters on a rank",
        "weights 10.18, gradients 20.37, optimizer 5.75, activations",
    ):
        assert said in text


def test_a_plan_says_what_is_trained_of_a_model():
    only = replace(ON_64, training=replace(ON_64.training, train_only=("adjugates",)))
    text = as_one_line(only)
    assert "5,466,961,920 parameters on a rank, 301,989,888 of them trained; estimated" in text
    assert "weights 10.18, gradients 1.12, optimizer 0.42, activations" in text
    assert plan(only)["params_trained"] == 2_415_919_104
    assert plan(only)["params_rank_trained"] == [
        {"dense": 0, "experts": 0, "adjugates": 301_989_888}
    ]
    assert "trained" not in as_one_line(ON_64)
    assert "params_trained" not in plan(ON_64)


@settings(max_examples=30)
@given(sizes=jobs())
def test_lines_fit_a_terminal(sizes):
    lines = plan_lines(sizes)
    assert max(map(len, lines)) <= COLUMNS
    assert all(line == line.rstrip() for line in lines)


@settings(max_examples=30)
@given(sizes=jobs())
def test_every_expert_and_group_is_on_one_listed_rank(sizes):
    lines = plan_lines(sizes)
    begin = next(i for i, line in enumerate(lines) if line.startswith("EP ranks"))
    listed = [
        line.removeprefix("EP ranks").split() for line in lines[begin : begin + sizes.layout.expert]
    ]
    experts, groups = [], []
    for rank, words in enumerate(listed):
        assert words[0] == f"{rank}:"
        text = " ".join(words[2:]).split(", groups and adjugates ")
        for part, numbers in zip(text, (experts, groups), strict=True):
            ends = [int(number) for number in part.split(" to ")]
            numbers += range(ends[0], ends[-1] + 1)
    assert experts == [*range(sizes.model.num_experts)]
    assert groups == [*range(sizes.model.num_groups)]


def test_the_stage_that_needs_most_is_named():
    layout = Layout(expert=4, pipeline=4, virtual=2, world=64)
    sizes = replace(ON_64, layout=layout)
    assert "parameters on a rank of stage 0" in as_one_line(sizes)
    numbers = plan(sizes)
    memory = stage_memory(sizes)[numbers["memory_stage"]]
    assert numbers["memory"] == memory.state
    assert sum(numbers["memory_activation_parts"].values()) == memory.activations


def test_small_models_are_planned_in_mib():
    small = replace(GROVE_33B, hidden_size=64, head_dim=4, vocab_size=128, moe_layers=(True,))
    sizes = replace(ON_64, model=small, training=training())
    weights = stage_memory(sizes)[0].weights / 2**20
    assert "estimated GiB: weights" in as_one_line(ON_64)
    assert f"estimated MiB: weights {weights:.2f}, " in as_one_line(sizes)


def test_a_dispatch_to_all_ranks_is_not_one_to_those_it_needs():
    sizes = replace(ON_64, layout=replace(ON_64.layout, all_gather=True))
    assert plan(sizes)["rows_per_token"] == 8
    assert "8 a token and layer, one to every rank whether it needs it or not" in (
        as_one_line(sizes)
    )


def test_a_plain_and_a_dense_model_are_planned_too():
    plain = as_one_line(replace(ON_64, model=QWEN3_30B))
    assert "adjugate" not in plain
    assert "active 3,353,032,704 a token" in plain
    dense = replace(QWEN3_30B, num_experts=0, moe_layers=(False,) * 48, ffn_hidden_size=6144)
    text = as_one_line(replace(ON_64, model=dense, layout=Layout(world=64)))
    assert "expert" not in text


def test_numbers_are_json():
    numbers = json.loads(json.dumps(plan(ON_64)))
    assert numbers["params_total"] == 32_948_041_728
    assert numbers["rows_per_token"] < numbers["stock_rows_per_token"] == 8
    assert 0 < numbers["adjugate_flops_per_token"] < numbers["flops_per_token"]
