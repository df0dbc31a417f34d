"""The authors' GroveMoE model in plain torch: a second oracle, for sizes the golden does not have.

It is checked against the golden of the authors' own code, and then writes goldens for models of
other dimensions. Hugging Face parameter names throughout.

Shape suffixes: B batch, S sequence, T = B * S, H hidden, N heads, D head dimension.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from grove_megatron.functional.reference import grove_layer, swiglu

# No dimension equals another one, or the one of the golden, where that can be had.
OTHER_SIZE: dict[str, Any] = {
    "architectures": ["GroveMoeForCausalLM"],
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_experts_per_group": 3,
    "moe_intermediate_size": 28,
    "parallel_expert_intermediate_size": 20,
    "small_experts_weight": 0.2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


class TinyGrove:
    """Logits, loss and gradients of a model given as Hugging Face tensors.

    Args:
        config: the keys of ``config.json``.
        weights: Hugging Face name -> tensor; computed with in fp64.

    The authors' code is in fp32 inside norms, rotary embedding and the two softmaxes whatever the
    dtype of the model. Here all is fp64, so that every machine computes the same to 1e-14, and
    what differs from their golden is the rounding of theirs.
    """

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]):
        self.config = config
        self.weights = {n: w.double().requires_grad_() for n, w in weights.items()}

    def golden(self, ids_BS: Tensor, labels_BS: Tensor) -> dict[str, Tensor]:
        """What a golden file holds, with the gradient of every parameter."""
        logits_BSV = self.logits(ids_BS)
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten())
        gradients = torch.autograd.grad(loss, list(self.weights.values()), materialize_grads=True)
        named = {f"grad.{n}": g.float() for n, g in zip(self.weights, gradients, strict=True)}
        tensors = {"logits": logits_BSV.detach(), "loss": loss.detach().reshape(1), **named}
        return tensors | {"input_ids": ids_BS, "labels": labels_BS}

    def logits(self, ids_BS: Tensor) -> Tensor:
        """[B, S] int64 -> [B, S, V] fp64."""
        x_BSH = self.weights["model.embed_tokens.weight"][ids_BS]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x_BSH = x_BSH + self._attention(
                f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x_BSH)
            )
            x_BSH = x_BSH + self._moe(
                f"{name}.mlp", self._norm(f"{name}.post_attention_layernorm", x_BSH)
            )
        tied = self.config.get("tie_word_embeddings", False)
        head = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return self._norm("model.norm", x_BSH) @ self.weights[head].T

    def _norm(self, name: str, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        normed = x * torch.rsqrt(variance + self.config["rms_norm_eps"])
        return self.weights[f"{name}.weight"] * normed

    def _attention(self, name: str, x_BSH: Tensor) -> Tensor:
        batch_size, length, _ = x_BSH.shape
        head_dim = self.config["head_dim"]

        def heads(projection: str) -> Tensor:
            flat = x_BSH @ self.weights[f"{name}.{projection}_proj.weight"].T
            return flat.reshape(batch_size, length, -1, head_dim)

        q_BNSD = self._rotate(self._norm(f"{name}.q_norm", heads("q")).transpose(1, 2))
        k_BNSD = self._rotate(self._norm(f"{name}.k_norm", heads("k")).transpose(1, 2))
        v_BNSD = heads("v").transpose(1, 2)
        shared_by = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        k_BNSD, v_BNSD = (t.repeat_interleave(shared_by, dim=1) for t in (k_BNSD, v_BNSD))
        scores = q_BNSD @ k_BNSD.transpose(2, 3) / math.sqrt(head_dim)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        flat = (weights @ v_BNSD).transpose(1, 2).reshape(batch_size, length, -1)
        return flat @ self.weights[f"{name}.o_proj.weight"].T

    def _rotate(self, x_BNSD: Tensor) -> Tensor:
        length, head_dim = x_BNSD.shape[2:]
        pair = torch.arange(0, head_dim, 2).to(x_BNSD)
        frequency = 1.0 / self.config["rope_theta"] ** (pair / head_dim)
        angle_SD = (torch.arange(length).to(x_BNSD)[:, None] * frequency).repeat(1, 2)
        cos_SD, sin_SD = angle_SD.cos(), angle_SD.sin()
        first, second = x_BNSD.chunk(2, dim=-1)
        return x_BNSD * cos_SD + torch.cat([-second, first], dim=-1) * sin_SD

    def _moe(self, name: str, x_BSH: Tensor) -> Tensor:
        def swiglu_of(prefix: str) -> Any:
            gate, up, down = (
                self.weights[f"{prefix}.{p}_proj.weight"] for p in ("gate", "up", "down")
            )
            fc1 = torch.cat([gate, up])
            return lambda x: swiglu(x, fc1, down)

        num_experts = self.config["num_experts"]
        num_groups = num_experts // self.config["num_experts_per_group"]
        x_TH = x_BSH.flatten(0, 1)
        logits_TE = x_TH @ self.weights[f"{name}.gate.weight"].T
        probs_TK, chosen_TK = logits_TE.softmax(-1).topk(self.config["num_experts_per_tok"])
        probs_TK = probs_TK / probs_TK.sum(-1, keepdim=True)
        y_TH = grove_layer(
            x_TH,
            torch.zeros_like(logits_TE).scatter(1, chosen_TK, probs_TK),
            torch.zeros_like(logits_TE, dtype=torch.bool).scatter(1, chosen_TK, True),
            [swiglu_of(f"{name}.experts.{i}") for i in range(num_experts)],
            [swiglu_of(f"{name}.chunk_experts.{j}") for j in range(num_groups)],
            self.config["small_experts_weight"],
        )
        return y_TH.reshape(x_BSH.shape)


def random_weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """fp32 weights large enough for every part of the model to count; norms are not all ones."""
    generator = torch.Generator().manual_seed(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    query, key = (n * config["head_dim"] for n in (heads, config["num_key_value_heads"]))
    num_groups = config["num_experts"] // config["num_experts_per_group"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes[f"{name}.input_layernorm.weight"] = (hidden,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{name}.self_attn.q_norm.weight"] = (config["head_dim"],)
        shapes[f"{name}.self_attn.k_norm.weight"] = (config["head_dim"],)
        shapes[f"{name}.self_attn.q_proj.weight"] = (query, hidden)
        shapes[f"{name}.self_attn.k_proj.weight"] = (key, hidden)
        shapes[f"{name}.self_attn.v_proj.weight"] = (key, hidden)
        shapes[f"{name}.self_attn.o_proj.weight"] = (hidden, query)
        shapes[f"{name}.mlp.gate.weight"] = (config["num_experts"], hidden)
        for kind, count, width in (
            ("experts", config["num_experts"], config["moe_intermediate_size"]),
            ("chunk_experts", num_groups, config["parallel_expert_intermediate_size"]),
        ):
            for i in range(count):
                shapes[f"{name}.mlp.{kind}.{i}.gate_proj.weight"] = (width, hidden)
                shapes[f"{name}.mlp.{kind}.{i}.up_proj.weight"] = (width, hidden)
                shapes[f"{name}.mlp.{kind}.{i}.down_proj.weight"] = (hidden, width)

    def draw(shape: tuple[int, ...]) -> Tensor:
        normal = torch.randn(shape, generator=generator)
        return 1 + 0.2 * normal if len(shape) == 1 else 0.15 * normal

    return {name: draw(shape) for name, shape in shapes.items()}


def write(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], golden: dict[str, Tensor]
) -> Path:
    """A model folder with its golden: config.json, model.safetensors, golden.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    save_file(golden, folder / "golden.safetensors")
    return folder


def write_other_size(folder: Path, *, tied: bool) -> Path:
    """A random model of :data:`OTHER_SIZE` with a golden of every gradient."""
    config = OTHER_SIZE | {"tie_word_embeddings": tied}
    weights = random_weights(config, seed=7)
    generator = torch.Generator().manual_seed(8)
    ids, labels = torch.randint(config["vocab_size"], (2, 2, 20), generator=generator)
    return write(folder, config, weights, TinyGrove(config, weights).golden(ids, labels))
