"""Bytes of activations: what a rank keeps of a microbatch for its backward pass.

In the way of Megatron's theoretical_memory_usage.py (Korthikanti et al. 2205.05198, section 4),
but tensor by tensor, because that file knows neither experts nor query groups. Routing is taken as
uniform: with imbalance, the ranks that get more rows keep more.
"""

from dataclasses import dataclass, replace

from ..model.architecture import LatentAttention, Model
from ..model.selection import ffn_per_token
from .inputs import Layout, Sizes, Training
from .pipeline import Stage, stages
from .traffic import groups_per_token, rows_per_token

# Positions and counts that the layer keeps: 3 int64 for every routed pair, 2 for an adjugate's.
_PAIR_BYTES, _GROUP_PAIR_BYTES = 24, 16
# Of the router, for every token and expert: fp32 logits and balancing scores, and two maps.
_ROUTER_BYTES = 10


def stage_activations(sizes: Sizes) -> tuple[float, ...]:
    """The most bytes of activations that a rank of every pipeline stage holds at one time.

    What the layers keep of the microbatches in flight, the logits, and what one step of the
    backward pass needs beside them: gradients of the same tensors, and what it computes again.
    """
    return tuple(
        _stage_activations(sizes, number, stage)
        for number, stage in enumerate(stages(sizes.model, sizes.layout))
    )


def layer_activations(sizes: Sizes, *, is_moe: bool) -> float:
    """What one layer keeps of a microbatch."""
    return _Rank(sizes).layer(is_moe)


def adjugate_activations(sizes: Sizes, groups: float | None = None) -> float:
    """What the adjugates add to a microbatch in one layer.

    Args:
        groups: distinct groups that an average token meets; None for the expectation.
    """
    return _Rank(sizes).adjugates(groups_per_token(sizes.model) if groups is None else groups)


def in_flight(sizes: Sizes, stage: int) -> float:
    """Microbatches whose activations a stage holds at once, of all its layers.

    The pipeline fills before it drains: 1F1B, and interleaved 1F1B (Narayanan et al. 2104.04473)
    with virtual stages, where a microbatch of one model chunk counts as a part. One more than the
    warm-up of Megatron's get_pp_rank_microbatches (pipeline_parallel/schedules.py:902 @ 0.19.2):
    a forward pass comes before the first backward pass.
    """
    layout, training = sizes.layout, sizes.training
    if layout.virtual == 1:
        return min(layout.pipeline - stage, training.microbatches)
    group = layout.chunk_microbatches or layout.pipeline
    warm_up = 2 * (layout.pipeline - stage - 1) + (layout.virtual - 1) * group
    warm_up += training.overlapped_experts
    return min((warm_up + 1) / layout.virtual, training.microbatches)


def _stage_activations(sizes: Sizes, number: int, stage: Stage) -> float:
    model = sizes.model
    rank = _Rank(sizes)
    chunks = [[model.moe_layers[layer] for layer in chunk] for chunk in stage.chunks]
    mtp = [model.mtp_is_moe] * model.mtp_depths if stage.mtp else []
    kept, again = _layers(sizes, chunks, mtp)
    if stage.mtp:
        # Two norms and their sum's projection, and the norm of the output.
        kept += model.mtp_depths * 5 * rank.hidden
    total = kept * in_flight(sizes, number)
    steps = [rank.gradients(kind) for kind in {kind for run in (*chunks, mtp) for kind in run}]
    if stage.output:
        total += rank.output(1 + model.mtp_depths)
        steps.append(rank.output_gradients())
    return total + again + max(steps, default=0.0)


def _layers(sizes: Sizes, chunks: list[list[bool]], mtp: list[bool]) -> tuple[float, float]:
    """Bytes that a stage's layers keep of a microbatch, and the most it makes again at one time.

    Args:
        chunks: of every layer of its model chunks: has it experts?
        mtp: the same of its MTP layers.
    """
    training = sizes.training
    without_recompute = _Rank(replace(sizes, training=replace(training, recompute=frozenset())))
    if "full" in training.recompute:
        count = training.recompute_layers
        runs = [(chunk, len(chunk) if count is None else count) for chunk in chunks]
        # Every MTP layer is made again by itself, or none where there is a number of layers
        # (multi_token_prediction.py:1415 @ 0.19.2).
        runs += [([kind], 1 if count is None else 0) for kind in mtp]
        recomputed = [_recomputed(without_recompute, *run) for run in runs]
        return sum(kept for kept, _ in recomputed), max(again for _, again in recomputed)
    kinds = [kind for run in (*chunks, mtp) for kind in run]
    kept = [_Rank(sizes).layer(kind) for kind in kinds]
    whole = [without_recompute.layer(kind) for kind in kinds]
    again = [of_whole - of_kept for of_whole, of_kept in zip(whole, kept, strict=True)]
    return sum(kept), max(again, default=0.0)


def _recomputed(rank: "_Rank", kinds: list[bool], count: int) -> tuple[float, float]:
    """The same of consecutive layers, of which the first ``count``, at most all, are made again.

    Units of them keep their input alone (core/recompute.py:158 @ 0.19.2). What the layers after
    them kept is free when the backward pass has come to the last of them.
    """
    unit = rank.training.recompute_unit
    whole = [rank.layer(kind) for kind in kinds]
    firsts = range(0, min(count, len(whole)), unit)
    after = sum(whole[count:])
    again = max((sum(whole[first : first + unit]) for first in firsts), default=0.0)
    return len(firsts) * rank.hidden + after, max(0.0, again - after)


@dataclass(frozen=True)
class _Rank:
    """Bytes of tensors on one rank, for one microbatch.

    Let t be the tokens of a microbatch on a tensor-parallel group and p those of one of its ranks
    between the linear layers. Every rank gets p * topk pairs of a row and an expert, times the
    expert-tensor-parallel size, whose ranks share the rows.
    """

    sizes: Sizes

    @property
    def model(self) -> Model:
        return self.sizes.model

    @property
    def layout(self) -> Layout:
        return self.sizes.layout

    @property
    def training(self) -> Training:
        return self.sizes.training

    @property
    def element(self) -> int:
        return self.training.precision.weight

    @property
    def tokens(self) -> float:
        """t."""
        per_sample = self.training.sequence_length / self.layout.context
        return self.training.micro_batch * per_sample

    @property
    def own_tokens(self) -> float:
        """p."""
        return self.tokens / (self.layout.tensor if self.layout.sequence_parallel else 1)

    @property
    def hidden(self) -> float:
        """Of one [p, H] tensor."""
        return self.own_tokens * self.model.hidden_size * self.element

    def pairs(self, per_token: float) -> float:
        """How many this rank works on."""
        return self.own_tokens * per_token * self.layout.expert_tensor

    def recomputes(self, module: str) -> bool:
        return module in self.training.recompute

    def layer(self, is_moe: bool) -> float:
        """Kept of a layer: before and after both norms, masks, attention, FFN."""
        norms = 2 * (1 if self.recomputes("layernorm") else 2) * self.hidden
        masks = 2 * self.hidden / self.element if self.training.dropout else 0.0
        latent = self.model.latent
        attention = self.attention() if latent is None else self.latent_attention(latent)
        return norms + masks + attention + (self.moe() if is_moe else self.dense_ffn())

    def attention(self) -> float:
        model = self.model
        width = model.query_size * (1 + model.attention_output_gate) + 2 * model.key_size
        # Query and key once more with their rotary positions, and once more for their norms.
        times = (not model.learned_positions) + model.qk_layernorm
        width += times * (model.query_size + model.key_size)
        # The heads' output.
        width += model.query_size
        scores = 0.0
        if not (self.training.fused_attention or self.recomputes("core_attn")):
            scores = self.training.sequence_length * model.num_attention_heads
            if model.num_query_groups < model.num_attention_heads:
                # Keys and values once for every query head.
                width += 2 * model.query_size - model.key_size
        return self.tokens * (width + scores) / self.layout.tensor * self.element

    def latent_attention(self, latent: LatentAttention) -> float:
        model = self.model
        values = model.num_attention_heads * latent.v_head_dim
        # Queries and keys of all heads with their positions, values, and the heads' output.
        width = values
        if not self.recomputes("mla_up_proj"):
            width += 2 * model.query_size + values
        if not (self.training.fused_attention or self.recomputes("core_attn")):
            width += self.training.sequence_length * model.num_attention_heads
        # What is compressed, before its norm and after. A local layer cuts a rank's tokens out of
        # all, which stay.
        queries = latent.q_lora_rank or 0
        before = (self.own_tokens if latent.whole_compression else self.tokens) * queries
        before += self.own_tokens * latent.kv_lora_rank
        # Queries that are not compressed have a norm before their projection.
        normed = (latent.q_lora_rank or model.hidden_size) + latent.kv_lora_rank
        after = self.own_tokens * normed if model.qk_layernorm else 0.0
        # Positions of keys, which the heads share.
        positions = self.tokens * latent.qk_pos_emb_head_dim
        kept = before + after + positions + self.tokens * width / self.layout.tensor
        return kept * self.element

    def dense_ffn(self) -> float:
        if self.recomputes("mlp"):
            return 0.0
        return self.tokens * self._over_tensor(self.model.ffn_hidden_size) * self.element

    def moe(self) -> float:
        if self.recomputes("moe"):
            return 0.0
        model = self.model
        width = self._kept_of_expert(model.moe_ffn_hidden_size)
        if self.recomputes("moe_act"):
            width -= model.moe_ffn_hidden_size / self.layout.expert_tensor
        kept = self.own_tokens * (model.num_experts + model.local_experts) * _ROUTER_BYTES
        row = self.element * (model.hidden_size + width) + _PAIR_BYTES
        kept += self.pairs(ffn_per_token(model)) * row
        kept += self.adjugates(groups_per_token(model))
        if not self.recomputes("shared_experts"):
            kept += self.tokens * self._over_tensor(model.shared_expert_size) * self.element
        return kept

    def adjugates(self, groups: float) -> float:
        """Of the rows that need one; rows of their own where experts are computed apart."""
        own_rows = 0 if self.training.grouped_experts else self.model.hidden_size
        width = own_rows + self._kept_of_expert(self.model.adjugate_ffn_hidden_size)
        return self.pairs(groups) * (self.element * width + _GROUP_PAIR_BYTES)

    def gradients(self, is_moe: bool) -> float:
        """Of the tensors of an FFN, and of its weights where they are not added up in place."""
        model = self.model
        matrices = 2 + model.gated
        if not is_moe:
            width = matrices * model.ffn_hidden_size / self.layout.tensor
            return self.tokens * width * self.element
        width = matrices * model.moe_ffn_hidden_size / self.layout.expert_tensor
        elements = self.pairs(ffn_per_token(model)) * (2 * model.hidden_size + width)
        # Rows received and rows to send back, before they are copied for experts and after.
        elements += self.pairs(rows_per_token(model, self.layout)) * 2 * model.hidden_size
        if self.training.grouped_experts:
            # The larger matrix of all experts of the rank, which are one parameter.
            experts = model.num_experts / self.layout.expert
            elements += experts * model.hidden_size * width * (1 + model.gated) / matrices
        return self.element * elements + self.adjugates(groups_per_token(model))

    def output(self, times: int) -> float:
        """The final norm and the logits, in fp32 for the loss and as they were computed."""
        logit = 4 + (2 if self.element == 2 else 0)
        logits = self.tokens * self.model.vocab_size / self.layout.tensor * logit
        return times * (2 * self.hidden + logits)

    def output_gradients(self) -> float:
        rows = self.tokens
        if not self.training.fused_weight_gradients:
            rows += self.model.hidden_size
        return rows * self.model.vocab_size / self.layout.tensor * self.element

    def _over_tensor(self, width: int) -> float:
        """Elements that a dense FFN keeps of a row."""
        kept = width * (2 + self.model.gated)
        if not self.training.fused_activation:
            # The two halves of a gated activation.
            kept += 2 * width * self.model.gated
        return kept / self.layout.tensor

    def _kept_of_expert(self, width: int) -> float:
        """Elements that an expert keeps of a row: its first product and the weighted activation."""
        kept = width * (2 + self.model.gated)
        if not (self.training.fused_activation or self.training.grouped_experts):
            # The two halves, and what there was before it was weighted.
            kept += width * (2 * self.model.gated + 1)
        return kept / self.layout.expert_tensor
