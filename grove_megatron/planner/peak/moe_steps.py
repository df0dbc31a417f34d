"""Operations of a layer's experts: router, dispatch, experts and adjugates. See :mod:`.steps`.

Ours, :mod:`grove_megatron.moe`, and Megatron's moe_layer.py, token_dispatcher.py, experts.py @
0.19.2. Names of sizes as in :class:`.rank_sizes.RankSizes`.
"""

from collections.abc import Set

from .layer_steps import ffn, norm, residual
from .rank_sizes import RankSizes
from .steps import Step, recomputed

# Elements of an FFN's first product that torch's gradient of SwiGLU takes at a time on a CPU.
_CHUNK = 1 << 17
_INDEX = 8


def moe(rank: RankSizes, trained: Set[str]) -> list[Step]:
    """The second norm, router, shared experts, and all that the routed experts are.

    Args:
        trained: see :func:`.trained_parts.trained_parts`.
    """
    recompute = rank.training.recompute
    again = rank.hidden if "layernorm" in recompute else 0.0
    own = rank.hidden + again
    shared = _shared(rank, trained, own)
    routed = [
        router(rank, own),
        dispatch(rank, own),
        *experts(rank, trained, own),
        combine(rank, own),
    ]
    if "moe" not in recompute:
        if shared and "shared_experts" in recompute:
            shared = recomputed("other", shared, kept_input=0.0, held=rank.hidden)
        return [norm(rank, next_keeps=not again), *shared, *routed, residual(rank)]
    steps = recomputed(
        "other",
        [*shared, *routed],
        kept_input=0.0 if again else rank.hidden,
        held=rank.hidden,
        records=records(rank),
    )
    return [norm(rank, next_keeps=False), *steps, residual(rank)]


def _shared(rank: RankSizes, trained: Set[str], own: float) -> list[Step]:
    if not rank.model.shared_expert_size:
        return []
    gathered = rank.wide_hidden if rank.layout.sequence_parallel else 0.0
    # Its input is the norm's output, which the router keeps.
    return ffn(
        rank,
        "other",
        rank.tokens,
        rank.model.shared_expert_size / rank.layout.tensor,
        own=own + gathered,
        trained=(
            "mlp.shared_experts.linear_fc1" in trained,
            "mlp.shared_experts.linear_fc2" in trained,
        ),
        keeps_input=False,
    )


def router(rank: RankSizes, own: float) -> Step:
    """Logits and the scores for the balance loss, in fp32; what was selected, and its weights."""
    model = rank.model
    columns = rank.own_tokens * (model.num_experts + model.local_experts)
    selected = rank.own_tokens * model.topk
    bytes_kept = columns * 8 + selected * (_INDEX + 4)
    if model.local_experts or rank.layout.row_per_expert:
        # The weights, over all columns.
        bytes_kept += columns * 4
    if model.constant_experts:
        # Of a constant expert's two weights: before and after the softmax.
        bytes_kept += rank.own_tokens * (model.constant_experts * 16 + 8)
    return Step("router", bytes_kept, own + rank.hidden + columns * 12)


def dispatch(rank: RankSizes, own: float) -> Step:
    """Rows that go to the ranks with their experts: where they go, and their gradients' way back.

    The rows themselves are free when the experts have their copies.
    """
    element = rank.element * rank.model.hidden_size
    live = own + (rank.rows + rank.sent_rows) * element
    return Step("dispatcher", records(rank), live)


def records(rank: RankSizes) -> float:
    """Positions and counts, 64-bit integers, and weights of pairs, in fp32."""
    layout, model = rank.layout, rank.model
    if layout.row_per_expert:
        if rank.training.padded_to_capacity:
            # Which token, and where in the map of all, every place of an expert has.
            return rank.sent_pairs * (2 * _INDEX + 4)
        # A sort of the whole map, and positions and weights of what was selected.
        whole = rank.own_tokens * model.num_experts * _INDEX
        return whole + rank.sent_pairs * (_INDEX + 4)
    # Row, place among its row's, and place in the map, of every pair; where every row begins.
    pairs = rank.pairs * (3 * _INDEX + 4) + rank.rows * _INDEX
    if layout.all_gather:
        return pairs + rank.rows * rank.local_experts
    if layout.expert == 1:
        return pairs + rank.rows * model.num_experts
    # Where a pair is from and where it goes, of its row likewise, and where it arrives.
    sent = rank.sent_pairs * 2 * _INDEX + rank.sent_rows * 2 * _INDEX
    return pairs + sent + (rank.own_tokens + rank.pairs) * _INDEX


def combine(rank: RankSizes, own: float) -> Step:
    """Rows that come back; nothing is kept, but their gradients are sent like rows."""
    element = rank.element * rank.model.hidden_size
    return Step("dispatcher", 0.0, own + (rank.rows + rank.sent_rows) * element)


def adjugate_records(rank: RankSizes) -> float:
    """Positions and weights of the adjugates' pairs, and which experts' columns were selected."""
    return rank.group_pairs * (2 * _INDEX + 4) + rank.rows * rank.local_experts


def experts(rank: RankSizes, trained: Set[str], own: float) -> list[Step]:
    """From the received rows to the rows to send back, adjugates included."""
    model, layout = rank.model, rank.layout
    row = model.hidden_size * rank.element
    width = model.moe_ffn_hidden_size / layout.expert_tensor
    narrow = model.adjugate_ffn_hidden_size / layout.expert_tensor
    if rank.training.grouped_experts:
        return _one_pass(rank, own, width, narrow)
    adjugates = rank.group_pairs if model.num_groups else 0.0
    copies = rank.pairs + adjugates
    positions = 0.0
    if adjugates:
        # Of the rows of both once more.
        positions = adjugate_records(rank) + (copies * 2 + rank.rows) * _INDEX
    expand = Step("experts", positions, own + (copies * 2 + rank.rows) * row)
    steps = [expand]
    gradients = own + copies * row
    steps += _modules(
        rank, rank.pairs, rank.largest, rank.local_experts, width, gradients,
        ("mlp.experts.linear_fc1" in trained, "mlp.experts.linear_fc2" in trained),
    )  # fmt: skip
    if adjugates:
        steps += _modules(
            rank, adjugates, adjugates / rank.local_groups, rank.local_groups, narrow, gradients,
            (
                "mlp.adjugate_experts.linear_fc1" in trained,
                "mlp.adjugate_experts.linear_fc2" in trained,
            ),
        )  # fmt: skip
    steps.append(Step("experts", 0.0, own + (copies + rank.rows) * row))
    return steps


def _modules(
    rank: RankSizes,
    rows: float,
    largest: float,
    count: float,
    width: float,
    own: float,
    trained: tuple[bool, bool],
) -> list[Step]:
    """Experts as modules: in one product with TransformerEngine, otherwise one after the other."""
    if not rank.training.local or count <= 1:
        return ffn(
            rank, "experts", rows, width, own=own, trained=trained, matrices=count, weighted=True
        )
    steps = ffn(rank, "experts", rows - largest, width, own=0.0, trained=trained, weighted=True)
    before = Step("experts", sum(step.kept for step in steps), own)
    # The gradient of their rows grows beside, expert by expert.
    last = ffn(rank, "experts", largest, width, own=own, trained=trained, weighted=True)
    return [before, *last]


def _one_pass(rank: RankSizes, own: float, width: float, narrow: float) -> list[Step]:
    """``moe.compute.one_pass``: what it keeps does not ask what is trained."""
    model, element = rank.model, rank.element
    groups = rank.local_groups if model.num_groups else 0.0
    hidden, rows = (n * model.hidden_size * element for n in (rank.pairs, rank.rows))
    inner = rank.pairs * width * element
    owners = rank.group_pairs * narrow * element
    both = inner + owners
    # Of all experts at once, added up later.
    matrices = (rank.local_experts * width + groups * narrow) * model.hidden_size * element
    positions = adjugate_records(rank) if groups else 0.0
    steps = [
        Step("experts", positions, own + hidden + rows),
        Step("experts", hidden, own + 2 * both + 2 * matrices + hidden),
        Step("experts", 2 * inner, own + 3 * inner + 2 * owners + _swiglu(rank, rank.pairs, width)),
    ]
    if groups:
        temporaries = _swiglu(rank, rank.group_pairs, narrow)
        steps.append(Step("experts", 2 * owners, own + both + 2 * owners + temporaries))
    return [
        *steps,
        Step("experts", both, own + hidden + both + matrices),
        Step("experts", 0.0, own + hidden + rows),
    ]


def _swiglu(rank: RankSizes, rows: float, width: float) -> float:
    """Temporaries of torch's gradient, in fp32: of a chunk, as it works on a CPU."""
    if rank.training.fused_activation or not width:
        return 0.0
    rows = min(rows, max(1.0, _CHUNK // (2 * width)))
    # Two products; in 16 bits also both halves, the gradient that came, and that of the gate.
    return rows * width * 4 * (2 if rank.element == 4 else 6)
