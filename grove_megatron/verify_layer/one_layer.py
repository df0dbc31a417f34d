"""The layer that a model of a system would have, with the folder's weights in it."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.model_run import OF_ONE_PASS, start_megatron
from ..checkpoint.weights import ConversionError
from ..config import GroveTransformerConfig
from ..layer_spec import adapt_spec
from ..moe.carried import REWARD_COLUMNS, Carried, digits
from ..parts import registry
from .golden import Golden
from .local_parts import local_parts

# With groups: no system has adjugates, and its scoring stays its own.
_BESIDE_GROUPS = ("--grove-adjugate-scale", "0")
_OWN_SCORING = ("--grove-router-scoring", "softmax")
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
# Sizes of parallelism that split what no part of a folder's weights is.
_SPLITTING = ("tensor-model", "pipeline-model", "context", "expert-tensor")


def configuration(golden: Golden, dtype: str, extra_flags: Sequence[str]) -> GroveTransformerConfig:
    """Of the layer, through Megatron's parser; starts Megatron's process groups.

    Args:
        golden: names the flags.
        dtype: of weights, tokens and router: a key of DTYPES.
        extra_flags: Megatron flags of the user; with groups the adjugates' scale is 0 by default,
            with which the layer is the system's.

    Raises:
        ConversionError: parallelism that splits more than experts and tokens.
    """
    from megatron.training.argument_utils import core_transformer_config_from_args

    _check_layout(extra_flags)
    given = {word.partition("=")[0] for word in extra_flags}
    groups = _BESIDE_GROUPS if "--grove-num-groups" in given else ()
    flags = _flags(golden, dtype)
    if "--grove-router-selector" not in flags:
        groups = (*groups, *(_OWN_SCORING if groups else ()))
    args = start_megatron([*flags, *groups, *extra_flags])
    made: GroveTransformerConfig = core_transformer_config_from_args(args, GroveTransformerConfig)
    return replace(made, params_dtype=DTYPES[dtype], **golden.system.fields)


def _check_layout(extra_flags: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in _SPLITTING:
        parser.add_argument(f"--{name}-parallel-size", type=int, default=1)
    sizes, _ = parser.parse_known_args(extra_flags)
    problems = [
        f"--{name.replace('_', '-')} ({size}) splits more than experts and tokens; use 1"
        for name, size in vars(sizes).items()
        if size > 1
    ]
    if problems:
        raise ConversionError(problems)


def build_layers(golden: Golden, config: GroveTransformerConfig) -> "Layers":
    """Most often one, in training, with the folder's weights.

    The router's losses are of the tokens of all ranks: its tensor and context parallel group is
    the group that they are spread over.

    Raises:
        ConversionError: the layer has other parameters than the system.
    """
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    groups = get_default_pg_collection()
    groups.tp_cp = groups.tp_dp_cp
    spec: Any = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts)
    spec = adapt_spec(spec, config)
    if golden.system.experts is not None:
        submodules = spec.keywords["submodules"]
        spec.keywords["submodules"] = replace(submodules, experts=golden.system.experts)
    layers = Layers()
    for number in range(1, golden.system.layers + 1):
        layer = spec(config=config, pg_collection=groups, layer_number=number)
        layer.router.set_layer_number(number)
        layers.append(layer)
    _load(golden, layers)
    return layers.train(golden.system.training)


class Layers(torch.nn.ModuleList):
    """MoE layers with inputs of their own, each of which hands its logits to the next."""

    def forward(self, x: Tensor, padding_mask: Tensor | None, ids: Tensor | None) -> Tensor:
        """[S, B, layers * H] to the same; with token ids [S, B] where the router reads them."""
        outputs = []
        carried = columns_of(self[0].config, ids, x)
        for layer, own in zip(self, x.chunk(len(self), dim=-1), strict=True):
            layer.previous = carried
            y, _ = layer(own.contiguous(), padding_mask=padding_mask)
            carried = layer.handed
            outputs.append(y)
        return torch.cat(outputs, dim=-1)


def columns_of(config: GroveTransformerConfig, ids: Tensor | None, x: Tensor) -> Tensor | None:
    """What begins beside the tokens x [S, B, H], as a model's embedding begins it.

    Args:
        ids: [S, B], or None.
    """
    needs = registry.needs(config)
    reward = x.new_zeros((*x.shape[:2], REWARD_COLUMNS)) if "reward" in needs else None
    return Carried(ids=None if ids is None else digits(ids, x.dtype), reward=reward).columns


def _load(golden: Golden, layers: Layers) -> None:
    flat = golden.layout.flat(golden.weights)
    problems = []
    for part in local_parts(layers):
        places = golden.layout.entries.get(part.name)
        if places is None:
            problems.append(f"{part.name} of the layer is no weight of the system")
        elif places.shape != part.tensor.shape:
            shown = list(part.tensor.shape)
            problems.append(f"{part.name} has shape {shown}, not {list(places.shape)}")
        else:
            with torch.no_grad():
                part.tensor.copy_(flat[places])
    if problems:
        raise ConversionError([f"{line}; remove the flag that makes it so" for line in problems])
    buffers = dict(layers[0].named_buffers())
    for name, of_folder in golden.system.buffers.items():
        buffers[name].copy_(golden.extras[of_folder].reshape(buffers[name].shape))


def _flags(golden: Golden, dtype: str) -> list[str]:
    batch, sequence = golden.settings.batch, golden.settings.sequence
    world = int(os.environ.get("WORLD_SIZE", "1"))
    layers = golden.system.layers
    hidden = golden.x.shape[1] // layers
    return [
        *("--num-layers", str(layers), "--hidden-size", str(hidden), "--num-attention-heads", "1"),
        *("--seq-length", str(sequence), "--max-position-embeddings", str(sequence)),
        *("--micro-batch-size", str(batch), "--global-batch-size", str(batch * world)),
        *(*OF_ONE_PASS, "--vocab-size", "8", "--no-bias-gelu-fusion", "--disable-bias-linear"),
        *("--moe-router-load-balancing-type", "none", "--moe-router-dtype", dtype),
        *("--moe-token-dispatcher-type", "alltoall", "--grove-dispatch"),
        *([] if golden.system.experts is None else ["--grove-kernel", "megatron"]),
        *golden.system.flags,
    ]


def as_dtype(rows: Tensor, dtype: str) -> Tensor:
    """Rows of a folder where the layer computes, as it computes."""
    return rows.to(torch.cuda.current_device(), DTYPES[dtype])
