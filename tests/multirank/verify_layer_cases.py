"""On the ranks: layers of released systems against the numbers of their authors."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from grove_megatron.parts.part import Draws
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


def adjugates(folder: str, layers: list[list[str]], flags: list[str]) -> None:
    """Job: each layer with groups beside the same without, and its adjugates added by hand; fp64.

    On one rank. The worst error of the output and of any gradient, relative to the largest entry.
    """
    import torch

    from grove_megatron.training.start import started

    with started():
        from grove_megatron.functional.groups import group_probs
        from grove_megatron.verify_layer.golden import Golden
        from grove_megatron.verify_layer.one_layer import build_layers, columns_of, configuration

        results = []
        for name, variant in layers:
            golden = Golden.read(Path(name), variant)
            batch, sequence = golden.settings.batch, golden.settings.sequence
            (layer,) = build_layers(golden, grouped := configuration(golden, "fp64", flags))
            (plain,) = build_layers(golden, configuration(golden, "fp64", []))
            x = golden.x.reshape(batch, sequence, -1).transpose(0, 1).contiguous().requires_grad_()
            r = golden.r.reshape(batch, sequence, -1).transpose(0, 1)
            layer.router.draws = plain.router.draws = _Same()
            kept: list[Tensor] = []
            plain.router.register_forward_hook(_keep_probs(kept))
            ids = golden.system.ids and golden.extras[golden.system.ids].reshape(batch, -1).T
            for one in (layer, plain):
                one.previous = columns_of(one.config, ids, x)
            y, _ = layer(x)
            expected, _ = plain(x)
            groups = grouped.grove_num_groups
            # As the layer computes all rows that come to it: every adjugate takes every token.
            rows, probs_TG = x.reshape(-1, x.shape[-1]), group_probs(kept[0], groups)
            sizes = torch.tensor([len(rows)] * groups)
            added, _ = layer.adjugate_experts(
                rows.repeat(groups, 1), sizes, grouped.grove_adjugate_scale * probs_TG.T.flatten()
            )
            added = added.reshape(groups, *x.shape).sum(0)
            expected = expected + added
            shared = dict(plain.named_parameters())
            own = [(n, p) for n, p in layer.named_parameters() if n.startswith("adjugate")]
            found = _gradients(y, r, [x, *(dict(layer.named_parameters())[n] for n in shared)], own)
            theirs = _gradients(expected, r, [x, *shared.values()], own)
            errors = [_relative(y, expected)]
            errors += [_relative(a, b) for a, b in zip(found, theirs, strict=True)]
            results.append(
                {
                    "error": max(errors),
                    "adjugates": float(added.abs().max()),
                    "compared": len(errors),
                }
            )
        write_result(folder, results)


def _keep_probs(kept: list[Tensor]) -> Any:
    return lambda _, __, routed: kept.append(routed[0])


class _Same(Draws):
    """Numbers of one seed, every time."""

    def uniform(self, like: Tensor) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(3)
        return torch.rand(like.shape, generator=generator, dtype=like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        return self.uniform(like)


def _gradients(y: Tensor, r: Tensor, shared: list[Tensor], own: list[Any]) -> list[Tensor]:
    import torch

    wanted = [*shared, *(parameter for _, parameter in own)]
    return list(torch.autograd.grad((y * r).sum(), wanted))


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
