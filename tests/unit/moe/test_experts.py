"""GroupedExperts on one rank: the choice of it, and what it computes beside SequentialMLP."""

import copy
import os
import re

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    model_parallel_cuda_manual_seed,
)
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor
from torch.testing import assert_close

from grove_megatron import runtime
from grove_megatron.config import grouped_experts_why_not
from grove_megatron.functional.reference import swiglu
from grove_megatron.kernels import TORCH
from grove_megatron.moe import kernel_choice
from grove_megatron.moe.experts import GroupedExperts
from grove_megatron.moe.kernel_choice import choose_kernels, takes_grouped_experts
from tests.multirank.on_ranks import grove_config

SUBMODULES = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
FC = ("linear_fc1", "linear_fc2")


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory):
    """Megatron's process groups for a job of one rank."""
    store = dist.FileStore(os.fspath(tmp_path_factory.mktemp("store") / "file"), 1)
    with runtime.cpu():
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def config_of(**settings):
    groups = {"grove_num_groups": 2, "grove_adjugate_ffn_hidden_size": 4}
    return grove_config(**(groups | settings))


def experts_of(kind: type, config, number: int = 4) -> torch.nn.Module:
    model_parallel_cuda_manual_seed(7)
    torch.manual_seed(7)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return kind(number, config, SUBMODULES, pg_collection=groups)


def both(config, number: int = 4) -> tuple[GroupedExperts, SequentialMLP]:
    return experts_of(GroupedExperts, config, number), experts_of(SequentialMLP, config, number)


def stacked(sequential: SequentialMLP, fc: str) -> Tensor:
    return torch.stack([getattr(mlp, fc).weight for mlp in sequential.local_experts])


def copy_weights(sequential: SequentialMLP, grouped: GroupedExperts) -> None:
    with torch.no_grad():
        for fc in FC:
            getattr(grouped, fc).weight.copy_(stacked(sequential, fc))


class TestChoice:
    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("activation_func", torch.nn.functional.gelu),
            ("activation_func", quick_gelu),
            ("gated_linear_unit", False),
            ("add_bias_linear", True),
            ("fp8", "e4m3"),
            ("fp4", "nvfp4"),
            ("activation_func_clamp_value", 7.0),
            ("glu_linear_offset", 1.0),
            ("activation_func_fp8_input_store", True),
            ("moe_mlp_glu_interleave_size", 32),
            ("use_te_activation_func", True),
            ("use_kitchen", True),
            ("moe_latent_size", 4),
            ("moe_apply_probs_on_input", True),
        ],
    )
    def test_what_grouped_experts_do_not_compute_is_named_and_refused(self, setting, value, caplog):
        kernel_choice.log_once.cache_clear()
        config = config_of()
        assert hasattr(config, setting)
        assert grouped_experts_why_not(config) is None
        setattr(config, setting, value)
        why_not = grouped_experts_why_not(config)
        assert f" {setting} ({value})" in why_not
        assert not takes_grouped_experts(config)
        assert why_not in caplog.text
        named = rf"{setting} \({re.escape(str(value))}\).*; use SequentialMLP"
        with pytest.raises(ValueError, match=named):
            experts_of(GroupedExperts, config)

    def test_all_that_is_in_the_way_is_named(self):
        config = config_of()
        config.add_bias_linear, config.glu_linear_offset = True, 1.0
        why_not = grouped_experts_why_not(config)
        assert "add_bias_linear (True)" in why_not
        assert "glu_linear_offset (1.0)" in why_not

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, True),
            ({"grove_kernel": "grouped"}, True),
            ({"grove_kernel": "triton"}, True),
            ({"grove_kernel": "megatron"}, False),
            ({"transformer_impl": "transformer_engine"}, False),
        ],
    )
    def test_they_are_taken_unless_megatron_s_are_asked_for(self, settings, expected, caplog):
        config = config_of()
        for name, value in settings.items():
            setattr(config, name, value)
        assert takes_grouped_experts(config) is expected
        assert caplog.text == ""

    def test_what_is_passed_over_is_logged_once(self, caplog):
        kernel_choice.log_once.cache_clear()
        config = config_of(activation_func=torch.nn.functional.gelu)
        for _ in range(2):
            takes_grouped_experts(config)
        assert caplog.text.count("Megatron's expert modules instead of grouped ones") == 1

    @pytest.mark.parametrize("kernel", ["auto", "grouped", "megatron"])
    def test_without_cuda_the_kernels_are_torch_s(self, kernel, caplog):
        config = config_of(grove_kernel=kernel)
        assert choose_kernels(config, torch.zeros(1, 8)) is TORCH
        assert caplog.text == ""

    def test_triton_s_are_refused_without_cuda(self):
        config = config_of(grove_kernel="triton")
        with pytest.raises(ValueError, match=r"--grove-kernel \(triton\) cannot run: .*; use auto"):
            choose_kernels(config, torch.zeros(1, 8))


class TestParameters:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"moe_ffn_hidden_size": 12, "ffn_hidden_size": 32},
            {"use_cpu_initialization": True},
            {"params_dtype": torch.bfloat16},
            {"init_method_std": 0.02, "num_layers": 8},
        ],
    )
    @pytest.mark.parametrize("number", [1, 4])
    def test_they_start_as_sequential_mlp_s_and_leave_the_random_streams_as_it_does(
        self, settings, number
    ):
        config = config_of(**settings)
        streams = []
        made = []
        for kind in (GroupedExperts, SequentialMLP):
            made.append(experts_of(kind, config, number))
            streams.append((torch.rand(3), *_device_streams()))
        grouped, sequential = made
        for fc in FC:
            weight = getattr(grouped, fc).weight
            assert weight.std() > 0
            assert weight.dtype == config.params_dtype
            assert torch.equal(weight, stacked(sequential, fc))
        assert all(map(torch.equal, *streams))

    def test_only_the_two_matrices_are_parameters(self):
        grouped, sequential = both(config_of())
        assert [name for name, _ in grouped.named_parameters()] == [f"{fc}.weight" for fc in FC]
        count = sum(p.numel() for p in sequential.parameters())
        assert sum(p.numel() for p in grouped.parameters()) == count
        assert not list(grouped.named_buffers())

    @pytest.mark.parametrize("fc", FC)
    def test_they_have_what_megatron_asks_of_an_expert_s_parameter(self, fc):
        grouped, sequential = both(config_of())
        ours = vars(getattr(grouped, fc).weight)
        theirs = vars(getattr(sequential.local_experts[0], fc).weight)
        assert "allreduce" in ours
        assert ours.keys() == theirs.keys()
        # One axis more, in front.
        assert ours["partition_dim"] == theirs["partition_dim"] + 1
        others = ours.keys() - {"partition_dim"}
        assert {k: ours[k] for k in others} == {k: theirs[k] for k in others}

    def test_the_caller_s_config_is_not_changed(self):
        config = config_of(moe_ffn_hidden_size=12, ffn_hidden_size=32)
        before = copy.deepcopy(vars(config))
        grouped = experts_of(GroupedExperts, config)
        assert vars(config).keys() == before.keys()
        assert config.ffn_hidden_size == 32
        assert grouped.config.ffn_hidden_size == 12


def _device_streams() -> list[Tensor]:
    return [state.clone() for _, state in sorted(get_cuda_rng_tracker().get_states().items())]


def run(experts: torch.nn.Module, x: Tensor, counts: Tensor, probs: Tensor) -> dict[str, Tensor]:
    x, probs = x.clone().requires_grad_(), probs.clone().requires_grad_()
    y, bias = experts(x, counts, probs)
    assert bias is None
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    y.backward(upstream.to(y.dtype))
    if isinstance(experts, SequentialMLP):
        mlps = experts.local_experts
        grads = {fc: torch.stack([getattr(m, fc).weight.grad for m in mlps]) for fc in FC}
    else:
        grads = {fc: getattr(experts, fc).weight.grad for fc in FC}
    return {"y": y, "x": x.grad, "probs": probs.grad, **grads}


class TestComputation:
    @pytest.mark.parametrize("counts", [(3, 5, 2, 4), (0, 7, 0, 1), (0, 0, 0, 0), (6,)])
    @pytest.mark.parametrize(("hidden", "width"), [(8, 12), (6, 5)])
    @pytest.mark.parametrize("fused", [False, True])
    def test_it_equals_sequential_mlp_with_every_gradient(self, counts, hidden, width, fused):
        config = config_of(
            hidden_size=hidden, moe_ffn_hidden_size=width, bias_activation_fusion=fused
        )
        grouped, sequential = both(config, len(counts))
        with torch.no_grad():
            for weight in sequential.parameters():
                weight.normal_()
        copy_weights(sequential, grouped)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(sum(counts), hidden, generator=generator)
        probs = torch.rand(sum(counts), generator=generator)
        probs[:1] = 0.0
        tokens_per_expert = torch.tensor(counts)
        found = run(grouped, x, tokens_per_expert, probs)
        expected = run(sequential, x, tokens_per_expert, probs)
        for name, theirs in expected.items():
            error = (found[name] - theirs).abs().max() if theirs.numel() else torch.zeros(())
            assert found[name].shape == theirs.shape
            scale = theirs.abs().max().clamp_min(1) if theirs.numel() else 1
            assert error <= 1e-6 * scale, name

    def test_in_bf16_it_stays_as_near_to_the_exact_result_as_sequential_mlp(self):
        config = config_of(
            hidden_size=32, moe_ffn_hidden_size=16, params_dtype=torch.bfloat16, bf16=True
        )
        grouped, sequential = both(config)
        generator = torch.Generator().manual_seed(1)
        counts = torch.tensor([40, 0, 30, 30])
        x = torch.randn(100, 32, generator=generator).bfloat16()
        probs = torch.rand(100, generator=generator)
        found = run(grouped, x, counts, probs)
        stock = run(sequential, x, counts, probs)
        exact = run(sequential.double(), x.double(), counts, probs.double())
        for name, theirs in exact.items():
            assert found[name].dtype == stock[name].dtype
            ours = (found[name].double() - theirs).norm()
            assert ours <= 1.1 * (stock[name].double() - theirs).norm(), name

    def test_there_is_nothing_to_do_for_delayed_weight_gradients(self):
        grouped = experts_of(GroupedExperts, config_of())
        run(grouped, torch.ones(4, 8), torch.tensor([1, 1, 1, 1]), torch.ones(4))
        before = grouped.linear_fc1.weight.grad.clone()
        grouped.backward_dw()
        assert torch.equal(grouped.linear_fc1.weight.grad, before)


class TestLoading:
    def test_the_names_of_sharded_entries_are_taken_strictly(self):
        grouped = experts_of(GroupedExperts, config_of())
        entries = grouped.sharded_state_dict("")
        weights = {name for name in entries if "_extra_state" not in name}
        assert weights == {f"{fc}.weight" for fc in FC}
        assert len(entries) == 2 + 2 * 4
        loaded = {
            name: torch.full_like(entry.data, 3.0) if name in weights else None
            for name, entry in entries.items()
        }
        names = list(loaded)
        grouped.load_state_dict(loaded, strict=True)
        assert list(loaded) == names, "the caller's dictionary"
        assert all((weight == 3.0).all() for weight in grouped.parameters())

    def test_they_are_taken_below_a_prefix_beside_other_modules(self):
        layer = torch.nn.ModuleDict(
            {name: experts_of(GroupedExperts, config_of()) for name in ("experts", "adjugates")}
        )
        loaded = {}
        for name, module in layer.items():
            for key, entry in module.sharded_state_dict(f"{name}.").items():
                loaded[key] = None if "_extra_state" in key else torch.zeros_like(entry.data)
        layer.load_state_dict(loaded, strict=True)
        assert not any(weight.any() for weight in layer.parameters())

    def test_its_own_state_dict_loads(self):
        first, second = (experts_of(GroupedExperts, config_of()) for _ in range(2))
        with torch.no_grad():
            second.linear_fc1.weight.zero_()
        second.load_state_dict(first.state_dict(), strict=True)
        assert torch.equal(second.linear_fc1.weight, first.linear_fc1.weight)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.pop("linear_fc2.weight"), "Missing key.*linear_fc2.weight"),
            (lambda d: d.update(linear_fc3=torch.zeros(1)), "Unexpected key.*linear_fc3"),
            (
                lambda d: d.update({"local_experts.0.linear_fc1.weight": torch.zeros(1)}),
                "Unexpected key.*local_experts",
            ),
        ],
    )
    def test_other_names_are_refused(self, change, message):
        grouped = experts_of(GroupedExperts, config_of())
        state = dict(grouped.state_dict())
        change(state)
        with pytest.raises(RuntimeError, match=message):
            grouped.load_state_dict(state, strict=True)


def test_every_row_goes_through_the_lines_of_the_paper():
    grouped = experts_of(GroupedExperts, config_of())
    counts = torch.tensor([2, 0, 1, 3])
    generator = torch.Generator().manual_seed(3)
    x, probs = torch.randn(6, 8, generator=generator), torch.rand(6, generator=generator)
    y, _ = grouped(x, counts, probs)
    up, down = grouped.linear_fc1.weight, grouped.linear_fc2.weight
    expert = torch.arange(4).repeat_interleave(counts).tolist()
    expected = [p * swiglu(row, up[e], down[e]) for row, p, e in zip(x, probs, expert, strict=True)]
    assert_close(y, torch.stack(expected))
