"""``grove bench layer``: a whole MoE layer, router included, forward and backward.

Every variant, with every expert implementation asked for: time, peak memory, and the operators and
the time beside the matrix products of its experts.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from ..functional.groups import group_map
from . import ranks
from .agreement import check_layers, check_repeats
from .determinism import deterministic, prepare_determinism
from .harness import Samples, Subject, cuda_clock, interleave, wall_clock
from .layer_findings import DETERMINISTIC, Key, Measured, findings
from .memory import peak_bytes
from .operators import Stage, count_stages
from .peaks import matmul_flops_per_second
from .products import products
from .report import Findings
from .shape import Settings, Shape
from .variants import DTYPES, layers
from .work import Work


def measure(settings: Settings) -> Findings:
    """Build, check, time, and weigh every (variant, kernel)."""
    shape = settings.shape
    if settings.deterministic:
        prepare_determinism()
    with ranks.process_groups(settings.ranks, settings.seed):
        x, grad = tokens(shape, settings.seed + dist.get_rank())
        built = _build(settings, x, grad)
        some_grove = built["grove", settings.kernels[0]]
        operators = _operators(settings, built, x)
        subjects, alone = _subjects(built, x, grad), _products(settings.shape, some_grove, x)
        times = _times([*subjects.values(), *alone.values()], settings)
        measured = Measured(
            samples={key: times[one.name] for key, one in subjects.items()},
            products={kind: times[one.name] for kind, one in alone.items()},
            operators=operators,
            peak={key: _peak(subjects[key], layer) for key, layer in built.items()},
            work=work_of(some_grove, x, shape.groups),
            matmul_flops=matmul_flops_per_second(DTYPES[shape.dtype]),
        )
    return findings(settings, measured)


def tokens(shape: Shape, seed: int) -> tuple[Tensor, Tensor]:
    """Random input and output gradient, [T, 1, H] each; another seed on every rank."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, shape.tokens, 1, shape.hidden, generator=generator)
    x, grad = pair.to(torch.cuda.current_device(), DTYPES[shape.dtype])
    return x, grad


def subject(name: str, layer: MoELayer, x: Tensor, grad: Tensor) -> Subject:
    """Forward and backward of a layer, without gradients from before."""

    def run() -> None:
        y, _ = layer(x.detach().requires_grad_())
        y.backward(grad)

    return Subject(name=name, run=run, prepare=partial(layer.zero_grad, set_to_none=True))


def work_of(layer: MoELayer, x: Tensor, num_groups: int) -> Work:
    """What this layer's router makes of ``x``."""
    with torch.no_grad():
        _, routing_map_TE = layer.route(x)
    distinct = group_map(routing_map_TE, num_groups).sum()
    return Work(routing_map_TE.shape[0], int(routing_map_TE.sum()), int(distinct))


def _build(settings: Settings, x: Tensor, grad: Tensor) -> dict[Key, MoELayer]:
    """Layers that agree with each other, with one router for every kernel."""
    built: dict[Key, MoELayer] = {}
    router: dict[str, Tensor] = {}
    for kernel in settings.kernels:
        variants = layers(settings.shape, settings.ranks, kernel)
        variants = {name: variants[name] for name in settings.variants}
        router = router or variants["grove"].router.state_dict()
        for layer in variants.values():
            layer.router.load_state_dict(router)
        check_layers(variants, x, grad)
        built |= {(name, kernel): layer for name, layer in variants.items()}
        if settings.deterministic:
            with deterministic():
                check_repeats(f"grove, deterministic, {kernel}", variants["grove"], x, grad)
            built[DETERMINISTIC, kernel] = variants["grove"]
    return built


def _subjects(built: dict[Key, MoELayer], x: Tensor, grad: Tensor) -> dict[Key, Subject]:
    found = {key: subject(" ".join(key), layer, x, grad) for key, layer in built.items()}
    for key in found:
        if key[0] == DETERMINISTIC:
            found[key] = replace(found[key], run=partial(_deterministically, found[key]))
    return found


def _deterministically(one: Subject) -> None:
    with deterministic():
        one.run()


def _operators(
    settings: Settings, built: dict[Key, MoELayer], x: Tensor
) -> dict[Key, dict[str, Stage]]:
    """Of every variant, with the first kernel."""
    keys = [(name, settings.kernels[0]) for name in settings.variants]
    return {key: count_stages(built[key], x) for key in keys}


def _products(shape: Shape, grove: MoELayer, x: Tensor) -> dict[str, Subject]:
    """Those of the experts and of the adjugates on this rank, for the rows they get from ``x``."""
    grove(x)
    work = grove.token_dispatcher.work
    kinds = {
        "experts": (work.tokens_per_expert, shape.expert_width),
        "adjugates": (work.tokens_per_group, shape.adjugate_width),
    }
    return {
        kind: Subject(
            name=f"products of {kind}", run=products(rows.tolist(), shape.hidden, width, x)
        )
        for kind, (rows, width) in kinds.items()
    }


def _times(subjects: list[Subject], settings: Settings) -> dict[str, Samples]:
    return interleave(
        subjects,
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=cuda_clock if ranks.cuda_is_used() else wall_clock,
        together=ranks.together,
        slowest=ranks.slowest,
    )


def _peak(one: Subject, layer: MoELayer) -> float:
    """Bytes of the layer's weights and of what one pass allocates, on the fullest rank."""
    one.prepare()
    weights = sum(p.numel() * p.element_size() for p in layer.parameters())
    peak = weights + peak_bytes(one.run, ranks.cuda_is_used())
    one.prepare()
    return ranks.largest(peak)
