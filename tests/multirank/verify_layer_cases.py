"""On the ranks: layers of released systems against the numbers of their authors."""

from dataclasses import asdict, replace
from pathlib import Path

from tests.ranks import write_result


def own_experts(folder: str, layer: str, flags: list[str]) -> None:
    """Job: ST-MoE's experts behind Megatron's router, which keeps every second expert."""
    from grove_megatron.verify_layer.systems import st_moe

    described = st_moe.system
    st_moe.system = lambda settings: replace(described(settings), waits_for=None)
    verify(folder, [[layer, "default"]], "fp32", flags)


def verify(folder: str, layers: list[list[str]], dtype: str, flags: list[str]) -> None:
    """Job: a report of each (folder, variant), and whether it passed."""
    from grove_megatron.training.start import started

    with started():
        from grove_megatron.verify_layer.golden import Golden
        from grove_megatron.verify_layer.report import verify_layer

        results = []
        for layer, variant in layers:
            report = verify_layer(Golden.read(Path(layer), variant), dtype, flags)
            results.append(asdict(report) | {"passed": report.passed})
        write_result(folder, results)
