"""A process that builds Grove models of TransformerEngine's modules where there is no GPU.

python -m tests.integration.engine_job

TransformerEngine imports and makes its modules on a CPU and computes on a GPU alone, so this says
what a model is made of, not what it computes. Prints one JSON object, an empty one where it is not
installed.
"""

import json
import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist

from tests.integration.gradients_job import as_local

SIZE: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 40,
    "num_moe_experts": 8,
    "moe_layer_freq": [1, 0, 1],
    "moe_ffn_hidden_size": 24,
    "moe_router_topk": 2,
    "moe_shared_expert_intermediate_size": 16,
    "grove_num_groups": 4,
    "grove_adjugate_ffn_hidden_size": 8,
    "grove_adjugate_scale": 0.3,
    "normalization": "RMSNorm",
    "params_dtype": torch.bfloat16,
    "bf16": True,
}
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "local": {},
    "grouped": {"transformer_impl": "transformer_engine", "moe_grouped_gemm": True},
    "one by one": {"transformer_impl": "transformer_engine"},
}
MORE: dict[str, dict[str, Any]] = {
    "delayed": {"overlap_dispatch_backward_with_experts_wgrad": True},
    "fp8": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "mxfp8": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
    "activations": {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]},
}


def main() -> None:
    from grove_megatron.runtime.cpu_runtime import CPU, WHEEL
    from grove_megatron.runtime.device_mode import CudaMeansCpu

    # Not runtime.cpu(), under which there is no TransformerEngine.
    with WHEEL.applied(), CPU.applied(), CudaMeansCpu(), tempfile.TemporaryDirectory() as folder:
        from megatron.core import parallel_state, tensor_parallel
        from megatron.core.extensions.transformer_engine import HAVE_TE

        if not HAVE_TE:
            print(json.dumps({}))
            return
        store = dist.FileStore(os.path.join(folder, "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(7)
        found = {name: describe(settings) for name, settings in IMPLEMENTATIONS.items()}
        for name, settings in MORE.items():
            found[name] = describe(IMPLEMENTATIONS["grouped"] | settings)
        dist.destroy_process_group()
    print(json.dumps(found))


def describe(settings: dict[str, Any]) -> dict[str, Any]:
    """What a model is made of: classes, checkpoint entries, attributes of experts' parameters."""
    model = model_of(settings)
    layers = model.decoder.layers
    moe = layers[0].mlp
    classes = {
        "layer": type(moe),
        "router": type(moe.router),
        "experts": type(moe.experts),
        "adjugates": type(moe.adjugate_experts),
        "shared": type(moe.shared_experts),
        "dense": type(layers[1].mlp),
        "norm": type(layers[0].pre_mlp_layernorm),
        "last norm": type(model.decoder.final_layernorm),
    }
    return {
        "classes": {name: kind.__name__ for name, kind in classes.items()},
        "engine": sorted(n for n, kind in classes.items() if "transformer_engine" in bases(kind)),
        "entries": entries(model),
        "parameters": {
            name: list(one.shape)
            for given, parameter in model.named_parameters()
            for name, one in as_local(given, parameter).items()
        },
        "kinds": [linears(experts) for experts in (moe.experts, moe.adjugate_experts)],
    }


def model_of(settings: dict[str, Any]) -> Any:
    from megatron.core.models.gpt.gpt_model import GPTModel

    from grove_megatron.layer_spec import grove_layer_spec
    from tests.multirank.on_ranks import grove_config

    config = grove_config(**(SIZE | settings))
    return GPTModel(
        config=config,
        transformer_layer_spec=grove_layer_spec(config),
        vocab_size=64,
        max_sequence_length=16,
        position_embedding_type="rope",
    )


def bases(kind: type) -> str:
    return " ".join(base.__module__.split(".")[0] for base in kind.__mro__)


def entries(model: Any) -> dict[str, list[int]]:
    """Keys and whole shapes of the tensors of a checkpoint."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    state = model.sharded_state_dict()
    apply_factories(state)
    return {
        entry.key: list(entry.global_shape)
        for entry in nested_values(state)
        if isinstance(entry, ShardedTensor)
    }


def linears(experts: Any) -> dict[str, Any]:
    """How Megatron sees the matrices of one kind of experts."""
    seen: dict[str, Any] = {}
    for fc in ("linear_fc1", "linear_fc2"):
        linear = getattr(experts, fc, None)
        if linear is None or not hasattr(linear, "num_gemms"):
            continue
        seen[fc] = {
            "matrices": linear.num_gemms,
            "shapes": sorted({tuple(p.shape) for p in linear.parameters()}),
            "allreduce": sorted({p.allreduce for p in linear.parameters()}),
            "delayed": linear.wgrad_store.delay_wgrad_compute(),
            "own hook": all(
                getattr(p, "skip_backward_post_hook", False) for p in linear.parameters()
            ),
        }
    if hasattr(experts, "quantization_padding"):
        seen["padding"] = experts.quantization_padding.num_gemms
    seen["recompute"] = getattr(experts, "activation_recompute", None)
    return seen


if __name__ == "__main__":
    main()
