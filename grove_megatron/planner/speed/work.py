"""Seconds that the parts of a model take on a rank, forward and backward, for one microbatch.

Products and attention by :mod:`.products`; everything else that computes is bound by memory, and
its bytes are counted tensor by tensor: what is read and written by kernels fused as
TransformerEngine and Megatron's fusions do. Routing is uniform but for ``Training.imbalance``.
"""

from dataclasses import dataclass
from functools import cached_property

from ...model.architecture import LatentAttention, Model
from ...model.selection import ffn_per_token
from ..inputs import Layout, Sizes, Training
from ..traffic import busiest, groups_per_token, remote_rows
from .cluster import Cluster
from .products import Attention, Product, attention_seconds, passes
from .transfers import (
    Group,
    all_reduce,
    all_to_all,
    collective,
    fused,
    to_the_next,
    two_hops,
)

Seconds = dict[str, float]
"""By part, see :data:`.step.PARTS`."""

# Bytes of an fp32 number; of a number of the router's it is read or written about so often.
_FP32, _ROUTER_TIMES = 4, 10
# Kernels forward and backward, by what CUDA graphs may cover of them: attention with norms and
# residuals, a dense FFN, the router with its losses, what is counted before rows are sent, and the
# rest of a layer with experts; counted in profiles of Megatron's layer with its fusions on.
_KERNELS = {
    "attn": (20, 30),
    "mlp": (5, 10),
    "moe_router": (25, 35),
    "moe_preprocess": (20, 5),
    "moe": (25, 60),
}
_OF_KIND = {True: ("attn", "moe_router", "moe_preprocess", "moe"), False: ("attn", "mlp")}


@dataclass(frozen=True)
class Pass:
    """Forward and backward, each by part."""

    forward: Seconds
    backward: Seconds

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(added(self.forward, other.forward), added(self.backward, other.backward))

    def times(self, count: float) -> "Pass":
        """Of so many layers."""
        return Pass(_scaled(self.forward, count), _scaled(self.backward, count))


def added(one: Seconds, other: Seconds) -> Seconds:
    """Part by part."""
    return one | {part: one.get(part, 0.0) + value for part, value in other.items()}


def _scaled(seconds: Seconds, by: float) -> Seconds:
    return {part: value * by for part, value in seconds.items()}


def nothing() -> Pass:
    return Pass({}, {})


@dataclass(frozen=True)
class Work:
    """Of one rank. Let t be the tokens of a microbatch on a tensor-parallel group, p those of one
    of its ranks between the linear layers."""

    sizes: Sizes
    cluster: Cluster

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

    @cached_property
    def tokens(self) -> float:
        """t."""
        return self.training.micro_batch * self.training.sequence_length / self.layout.context

    @cached_property
    def own_tokens(self) -> float:
        """p."""
        return self.tokens / (self.layout.tensor if self.layout.sequence_parallel else 1)

    @cached_property
    def hidden(self) -> float:
        """Bytes of one [p, H] tensor."""
        return self.own_tokens * self.model.hidden_size * self.element

    @cached_property
    def imbalance(self) -> float:
        """Pairs of the busiest rank over the mean of all, with capacity those of capacity."""
        training = self.training
        found = busiest(self.model, self.layout, training.imbalance)
        factor = training.capacity_factor
        if factor is None:
            return found
        # What is over an expert's capacity is dropped, and what is under it padded or not.
        return factor if training.padded_to_capacity else min(found, factor)

    # What a layer is made of.

    def layer(self, is_moe: bool, *, again: bool = True) -> Pass:
        """A decoder layer, with what recomputation runs again in its backward pass.

        Args:
            again: is it among those that are computed again whole, if any are?
        """
        attention, ffn = self.attention(), self.moe() if is_moe else self.dense_ffn()
        whole = attention + ffn + self._between() + self._starts(is_moe)
        whole = self._waiting(whole, is_moe)
        return Pass(
            whole.forward, added(whole.backward, self._again(whole, ffn, is_moe) if again else {})
        )

    def attention(self) -> Pass:
        """Projections, positions, norms of queries and keys, and the core."""
        model, tensor = self.model, self.layout.tensor
        values = model.head_dim if model.latent is None else model.latent.v_head_dim
        length, context = self.training.sequence_length, self.layout.context
        by_heads = self.training.context_by_heads
        core = Attention(
            sequences=self.training.micro_batch,
            queries=length / (1 if by_heads else context),
            keys=length,
            heads=model.num_attention_heads / tensor / (context if by_heads else 1),
            width=model.head_dim + values,
        )
        around = self._projections() if model.latent is None else self._latent(model.latent)
        return (
            around
            + self._core(core)
            + self._tensor_exchange(self._gathered())
            + self._context(core)
        )

    def _gathered(self) -> int:
        """Width of what attention gathers over tensor-parallel ranks before it."""
        latent = self.model.latent
        if latent is None or not latent.whole_compression:
            return self.model.hidden_size
        queries = self.model.hidden_size if latent.q_lora_rank is None else latent.q_lora_rank
        return queries + latent.kv_lora_rank + latent.qk_pos_emb_head_dim

    def _projections(self) -> Pass:
        model, tensor = self.model, self.layout.tensor
        key, query = model.key_size, model.query_size
        width = query * (1 + model.attention_output_gate) + 2 * key
        products = self._linear("products", model.hidden_size, width // tensor)
        products += self._linear("products", query // tensor, model.hidden_size)
        # Read and written for rotary positions, and for their norms; so often by the backward pass.
        times = 2 * (not model.learned_positions) + 2 * model.qk_layernorm
        moved = self.tokens * (query + key) / tensor * self.element
        return products + self._memory("pointwise", times * moved, times * 1.5 * moved)

    def _latent(self, latent: LatentAttention) -> Pass:
        """Compressed, made heads of, and projected back: as multi_latent_attention.py @ 0.19.2."""
        model, tensor = self.model, self.layout.tensor
        heads, hidden = model.num_attention_heads // tensor, model.hidden_size
        down, rows = 1 if latent.whole_compression else tensor, self.own_tokens
        keys = latent.kv_lora_rank + latent.qk_pos_emb_head_dim
        whole = self._linear("products", hidden, keys // down, rows)
        whole += self._linear("products", heads * latent.v_head_dim, hidden)
        queries, compressed = heads * model.head_dim, latent.q_lora_rank
        if compressed is None:
            whole += self._linear("products", hidden, queries)
        else:
            whole += self._linear("products", hidden, compressed // down, rows)
        whole += self._up(latent)
        norms = 2 * model.qk_layernorm * rows * ((compressed or 0) + keys) * self.element
        return whole + self._memory("pointwise", norms, 2 * norms)

    def _up(self, latent: LatentAttention) -> Pass:
        """Made heads of, and put together with their positions."""
        model, tensor = self.model, self.layout.tensor
        heads = model.num_attention_heads // tensor
        made = heads * (latent.qk_head_dim + latent.v_head_dim)
        queries = heads * model.head_dim
        whole = self._linear("products", latent.kv_lora_rank, made)
        if latent.q_lora_rank is not None:
            whole += self._linear("products", latent.q_lora_rank, queries)
        moved = self.tokens * 2 * queries * 2 * self.element
        return whole + self._memory("pointwise", 2 * moved, 3 * moved)

    def _core(self, core: Attention) -> Pass:
        machine = self.cluster.machine
        seconds = [attention_seconds(machine, core, backward=way) for way in (False, True)]
        return Pass(*({"attention": value} for value in seconds))

    def dense_ffn(self) -> Pass:
        """Of a layer without experts."""
        return self._ffn(self.model.ffn_hidden_size) + self._tensor_exchange()

    def _ffn(self, width: int) -> Pass:
        hidden, tensor = self.model.hidden_size, self.layout.tensor
        first = self._linear("products", hidden, (1 + self.model.gated) * width // tensor)
        second = self._linear("products", width // tensor, hidden)
        moved = self.tokens * width / tensor * self.element
        read = 1 + self.model.gated
        around = self._memory("pointwise", (read + 1) * moved, (2 * read + 1) * moved)
        return first + second + around

    def moe(self) -> Pass:
        """Router, dispatch, experts with their adjugates, combine, shared expert."""
        shared = self.model.shared_expert_size
        whole = self._router() + self.dispatch() + self._moved_rows() + self._experts()
        return whole + self._ffn(shared) + self._tensor_exchange() if shared else whole

    def _router(self) -> Pass:
        model = self.model
        columns = model.num_experts + model.local_experts
        rows = self.own_tokens * columns * _FP32 * _ROUTER_TIMES
        # Tokens in their own dtype and in fp32.
        read = self.own_tokens * model.hidden_size * (self.element + 2 * _FP32)
        return self._memory("router", rows + read, 2 * (rows + read))

    def _experts(self) -> Pass:
        model = self.model
        pairs = ffn_per_token(model)
        whole = self._grouped("experts", model.num_experts, model.moe_ffn_hidden_size, pairs)
        if model.num_groups:
            width = model.adjugate_ffn_hidden_size
            met = groups_per_token(model)
            whole += self._grouped("adjugates", model.num_groups, width, met)
        return whole

    def _grouped(self, part: str, experts: int, width: int, per_token: float) -> Pass:
        """Both products and the activation of a rank's experts."""
        model, ways = self.model, self.layout.expert_tensor
        own = experts // self.layout.expert
        rows = self.own_tokens * per_token * ways / own * self.imbalance
        hidden, inner = model.hidden_size, width // ways
        first = self._linear(part, hidden, (1 + model.gated) * inner, rows, own)
        second = self._linear(part, inner, hidden, rows, own)
        moved = own * rows * inner * self.element
        read = 1 + model.gated
        return first + second + self._memory(part, (read + 1) * moved, (2 * read + 1) * moved)

    def _moved_rows(self) -> Pass:
        """Rows put in order for their ranks and for the experts, and back."""
        model = self.model
        sent = remote_rows(model, self.layout, 1).total
        pairs = ffn_per_token(model) * self.layout.expert_tensor * self.imbalance
        # Read for the way out, written; read on arrival and written for every pair; and back.
        copies = 2 * ((1 + sent) + (sent + pairs))
        return self._memory("router", copies * self.hidden, copies * self.hidden)

    def dispatch(self) -> Pass:
        """The exchange of rows between expert-parallel ranks: two ways, forward and backward."""
        layout, model = self.layout, self.model
        row = model.hidden_size * self.element * self.own_tokens
        seconds = 0.0
        if layout.expert > 1:
            group = Group(size=layout.expert, stride=layout.expert_tensor)
            by_node = layout.hierarchical and not layout.fused
            inside = group.on_node(self.cluster) if by_node else group.inside(self.cluster)
            rows = remote_rows(model, layout, inside)
            how = fused if layout.fused else two_hops if by_node else all_to_all
            seconds = how(self.cluster, rows.near * row, rows.far * row, group)
            # What comes to the busiest rank, which all tokens at most come to.
            seconds *= min(self.imbalance, layout.expert / (rows.total or 1.0))
        if layout.expert_tensor > 1:
            # Every rank of them gets the rows of all, and gives back a sum.
            all_rows = remote_rows(model, layout, 1).total * row * layout.expert_tensor
            seconds += collective(
                self.cluster, "all_gather", all_rows, Group(size=layout.expert_tensor)
            )
        return Pass({"dispatch": 2 * seconds}, {"dispatch": 2 * seconds})

    def _between(self) -> Pass:
        """Both norms and both residual additions."""
        return self._memory("pointwise", 10 * self.hidden, 14 * self.hidden)

    def output(self) -> Pass:
        """The last norm, the logits and the loss of one prediction."""
        vocabulary = self.model.vocab_size // self.layout.tensor
        logits = self.tokens * vocabulary
        loss = self._memory("loss", 10 * logits, 10 * logits)
        return self._linear("products", self.model.hidden_size, vocabulary) + loss

    def _starts(self, is_moe: bool) -> Pass:
        """From the end of a kernel to the next one's start."""
        machine, graphed = self.cluster.machine, self.training.graphed
        ways = []
        for way in (0, 1):
            gaps = (
                _KERNELS[name][way] * (machine.graphed if name in graphed else machine.launch)
                for name in _OF_KIND[is_moe]
            )
            ways.append({"starts": sum(gaps)})
        return Pass(*ways)

    def _waiting(self, whole: Pass, is_moe: bool) -> Pass:
        """Where the host takes longer to start the kernels of a layer than they take."""
        names = [name for name in _OF_KIND[is_moe] if name not in self.training.graphed]
        ways = []
        for way, seconds in enumerate((whole.forward, whole.backward)):
            host = self.cluster.machine.host * sum(_KERNELS[name][way] for name in names)
            ways.append({"host": max(0.0, host - sum(seconds.values()))})
        return whole + Pass(*ways)

    def mtp_projection(self) -> Pass:
        """Of an MTP layer's two inputs, side by side, after a norm each."""
        hidden, tensor = self.model.hidden_size, self.layout.tensor
        norms = self._memory("pointwise", 4 * self.hidden, 6 * self.hidden)
        return self._linear("products", 2 * hidden, hidden // tensor) + norms

    # Exchanges of tensor and context parallelism.

    def _tensor_exchange(self, gathered: int | None = None) -> Pass:
        """Around one block: gathered before it, scattered after; gathered once more backward.

        Args:
            gathered: width of what is gathered; None for hidden states.
        """
        layout = self.layout
        if layout.tensor == 1 or self.training.overlapped_tensor:
            return nothing()
        size, group = self.hidden, Group(size=layout.tensor)
        if not layout.sequence_parallel:
            seconds = all_reduce(self.cluster, size, group)
            return Pass({"tensor": seconds}, {"tensor": seconds})
        size *= layout.tensor
        share = 1.0 if gathered is None else gathered / self.model.hidden_size
        gather = collective(self.cluster, "all_gather", size * share, group)
        scatter = collective(self.cluster, "reduce_scatter", size, group)
        back = collective(self.cluster, "reduce_scatter", size * share, group)
        ahead = collective(self.cluster, "all_gather", size, group)
        return Pass(
            {"tensor": gather + scatter},
            # The input is gathered again for the gradient of the weight.
            {"tensor": ahead + back + gather},
        )

    def _context(self, core: Attention) -> Pass:
        """Of context parallelism: a ring of keys and values, or heads in exchange for tokens."""
        layout, model = self.layout, self.model
        if layout.context == 1:
            return nothing()
        values = model.key_size
        if model.latent is not None:
            values = model.num_attention_heads * model.latent.v_head_dim
        both = (model.key_size + values) / layout.tensor * self.tokens * self.element
        group = Group(size=layout.context, stride=layout.tensor)
        if self.training.context_by_heads:
            # Queries, keys and values one way, what they give the other.
            query = model.query_size / layout.tensor * self.tokens * self.element
            size = 2 * query + both
            inside = group.inside(self.cluster)
            near = size * (inside - 1) / group.size
            far = size * (group.size - inside) / group.size
            seconds = all_to_all(self.cluster, near, far, group)
            return Pass({"context": seconds}, {"context": seconds})
        # Round the ranks beside the attention of those that are there, as fast as the slowest link.
        ring = (layout.context - 1) * to_the_next(self.cluster, both, group)
        machine = self.cluster.machine
        hidden = [attention_seconds(machine, core, backward=way) for way in (False, True)]
        return Pass(
            {"context": max(0.0, ring - hidden[0])}, {"context": max(0.0, 2 * ring - hidden[1])}
        )

    # What recomputation runs again.

    def _again(self, whole: Pass, ffn: Pass, is_moe: bool) -> Seconds:
        modules = self.training.recompute
        if not modules:
            return {}
        if "full" in modules:
            return {"recompute": sum(whole.forward.values())}
        again = 0.0
        if "mla_up_proj" in modules and self.model.latent is not None:
            again += sum(self._up(self.model.latent).forward.values())
        if "core_attn" in modules and not self.training.fused_attention:
            again += whole.forward["attention"]
        if "layernorm" in modules:
            again += 4 * self.hidden / self.cluster.machine.bandwidth
        if (is_moe and "moe" in modules) or (not is_moe and "mlp" in modules):
            again += sum(ffn.forward.values())
        if is_moe and "moe_act" in modules:
            rows = self.own_tokens * ffn_per_token(self.model) * self.element
            again += 3 * rows * self.model.moe_ffn_hidden_size / self.cluster.machine.bandwidth
        if is_moe and "shared_experts" in modules and self.model.shared_expert_size:
            again += sum(self._ffn(self.model.shared_expert_size).forward.values())
        return {"recompute": again}

    # Of one call.

    def _linear(
        self, part: str, inner: int, outer: int, rows: float | None = None, groups: int = 1
    ) -> Pass:
        product = Product(
            rows=self.tokens if rows is None else rows,
            inner=inner,
            outer=outer,
            groups=groups,
            element=self.element,
            gradient=self.training.precision.gradient,
        )
        precision = "fp8" if self.training.fp8 else "bf16"
        forward, backward = passes(self.cluster.machine, product, precision)
        whole = Pass({part: forward}, {part: backward})
        if not self.training.fp8:
            return whole
        # Inputs and their gradients are made smaller, once as they are and once transposed.
        moved = (self.element + 2) * product.rows * groups
        return whole + self._memory(part, moved * inner, moved * outer)

    def _memory(self, part: str, forward: float, backward: float) -> Pass:
        """What is bound by its bytes."""
        rate = self.cluster.machine.bandwidth
        return Pass({part: forward / rate}, {part: backward / rate})
