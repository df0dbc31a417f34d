import argparse
import importlib.util

import pytest

from grove_megatron import runtime
from grove_megatron.arguments import IMPORTED, LAYER_SPEC, optimizer_layout_problems, select_layer
from grove_megatron.checks.flags import flag_of
from grove_megatron.checks.problem import Problem
from grove_megatron.training import preflight as preflight_module
from grove_megatron.training.cpu_arguments import _REFUSED, CPU_DEFAULTS
from grove_megatron.training.preflight import announce, notices, preflight

from ..conftest import in_lines

optimizer_layout_problems = in_lines(optimizer_layout_problems)
preflight = in_lines(preflight)

GROVE = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 8"
OURS = "--spec grove_megatron.layer_spec grove_layer_spec"
MEGATRONS = "megatron.core.models.gpt.gpt_layer_specs get_gpt_decoder_block_spec"


@pytest.mark.parametrize(
    "flags",
    [
        "",
        GROVE,
        f"{GROVE} {OURS}",
        OURS,
        f"--spec {MEGATRONS}",
        "--spec local",
    ],
)
def test_a_command_line_that_can_run_has_no_problems(parse, flags):
    assert preflight(parse(flags)) == []


def test_asking_for_groups_selects_the_grove_layer_unless_a_spec_is_named(parse):
    for flags, spec in [
        (GROVE, list(LAYER_SPEC)),
        (f"{GROVE} --spec {MEGATRONS}", MEGATRONS.split()),
        ("", None),
    ]:
        args = parse(flags)
        select_layer(args)
        assert args.spec == spec


@pytest.mark.parametrize("grove", ["", GROVE], ids=["plain", "grove"])
class TestSpec:
    def test_a_mistyped_module_is_named(self, parse, grove):
        (problem,) = preflight(parse(f"{grove} --spec grove_megatron.layr_spec grove_layer_spec"))
        assert problem.startswith(
            "--spec (grove_megatron.layr_spec grove_layer_spec) names a module that does not import"
        )
        assert "No module named 'grove_megatron.layr_spec'" in problem
        assert problem.endswith(f"; use {OURS}")

    def test_a_mistyped_name_is_named(self, parse, grove):
        (problem,) = preflight(parse(f"{grove} --spec grove_megatron.layer_spec grove_layer_spek"))
        assert problem == (
            "--spec (grove_megatron.layer_spec grove_layer_spek) names nothing in "
            f"grove_megatron.layer_spec; use {OURS}"
        )

    @pytest.mark.parametrize("spec", ["grove_megatron.layer_spec", "a b c"])
    def test_anything_but_two_words_is_refused(self, parse, grove, spec):
        (problem,) = preflight(parse(f"{grove} --spec {spec}"))
        assert problem == f"--spec ({spec}) is not a module and a name; use {OURS}"


def test_another_layer_beside_grove_flags_is_refused(parse):
    (problem,) = preflight(parse(f"{GROVE} --spec {MEGATRONS}"))
    assert problem == (
        f"--spec ({MEGATRONS}) is not the Grove layer that --grove-num-groups (4) asks for; use "
        f"{OURS}, or remove the --grove-* flags"
    )


def test_the_local_spec_beside_grove_flags_is_refused(parse):
    assert preflight(parse(f"{GROVE} --spec local"))


def test_a_relative_module_is_named(parse):
    (problem,) = preflight(parse("--spec .layer_spec grove_layer_spec"))
    assert problem.startswith("--spec (.layer_spec grove_layer_spec) names a module")


def test_problems_of_settings_and_spec_are_listed_together(parse):
    problems = preflight(parse("--grove-num-groups 3 --spec nowhere nothing"))
    assert [line.split()[0] for line in problems] == [
        "--grove-num-groups",
        "--grove-adjugate-ffn-hidden-size",
        "--spec",
    ]


@pytest.fixture(scope="module")
def megatron_flags():
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return {flag for action in parser._actions for flag in action.option_strings}


class TestOnTheCpuRuntime:
    @pytest.fixture(autouse=True)
    def _cpu(self):
        with runtime.cpu():
            yield

    def with_cpu_defaults(self, args):
        for name, value in CPU_DEFAULTS.items():
            setattr(args, name, value)
        return args

    def test_the_cpu_defaults_have_no_problems(self, parse):
        assert preflight(self.with_cpu_defaults(parse(GROVE))) == []

    @pytest.mark.parametrize(
        ("name", "value", "line"),
        [
            ("distributed_backend", "nccl", "--distributed-backend (nccl)"),
            ("transformer_impl", "transformer_engine", "--transformer-impl (transformer_engine)"),
            ("context_parallel_size", 2, "--context-parallel-size (2)"),
            ("fp8", "e4m3", "--fp8-format (e4m3)"),
            ("nccl_ub", True, "--use-nccl-ub (True)"),
            ("async_save", True, "--async-save (True)"),
            ("record_memory_history", True, "--record-memory-history (True)"),
            ("log_energy", True, "--log-energy (True)"),
            ("gpu_sniff_test_interval", 5, "--gpu-sniff-test-interval (5)"),
            ("profile", True, "--profile (True)"),
            ("optimizer_cuda_graph", True, "--optimizer-cuda-graph (True)"),
            ("te_rng_tracker", True, "--te-rng-tracker (True)"),
            ("cross_entropy_fusion_impl", "te", "--cross-entropy-fusion-impl (te)"),
            ("high_priority_stream_groups", ["ep"], "--high-priority-stream-groups (ep)"),
        ],
    )
    def test_what_needs_a_gpu_is_refused(self, parse, name, value, line):
        args = self.with_cpu_defaults(parse(GROVE))
        setattr(args, name, value)
        (problem,) = preflight(args)
        assert problem.startswith(f"{line} on the CPU runtime ")

    @pytest.mark.parametrize(
        "flags",
        [
            "--profile --use-pytorch-profiler",
            "--log-device-memory-used --log-memory-interval 1",
            "--log-straggler --nvtx-ranges",
        ],
    )
    def test_what_a_cpu_can_measure_is_not_refused(self, parse, flags):
        assert preflight(self.with_cpu_defaults(parse(f"{GROVE} {flags}"))) == []

    def test_what_groups_refuse_on_any_device_is_said_once(self, parse):
        args = self.with_cpu_defaults(parse(f"{GROVE} --moe-token-dispatcher-type flex"))
        problems = preflight(args)
        assert len([p for p in problems if p.startswith("--moe-token-dispatcher-type")]) == 1

    def test_every_refused_flag_is_one_of_megatrons(self, megatron_flags):
        named = {flag_of(name) for name, *_ in _REFUSED}
        assert named <= megatron_flags

    def test_an_attention_backend_is_shown_by_the_name_of_its_flag(self, parse):
        args = self.with_cpu_defaults(parse(f"{GROVE}"))
        args.attention_backend = parse("--attention-backend flash").attention_backend
        (problem,) = preflight(args)
        assert problem.startswith("--attention-backend (flash) on the CPU runtime needs a GPU")


def test_what_needs_a_gpu_is_not_refused_with_one(parse):
    args = parse(f"{GROVE} --moe-grouped-gemm")
    assert not runtime.cpu_is_active()
    assert preflight(args) == []


class TestHierarchicalDispatch:
    EP4 = f"{GROVE} --grove-hierarchical-dispatch --expert-model-parallel-size 4"

    def problems(self, parse, monkeypatch, flags, *, world, per_node):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))
        return preflight(parse(flags))

    @pytest.mark.parametrize(("world", "per_node"), [(4, 2), (8, 2), (8, 8), (8, 4)])
    def test_groups_that_lie_evenly_on_nodes_are_fine(self, parse, monkeypatch, world, per_node):
        flags = self.EP4
        assert self.problems(parse, monkeypatch, flags, world=world, per_node=per_node) == []

    def test_a_node_with_more_ranks_of_a_group_than_another_is_refused(self, parse, monkeypatch):
        (problem,) = self.problems(parse, monkeypatch, self.EP4, world=4, per_node=3)
        assert "ranks [0, 1, 2, 3] with 3 a node are [[0, 1, 2], [3]]" in problem

    def test_every_group_is_looked_at(self, parse, monkeypatch):
        (problem,) = self.problems(parse, monkeypatch, self.EP4, world=8, per_node=5)
        assert "ranks [4, 5, 6, 7]" in problem

    def test_expert_tensor_ranks_lie_between_those_of_a_group(self, parse, monkeypatch):
        flags = f"{self.EP4} --expert-tensor-parallel-size 2"
        assert self.problems(parse, monkeypatch, flags, world=8, per_node=4) == []
        (problem,) = self.problems(parse, monkeypatch, flags, world=8, per_node=6)
        assert "ranks [0, 2, 4, 6] with 6 a node are [[0, 2, 4], [6]]" in problem

    def test_the_launcher_has_to_say_how_many_ranks_a_node_has(self, parse, monkeypatch):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        (problem,) = preflight(parse(self.EP4))
        assert "needs LOCAL_WORLD_SIZE (unset)" in problem


class TestOptimizerStateInMemoryOrder:
    DISTRIBUTED = f"{GROVE} --use-distributed-optimizer --transformer-impl local"
    WHOLE = "--expert-tensor-parallel-size 1"

    def problems(self, parse, here, there):
        return optimizer_layout_problems(
            parse(f"{self.DISTRIBUTED} {here}"), parse(f"{self.DISTRIBUTED} {there}")
        )

    def test_it_goes_to_the_same_expert_modules_alone(self, parse):
        (problem,) = self.problems(parse, "--grove-kernel megatron", "")
        assert "--grove-kernel (megatron) makes expert modules (SequentialMLP)" in problem
        assert "those of the checkpoint (GroupedExperts)" in problem
        assert self.problems(parse, "--grove-kernel grouped", "") == []

    def test_a_checkpoint_from_before_there_was_a_choice_had_megatrons_modules(self, parse):
        there = parse(self.DISTRIBUTED)
        del there.grove_kernel
        assert optimizer_layout_problems(parse(self.DISTRIBUTED), there)

    @pytest.mark.parametrize(
        "flag",
        [
            "--tensor-model-parallel-size",
            "--pipeline-model-parallel-size",
            "--expert-model-parallel-size",
            "--expert-tensor-parallel-size",
        ],
    )
    def test_it_goes_to_the_same_parallel_sizes_alone(self, parse, flag):
        (problem,) = self.problems(parse, f"{self.WHOLE} {flag} 2", self.WHOLE)
        assert problem.startswith(f"{flag} (2) differs from {flag} of the checkpoint (1), ")
        assert "--dist-ckpt-optim-fully-reshardable at the old layout, or give --no-load" in problem
        assert self.problems(parse, f"{flag} 2", f"{flag} 2") == []

    # The same number of elements on every rank, in another order.
    def test_experts_split_inside_do_not_become_experts_apart(self, parse):
        tp2 = "--tensor-model-parallel-size 2"
        apart = f"{tp2} --expert-model-parallel-size 2 --expert-tensor-parallel-size 1"
        problems = self.problems(parse, apart, tp2)
        assert [line.split(" differs")[0] for line in problems] == [
            "--expert-model-parallel-size (2)",
            "--expert-tensor-parallel-size (1)",
        ]

    def test_an_expert_tensor_parallel_size_that_is_left_out_is_that_of_the_dense_layers(
        self, parse
    ):
        tp2 = "--tensor-model-parallel-size 2"
        assert self.problems(parse, tp2, f"{tp2} --expert-tensor-parallel-size 2") == []

    def test_it_is_not_read_by_the_other_optimizer(self, parse):
        plain = f"{GROVE} --transformer-impl local"
        for here, there in ((plain, self.DISTRIBUTED), (self.DISTRIBUTED, plain)):
            (problem,) = optimizer_layout_problems(parse(here), parse(there))
            assert problem.startswith(
                f"--use-distributed-optimizer ({here == self.DISTRIBUTED}) differs from "
                f"--use-distributed-optimizer of the checkpoint ({there == self.DISTRIBUTED}), "
            )
        imported = parse(plain)
        setattr(imported, IMPORTED, True)
        assert optimizer_layout_problems(parse(self.DISTRIBUTED), imported) == []

    @pytest.mark.parametrize(
        ("here", "there"),
        [
            ("--finetune", ""),
            ("--no-load-optim", ""),
            ("", "--dist-ckpt-optim-fully-reshardable"),
            ("", "--no-save-optim"),
        ],
    )
    def test_nothing_is_refused_that_does_not_read_it(self, parse, here, there):
        assert self.problems(parse, f"--grove-kernel megatron {here}", there) == []

    def test_other_expert_modules_of_transformer_engine_are_told_apart(self, parse):
        engine = "--transformer-impl transformer_engine"
        (problem,) = self.problems(parse, engine, f"{engine} --moe-grouped-gemm")
        assert "TEGroupedMLP" in problem


class TestNotice:
    # With a place for the record of metrics, of which there is nothing to say then.
    RECORDS = f"{GROVE} --grove-metrics-dir there"
    SAVES = f"{GROVE} --use-distributed-optimizer --transformer-impl local --save folder"

    @pytest.fixture
    def shown(self, parse, capfd, monkeypatch):
        def shown(flags, rank="0"):
            monkeypatch.setenv("RANK", rank)
            announce(parse(flags))
            return capfd.readouterr().err

        return shown

    def test_the_first_rank_says_where_the_optimizer_state_can_be_loaded(self, shown):
        flags = f"{self.SAVES} --tensor-model-parallel-size 2 --expert-model-parallel-size 4"
        (line,) = shown(flags).splitlines()
        assert line.startswith("grove_megatron: ")
        for size in (
            "--tensor-model-parallel-size 2",
            "--pipeline-model-parallel-size 1",
            "--expert-model-parallel-size 4",
            "--expert-tensor-parallel-size 2",
        ):
            assert size in line
        assert "expert modules GroupedExperts; for any" in line
        assert line.endswith("add --dist-ckpt-optim-fully-reshardable")
        assert shown(flags, rank="1") == ""

    @pytest.mark.parametrize(
        "flags",
        [
            f"{RECORDS} --use-distributed-optimizer",
            f"{GROVE} --save folder",
            f"{SAVES} --no-save-optim",
            f"{SAVES} --dist-ckpt-optim-fully-reshardable",
            "--use-distributed-optimizer --save folder",
        ],
    )
    def test_nothing_is_said_where_there_is_nothing_to_say(self, shown, flags):
        assert shown(flags) == ""

    @pytest.mark.parametrize("flags", ["", "--save msc://bucket/folder"])
    def test_a_run_whose_metrics_are_kept_nowhere_is_told(self, shown, flags):
        (line,) = shown(f"{GROVE} {flags}").splitlines()
        folder = "msc://bucket/folder" if flags else "None"
        assert line.startswith("grove_megatron: no record of what the experts do is kept")
        assert f"--grove-metrics-dir (None) and --save ({folder}) name no folder for it" in line
        assert "give --grove-metrics-dir" in line

    @pytest.mark.parametrize("flags", [f"{GROVE} --grove-metrics-interval 0", RECORDS, ""])
    def test_where_a_record_is_kept_or_none_is_wanted_nothing_is_said(self, shown, flags):
        assert shown(flags) == ""


def test_rank_0_reads_a_checkpoint_for_all(parse, tmp_path, monkeypatch) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("seven")
    said = [[Problem.of_text("what rank 0 has found")]]
    monkeypatch.setattr(preflight_module, "look_into", None)  # not by this rank
    monkeypatch.setattr(preflight_module, "have_met", lambda: True)
    monkeypatch.setattr(preflight_module, "problems_of_rank_0", lambda make, timeout: said.pop())
    found = preflight(parse(f"--load {tmp_path}"))
    # The folder itself every rank looks at, on its own machine.
    assert [line for line in found if "does not name an iteration" in line]
    assert "what rank 0 has found" in found
    assert said == []


@pytest.mark.parametrize(
    ("restarts", "flags", "said"),
    [
        ("1", "--save /a", "; give --load the same folder"),
        ("3", "--save /a --load /b", " the same folder, and --pretrained-checkpoint /b"),
        ("1", "--save /a --load /a/", None),
        (
            "1",
            "--save /a --load /b --finetune",
            "; give --load the same folder, and --pretrained-checkpoint /b in place of --finetune",
        ),
        (
            "1",
            "--save /a --load /a --finetune",
            "; give --save and --load another folder, and --pretrained-checkpoint /a in place of "
            "--finetune",
        ),
        ("1", "", None),
        ("0", "--save /a", None),
    ],
)
def test_a_restart_that_would_begin_again_is_said(
    restarts: str, flags: str, said: str | None, parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    found = [notice for notice in notices(parse(flags)) if "max-restarts" in notice]
    if said is None:
        assert found == []
    else:
        (notice,) = found
        assert f"(torchrun --max-restarts {restarts}) does not go on from what is saved" in notice
        assert notice.endswith(said)


@pytest.mark.parametrize(
    ("flags", "module", "extra"),
    [
        ("--tensorboard-dir board", "tensorboard", "grove-megatron[tensorboard]"),
        ("--wandb-project mine", "wandb", "wandb"),
    ],
)
class TestLogsThatNothingHereCanWrite:
    @pytest.fixture(autouse=True)
    def without(self, monkeypatch, module):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == module else found(name)
        )

    def test_they_are_refused(self, parse, flags, module, extra):
        flag, value = flags.split()
        assert preflight(parse(f"{GROVE} {flags}")) == [
            f"{flag} ({value}) needs {module} (not installed here), which writes it; pip install "
            f"'{extra}', or remove it"
        ]

    def test_megatrons_own_run_goes_on_with_a_line(self, parse, capsys, flags, module, extra):
        args = parse(flags)
        assert preflight(args) == []
        announce(args)
        assert f"grove_megatron: {flags.split()[0]} (" in capsys.readouterr().err

    def test_a_job_for_elsewhere_is_told(self, parse, monkeypatch, flags, module, extra):
        monkeypatch.setattr("grove_megatron.training.preflight.cuda_is_here", lambda: False)
        args = parse(f"{GROVE} {flags}")
        assert preflight(args, "cuda") == []
        assert any(f"needs {module} (not installed here)" in line for line in notices(args))


def test_logs_that_can_be_written_are_no_problem(parse):
    """The environment of the tests has both."""
    args = parse(f"{GROVE} --tensorboard-dir board --wandb-project mine")
    assert preflight(args) == []
    assert not [line for line in notices(args) if "not installed" in line]
