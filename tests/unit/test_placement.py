"""``--grove-placement``: what of a file, of a checkpoint and of other nodes a job refuses."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grove_megatron.arguments import (
    optimizer_format_notice,
    optimizer_layout_problems,
    placement_problems,
    select_layer,
    unknown_problems,
)
from grove_megatron.cli import app
from grove_megatron.config import PLACED, grove_problems, moe_layer_names
from grove_megatron.placing.file import Assignment, write
from grove_megatron.training.preflight import notices
from grove_megatron.training.same_flags import described, differences, otherwise

from .conftest import GROVE, MODEL

EP2 = "--expert-model-parallel-size 2"
DISTRIBUTED = "--use-distributed-optimizer --transformer-impl local"
Parse = Callable[[str], Namespace]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Groups of layer 1 on other ranks of two."""
    return placement(tmp_path / "a.json")


def placement(path: Path, **other: Any) -> Path:
    sizes = {"experts": 8, "groups": 4, "ranks": 2, "layers": {"1": (3, 0, 1, 2)}}
    write(path, Assignment(**sizes | other))
    return path


def found(args: Namespace) -> list[str]:
    return [*map(str, grove_problems(args, num_experts=args.num_experts))]


def test_a_placement_that_fits_is_taken(parse: Parse, file: Path) -> None:
    args = parse(f"{GROVE} {EP2} --grove-placement {file}")
    assert found(args) == []
    select_layer(args)
    assert len(getattr(args, PLACED)) == 16
    assert unknown_problems(args) == []
    plain = parse(f"{GROVE} {EP2}")
    select_layer(plain)
    assert not hasattr(plain, PLACED)


def test_experts_of_a_plain_layer_are_placed_too(parse: Parse, tmp_path: Path) -> None:
    file = placement(tmp_path / "a.json", groups=0, layers={"2": (7, 0, 1, 2, 3, 4, 5, 6)})
    flags = f"--grove-dispatch {EP2} --grove-placement {file}"
    assert found(parse(flags)) == []
    (problem,) = found(parse(f"{GROVE} {EP2} --grove-placement {file}"))
    assert problem.startswith(
        f"--grove-placement ({file}) is for groups (0), the model has (4); make one from"
    )


@pytest.mark.parametrize(
    ("other", "flags", "refused"),
    [
        ({}, "", "is for expert-parallel ranks (2), the job has (1), whose slices would be others"),
        (
            {"ranks": 4},
            EP2,
            "is for expert-parallel ranks (4), the job has (2), whose slices would be others than "
            "were chosen; make one with grove place --expert-parallel 2",
        ),
        ({"experts": 16}, EP2, "is for experts (16), the model has (8); make one from a record"),
        (
            {"layers": {"3": (0, 1, 2, 3)}},
            EP2,
            "has layers (3) that are no MoE layers of the model (1, 2); make one from a record",
        ),
        (
            {"layers": {"1": (0, 1, 2, 3)}},
            f"{EP2} --moe-layer-freq [0,1]",
            "has layers (1) that are no MoE layers of the model (2); make one from a record",
        ),
    ],
)
def test_a_placement_of_another_model_or_job_is_refused(
    other: dict[str, Any], flags: str, refused: str, parse: Parse, tmp_path: Path
) -> None:
    file = placement(tmp_path / "a.json", **other)
    (problem,) = found(parse(f"{GROVE} {flags} --grove-placement {file}"))
    assert problem.startswith(f"--grove-placement ({file}) {refused}")


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (
            "--non-persistent-ckpt-type local",
            "excludes --non-persistent-ckpt-type (local), whose files hold what every rank has",
        ),
        (
            "--fp8-param-gather --fp8-format hybrid",
            "excludes --fp8-param-gather (True), which holds weights that cannot be moved as they",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused(
    flags: str, refused: str, parse: Parse, file: Path
) -> None:
    (problem,) = found(parse(f"{GROVE} {EP2} {flags} --grove-placement {file}"))
    assert problem.startswith(f"--grove-placement ({file}) {refused}")


def test_a_placement_needs_our_layer(parse: Parse, file: Path) -> None:
    (problem,) = found(parse(f"{EP2} --grove-placement {file}"))
    assert problem.startswith(
        f"--grove-placement ({file}) is set without --grove-num-groups (None) or --grove-dispatch"
    )


def test_the_doctor_refuses_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "bad.json"
    path.write_text('{"format": "grove_placement", "version": 3}')
    words = f"doctor --device cpu {MODEL} {GROVE} --grove-placement {path}"
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert f"--grove-placement ({path}) has version (3), this package reads (1)" in said


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ("1", "2")),
        ("--moe-layer-freq 2", ("1",)),
        ("--moe-layer-freq [0,1] --mtp-num-layers 2", ("2", "mtp 1", "mtp 2")),
        ("--mtp-num-layers 2 --mtp-use-repeated-layer", ("1", "2", "mtp 1")),
        ("--moe-layer-freq [1,0] --mtp-num-layers 1", ("1",)),
        ("--moe-layer-freq 0", None),
    ],
)
def test_layers_have_the_names_of_a_record(
    flags: str, names: tuple[str, ...] | None, parse: Parse
) -> None:
    assert moe_layer_names(parse(f"{GROVE} {flags}")) == names


class TestCheckpoints:
    def args(self, parse: Parse, flags: str, file: Path | None = None) -> Namespace:
        with_file = "" if file is None else f"--grove-placement {file}"
        args = parse(f"{GROVE} {EP2} {DISTRIBUTED} {flags} {with_file}")
        select_layer(args)
        return args

    def test_states_in_the_order_of_memory_go_on_with_the_same_placement_alone(
        self, parse: Parse, file: Path, tmp_path: Path
    ) -> None:
        moved, plain = self.args(parse, "", file), self.args(parse, "")
        turned = self.args(parse, "", placement(tmp_path / "b.json", layers={"1": (0, 3, 2, 1)}))
        still = self.args(parse, "", placement(tmp_path / "c.json", layers={"1": (1, 0, 3, 2)}))
        # Others of the same digest are the same.
        for here, there in ((moved, moved), (turned, moved), (still, plain), (plain, still)):
            assert optimizer_layout_problems(here, there) == []
        fix = "whose distributed optimizer state fits no other; use the same, or save once with "
        (problem,) = optimizer_layout_problems(plain, moved)
        assert str(problem).startswith(
            f"--grove-placement (None) differs from --grove-placement of the checkpoint ({file}), "
            f"{fix}--dist-ckpt-optim-fully-reshardable"
        )
        (problem,) = optimizer_layout_problems(moved, plain)
        assert str(problem).startswith(
            f"--grove-placement ({file}) differs from --grove-placement of the checkpoint (None), "
        )
        placement(file, layers={"1": (2, 3, 0, 1)})
        now = self.args(parse, "", file)
        (problem,) = optimizer_layout_problems(now, moved)
        digests = [getattr(args, PLACED) for args in (now, moved)]
        assert str(problem).startswith(
            f"--grove-placement ({file}, of digest {digests[0]}) differs from --grove-placement of "
            f"the checkpoint (of digest {digests[1]}), "
        )

    @pytest.mark.parametrize(
        "flags", ["--dist-ckpt-optim-fully-reshardable", "--no-load-optim", "--finetune"]
    )
    def test_others_go_on_with_any(self, flags: str, parse: Parse, file: Path) -> None:
        moved, plain = self.args(parse, flags, file), self.args(parse, flags)
        assert optimizer_layout_problems(plain, moved) == []
        assert optimizer_layout_problems(moved, plain) == []

    def test_weights_by_rank_go_on_with_the_same_placement_alone(
        self, parse: Parse, file: Path
    ) -> None:
        by_rank, plain = self.args(parse, "--ckpt-format torch", file), self.args(parse, "")
        (problem,) = placement_problems(plain, by_rank)
        assert str(problem) == (
            f"--grove-placement (None) differs from --grove-placement of the checkpoint ({file}), "
            "whose --ckpt-format (torch) does not say which experts a rank had; use the same file, "
            "or save once with it and --ckpt-format torch_dist"
        )
        assert placement_problems(by_rank, by_rank) == []
        assert placement_problems(self.args(parse, "", file), plain) == []
        (problem,) = placement_problems(
            self.args(parse, "", file), self.args(parse, "--ckpt-format torch")
        )
        assert problem.value == str(file)

    def test_the_notice_says_what_the_state_needs(self, parse: Parse, file: Path) -> None:
        said = optimizer_format_notice(self.args(parse, "--save there", file))
        assert f", --grove-placement {file} and expert modules GroupedExperts" in str(said)
        plain = optimizer_format_notice(self.args(parse, "--save there"))
        assert "--grove-placement" not in str(plain)


def test_a_limit_of_ranks_that_is_none_any_more_is_said(
    parse: Parse, file: Path, tmp_path: Path
) -> None:
    limited = f"{GROVE} {EP2} --moe-router-num-groups 2 --moe-router-group-topk 1"

    def said(path: Path, flags: str = limited) -> list[str]:
        args = parse(f"{flags} --grove-metrics-dir there --grove-placement {path}")
        return [line for line in notices(args) if "--grove-placement" in line]

    (line,) = said(file)
    assert line.startswith(
        f"--grove-placement ({file}) has experts of one of --moe-router-num-groups (2) on up to 2 "
        "ranks, not 1: --moe-router-group-topk (1) limits what a token selects as before"
    )
    assert said(placement(tmp_path / "b.json", layers={"1": (2, 3, 1, 0)})) == []
    assert said(file, f"{GROVE} {EP2}") == []


def test_nodes_may_have_the_file_elsewhere_and_not_another(
    parse: Parse, file: Path, tmp_path: Path
) -> None:
    flags = f"{GROVE} {EP2} --grove-placement"
    first = described(parse(f"{flags} {file}"))
    (tmp_path / "there").mkdir()

    def compared(path: Path) -> tuple[list[str], list[str]]:
        theirs = {1: otherwise(first, described(parse(f"{flags} {path}")))}
        problems, warnings = differences(first, theirs)
        return [*map(str, problems)], warnings

    same = placement(tmp_path / "there" / "a.json")
    assert compared(same) == (
        [],
        [f"--grove-placement ({file} on rank 0; {same} on rank 1) differs between ranks"],
    )
    digests = [Assignment(8, 4, 2, {"1": o}).digest for o in ((3, 0, 1, 2), (2, 3, 0, 1))]
    other = placement(tmp_path / "there" / "b.json", layers={"1": (2, 3, 0, 1)})
    assert compared(other)[0] == [
        f"contents of --grove-placement ({digests[0]} on rank 0; {digests[1]} on rank 1) differs "
        "between ranks; give every node the same file"
    ]
    (problem,) = compared(tmp_path / "there" / "nothing.json")[0]
    assert "unreadable on rank 1) differs between ranks" in problem
    assert not any("contents" in name for name in described(parse(GROVE)))


def test_losses_of_devices_that_are_no_ranks_any_more_are_said(
    parse: Parse, file: Path, tmp_path: Path
) -> None:
    losses = "--grove-device-loss-coeff 0.01 --grove-communication-loss-coeff 0.02"
    flags = f"{GROVE} {EP2} --grove-loss-devices 2"

    def said(path: Path, more: str = losses) -> list[str]:
        args = parse(f"{flags} {more} --grove-metrics-dir there --grove-placement {path}")
        return [line for line in notices(args) if "loss devices" in line]

    assert said(file) == [
        f"--grove-placement ({file}) has experts of one of (2) loss devices on up to 2 ranks, not "
        "1: --grove-device-loss-coeff (0.01) and --grove-communication-loss-coeff (0.02) balance "
        "blocks of consecutive experts as before, and no longer what a rank gets"
    ]
    # Ranks that change places hold the same blocks.
    assert said(placement(tmp_path / "b.json", layers={"1": (2, 3, 1, 0)})) == []
    assert said(file, "") == []
