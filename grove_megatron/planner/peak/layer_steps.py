"""Operations of a decoder layer: norms, attention, dense FFN. See :mod:`.steps`.

Megatron's transformer_layer.py, attention.py, dot_product_attention.py, mlp.py @ 0.19.2, with
TransformerEngine or with operators of torch alone.
"""

from collections.abc import Set

from ...model.architecture import LatentAttention
from .rank_sizes import RankSizes
from .steps import Step, recomputed

# Of the softmax's scores at the worst moment of their gradient: torch's for the masked copy.
_SCORES_AT_ONCE = 4


def norm(rank: RankSizes, *, next_keeps: bool) -> Step:
    """Of hidden states, which it keeps.

    Args:
        next_keeps: is its output kept, which the next operation says?
    """
    elements = rank.own_tokens * rank.model.hidden_size
    bytes_kept = rank.hidden + statistics(rank, rank.own_tokens) + wide_norm(rank, elements)
    return Step("other", bytes_kept + (rank.hidden if next_keeps else 0.0), 4 * rank.hidden)


def statistics(rank: RankSizes, vectors: float) -> float:
    """Mean and deviation of every vector that is normalized."""
    return vectors * rank.element * (1 + rank.model.norm_bias)


def wide_norm(rank: RankSizes, elements: float) -> float:
    """What torch's RMSNorm keeps where it is several operators: what it normalized, in fp32, and
    in 16 bits also its input in fp32."""
    if rank.training.fused_norms or rank.model.norm_bias:
        return 0.0
    return elements * (4 if rank.element == 4 else 8)


def weight_gradient(rank: RankSizes, elements: float) -> float:
    """Of a matrix, where it is made before it is added up."""
    return 0.0 if rank.training.fused_weight_gradients else elements * rank.element


def residual(rank: RankSizes) -> Step:
    """Dropout, and the sum with what the block began with."""
    if not rank.training.dropout:
        return Step("other", 0.0, rank.hidden)
    mask = rank.hidden / rank.element * (1 if rank.training.fused_dropout else rank.element)
    return Step("other", mask, 2 * rank.hidden)


def attention(rank: RankSizes, trained: Set[str]) -> list[Step]:
    """From the first norm to the sum after attention.

    Args:
        trained: see :func:`.trained_parts.trained_parts`.
    """
    model, layout, training = rank.model, rank.layout, rank.training
    if model.latent is not None:
        return _latent_attention(rank, model.latent, trained)
    recompute = training.recompute
    each = rank.tokens / layout.tensor * rank.element
    query, key = each * model.query_size, each * model.key_size
    mixed = query * (1 + model.attention_output_gate) + 2 * key
    width = model.query_size * (1 + model.attention_output_gate) + 2 * model.key_size
    # The norm's output, made again before the gradients of attention.
    again = rank.hidden if "layernorm" in recompute else 0.0
    gathered = rank.wide_hidden if layout.sequence_parallel else 0.0
    keeps_norm = "linear_qkv" in trained and not again
    own = rank.hidden + again
    steps = [
        norm(rank, next_keeps=keeps_norm),
        Step(
            "attention",
            0.0,
            own
            + mixed
            + rank.wide_hidden
            + gathered
            + weight_gradient(rank, model.hidden_size * width / layout.tensor),
        ),
        Step("attention", _positions(rank), own + 2 * (query + key) + mixed),
        *_core(rank, query, key, mixed, own),
    ]
    if model.attention_output_gate:
        # What is gated, and the gate.
        steps.append(Step("attention", 2 * query, own + 3 * query))
    # Fused attention keeps its output itself.
    keeps_heads = "linear_proj" in trained and not training.fused_attention
    gradient = weight_gradient(rank, model.hidden_size * model.query_size / layout.tensor)
    steps.append(
        Step("attention", query if keeps_heads else 0.0, own + gathered + query + gradient)
    )
    return [*steps, residual(rank)]


def _latent_attention(rank: RankSizes, latent: LatentAttention, trained: Set[str]) -> list[Step]:
    """The same of multi-latent attention (multi_latent_attention.py @ 0.19.2)."""
    model, layout, recompute = rank.model, rank.layout, rank.training.recompute
    heads = rank.tokens * model.num_attention_heads / layout.tensor * rank.element
    query, value = heads * model.head_dim, heads * latent.v_head_dim
    made = heads * (latent.qk_head_dim + latent.v_head_dim)
    again = rank.hidden if "layernorm" in recompute else 0.0
    gathered = rank.wide_hidden if layout.sequence_parallel else 0.0
    own = rank.hidden + again
    # What is compressed, before its norm and after. A local layer cuts a rank's tokens out of
    # all, which stay.
    ranks = rank.own_tokens * rank.element
    queries = latent.q_lora_rank or 0
    before = (ranks if latent.whole_compression else rank.tokens * rank.element) * queries
    before += ranks * latent.kv_lora_rank
    after = ranks * (queries + latent.kv_lora_rank) if model.qk_layernorm else 0.0
    if model.qk_layernorm and not queries and latent.whole_compression:
        # The norm before queries that are projected in one step.
        after += rank.hidden
    # Those of keys, which the heads share.
    positions = rank.tokens * latent.qk_pos_emb_head_dim * rank.element
    down = [Step("attention", before + after + positions, own + 2 * (before + after) + gathered)]
    # Projected up; then put together with positions.
    up = [
        Step("attention", 0.0, own + query + made + after),
        Step("attention", _rotary(rank, latent.qk_pos_emb_head_dim), own + 3 * query + made),
    ]
    core = _core(rank, query, query, value, own, output=value)
    if "mla_up_proj" in recompute:
        # Queries, keys and values are made again before the gradients of attention.
        inputs = 2 * query + value
        core[0] = core[0]._replace(kept=core[0].kept - inputs)
        up, core = ([s._replace(live=s.live + inputs) for s in part] for part in (up, core))
    gradient = weight_gradient(
        rank, model.hidden_size * model.num_attention_heads * latent.v_head_dim / layout.tensor
    )
    # Fused attention keeps its output itself.
    keeps_heads = "linear_proj" in trained and not rank.training.fused_attention
    return [
        norm(rank, next_keeps=not again),
        *down,
        *up,
        *core,
        Step("attention", value if keeps_heads else 0.0, own + gathered + value + gradient),
        residual(rank),
    ]


def _positions(rank: RankSizes) -> float:
    """Norms of queries and keys, and the tables of rotary positions."""
    model, layout = rank.model, rank.layout
    bytes_kept = 0.0
    heads = rank.tokens / layout.tensor * (model.num_attention_heads + model.num_query_groups)
    if model.qk_layernorm:
        bytes_kept += statistics(rank, heads) + wide_norm(rank, heads * model.head_dim)
    return bytes_kept + (0.0 if model.learned_positions else _rotary(rank, model.head_dim))


def _rotary(rank: RankSizes, width: int) -> float:
    """Sine and cosine, of queries and of keys, where attention is not fused."""
    if rank.training.fused_attention:
        return 0.0
    return 4 * rank.training.sequence_length / rank.layout.context * width * rank.element


def _core(
    rank: RankSizes,
    query: float,
    key: float,
    mixed: float,
    own: float,
    output: float | None = None,
) -> list[Step]:
    """Scores, softmax, and the sum of values.

    Args:
        query, key: bytes of all of a rank.
        mixed: of what stays beside them: the first product, or values alone.
        own: bytes of gradients that are there all the time.
        output: bytes of what it puts out, None for as many as queries.
    """
    model, training = rank.model, rank.training
    output = query if output is None else output
    apart = not model.learned_positions or model.qk_layernorm
    if training.fused_attention:
        # Queries and keys with positions, values where they were made, the output, and of every
        # head the logarithm of the softmax's sum in fp32.
        sums = rank.tokens * model.num_attention_heads / rank.layout.tensor * 4
        inputs = mixed + (query + key if apart else 0.0)
        return [Step("attention", inputs + output + sums, own + 2 * query + 2 * key)]
    grouped = model.latent is None and model.num_query_groups < model.num_attention_heads
    if grouped:
        # Keys and values once for every query head; of the first product only what norms keep.
        inputs = 2 * query + (query if apart else 0.0)
        inputs += mixed if model.qk_layernorm or not apart else 0.0
    else:
        inputs = mixed + (query + key if apart else 0.0)
    length = training.sequence_length
    scores = rank.tokens * length * model.num_attention_heads / rank.layout.tensor * rank.element
    softmax = Step("attention", scores, own + query + 2 * scores)
    # The causal mask, and the gradient of a copy that was masked in place.
    mask = Step("attention", float(length * length), own + query + _SCORES_AT_ONCE * scores)
    steps = [Step("attention", 0.0, own + 2 * (query + key) + scores), mask, softmax]
    if training.attention_dropout:
        factors = scores if not training.fused_dropout else scores / rank.element
        steps.append(Step("attention", scores + factors, own + 2 * query + 2 * scores))
    if "core_attn" in training.recompute:
        # The output again, and its gradient, are there beside what is below.
        return [
            Step("attention", inputs, 0.0),
            *recomputed("attention", steps, kept_input=0.0, held=query),
        ]
    return [Step("attention", inputs, 0.0), *steps]


def ffn(
    rank: RankSizes,
    part: str,
    rows: float,
    width: float,
    *,
    own: float,
    trained: tuple[bool, bool],
    matrices: float = 1.0,
    weighted: bool = False,
    keeps_input: bool = True,
) -> list[Step]:
    """Two products and an activation between.

    Args:
        rows: how many.
        width: of an FFN on this rank.
        own: bytes of gradients that are there all the time.
        trained: are the matrices of the first and of the second product?
        matrices: how many of each are multiplied in one go.
        weighted: are rows multiplied by weights behind the activation?
        keeps_input: is the first product the one that keeps its input?
    """
    model, training = rank.model, rank.training
    inner = rows * width * rank.element
    hidden, up = rows * model.hidden_size * rank.element, inner * (1 + model.gated)
    one = matrices * model.hidden_size * width
    first = Step(
        part,
        hidden if keeps_input and trained[0] else 0.0,
        own + up + hidden + weight_gradient(rank, one * (1 + model.gated)),
    )
    # The gradients of both halves, and side by side.
    steps = [first, Step(part, up, own + (2 * up if model.gated else up + inner))]
    if training.fused_activation:
        steps[-1] = Step(part, up, own + up + inner)
    elif model.gated:
        # The activated gate, and a copy of the other half.
        steps.append(Step(part, 2 * inner, own + 3 * inner))
    if weighted and not training.fused_activation:
        # What there was before it was weighted.
        steps.append(Step(part, inner, own + 2 * inner))
    again = inner if weighted and "moe_act" in training.recompute else 0.0
    kept_between = inner - again if trained[1] else 0.0
    gradient = weight_gradient(rank, one)
    return [*steps, Step(part, kept_between, own + hidden + inner + again + gradient)]


def dense(rank: RankSizes, trained: Set[str]) -> list[Step]:
    """The second norm, and an FFN for every token."""
    layout, recompute = rank.layout, rank.training.recompute
    again = rank.hidden if "layernorm" in recompute else 0.0
    keeps_input = "mlp.linear_fc1" in trained and not again and "mlp" not in recompute
    gathered = rank.wide_hidden if layout.sequence_parallel else 0.0
    both = ("mlp.linear_fc1" in trained, "mlp.linear_fc2" in trained)
    steps = ffn(
        rank,
        "other",
        rank.tokens,
        rank.model.ffn_hidden_size / layout.tensor,
        own=rank.hidden + again + gathered,
        trained=both,
        keeps_input=False,
    )
    if "mlp" in recompute:
        kept_input = 0.0 if again else rank.hidden
        steps = recomputed("other", steps, kept_input=kept_input, held=rank.hidden)
    return [norm(rank, next_keeps=keeps_input), *steps, residual(rank)]
