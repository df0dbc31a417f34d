"""Small random Qwen3 models, as transformers makes and saves them."""

from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
# Some layers without experts, weights of the selected experts as they are, one embedding.
MIXED: dict[str, Any] = {
    "num_hidden_layers": 6,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
    "norm_topk_prob": False,
    "tie_word_embeddings": True,
}
# name: keys of the configuration, those of experts if it has any.
MODELS: dict[str, dict[str, Any]] = {
    "moe": SIZES | EXPERTS,
    "mixed": SIZES | EXPERTS | MIXED,
    "dense": SIZES,
    # Of layers that two pipeline stages can share.
    "dense-tied": SIZES | {"num_hidden_layers": 4, "tie_word_embeddings": True},
}


def build(name: str) -> Any:
    """A transformers model; weights large enough for every part to count."""
    import transformers

    keys = MODELS[name]
    kind = "Qwen3Moe" if "num_experts" in keys else "Qwen3"
    config = getattr(transformers, f"{kind}Config")(**keys)
    torch.manual_seed(5)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            normal = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * normal if parameter.dim() == 1 else 0.15 * normal)
    return model.eval()


def save(name: str, folder: Path, *, fused: bool = False) -> Path:
    """A model folder; ``fused``: the experts of a layer as two tensors."""
    build(name).save_pretrained(folder, save_original_format=not fused)
    return folder


def logits(folder: Path) -> torch.Tensor:
    """What transformers computes of a folder, in fp32."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids).logits
    return found
