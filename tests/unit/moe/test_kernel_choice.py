"""Which kernels run, who decides it, and what is said about those that do not."""

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe.experts import SequentialMLP
from torch.nn import functional as F

from grove_megatron import runtime
from grove_megatron.arguments import select_layer
from grove_megatron.config import MATRIX_OPTIMIZERS, grove_problems
from grove_megatron.kernels import TORCH, triton_support
from grove_megatron.moe import kernel_choice
from grove_megatron.moe.experts import GroupedExperts
from grove_megatron.moe.kernel_choice import choose_kernels, log_once, takes_grouped_experts
from grove_megatron.training.preflight import preflight
from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.unit.triton_process import interpreted

from ..conftest import in_lines

grove_problems = in_lines(grove_problems)
preflight = in_lines(preflight)

GROVE = {"grove_num_groups": 2, "grove_adjugate_ffn_hidden_size": 8}
FLAGS = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 8"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@dataclass(frozen=True)
class Rows:
    """All that the choice asks of a tensor of rows; it may claim to be on a GPU."""

    shape: tuple[int, int] = (3, 16)
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CUDA

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    """The first rank, which has logged nothing; and kernels that are not interpreted."""
    log_once.cache_clear()
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    log_once.cache_clear()


@pytest.fixture
def hopper(monkeypatch):
    """What torch says of itself on a machine with an H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def asking(kernel: str) -> SimpleNamespace:
    return SimpleNamespace(grove_kernel=kernel)


def triton_kernels():
    from grove_megatron.kernels.triton_kernels import TRITON

    return TRITON


WIDTHS = {"moe_ffn_hidden_size": 24, "grove_adjugate_ffn_hidden_size": 8}
# Rows, other widths, and why Triton's kernels cannot work on them on a Hopper.
REFUSED = [
    (Rows(dtype=torch.float64), {}, "dtype (float64) is not one of bfloat16, float16, float32"),
    (
        Rows(),
        {"grove_adjugate_ffn_hidden_size": 4},
        "grove_adjugate_ffn_hidden_size (4) is not a multiple of 8",
    ),
    # What never fits is named rather than what happens not to.
    (Rows(shape=(0, 12)), {}, "hidden_size (12) is not a multiple of 8"),
]


@pytest.mark.usefixtures("hopper")
class TestOnCuda:
    @pytest.mark.parametrize("dtype", triton_support.DTYPES, ids=str)
    def test_triton_s_are_taken_without_a_word(self, dtype, caplog):
        for kernel in ("auto", "triton"):
            kernels = choose_kernels(asking(kernel), Rows(dtype=dtype), **WIDTHS)
            assert kernels is triton_kernels()
        assert caplog.text == ""

    def test_a_configuration_that_knows_no_choice_gets_them(self):
        assert choose_kernels(SimpleNamespace(), Rows(), **WIDTHS) is triton_kernels()

    @pytest.mark.parametrize("kernel", ["grouped", "megatron"])
    def test_who_asks_for_others_gets_torch_s_without_a_word(self, kernel, caplog):
        assert choose_kernels(asking(kernel), Rows(), **WIDTHS) is TORCH
        assert caplog.text == ""

    @pytest.mark.parametrize(("rows", "widths", "why"), REFUSED)
    def test_auto_falls_back_to_torch_s_with_one_line_that_says_why(
        self, rows, widths, why, caplog
    ):
        for _ in range(3):
            assert choose_kernels(asking("auto"), rows, **(WIDTHS | widths)) is TORCH
        assert messages(caplog) == [f"grove_megatron: torch kernels instead of Triton's: {why}"]
        assert caplog.records[0].levelno == logging.WARNING

    @pytest.mark.parametrize(("rows", "widths", "why"), REFUSED)
    def test_asked_for_by_name_they_have_to_run(self, rows, widths, why, caplog):
        with pytest.raises(ValueError, match=refusal(why)):
            choose_kernels(asking("triton"), rows, **(WIDTHS | widths))
        assert caplog.text == ""

    def test_a_rank_without_a_token_is_no_mistake(self, caplog):
        for kernel in ("auto", "triton"):
            assert choose_kernels(asking(kernel), Rows(shape=(0, 16)), **WIDTHS) is TORCH
        assert messages(caplog) == [
            "grove_megatron: torch kernels instead of Triton's: no rows to work on"
        ]

    def test_an_old_gpu_is_named(self, monkeypatch, caplog):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        why = "CUDA compute capability (7.5) is below 8.0"
        assert choose_kernels(asking("auto"), Rows()) is TORCH
        assert why in caplog.text
        with pytest.raises(ValueError, match=refusal(why)):
            choose_kernels(asking("triton"), Rows())

    def test_a_missing_triton_is_named(self, monkeypatch, caplog):
        monkeypatch.setattr(triton_support, "_triton_is_installed", lambda: False)
        assert choose_kernels(asking("auto"), Rows()) is TORCH
        assert "triton is not installed" in caplog.text
        with pytest.raises(ValueError, match=refusal("triton is not installed")):
            choose_kernels(asking("triton"), Rows())


class TestOnACpu:
    @pytest.mark.parametrize("shape", [(3, 16), (3, 7), (0, 16)])
    def test_torch_s_are_taken_without_a_word(self, shape, caplog):
        assert choose_kernels(asking("auto"), torch.zeros(shape), moe_ffn_hidden_size=5) is TORCH
        assert caplog.text == ""

    def test_triton_s_are_refused_by_the_name_of_the_flag(self, no_gpu):
        with pytest.raises(ValueError, match=refusal("no CUDA device")):
            choose_kernels(asking("triton"), torch.zeros(3, 16))

    def test_a_gpu_beside_rows_on_the_cpu_changes_nothing(self, hopper):
        assert choose_kernels(asking("auto"), torch.zeros(3, 16)) is TORCH
        with pytest.raises(ValueError, match=refusal("no CUDA device")):
            choose_kernels(asking("triton"), torch.zeros(3, 16))


def refusal(why: str) -> str:
    return rf"^{re.escape(f'--grove-kernel (triton) cannot run: {why}; use auto')}$"


def messages(caplog) -> list[str]:
    assert all(record.name == kernel_choice.__name__ for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


class TestLogOnce:
    def test_every_message_is_said_once(self, caplog):
        for message in ("one", "two", "one", "two", "one"):
            log_once(message)
        assert messages(caplog) == ["one", "two"]

    @pytest.mark.parametrize(("rank", "said"), [("0", ["word"]), ("1", [])])
    def test_the_first_rank_speaks_for_all(self, rank, said, monkeypatch, caplog):
        monkeypatch.setenv("RANK", rank)
        log_once("word")
        assert messages(caplog) == said


class TestExpertsOfAConfiguration:
    """takes_grouped_experts, and what a configuration refuses by itself."""

    @pytest.mark.parametrize(
        ("kernel", "implementation", "grouped"),
        [
            ("auto", "local", True),
            ("grouped", "local", True),
            ("triton", "local", True),
            ("megatron", "local", False),
            ("auto", "transformer_engine", False),
            ("megatron", "transformer_engine", False),
        ],
    )
    def test_they_are_grouped_unless_others_are_asked_for(
        self, kernel, implementation, grouped, caplog
    ):
        config = grove_config(**GROVE, grove_kernel=kernel, transformer_impl=implementation)
        assert takes_grouped_experts(config) is grouped
        assert caplog.text == ""

    @pytest.mark.parametrize(
        ("name", "value"),
        [("activation_func", F.gelu), ("gated_linear_unit", False), ("add_bias_linear", True)],
    )
    def test_what_grouped_experts_do_not_compute_is_refused_beside_their_name(self, name, value):
        kernel = "grouped"
        message = (
            f"--grove-kernel ({kernel}) cannot run: grouped experts compute SwiGLU without biases, "
            f"not {name} ({value}); use auto"
        )
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
            grove_config(**GROVE, grove_kernel=kernel, **{name: value})

    def test_an_unknown_name_is_refused_with_the_known_ones(self):
        message = (
            "--grove-kernel (Triton) is not one of (auto, megatron, grouped, triton); use auto"
        )
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
            grove_config(**GROVE, grove_kernel="Triton")

    @pytest.mark.parametrize("kernel", ["grouped", "triton"])
    def test_experts_of_transformer_engine_are_not_replaced(self, kernel):
        message = (
            f"--grove-kernel ({kernel}) would replace the experts of --transformer-impl "
            "(transformer_engine); use --transformer-impl local, or --grove-kernel auto"
        )
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
            grove_config(**GROVE, grove_kernel=kernel, transformer_impl="transformer_engine")


class TestOnACommandLine:
    """The rule itself is in test_config.py and test_triton_support.py; here: that it is asked."""

    def problems(self, parse, flags: str) -> list[str]:
        args = parse(f"{FLAGS} --transformer-impl local {flags}")
        return grove_problems(args, num_experts=args.num_experts)

    @pytest.mark.parametrize("optimizer", MATRIX_OPTIMIZERS)
    def test_stacked_matrices_are_refused_beside_an_optimizer_of_single_ones(
        self, parse, optimizer
    ):
        assert self.problems(parse, f"--grove-kernel grouped --optimizer {optimizer}") == [
            "--grove-kernel (grouped) stacks the experts' matrices, which --optimizer "
            f"({optimizer}) needs one by one; use --grove-kernel megatron"
        ]
        assert self.problems(parse, "--grove-kernel grouped --optimizer adam") == []

    @pytest.mark.parametrize(
        ("flags", "chosen"),
        [
            *((f"{FLAGS} --optimizer {optimizer}", "megatron") for optimizer in MATRIX_OPTIMIZERS),
            (f"{FLAGS} --optimizer adam", "auto"),
            # What was asked for is refused, not replaced.
            (f"{FLAGS} --grove-kernel triton --optimizer soap", "triton"),
            ("--optimizer muon", "auto"),
        ],
    )
    def test_auto_means_megatron_s_experts_to_such_an_optimizer(self, parse, flags, chosen):
        args = parse(flags)
        select_layer(args)
        assert args.grove_kernel == chosen

    # Without what the local implementation needs Apex for.
    TRITON = (
        f"{FLAGS} --transformer-impl local --grove-kernel triton --no-gradient-accumulation-fusion "
        "--no-persist-layer-norm --no-masked-softmax-fusion --no-rope-fusion"
    )

    @pytest.mark.usefixtures("no_gpu")
    def test_before_the_start_a_missing_gpu_is_named_beside_other_problems(self, parse):
        problems = preflight(parse(f"{self.TRITON} --moe-router-fusion"))
        assert problems[0].startswith("--moe-router-fusion (")
        assert problems[1:] == ["--grove-kernel (triton) cannot run: no CUDA device; use auto"]
        assert preflight(parse(f"{FLAGS} --transformer-impl local --hidden-size 12")) == []

    @pytest.mark.usefixtures("hopper")
    @pytest.mark.parametrize(
        ("flags", "width"),
        [
            ("--hidden-size 12", "--hidden-size (12)"),
            ("--ffn-hidden-size 20", "--moe-ffn-hidden-size (20)"),
            ("--grove-adjugate-ffn-hidden-size 4", "--grove-adjugate-ffn-hidden-size (4)"),
            # What is left of a width on a rank.
            ("--ffn-hidden-size 24 --tensor-model-parallel-size 2", "--moe-ffn-hidden-size (12)"),
            ("--ffn-hidden-size 24 --expert-tensor-parallel-size 2", "--moe-ffn-hidden-size (12)"),
        ],
    )
    def test_a_width_is_named_by_its_flag(self, parse, flags, width):
        wide = "--grove-adjugate-ffn-hidden-size 16 --ffn-hidden-size 16"
        assert preflight(parse(f"{self.TRITON} {wide}")) == []
        assert preflight(parse(f"{self.TRITON} {wide} {flags}")) == [
            f"--grove-kernel (triton) cannot run: {width} is not a multiple of 8; use auto"
        ]

    @pytest.mark.usefixtures("hopper")
    def test_the_cpu_runtime_beside_a_gpu_has_none(self, parse):
        with runtime.cpu():
            problems = preflight(parse(self.TRITON))
        assert "--grove-kernel (triton) cannot run: no CUDA device; use auto" in problems


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Megatron's process groups for a job of one rank."""
    store = dist.FileStore(os.fspath(tmp_path_factory.mktemp("store") / "file"), 1)
    with runtime.cpu():
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(7)
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
class TestLayer:
    @pytest.mark.parametrize(
        "settings", [{"activation_func": F.gelu}, {"gated_linear_unit": False}]
    )
    def test_auto_gives_another_activation_megatron_s_experts_and_says_so_once(
        self, settings, caplog
    ):
        config = grove_config(**GROVE, **settings)
        (name,) = settings
        for _ in range(2):
            layer = moe_layer(config)
            assert type(layer.experts) is SequentialMLP
            assert type(layer.adjugate_experts) is SequentialMLP
            x = torch.randn(5, 1, 8, requires_grad=True)
            layer(x)[0].sum().backward()
            assert x.grad.abs().sum() > 0
        assert messages(caplog) == [
            "grove_megatron: Megatron's expert modules instead of grouped ones: grouped experts "
            f"compute SwiGLU without biases, not {name} ({getattr(config, name)})"
        ]

    @pytest.mark.parametrize("kernel", ["auto", "grouped"])
    def test_swiglu_gets_grouped_ones_without_a_word(self, kernel, caplog):
        layer = moe_layer(grove_config(**GROVE, grove_kernel=kernel))
        assert type(layer.experts) is GroupedExperts
        assert type(layer.adjugate_experts) is GroupedExperts
        layer(torch.randn(5, 1, 8))
        assert caplog.text == ""

    @pytest.mark.usefixtures("no_gpu")
    def test_a_layer_that_cannot_have_its_kernels_says_so_at_the_first_row(self):
        layer = moe_layer(grove_config(**GROVE, grove_kernel="triton"))
        with pytest.raises(ValueError, match=refusal("no CUDA device")):
            layer(torch.randn(5, 1, 8))


SIZES = {
    "hidden_size": 16,
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 24,
    "moe_router_topk": 5,
    "grove_num_groups": 4,
    "grove_adjugate_ffn_hidden_size": 8,
    "grove_adjugate_scale": 0.4,
}
# Launches of a forward and a backward pass. The products are each other's gradient, as are the
# movements of rows; experts and adjugates share all launches but those of the activation.
LAUNCHES = {
    "_take_rows_kernel": 2,
    "_sum_rows_kernel": 2,
    "_swiglu_kernel": 2,
    "_swiglu_grad_kernel": 2,
    "_fan_out_kernel": 2,
    "_fan_in_kernel": 2,
    "_fan_weights_kernel": 2,
}


def launched(
    layer: torch.nn.Module, x: torch.Tensor
) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """What a forward and a backward pass launched; output and gradients."""
    from triton.runtime.interpreter import GridExecutor

    launches: Counter[str] = Counter()
    launch = GridExecutor.__call__

    def noted(self, *args, **kwargs):
        launches[self.fn.__name__] += 1
        return launch(self, *args, **kwargs)

    layer.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    with mock.patch.object(GridExecutor, "__call__", noted):
        y, _ = layer(x)
        y.square().sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    return dict(launches), {"y": y.detach(), "x": x.grad, **grads}


@interpreted
def test_the_whole_layer_computes_the_same_with_triton_s_kernels_as_with_torch_s() -> None:
    one_process = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with mock.patch.dict(os.environ, one_process), megatron():
        layers = {
            kernel: moe_layer(grove_config(**SIZES, grove_kernel=kernel))
            for kernel in ("triton", "grouped")
        }
        layers["triton"].load_state_dict(layers["grouped"].state_dict(), strict=True)
        x = torch.randn(13, 1, SIZES["hidden_size"], generator=torch.Generator().manual_seed(3))
        by_triton, found = launched(layers["triton"], x)
        by_torch, expected = launched(layers["grouped"], x)
    assert by_triton == LAUNCHES
    assert by_torch == {}
    assert found.keys() == expected.keys()
    # Router, two matrices of experts and two of adjugates.
    assert len(expected) == 2 + 5
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        assert scale > 1e-3, f"{name} says nothing"
        error = float((found[name] - tensor).abs().max())
        assert error <= 1e-5 * scale, f"{name} is off by {error / scale:.2g}"
