"""``grove verify``: does the Megatron model compute what the reference computed?

Loads Hugging Face weights, or a Megatron checkpoint, into the model that the launcher would train,
at any parallel layout, runs the inputs of a golden file through Megatron's own schedule, DDP and
gradient finalisation, and compares logits, loss and every gradient of the file.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.families import family_of, is_buffer
from .config_keys import brief
from .errors import LOSS_TOLERANCE, size_of, worst_of
from .golden import Golden
from .hf_names import NameTable
from .local_names import LocalParameter, local_parameters
from .megatron_weights import iteration_folder
from .model_run import Load, ModelRun, load_checkpoint, load_weights
from .source import Source, hf_source, megatron_source
from .torch_dist import TorchDistReader
from .transforms import Shape, Transform
from .units import hf_shapes
from .weights import ConversionError

LOGIT_TOLERANCE = 1e-5
GRAD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Report:
    """The worst errors over all ranks.

    max_logit_error is absolute, loss_error relative, max_grad_error relative to the largest entry
    of each gradient, max_router_error, of the routers' logits, absolute.
    """

    max_logit_error: float
    loss_error: float
    max_grad_error: float
    max_router_error: float
    grads_compared: int
    grads_in_file: int
    routers_compared: int
    routers_in_file: int

    def as_json(self) -> dict[str, float]:
        """Without what the file has nothing of; JSON has no infinity."""
        own = asdict(self)
        if not self.routers_in_file:
            own = {name: value for name, value in own.items() if "router" not in name}
        return {name: min(value, sys.float_info.max) for name, value in own.items()}

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return (
            self.max_logit_error <= LOGIT_TOLERANCE
            and self.loss_error <= LOSS_TOLERANCE
            and self.max_grad_error <= GRAD_TOLERANCE
            and self.max_router_error <= LOGIT_TOLERANCE
            and self.grads_compared == self.grads_in_file
            and self.routers_compared == self.routers_in_file
        )


def verify_hf(hf: Path, golden_file: Path | None, extra_flags: list[str]) -> Report:
    """Build, load, run, compare; every rank of the job calls this and gets the same report.

    Args:
        hf: Hugging Face model folder.
        golden_file: safetensors, see :class:`.golden.Golden`; None: transformers computes it.
        extra_flags: Megatron flags, such as parallel sizes.

    Raises:
        ValueError: the files do not fit each other or the model.
    """
    source = _released(hf_source(hf))
    # What the released forward pass does not read.
    buffers = frozenset(name for name in source.infos() if is_buffer(name))
    _refuse_problems(source, buffers)
    if golden_file is None:
        golden = Golden.of_transformers(hf, family_of(source.architecture).file_name)
    else:
        golden = Golden.read(golden_file)
    load = load_weights(source.weights, source.architecture)
    return _verify(source, golden, extra_flags, load, str(golden_file))


def verify_megatron(
    load: Path, step: int | None, golden_file: Path, extra_flags: list[str]
) -> Report:
    """The same for a Megatron checkpoint, which Megatron's own loader loads.

    Args:
        load: as Megatron's ``--load``.
        step: the iteration; None: the latest.
        golden_file: as above.
        extra_flags: as above.
    """
    golden = Golden.read(golden_file)
    source = _released(megatron_source(load, step, None, golden.logits.size(-1)))
    # In the checkpoint, and loaded by no model without the bias.
    buffers = frozenset(name for name in source.infos() if is_buffer(name))
    _refuse_problems(source, buffers)
    folder = iteration_folder(load, step)
    # Megatron's loader runs what is in them.
    if foreign := TorchDistReader(folder).foreign_objects():
        raise ConversionError(foreign)
    checkpoint = load_checkpoint(folder)
    return _verify(source, golden, extra_flags, checkpoint, str(golden_file))


def _refuse_problems(source: Source, skip: frozenset[str]) -> None:
    if problems := source.refusals(skip, can_skip=False):
        raise ConversionError(problems)


def _released(source: Source) -> Source:
    """The model as the released code computes it: it adds no bias to the scores."""
    return replace(source, architecture=replace(source.architecture, expert_bias=False))


def _verify(
    source: Source, golden: Golden, extra_flags: list[str], load: Load, golden_name: str
) -> Report:
    shapes = hf_shapes(source.architecture)
    unknown = sorted(golden.grads.keys() - shapes.keys() - source.infos().keys())
    if unknown:
        raise ConversionError(
            [
                f"--golden ({golden_name}) has a gradient of {brief(name)}, which is no parameter "
                "of the model; name the golden file of this one"
                for name in unknown
            ]
        )
    moe_layers = [i for i, is_moe in enumerate(source.architecture.moe_layers) if is_moe]
    if beyond := sorted(golden.router_logits.keys() - set(moe_layers)):
        raise ConversionError(
            [
                f"--golden ({golden_name}) has logits of the router of layer ({layer}), which is "
                "no MoE layer of the model; name the golden file of this one"
                for layer in beyond
            ]
        )
    run = ModelRun(source.architecture, golden.input_ids, extra_flags, load)
    logits = run.logits(routers=bool(golden.router_logits))
    losses = run.losses_and_gradients(golden.labels)
    return _compare(run, NameTable(source.architecture), shapes, golden, logits, losses)


def _compare(
    run: ModelRun,
    table: NameTable,
    all_shapes: Mapping[str, Shape],
    golden: Golden,
    logits: Tensor | None,
    losses: Tensor | None,
) -> Report:
    from megatron.core import mpu

    logit_error = loss_error = grad_error = 0.0
    # The last pipeline stage computes both; every rank on it must have.
    if mpu.is_pipeline_last_stage():
        assert logits is not None
        assert losses is not None
        if logits.shape != golden.logits.shape:
            raise ValueError(
                f"logits of the model ({tuple(logits.shape)}) have another shape than those of "
                f"--golden ({tuple(golden.logits.shape)}); check vocab_size"
            )
        logit_error = worst_of((logits.cpu().double() - golden.logits.double()).abs())
        expected = golden.loss.double().reshape(())
        loss_error = worst_of((losses.cpu().double().mean() - expected).abs() / expected.abs())
    seen = {name: torch.zeros(g.numel(), dtype=torch.bool) for name, g in golden.grads.items()}
    overall = max((float(grad.abs().max()) for grad in golden.grads.values()), default=0.0)
    for parameter in local_parameters(run.models):
        names, transform = table.find(parameter.global_name)
        if not any(name in golden.grads for name in names):
            continue
        shapes = [all_shapes[name] for name in names]
        error = _grad_error(parameter, names, shapes, transform, golden.grads, overall, seen)
        grad_error = max(grad_error, error)
    of_routers = golden.router_logits
    router_errors = {
        layer: _router_error(found, of_routers[layer])
        for layer, found in run.router_logits.items()
        if layer in of_routers
    }
    errors = [logit_error, loss_error, grad_error, max(router_errors.values(), default=0.0)]
    device = torch.cuda.current_device()
    worst = torch.tensor(errors, dtype=torch.float64, device=device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)

    def whole(entries: Tensor) -> bool:
        """Has every entry been compared, by some rank?"""
        everywhere = entries.to(device=device, dtype=torch.uint8)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MAX)
        return bool(everywhere.all().item())

    return Report(
        *worst.tolist(),
        grads_compared=sum(whole(seen[name]) for name in sorted(seen)),
        grads_in_file=len(golden.grads),
        routers_compared=sum(whole(torch.tensor(layer in router_errors)) for layer in of_routers),
        routers_in_file=len(of_routers),
    )


def _router_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    return worst_of((found.cpu().double() - expected.double()).abs())


def _grad_error(
    parameter: LocalParameter,
    names: tuple[str, ...],
    shapes: list[tuple[int, ...]],
    transform: Transform,
    grads: dict[str, Tensor],
    overall: float,
    seen: dict[str, Tensor],
) -> float:
    """Worst relative error of one local parameter; marks the golden entries it has compared.

    The transform that made the parameter from Hugging Face tensors also makes, entry by entry,
    the expected gradient, the size to measure an error by, and which entry of which tensor it
    is. Tensors of which the file has no gradient take no part (their errors are weighed by 0).
    """
    expected, weight, owner, entry = [], [], [], []
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        grad = grads.get(name, torch.zeros(shape)).double()
        inverse = 1.0 / size_of(grad, overall) if name in grads else 0.0
        expected.append(grad)
        weight.append(torch.full(shape, inverse, dtype=torch.float64))
        owner.append(torch.full(shape, i))
        entry.append(torch.arange(grad.numel()).reshape(shape))
    tp = parameter.tensor_parallel
    found = parameter.main_grad.detach().cpu().double()
    error = (found - transform.local(expected, tp)).abs() * transform.local(weight, tp)
    owner_here, entry_here = transform.local(owner, tp), transform.local(entry, tp)
    for i, name in enumerate(names):
        if name in seen:
            seen[name][entry_here[owner_here == i]] = True
    return worst_of(error)
