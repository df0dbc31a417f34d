"""Megatron's own figures of a Grove run, and those of a plain one, which stay Megatron's."""

import copy
import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
from megatron.training import arguments, training
from megatron.training import theoretical_memory_usage as theory

from grove_megatron.model.parameters import total_parameters
from grove_megatron.planner.flops import flops_per_token
from grove_megatron.planner.parameters import rank_parameters
from grove_megatron.runtime.registry import resolve
from grove_megatron.training import reporting
from grove_megatron.training.reporting import REPORTING, set_measured_groups_per_token
from grove_megatron.training.sizes import sizes_of

from .command_lines import parsed, validated

# Of four groups of two experts, with two of the eight experts selected: 4 (1 - C(6,2) / C(8,2)).
EXPECTED = 4 * (1 - 15 / 28)


@pytest.fixture(autouse=True)
def _nothing_measured() -> Iterator[None]:
    yield
    set_measured_groups_per_token(None)


def job(flags: str = "", *, ranks: int = 1, plain: bool = False) -> Namespace:
    """Validated arguments of a small Grove model."""
    width = "--moe-ffn-hidden-size 24 --ffn-hidden-size 40"
    args = validated(parsed(f"{width} {flags}", ranks=ranks, plain=plain))
    # Megatron sets it when it has read the tokenizer.
    args.padded_vocab_size = 128
    return args


def counted(args: Namespace, **named: Any) -> float:
    """By the name that the training loop uses."""
    return training.num_floating_point_operations(copy.copy(args), 4, **named)


def with_and_without(args: Namespace, **named: Any) -> tuple[float, float]:
    with REPORTING.applied():
        patched = counted(args, **named)
    return patched, counted(args, **named)


class TestFlops:
    def test_adjugates_are_added_exactly(self):
        patched, megatrons = with_and_without(job())
        # 3 passes x 2 a multiply-add x tokens x hidden x width x 3 matrices x groups x layers.
        assert patched == megatrons + 3 * 2 * (4 * 8) * 16 * 8 * 3 * EXPECTED * 2

    @pytest.mark.parametrize("groups", [1.0, 1.75, 2])
    def test_a_measurement_replaces_the_expectation(self, groups):
        set_measured_groups_per_token(groups)
        patched, megatrons = with_and_without(job())
        assert patched == megatrons + 3 * 2 * (4 * 8) * 16 * 8 * 3 * groups * 2
        set_measured_groups_per_token(None)
        assert with_and_without(job())[0] == megatrons + 3 * 2 * 32 * 16 * 8 * 3 * EXPECTED * 2

    def test_experts_without_an_ffn_are_not_counted(self):
        local = "--grove-zero-experts 2 --grove-copy-experts 1 --grove-constant-experts 1"
        args = job(local)
        # 2 of 8 experts in 4 groups, and of 4 without an FFN.
        model = sizes_of(args).model
        for groups, experts in ((None, None), (0.75, 1.25)):
            set_measured_groups_per_token(groups, experts)
            patched, megatrons = with_and_without(args)
            met = 4 * (1 - 45 / 66) if groups is None else groups
            # Experts of 24 with an FFN, adjugates of 8.
            skipped = 24 * (2 - (experts or 4 / 3)) - 8 * met
            assert patched == pytest.approx(megatrons - 6 * 32 * 16 * 3 * skipped * 2, rel=1e-12)
        set_measured_groups_per_token(None)
        planned = flops_per_token(model, args.seq_length) * 4 * args.seq_length
        assert planned == pytest.approx(with_and_without(args)[0], rel=1e-12)

    @pytest.mark.parametrize("groups", [-1.0, float("nan")])
    def test_a_measurement_that_is_none_is_refused(self, groups):
        with pytest.raises(ValueError, match=r"groups per token \(\S+\) is not 0 or more"):
            set_measured_groups_per_token(groups)

    def test_padding_of_packed_sequences_is_not_counted(self):
        packed = {"seqlen_squared_sum_in_batch": 100.0, "total_real_tokens_in_batch": 20.0}
        patched, megatrons = with_and_without(job(), **packed)
        assert patched == megatrons + 3 * 2 * 20 * 16 * 8 * 3 * EXPECTED * 2

    @pytest.mark.parametrize(
        ("flags", "layers"),
        [
            ("--num-layers 5 --moe-layer-freq 2", 3),
            ("--num-layers 3 --moe-layer-freq [0,1,1]", 2),
            ("--mtp-num-layers 1 --position-embedding-type rope", 3),
            ("--mtp-num-layers 2 --mtp-use-repeated-layer --position-embedding-type rope", 4),
            ("--mtp-num-layers 2 --moe-layer-freq [1,0] --position-embedding-type rope", 1),
        ],
    )
    def test_layers_are_counted_as_megatron_counts_them(self, flags, layers):
        patched, megatrons = with_and_without(job(flags))
        assert patched == megatrons + 3 * 2 * 32 * 16 * 8 * 3 * EXPECTED * layers

    @pytest.mark.parametrize(
        "flags",
        [
            "",
            "--num-layers 5 --moe-layer-freq 2",
            "--group-query-attention --num-query-groups 1 --kv-channels 6 --qk-layernorm",
            "--moe-shared-expert-intermediate-size 20",
            "--mtp-num-layers 2 --moe-layer-freq [1,0] --position-embedding-type rope",
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
            "--untie-embeddings-and-output-weights --seq-length 4",
            "--attention-output-gate",
        ],
    )
    def test_the_planner_counts_what_the_patched_megatron_counts(self, flags):
        args = job(flags)
        model, tokens = sizes_of(args).model, 4 * args.seq_length
        patched, megatrons = with_and_without(args)
        # Sums of products in floating point, in another order.
        assert flops_per_token(model, args.seq_length) * tokens == pytest.approx(patched, rel=1e-12)
        without = flops_per_token(model, args.seq_length, groups=0.0)
        assert without * tokens == pytest.approx(megatrons, rel=1e-12)

    def test_quick_geglu_has_three_matrices_in_an_adjugate(self):
        args = job("--mtp-num-layers 1 --position-embedding-type rope")
        args.swiglu, args.quick_geglu = False, True
        patched, megatrons = with_and_without(args)
        assert patched == megatrons + 3 * 2 * (4 * 8) * 16 * 8 * 3 * EXPECTED * 3
        model = sizes_of(args).model
        adjugates = flops_per_token(model, 8) - flops_per_token(model, 8, groups=0.0)
        assert adjugates * 4 * 8 == pytest.approx(patched - megatrons, rel=1e-12)
        # It leaves out a matrix of both experts of a token, 24 wide, in three layers.
        lacking = flops_per_token(model, 8, groups=0.0) * 4 * 8 - megatrons
        assert lacking == pytest.approx(3 * 2 * (4 * 8) * 16 * 24 * 2 * 3, rel=1e-12)

    def test_what_is_recomputed_and_how_it_is_divided_is_not_counted(self):
        again = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
        divided = job(
            f"{again} --expert-model-parallel-size 4 --use-distributed-optimizer", ranks=4
        )
        assert with_and_without(divided) == with_and_without(job())


class TestMemory:
    @pytest.mark.parametrize("flags", ["", "--moe-layer-freq [0,1]", "--swiglu"])
    def test_weights_of_the_adjugates_are_added(self, flags):
        args = job(flags)
        with REPORTING.applied():
            patched = theory.compute_weight_and_optimizer_memory(copy.copy(args))
        added = patched - theory.compute_weight_and_optimizer_memory(copy.copy(args))
        # 18 bytes a parameter; sums of large floats.
        assert added == pytest.approx(18 * total_parameters(sizes_of(args).model).adjugates)

    def test_with_quick_geglu_they_have_three_matrices(self):
        args = job()
        args.swiglu, args.quick_geglu = False, True
        with REPORTING.applied():
            patched = theory.compute_weight_and_optimizer_memory(copy.copy(args))
        added = patched - theory.compute_weight_and_optimizer_memory(copy.copy(args))
        assert added == pytest.approx(18 * total_parameters(sizes_of(args).model).adjugates)

    def test_they_are_divided_with_their_groups(self):
        args = job("--expert-model-parallel-size 4 --use-distributed-optimizer", ranks=8)
        with REPORTING.applied():
            patched = theory.compute_weight_and_optimizer_memory(copy.copy(args))
        added = patched - theory.compute_weight_and_optimizer_memory(copy.copy(args))
        sizes = sizes_of(args)
        (counts,) = rank_parameters(sizes.model, sizes.layout)
        # Two ranks have the same group.
        assert added == pytest.approx(counts.adjugates * (6 + 12 / 2))

    @pytest.mark.parametrize("groups", [None, 1.0])
    def test_the_33b_model_is_printed_with_its_adjugates(self, capsys, groups):
        size = (
            "--num-layers 48 --hidden-size 2048 --num-attention-heads 32 --kv-channels 128 "
            "--group-query-attention --num-query-groups 4 --num-experts 128 --moe-router-topk 8 "
            "--moe-ffn-hidden-size 768 --grove-num-groups 64 --grove-adjugate-ffn-hidden-size 128 "
            "--normalization RMSNorm --untie-embeddings-and-output-weights --qk-layernorm --bf16"
        )
        args = job(size)
        args.padded_vocab_size = 151936
        set_measured_groups_per_token(groups)
        with REPORTING.applied():
            weights, activations, total = training.report_theoretical_memory(args, 1, verbose=True)
        text = capsys.readouterr().out
        # 30.53 and 3.35 in Megatron's own words; query and key norms are not in them.
        assert "Total number of parameters in billions: 32.95" in text
        active = {None: "3.65", 1.0: "3.39"}[groups]
        assert f"Total number of active parameters in billions: {active}" in text
        # Megatron leaves out 48 x 256 weights of query and key norms.
        assert weights * 2**20 == pytest.approx(18 * (32_948_041_728 - 48 * 256), rel=1e-12)
        said = re.search(r"footprints: weight and optimizer=(\S+) MB, activation=(\S+) MB", text)
        assert said is not None
        assert [float(n) for n in said.groups()] == pytest.approx([weights, activations], abs=6e-3)
        assert total == weights + activations

    @pytest.mark.parametrize(
        ("flags", "ranks", "factor"),
        [
            ("", 1, 1),
            ("--pipeline-model-parallel-size 2", 2, 0.5),
            (
                "--num-layers 4 --pipeline-model-parallel-size 2 "
                "--num-layers-per-virtual-pipeline-stage 1",
                2,
                1.25,
            ),
            (
                "--tensor-model-parallel-size 2 --sequence-parallel --expert-tensor-parallel-size 1"
                " --recompute-granularity selective",
                2,
                0.5,
            ),
        ],
    )
    def test_activations_of_the_adjugates_are_added(self, flags, ranks, factor):
        args = job(f"{flags} --micro-batch-size 1 --global-batch-size 4", ranks=ranks)

        def activations() -> float:
            _, megabytes, _ = theory.report_theoretical_memory(copy.copy(args), 1)
            return megabytes * 2**20

        with REPORTING.applied():
            patched = activations()
        # Tokens x groups x (3 widths of 8 in fp32, two positions, a weight), as one pass does, and
        # tokens x experts that were selected or not.
        kept = (8 * EXPECTED * (4 * 3 * 8 + 20) + 8 * 8) * args.num_layers
        assert patched - activations() == pytest.approx(kept * factor, rel=1e-9)


class TestPlain:
    def test_every_figure_is_megatrons_own(self, capsys):
        args = job("--moe-layer-freq [0,1]", plain=True)

        def figures() -> list[Any]:
            flops = training.num_floating_point_operations(args, 4)
            return [flops, training.report_theoretical_memory(args, 1, verbose=True)]

        capsys.readouterr()
        megatrons, printed = figures(), capsys.readouterr().out
        with REPORTING.applied():
            assert figures() == megatrons
        assert capsys.readouterr().out == printed

    def test_megatrons_functions_get_the_very_arguments(self):
        args = job(plain=True)
        for patch in REPORTING.patches:
            if patch.name == "arguments":
                continue  # see TestArguments
            if patch.name.startswith("evaluation"):
                continue  # of other functions; see test_evaluations.py
            seen = []

            def original(*given: Any, seen: list[Any] = seen, **named: Any) -> str:
                seen.append(given[0])
                return "theirs"

            function = patch.make(original)
            more = () if "weights" in patch.name else (4,)
            assert function(args, *more) == "theirs"
            assert seen[0] is args

    def test_a_command_line_that_never_heard_of_groups(self):
        args = job(plain=True)
        for name in [n for n in vars(args) if n.startswith("grove_")]:
            delattr(args, name)
        assert with_and_without(args)[0] == counted(args)


class TestPatches:
    def test_outside_the_block_the_functions_are_megatrons(self):
        before = [getattr(*resolve(patch.target)) for patch in REPORTING.patches]
        with REPORTING.applied():
            inside = [getattr(*resolve(patch.target)) for patch in REPORTING.patches]
        after = [getattr(*resolve(patch.target)) for patch in REPORTING.patches]
        assert all(a is b for a, b in zip(before, after, strict=True))
        assert not any(a is b for a, b in zip(before, inside, strict=True))

    def test_the_arguments_of_a_run_are_not_changed(self):
        args = job("--group-query-attention --num-query-groups 1")
        before = copy.deepcopy(vars(args))
        with REPORTING.applied():
            training.num_floating_point_operations(args, 4)
            training.report_theoretical_memory(args, 1)
        assert vars(args) == before


class TestArguments:
    def printed(self, args: Namespace, capsys: Any) -> dict[str, str]:
        """Names and values of the list."""
        capsys.readouterr()
        with REPORTING.applied():
            arguments._print_args("arguments", args)
        return dict(re.findall(r"^  (\w+) \.* (.*)$", capsys.readouterr().out, re.M))

    def test_those_at_megatrons_default_are_left_out(self, capsys):
        args = parsed("--seed 1235 --lr 0.5 --rotary-base 10000")
        printed = self.printed(args, capsys)
        assert {"seed": "1235", "lr": "0.5", "num_experts": "8"}.items() <= printed.items()
        assert printed["grove_num_groups"] == "4"
        # Given as it is anyway; not given; and a flag of this package that was not.
        assert not {"rotary_base", "weight_decay", "grove_kernel"} & set(printed)
        # What Megatron has no default for is somebody's.
        args.data_parallel_size = 3
        assert self.printed(args, capsys)["data_parallel_size"] == "3"
        assert len(printed) < 60 < 700 < len(vars(args))

    def test_the_way_to_the_whole_list_is_named(self, capsys):
        args = parsed()
        with REPORTING.applied():
            arguments._print_args("arguments", args)
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.endswith("; --grove-print-arguments all prints every one)")
        assert f" of {len(vars(args))} arguments" in last
        args = parsed("--grove-print-arguments all")
        assert self.printed(args, capsys).keys() == vars(args).keys()

    def test_of_a_plain_run_megatron_prints_what_it_prints(self, capsys):
        args = parsed(plain=True)
        assert self.printed(args, capsys).keys() == vars(args).keys()


class TestAnnouncement:
    def test_a_grove_run_says_that_flops_are_expected(self, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "0")
        reporting.announce_flops(job())
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "FLOPs count 1.857 adjugates a token and layer, expected under uniform" in lines[0]

    def test_others_are_silent(self, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "0")
        reporting.announce_flops(job(plain=True))
        set_measured_groups_per_token(1.5)
        reporting.announce_flops(job())
        set_measured_groups_per_token(None)
        monkeypatch.setenv("RANK", "1")
        reporting.announce_flops(job())
        assert "FLOPs" not in capsys.readouterr().err
