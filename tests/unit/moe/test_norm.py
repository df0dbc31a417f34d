"""Norms of the local implementation: which are swapped, what they compute, what is refused.

NVIDIA Apex is a source build, so most tests stand a package with the same names in its place: the
part that is tested is which class is built with which arguments.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from grove_megatron.config import GroveTransformerConfig
from grove_megatron.layer_spec import adapt_spec
from grove_megatron.moe import norm

SPLIT = {"tensor_model_parallel_size": 2, "sequence_parallel": True}


def config(**settings: Any) -> GroveTransformerConfig:
    given = {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "transformer_impl": "local",
        "num_moe_experts": 4,
        "moe_token_dispatcher_type": "alltoall",
        "add_bias_linear": False,
        "grove_num_groups": 2,
        "grove_adjugate_ffn_hidden_size": 4,
    }
    return GroveTransformerConfig(**(given | settings))


class ApexNorm(torch.nn.Module):
    """What apex.normalization.FusedRMSNorm is to a caller."""

    def __init__(self, normalized_shape: int, eps: float, memory_efficient: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(normalized_shape))
        self.eps, self.memory_efficient = eps, memory_efficient


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA Apex with its kernels, as far as is asked for here."""
    names = ("apex", "apex.normalization", "fused_layer_norm_cuda")
    packages = {name: ModuleType(name) for name in names}
    for name, package in packages.items():
        package.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, package)
    packages["apex.normalization"].FusedRMSNorm = ApexNorm  # type: ignore[attr-defined]


def test_without_a_reason_megatrons_norms_stay() -> None:
    assert norm.norm_swaps(config()) == {}


@pytest.mark.parametrize(
    ("settings", "swapped"),
    [
        (SPLIT, {WrappedTorchNorm: norm.torch_norm}),
        ({"normalization": "RMSNorm"}, {FusedLayerNorm: norm.torch_norm}),
        (
            {"normalization": "RMSNorm", "memory_efficient_layer_norm": True},
            {WrappedTorchNorm: norm.apex_rms_norm, FusedLayerNorm: norm.apex_rms_norm},
        ),
        # LayerNorm keeps Apex's FusedLayerNorm, which marks its weights itself.
        (SPLIT | {"memory_efficient_layer_norm": True}, {WrappedTorchNorm: norm.torch_norm}),
    ],
)
def test_norms_are_swapped_where_megatrons_refuse(
    settings: dict[str, Any], swapped: dict[Any, Any]
) -> None:
    assert norm.norm_swaps(config(**settings)) == swapped


def test_with_transformer_engine_nothing_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    from grove_megatron import layer_spec

    monkeypatch.setattr(layer_spec, "norm_swaps", lambda config: pytest.fail("asked"))
    layer_spec.adapt_spec([FusedLayerNorm], config(transformer_impl="transformer_engine"))


def test_the_last_norm_of_an_rms_model_is_no_layer_norm_where_apex_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpt_layer_specs, "LNImpl", FusedLayerNorm)
    rms = config(normalization="RMSNorm")
    stock = gpt_layer_specs.get_gpt_decoder_block_spec(rms, False, "RMSNorm", pp_rank=0)
    with pytest.raises(AssertionError, match="not supported in FusedLayerNorm"):
        stock.layer_norm(config=rms, hidden_size=8)
    ours = adapt_spec(stock, rms).layer_norm(config=rms, hidden_size=8, eps=1e-3)
    assert isinstance(ours, torch.nn.RMSNorm)
    assert (ours.normalized_shape, ours.eps) == ((8,), 1e-3)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("settings", [{}, SPLIT])
def test_torchs_norm_says_whether_a_rank_saw_the_whole_sequence(
    name: str, settings: dict[str, Any]
) -> None:
    built = norm.torch_norm(config(normalization=name, **settings), 8, persist_layer_norm=True)
    assert type(built).__name__ == name
    marks = [parameter.sequence_parallel for parameter in built.parameters()]
    assert marks == [bool(settings)] * (2 if name == "LayerNorm" else 1)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("settings", [{}, SPLIT])
def test_apex_keeps_the_output_where_memory_is_to_be_saved(settings: dict[str, Any]) -> None:
    saving = config(normalization="RMSNorm", memory_efficient_layer_norm=True, **settings)
    built = norm.apex_rms_norm(saving, 8, eps=1e-3)
    assert isinstance(built, ApexNorm)
    assert (built.eps, built.memory_efficient) == (1e-3, True)
    assert built.weight.sequence_parallel is bool(settings)


@pytest.mark.parametrize(
    ("builder", "settings", "flag"),
    [
        (norm.torch_norm, {"layernorm_zero_centered_gamma": True}, "--apply-layernorm-1p (True)"),
        (norm.torch_norm, {"normalization": "L2Norm"}, "--normalization (L2Norm)"),
        (
            norm.torch_norm,
            {"memory_efficient_layer_norm": True},
            "memory_efficient_layer_norm (True)",
        ),
        (
            norm.apex_rms_norm,
            {"memory_efficient_layer_norm": True},
            "fused_layer_norm_cuda (not installed)",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    builder: norm.NormBuilder, settings: dict[str, Any], flag: str
) -> None:
    if builder is norm.apex_rms_norm and importlib.util.find_spec("fused_layer_norm_cuda"):
        pytest.skip("Apex is installed")
    with pytest.raises(ValueError, match=r"; (use|remove) ") as error:
        builder(config(**settings), 8)
    assert flag in str(error.value)


@pytest.mark.usefixtures("apex")
def test_apexs_rms_norm_has_no_zero_centred_gamma() -> None:
    wanted = config(normalization="RMSNorm", layernorm_zero_centered_gamma=True)
    with pytest.raises(ValueError, match=r"--apply-layernorm-1p \(True\)"):
        norm.apex_rms_norm(wanted, 8)
