"""An installed Megatron-Bridge imports a GroveMoE model into TransformerEngine's modules, and back.

The ranks of tests/multirank run the same conversion with local modules, from an unpacked wheel.
"""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from grove_megatron.bridge import register

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("transformer_engine", "one_gpu")]


@pytest.fixture
def megatron_bridge(transformer_engine: None) -> ModuleType:
    package: ModuleType = pytest.importorskip(
        "megatron.bridge", reason="needs megatron-bridge", exc_type=ImportError
    )
    register()
    return package


def test_registering_again_does_nothing(megatron_bridge: ModuleType) -> None:
    models = megatron_bridge.AutoBridge.list_supported_models()
    register()
    assert "GroveMoeForCausalLM" in models
    assert megatron_bridge.AutoBridge.list_supported_models() == models


def test_a_model_comes_in_and_goes_out_unchanged(
    megatron_bridge: ModuleType, golden_folder: Path
) -> None:
    bridge = megatron_bridge.AutoBridge.from_hf_pretrained(golden_folder)
    provider = bridge.to_megatron_provider()
    provider.finalize()
    models = provider.provide_distributed_model(wrap_with_ddp=False)
    mlp = models[0].decoder.layers[0].mlp
    assert type(mlp).__name__ == "GroveMoELayer"
    assert type(mlp.adjugate_experts).__name__ == "TEGroupedMLP"
    exported = list(bridge.export_hf_weights(models, cpu=True, show_progress=False))
    wanted = load_file(golden_folder / "model.safetensors")
    assert sorted(name for name, _ in exported) == sorted(wanted)
    for name, tensor in exported:
        assert torch.equal(tensor, wanted[name]), name
