"""Operations and bytes, against counts by hand."""

from grove_megatron.benchmarks.harness import Samples
from grove_megatron.benchmarks.layer_findings import (
    DETERMINISTIC,
    Measured,
    findings,
    summarize,
)
from grove_megatron.benchmarks.scaling import slope
from grove_megatron.benchmarks.shape import VARIANTS, Settings, Shape
from grove_megatron.benchmarks.work import Work

SHAPE = Shape(tokens=3, hidden=5, experts=4, groups=2, topk=2, expert_width=7, adjugate_width=11)
# 3 tokens, 2 experts each; two tokens have both in one group.
WORK = Work(tokens=3, pairs=6, adjugate_pairs=4)


def operations(evaluations: int) -> int:
    """One at a time: a multiplication and an addition per entry of every matrix, three times."""
    count = 0
    for _ in range(3):
        for _token in range(3):
            count += 2 * 5 * 4
        for _pair in range(6):
            count += 2 * (5 * 7 * 2 + 7 * 5)
        for _evaluation in range(evaluations):
            count += 2 * (5 * 11 * 2 + 11 * 5)
    return count


def test_operations_of_every_variant() -> None:
    found = {name: WORK.flops(SHAPE, name) for name in VARIANTS}
    assert found == {
        "plain": operations(0),
        "naive": operations(6),
        "grove-dispatch": operations(0),
        "grove": operations(4),
    }


def test_bytes_that_adjugates_cannot_do_without() -> None:
    # Two adjugates of three 5 x 11 matrices, with gradients; 2 * 11 and 11 values a pair.
    whole = 2 * (2 * 3 * 5 * 11) + 4 * 3 * 11
    assert WORK.adjugate_bytes(SHAPE, ranks=1) == 4 * whole
    half = 2 * (1 * 3 * 5 * 11) + 4 * 3 * 11
    assert WORK.adjugate_bytes(SHAPE, ranks=2) == 4 * half


def test_the_summary_compares_the_fastest_and_the_peaks_of_its_kernel() -> None:
    samples = {
        ("plain", "sequential"): Samples((3.0,)),
        ("plain", "grouped"): Samples((4.0,)),
        ("naive", "sequential"): Samples((9.0,)),
        ("naive", "grouped"): Samples((8.0,)),
        ("grove", "sequential"): Samples((7.0,)),
        ("grove", "grouped"): Samples((6.0,)),
    }
    peak = dict.fromkeys(samples, 1000.0) | {("grove", "grouped"): 1500.0}
    peak["plain", "sequential"] = 1.0
    settings = Settings(benchmark="layer", preset="small", shape=SHAPE, ranks=1, rounds=1, warmup=0)
    found = summarize(settings, Measured(samples=samples, peak=peak, work=WORK, matmul_flops=1.0))
    allowed = WORK.adjugate_bytes(SHAPE, 1)
    assert found == {
        "ratio_vs_plain": 2.0,
        "ratio_vs_naive": 0.75,
        "flop_ratio": operations(4) / operations(0),
        "adjugate_pairs_per_token": 4 / 3,
        "peak_bytes_ratio": 1.5,
        "peak_bytes_allowed_ratio": (1000 + allowed) / 1000,
        "deterministic_ratio": None,
        "products_share": None,
        "plain_products_share": None,
        "operators_ratio": None,
    }


def test_the_products_share_is_of_what_a_variant_has_to_multiply() -> None:
    times = {"plain": 4.0, "naive": 8.0, "grove-dispatch": 5.0, "grove": 6.0}
    m = Measured(
        samples={(name, "grouped"): Samples((time,)) for name, time in times.items()},
        peak={(name, "grouped"): 1.0 for name in times},
        work=WORK,
        matmul_flops=1.0,
        products={"experts": Samples((3.0,)), "adjugates": Samples((1.5,))},
    )
    settings = Settings(benchmark="layer", preset="small", shape=SHAPE, ranks=1, rounds=1, warmup=0)
    found = findings(settings, m)
    shares = {v.variant: v.p50 for v in found.values if v.quantity == "products_share"}
    assert shares == {"plain": 0.75, "grove-dispatch": 0.6, "grove": 0.75}
    assert found.summary["products_share"] == 0.75
    assert found.summary["plain_products_share"] == 0.75


def test_deterministic_is_beside_grove_of_its_kernel_and_does_the_same_work() -> None:
    names = ("plain", "grove", DETERMINISTIC)
    times = {(n, k): 4.0 for n in names for k in ("sequential", "grouped")}
    times |= {("grove", "grouped"): 2.0, (DETERMINISTIC, "grouped"): 3.0}
    m = Measured(
        samples={key: Samples((time,)) for key, time in times.items()},
        peak=dict.fromkeys(times, 1000.0),
        work=WORK,
        matmul_flops=1.0,
    )
    settings = Settings(benchmark="layer", preset="small", shape=SHAPE, ranks=1, rounds=1, warmup=0)
    found = findings(settings, m)
    assert found.summary["deterministic_ratio"] == 1.5
    assert found.summary["ratio_vs_plain"] == 0.5
    speed = {
        v.variant: v.p50 for v in found.values if (v.kernel, v.quantity) == ("grouped", "tflops")
    }
    assert abs(speed[DETERMINISTIC] / speed["grove"] - 2 / 3) < 1e-4


def test_operations_without_the_router() -> None:
    router = 3 * 3 * 2 * 5 * 4
    assert WORK.expert_flops(SHAPE, evaluations=4) == operations(4) - router


def test_slopes_of_powers() -> None:
    assert abs(slope({1: 3.0, 2: 6.0, 4: 12.0}) - 1) < 1e-12
    assert abs(slope({16: 5.0, 32: 5.0, 64: 5.0})) < 1e-12
    assert abs(slope({2: 4.0, 8: 64.0}) - 2) < 1e-12
