"""Inputs of a model and what it computes from them: the reference of ``grove verify``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

GRAD_PREFIX = "grad."
ROUTER_PREFIX = "router_logits."
_RESULTS = frozenset({"input_ids", "labels", "logits", "loss"})
# transformers' loss of balance, which is in no loss of Megatron's; see source._balance_loss.
_BESIDE = frozenset({"hf_aux_loss"})


def is_golden(name: str) -> bool:
    """Can a golden file have a tensor of this name?"""
    return name in _RESULTS | _BESIDE or name.startswith(GRAD_PREFIX) or _layer_of(name) is not None


def _layer_of(name: str) -> int | None:
    """The number of the layer whose router's logits a tensor is."""
    layer = name.removeprefix(ROUTER_PREFIX)
    return int(layer) if layer != name and layer.isdecimal() and len(layer) < 6 else None


@dataclass(frozen=True)
class Golden:
    """Inputs and results of the authors' model, from a safetensors file.

    input_ids, labels [B, S] int64; logits [B, S, V]; loss, the mean cross-entropy of the logits
    against the labels as they stand; gradients by Hugging Face parameter name; router logits
    [B S, E] as a MoE layer hands them on, by its number, where the file has them.
    """

    input_ids: Tensor
    labels: Tensor
    logits: Tensor
    loss: Tensor
    grads: dict[str, Tensor]
    router_logits: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises ValueError that lists every tensor that is missing or unknown."""
        if not file.is_file():
            raise ValueError(f"--golden ({file}) is not a file")
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"--golden ({file}) is not a safetensors file: {error}") from error
        tensors = {name: tensor for name, tensor in tensors.items() if name not in _BESIDE}
        grads = {
            name.removeprefix(GRAD_PREFIX): tensors.pop(name)
            for name in sorted(tensors)
            if name.startswith(GRAD_PREFIX)
        }
        routers = {
            layer: tensors.pop(name)
            for name in sorted(tensors)
            if (layer := _layer_of(name)) is not None
        }
        problems = [f"{name} is missing" for name in sorted(_RESULTS - set(tensors))]
        problems += [f"{name} is not known" for name in sorted(set(tensors) - _RESULTS)]
        problems = problems or _wrong_shapes(tensors)
        if problems:
            raise ValueError(f"--golden ({file}): " + "; ".join(problems))
        return cls(grads=grads, router_logits=routers, **tensors)

    @classmethod
    def of_transformers(
        cls, folder: Path, file_name: Callable[[str], str] = str, seed: int = 1234
    ) -> Self:
        """What transformers computes, in fp64, from random tokens: [2, 24] and all gradients.

        Args:
            folder: of a model that transformers knows.
            file_name: what files call a parameter.
            seed: of the tokens.

        Raises:
            ValueError: transformers is not installed, or does not know the model.
        """
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ValueError(
                "--golden (absent) needs transformers (not installed) to compute the reference; "
                "pip install 'grove-megatron[hf]', or name a golden file"
            ) from error
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                # Neither code nor pickles that came with it.
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float64,
                attn_implementation="eager",
                # The others have no fp64.
                experts_implementation="eager",
            )
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"--golden (absent) and transformers does not load {folder}: {error}; name a "
                "golden file"
            ) from error
        generator = torch.Generator().manual_seed(seed)
        ids, labels = torch.randint(0, model.config.vocab_size, (2, 2, 24), generator=generator)
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return cls(ids, labels, logits.detach(), loss.detach(), _by_expert(model, file_name))


def _wrong_shapes(tensors: dict[str, Tensor]) -> list[str]:
    ids, logits = tensors["input_ids"], tensors["logits"]
    wanted = {"labels": ids.shape, "logits": (*ids.shape, logits.size(-1) if logits.dim() else 0)}
    problems = [
        f"{name} has shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if tensors[name].shape != shape
    ]
    problems += [
        f"{name} has dtype {tensors[name].dtype}, not torch.int64"
        for name in ("input_ids", "labels")
        if tensors[name].dtype != torch.int64
    ]
    if ids.dim() != 2:
        problems.append(f"input_ids has shape {list(ids.shape)}, not [B, S]")
    if tensors["loss"].numel() != 1:
        problems.append(f"loss has {tensors['loss'].numel()} entries, not 1")
    return problems


def _by_expert(model: torch.nn.Module, file_name: Callable[[str], str]) -> dict[str, Tensor]:
    """Gradients under the names of files: transformers 5 holds a layer's experts as two tensors."""
    grads: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        prefix, is_fused, which = name.rpartition(".mlp.experts.")
        if not is_fused or parameter.dim() != 3:
            grads[file_name(name)] = parameter.grad
            continue
        for expert, grad in enumerate(parameter.grad):
            parts = {"down_proj": grad}
            if which == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), grad.chunk(2), strict=True))
            for projection, part in parts.items():
                held = f"{prefix}.mlp.experts.{expert}.{projection}.weight"
                grads[file_name(held)] = part
    return grads
