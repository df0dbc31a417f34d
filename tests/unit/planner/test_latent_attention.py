"""Multi-latent attention: weights, parameters of ranks, activations; FLOPs are beside Megatron's in
tests/unit/training/test_latent_attention.py."""

from dataclasses import replace

import pytest

from grove_megatron.model.architecture import LatentAttention, Model
from grove_megatron.model.parameters import active_parameters, total_parameters
from grove_megatron.model.table import weights
from grove_megatron.planner.activations import layer_activations
from grove_megatron.planner.inputs import Layout, Sizes
from grove_megatron.planner.parameters import rank_parameters

from .latent_models import DEEPSEEK_V2, DEEPSEEK_V2_LITE, DEEPSEEK_V3
from .models import training


@pytest.mark.parametrize(
    ("model", "total", "billions", "active"),
    [
        # Published as 671B and 37B, 236B and 21B, 15.7B and, without embedding and output, 2.4B.
        (DEEPSEEK_V3, 671_026_404_352, 671.0, 37.55),
        (DEEPSEEK_V2, 235_741_434_880, 235.7, 21.38),
        # Megatron's norm before its projection of queries, 27 of 2048, is not in the released one.
        (DEEPSEEK_V2_LITE, 15_706_484_224 + 55_296, 15.7, 2.66),
    ],
)
def test_the_released_models(model: Model, total: int, billions: float, active: float) -> None:
    assert total_parameters(model).total == total == pytest.approx(billions * 1e9, abs=5e7)
    assert active_parameters(model, 0) == pytest.approx(active * 1e9, abs=5e6)


def test_their_published_total_counts_the_selection_bias_too() -> None:
    buffers = sum(w.numel(DEEPSEEK_V3.sizes) for w in weights(DEEPSEEK_V3) if w.buffer)
    assert total_parameters(DEEPSEEK_V3).total + 58 * buffers == 671_026_419_200


def test_an_attention_layer_by_hand() -> None:
    one = replace(DEEPSEEK_V3, moe_layers=(False,))
    two = replace(DEEPSEEK_V3, moe_layers=(False, False))
    dense = 3 * 7168 * 18432 + 2 * 7168
    attention = total_parameters(two).total - total_parameters(one).total - dense
    queries = 7168 * 1536 + 1536 + 1536 * 128 * (128 + 64)
    keys_and_values = 7168 * (512 + 64) + 512 + 512 * 128 * (128 + 128)
    assert attention == queries + keys_and_values + 128 * 128 * 7168


@pytest.mark.parametrize("whole", [True, False])
def test_what_tensor_parallel_ranks_divide(whole: bool) -> None:
    assert DEEPSEEK_V3.latent is not None
    latent = replace(DEEPSEEK_V3.latent, whole_compression=whole)
    model = replace(DEEPSEEK_V3, moe_layers=(False,), tied_embeddings=True, latent=latent)
    one, two = (rank_parameters(model, Layout(tensor=size, world=size))[0].total for size in (1, 2))
    # Norms of the layer, its compressed vectors and the output are whole anyway.
    kept = 3 * 7168 + 1536 + 512 + (7168 * (1536 + 512 + 64) if whole else 0)
    assert two == kept + (one - kept) // 2


def test_a_compressed_width_that_does_not_divide_is_named() -> None:
    latent = LatentAttention(
        q_lora_rank=6,
        kv_lora_rank=7,
        qk_head_dim=128,
        qk_pos_emb_head_dim=64,
        v_head_dim=128,
        whole_compression=False,
    )
    model = replace(DEEPSEEK_V3, latent=latent)
    with pytest.raises(ValueError, match=r"width of self_attention.linear_kv_down_proj.* \(71\)"):
        rank_parameters(model, Layout(tensor=2, world=2))


TOKENS = 64 * 2


@pytest.mark.parametrize(
    ("model", "recompute", "saved"),
    [
        # bf16 of queries and keys of 192, values of 128, in 128 heads.
        (DEEPSEEK_V3, ("mla_up_proj",), TOKENS * 128 * (2 * 192 + 128)),
        # Its scores, and the mask.
        (DEEPSEEK_V3, ("core_attn",), TOKENS * 64 * 128 + 64 * 64),
        (DEEPSEEK_V2_LITE, ("mla_up_proj",), TOKENS * 16 * (2 * 192 + 128)),
        (DEEPSEEK_V3, ("mla_up_proj", "core_attn"), TOKENS * 128 * (2 * 192 + 128 + 64) + 64 * 64),
    ],
)
def test_what_is_recomputed_is_not_kept(
    model: Model, recompute: tuple[str, ...], saved: int
) -> None:
    kept = [
        layer_activations(
            Sizes(
                model=model,
                layout=Layout(),
                training=training(fused_attention=False, recompute=frozenset(modules)),
            ),
            is_moe=True,
        )
        for modules in ((), recompute)
    ]
    assert kept[0] - kept[1] == saved


@pytest.mark.parametrize(
    ("model", "norms", "width"),
    [
        # Before the norm and after; the heads share positions of 64.
        (DEEPSEEK_V3, True, 2 * (1536 + 512) + 64),
        (DEEPSEEK_V3, False, 1536 + 512 + 64),
        (DEEPSEEK_V2_LITE, True, 2048 + 2 * 512 + 64),
    ],
)
def test_what_attention_keeps(model: Model, norms: bool, width: int) -> None:
    model = replace(model, qk_layernorm=norms)
    sizes = Sizes(model=model, layout=Layout(), training=training())
    # The two norms around it with what they divided by, and the dense FFN.
    others = 4 * model.hidden_size + 2 + 3 * model.ffn_hidden_size
    # Queries, keys, values, the output, and of every head a sum in fp32.
    heads = model.num_attention_heads * (2 * 192 + 2 * 128 + 2)
    assert layer_activations(sizes, is_moe=False) == TOKENS * (others + heads + width)


def test_sequence_parallel_ranks_keep_their_part() -> None:
    layout = Layout(tensor=2, world=2, sequence_parallel=True)
    sizes = Sizes(model=DEEPSEEK_V3, layout=layout, training=training())
    whole = replace(sizes, layout=Layout())
    positions = TOKENS * 64
    # All are halved but the positions of keys, which every rank has of all tokens.
    assert 2 * (layer_activations(sizes, is_moe=False) - positions) == (
        layer_activations(whole, is_moe=False) - positions
    )
    assert DEEPSEEK_V3.latent is not None
    local = replace(DEEPSEEK_V3, latent=replace(DEEPSEEK_V3.latent, whole_compression=False))
    more = layer_activations(replace(sizes, model=local), is_moe=False)
    assert more - layer_activations(sizes, is_moe=False) == TOKENS * 1536 / 2
