"""What ``examples/compare.py`` makes of the records of its runs."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from grove_megatron.model.parameters import active_parameters, total_parameters
from grove_megatron.planner.flops import flops_per_token
from grove_megatron.planner.traffic import groups_per_token
from grove_megatron.training.sizes import sizes_of
from tests.unit.conftest import parser

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    """The example as a module, with the other example that it imports."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("compare_models", EXAMPLES / "compare.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture
def arms(compare):
    return compare.ARMS["moepp"]


def active(arm) -> float:
    model = arm.model()
    return active_parameters(model, groups_per_token(model) if arm.groups else 0)


def test_a_token_uses_as_many_parameters_of_every_model(arms):
    first = active(arms[0])
    assert all(abs(active(arm) - first) < 0.005 * first for arm in arms), list(map(active, arms))


def test_the_models_are_those_of_the_command_lines(compare, arms, tmp_path):
    for job in compare.jobs(arms, tmp_path, 20)[: len(arms)]:
        words = job.command[job.command.index("grove_megatron.pretrain") + 1 :]
        found, ours = sizes_of(parser().parse_args(words), 1).model, job.arm.model()
        assert flops_per_token(found, 256) == pytest.approx(flops_per_token(ours, 256), rel=1e-12)
        assert found.num_groups == ours.num_groups
        assert total_parameters(found).experts == total_parameters(ours).experts
        assert total_parameters(found).adjugates == total_parameters(ours).adjugates


def test_seeds_come_one_after_the_other_and_have_their_own_folders(compare, arms, tmp_path):
    found = compare.jobs(arms, tmp_path, 20)
    assert [job.seed for job in found] == [1] * 4 + [2] * 4 + [3] * 4
    assert len({job.folder for job in found}) == 12
    assert found[3].folder.name == "Grove-x-MoE++-1"


def test_a_finished_run_is_one_of_the_same_command_and_text(compare, arms, tmp_path, monkeypatch):
    job, other = compare.jobs(arms, tmp_path, 20)[0], compare.jobs(arms, tmp_path, 30)[0]
    job.folder.mkdir()
    (tmp_path / "data").mkdir()
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text("{}")
    monkeypatch.setattr(compare, "curve", lambda job: None)
    assert not job.is_done
    job.finish()
    assert job.is_done
    assert not other.is_done
    manifest.write_text('{"files": {}}')
    assert not job.is_done
    manifest.write_text("{}")
    monkeypatch.undo()
    # Without its record.
    assert not job.is_done
    with pytest.raises(ValueError, match=r"routing\.jsonl"):
        job.finish()


def test_the_interval_of_a_mean(compare):
    # Student's t with 2 degrees of freedom: 4.30 s / sqrt(3).
    assert compare.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30 / math.sqrt(3), rel=1e-12)
    assert compare.half_width([1.0, 1.0]) == 0
    assert compare.half_width([1.0]) == math.inf


def curves(compare, arms):
    """The first spends 1, 2, 3; the others half of it, and learn 0.1 less, give or take."""
    found = {}
    for i, arm in enumerate(arms):
        for seed in compare.SEEDS:
            scale, worse = (1.0, 0.0) if i == 0 else (0.5, 0.1 + 0.01 * seed)
            found[arm.name, seed] = compare.Curve(
                parameters=10 + i,
                flops=[scale, 2 * scale, 3 * scale],
                losses=[3.0 + worse, 2.0 + worse, 1.5 + worse],
                active=5.0 + seed,
                experts=4.0,
            )
    return found


def test_differences_are_of_the_same_seed_and_of_the_same_operations(compare, arms):
    summary = compare.summarize(arms, curves(compare, arms))
    assert summary["equal_flops"] == 1.5
    plain, other = summary["models"][:2]
    assert (plain["parameters"], plain["active"], plain["flops"]) == (10, 7.0, 3.0)
    assert (plain["difference"], plain["difference_95"]) == (0, 0)
    assert other["difference"] == pytest.approx(0.12)
    assert other["difference_95"] == pytest.approx(4.30 * 0.01 / math.sqrt(3))
    # The first had 2.5 there, between two evaluations; the other its last.
    assert plain["loss_at_equal_flops"] == 2.5
    assert other["difference_at_equal_flops"] == pytest.approx(1.5 + 0.12 - 2.5)
    row = compare.table_of(summary, 20)[3]
    assert row.startswith(
        "| Grove | 11 | 7 | 4.00 | 0.00 | 1.6200 (0.0200 between seeds) | +0.1200"
    )
