"""Runs Megatron-Bridge's own conversion code on ranks; see test_bridge.py.

The code is read from an unpacked wheel. What is not run is the ``__init__`` of its packages, which
import every model it has and, with its LoRA layers, TransformerEngine: these get an empty module in
its place, which nothing here calls.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist

from tests.ranks import write_result

from .on_ranks import megatron

PACKAGES = ("", ".models", ".models.conversion")
TRANSFORMER_ENGINE = ("transformer_engine", "transformer_engine.pytorch")


def registration(source: str) -> Any:
    """``grove_megatron.bridge.registration``, on top of the code below ``source``."""
    # What looks for TransformerEngine has looked before there is a stand-in.
    import megatron.training

    from grove_megatron import layer_spec  # noqa: F401

    assert megatron.training
    root = Path(source) / "megatron" / "bridge"
    for package in PACKAGES:
        module = types.ModuleType(f"megatron.bridge{package}")
        module.__path__ = [str(root.joinpath(*package.split(".")))]
        sys.modules[module.__name__] = module
    sys.modules |= {name: MagicMock() for name in TRANSFORMER_ENGINE}
    try:
        importlib.import_module("megatron.bridge.peft.lora_layers")
    finally:
        for name in TRANSFORMER_ENGINE:
            del sys.modules[name]
    return importlib.import_module("grove_megatron.bridge.registration")


class Checkpoint:
    """A folder with the attributes that Megatron-Bridge asks a loaded model for."""

    def __init__(self, folder: str) -> None:
        from safetensors.torch import load_file
        from transformers import AutoConfig

        self.model_name_or_path = folder
        self.config = AutoConfig.from_pretrained(folder)
        self.state = _State(load_file(Path(folder) / "model.safetensors"))


class _State(dict[str, torch.Tensor]):
    @property
    def source(self) -> "_State":
        return self

    def get_all_keys(self) -> list[str]:
        return list(self)


def bridge_of(checkpoint: Checkpoint) -> Any:
    from megatron.bridge.models.conversion.model_bridge import get_model_bridge

    return get_model_bridge(checkpoint.config.architectures[0], hf_config=checkpoint.config)


def provider_of(bridge: Any, checkpoint: Any, **settings: Any) -> Any:
    provider = bridge.provider_bridge(checkpoint)
    local = {"transformer_impl": "local", "moe_grouped_gemm": False, "use_cpu_initialization": True}
    return provider.apply_overrides_and_finalize(overrides=local | settings)


def model_of(provider: Any) -> list[Any]:
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    provider._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    rank = parallel_state.get_pipeline_model_parallel_rank()
    return [provider.provide(pre_process=rank == 0, post_process=rank == stages - 1)]


def parameters(models: list[Any], checkpoint: Checkpoint) -> dict[str, bool]:
    """By global name: is this rank's part what our own converter would have put there?"""
    from grove_megatron.checkpoint.hf_config import architecture_of
    from grove_megatron.checkpoint.hf_names import NameTable
    from grove_megatron.checkpoint.local_names import local_parameters

    names = NameTable(architecture_of(checkpoint.config.to_dict(), "the checkpoint"))
    found = {}
    for parameter in local_parameters(models):
        tensors, transform = names.find(parameter.global_name)
        wanted = transform.local([checkpoint.state[n] for n in tensors], parameter.tensor_parallel)
        found[parameter.global_name] = torch.equal(parameter.tensor, wanted)
    return found


def there_and_back(folder: str, source: str, golden: str, sizes: dict[str, int]) -> None:
    """Import the golden model at a layout, and export it again."""
    parallel = {f"{name}_parallel_size": size for name, size in sizes.items()}
    with megatron(**parallel):
        module = registration(source)
        checkpoint = Checkpoint(golden)
        bridge = bridge_of(checkpoint)
        assert type(bridge) is module.GroveMoeBridge
        dtype = {"pipeline_dtype": torch.float32}
        provider = provider_of(bridge, checkpoint, **parallel, **dtype)
        models = model_of(provider)
        bridge.load_weights_hf_to_megatron(checkpoint, models)
        right = parameters(models, checkpoint)
        exported = list(
            bridge_of(checkpoint).stream_weights_megatron_to_hf(
                models, checkpoint, show_progress=False
            )
        )
        names = [one.param_name for one in exported]
        same = {n: torch.equal(checkpoint.state[n], w) for n, w in exported}
        write_result(
            folder,
            {
                "parameters": len(right),
                "wrong parameters": [name for name, is_right in right.items() if not is_right],
                "twice": sorted({name for name in names if names.count(name) > 1}),
                "missing": sorted(set(checkpoint.state) - set(names)),
                "wrong tensors": [name for name, is_same in same.items() if not is_same],
                "config": bridge.megatron_to_hf_config(provider),
            },
        )
        dist.barrier()


def names_of_a_model(folder: str, golden: str) -> None:
    """Parameters and persistent buffers of the golden model with Megatron's expert modules."""
    from types import SimpleNamespace

    from megatron.core.models.gpt.gpt_model import GPTModel

    from grove_megatron.bridge.settings import provider_settings
    from grove_megatron.checkpoint.hf_config import architecture_of, read_config
    from grove_megatron.checkpoint.local_names import local_parameters
    from grove_megatron.layer_spec import grove_layer_spec

    from .on_ranks import grove_config

    with megatron():
        settings = provider_settings(architecture_of(read_config(Path(golden)), "the model"))
        settings |= {"moe_router_enable_expert_bias": True, "moe_grouped_gemm": False}
        whole = SimpleNamespace(**settings)
        known = vars(grove_config())
        config = grove_config(
            grove_kernel="megatron", **{k: v for k, v in settings.items() if k in known}
        )
        model = GPTModel(
            config,
            transformer_layer_spec=grove_layer_spec(config),
            vocab_size=whole.vocab_size,
            max_sequence_length=whole.seq_length,
            position_embedding_type=whole.position_embedding_type,
            share_embeddings_and_output_weights=whole.share_embeddings_and_output_weights,
        )
        # Persistent, as what is not is in no state dict.
        saved = [n for n in model.state_dict() if "_extra_state" not in n]
        ours = [parameter.global_name for parameter in local_parameters([model])]
        write_result(folder, {"saved": saved, "parameters": ours})


def refusals(folder: str, source: str, golden: str) -> None:
    """What each mistake is answered with; and what a provider's copies share."""
    import copy

    with megatron():
        module = registration(source)
        checkpoint = Checkpoint(golden)
        bridge = bridge_of(checkpoint)
        found: dict[str, Any] = {}

        def note(name: str, action: Any) -> None:
            try:
                action()
            except ValueError as error:
                found[name] = str(error)

        note("stacked", lambda: provider_of(bridge, checkpoint, grove_kernel="auto"))
        note("scale", lambda: provider_of(bridge, checkpoint, grove_adjugate_scale=5.0))
        provider = provider_of(bridge, checkpoint)
        models = model_of(provider)
        models[0].register_parameter("stranger", torch.nn.Parameter(torch.zeros(1)))
        note("stranger", lambda: bridge_of(checkpoint).build_conversion_tasks(checkpoint, models))
        del models[0].stranger
        models[0].decoder.layers[0].mlp.adjugate_experts.adapter = torch.nn.Linear(1, 1)
        note("adapter", lambda: bridge_of(checkpoint).build_adapter_conversion_tasks(models))
        del models[0].decoder.layers[0].mlp.adjugate_experts.adapter
        del checkpoint.state["model.layers.1.mlp.chunk_experts.5.up_proj.weight"]
        note(
            "lacking", lambda: bridge_of(checkpoint).load_weights_hf_to_megatron(checkpoint, models)
        )
        provider.register_pre_wrap_hook(checkpoint.state.__getitem__)
        hooks = provider._pre_wrap_hooks
        found["hooks are shared"] = copy.deepcopy(provider)._pre_wrap_hooks is hooks
        before = dict(vars(provider))
        provider.finalize()
        found["changed"] = sorted(k for k, v in vars(provider).items() if before[k] != v)
        found["provider"] = type(provider).__name__
        found["layers"] = type(models[0].decoder.layers[0].mlp).__name__
        dotted = f"modeling_grove_moe.{checkpoint.config.architectures[0]}"
        checkpoint.config.architectures = [dotted]
        found["dotted"] = type(bridge_of(checkpoint)) is module.GroveMoeBridge
        found["written"] = module.GroveMoeBridge.megatron_to_hf_config(provider)["architectures"]
        write_result(folder, found)
