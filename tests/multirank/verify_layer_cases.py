"""On the ranks: layers of released systems against the numbers of their authors."""

from dataclasses import asdict
from pathlib import Path

from tests.ranks import write_result


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
