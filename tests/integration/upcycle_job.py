"""Runs on a rank: ``grove upcycle`` with a broken child, and what a child's gradients are."""

from pathlib import Path
from typing import Any

import torch

from tests.ranks import write_result

from .verify_job import grove


def broken(folder: str, part: str, shift: float, argv: list[str]) -> None:
    """``grove`` with ``argv``; ``shift`` is added to a row of the child tensors named ``part``."""
    from grove_megatron.checkpoint.upcycle import GroveChild

    original = GroveChild.read

    def read(self: GroveChild, name: str) -> torch.Tensor:
        tensor = original(self, name)
        if part in name:
            tensor = tensor.clone()
            tensor[0] += shift
        return tensor

    GroveChild.read = read  # type: ignore[method-assign]
    grove(folder, argv)


def adjugate_gradients(folder: str, load: str, flags: list[str]) -> None:
    """One step of the model in a checkpoint on 3 tokens; see :func:`_describe`."""
    from megatron.core.utils import unwrap_model

    from grove_megatron.checkpoint.megatron_weights import iteration_folder
    from grove_megatron.checkpoint.model_run import ModelRun, load_checkpoint
    from grove_megatron.checkpoint.source import megatron_source
    from grove_megatron.runtime import cpu

    with cpu():
        architecture = megatron_source(Path(load), None, None).architecture
        ids, labels = torch.tensor([[3, 1, 4]]), torch.tensor([[1, 5, 9]])
        checkpoint = load_checkpoint(iteration_folder(Path(load)))
        run = ModelRun(architecture, ids, flags, checkpoint)
        selected: dict[int, set[int]] = {}
        for model in unwrap_model(run.models):
            _remember_selected_groups(model, architecture.num_groups, selected)
        run.losses_and_gradients(labels)
        write_result(folder, _describe(run.models, selected))


def _remember_selected_groups(
    model: torch.nn.Module, num_groups: int, selected: dict[int, set[int]]
) -> None:
    for layer in model.decoder.layers:

        def hook(router: Any, args: Any, output: Any, number: int = layer.layer_number) -> None:
            routing_map = output[1]
            of_group = routing_map.unflatten(1, (num_groups, -1)).any(-1).any(0)
            selected.setdefault(number - 1, set()).update(of_group.nonzero().flatten().tolist())

        layer.mlp.router.register_forward_hook(hook)


def _describe(models: list[Any], selected: dict[int, set[int]]) -> dict[str, Any]:
    """Selected groups by layer; largest gradient of this rank's adjugates by parameter."""
    from grove_megatron.checkpoint.local_names import local_parameters

    found = {
        parameter.global_name: float(parameter.main_grad.abs().max())
        for parameter in local_parameters(models)
        if ".adjugate_experts." in parameter.global_name
    }
    return {"selected": {str(k): sorted(v) for k, v in selected.items()}, "largest": found}
