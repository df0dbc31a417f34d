"""What decides the cost of a job, beside its model: layout and training."""

from dataclasses import dataclass, field

from ..model.architecture import Model


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the ranks divide the model.

    Attributes:
        tensor, pipeline, context, expert, expert_tensor: parallel sizes.
        world: ranks.
        sequence_parallel: is what lies between the linear layers split over the tensor ranks?
        virtual: model chunks of a pipeline stage.
        chunk_microbatches: microbatches that a model chunk takes one after the other before the
            next chunk's turn (``--microbatch-group-size-per-virtual-pipeline-stage``); None for
            Megatron's default, ``pipeline``.
        first_layers, last_layers: decoder layers of the first and last stage, None for a share.
        count_embedding, count_loss: does the embedding (the loss) take the place of a layer?
        custom: Megatron's ``--pipeline-model-parallel-layout``, which overrules the four before.
            ``virtual`` is the number of its chunks over ``pipeline``.
        all_gather: does every token go to every expert-parallel rank, whatever it selected?
        row_per_expert: does a token go to a rank once for each of its experts there, as Megatron's
            all-to-all sends it?
        hierarchical: does it go to a node once, and is sent on from there?
        fused: by one kernel of DeepEP or HybridEP (``--moe-token-dispatcher-type flex``)?
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    world: int = 1
    sequence_parallel: bool = False
    virtual: int = 1
    chunk_microbatches: int | None = None
    first_layers: int | None = None
    last_layers: int | None = None
    count_embedding: bool = False
    count_loss: bool = False
    custom: str | None = None
    all_gather: bool = False
    row_per_expert: bool = False
    hierarchical: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        dense = self.tensor * self.pipeline * self.context
        expert = self.expert_tensor * self.expert * self.pipeline
        for name, size in (("tensor x pipeline x context", dense), ("expert ranks", expert)):
            if self.world % size:
                raise ValueError(
                    f"{name} parallel size ({size}) does not divide world size ({self.world}); "
                    "change the number of ranks or a parallel size"
                )

    @property
    def data(self) -> int:
        """Replicas of the dense part."""
        return self.world // (self.tensor * self.pipeline * self.context)

    @property
    def dense_copies(self) -> int:
        """Ranks that hold the same dense parameters, and share their optimizer state."""
        return self.data * self.context

    @property
    def expert_copies(self) -> int:
        """Ranks that hold the same experts."""
        return self.world // (self.expert_tensor * self.expert * self.pipeline)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of what is kept for every parameter.

    Attributes:
        weight: of the model's own, and of activations.
        gradient: of the buffer that gradients are accumulated and reduced in.
        main_weight: of the optimizer's copy, 0 where it works on the model's own.
        moments: of the optimizer's other state.
    """

    weight: int = 2
    gradient: int = 4
    main_weight: int = 4
    moments: int = 8


@dataclass(frozen=True, kw_only=True)
class Training:
    """What else decides memory and work.

    Attributes:
        sequence_length, micro_batch, microbatches: tokens, samples of a forward pass, passes of an
            iteration.
        distributed_optimizer: is the optimizer's state divided over ranks with the same weights?
        optimizer_instances: parts of the data-parallel ranks that each hold all of that state.
        precision: see :class:`Precision`.
        fused_attention: does attention keep no matrix of all pairs of tokens?
        grouped_experts: are experts and adjugates computed in one pass on the same rows?
        recompute: modules of a layer that the backward pass computes again: those of
            ``--recompute-modules``, or "full" for the whole layer.
        recompute_layers: with "full", how many layers of every model chunk, MTP layers not among
            them; None for all.
        recompute_unit: with "full", layers that are computed again together.
        fused_activation: does an FFN's activation keep its input alone?
        fused_weight_gradients: are gradients of weights added up where they are computed?
        fused_norms: does a norm keep its input alone, and not what it computes in fp32?
        fused_dropout: does dropout keep a byte for a number, and not a factor?
        local: are layers made of operators of torch (``--transformer-impl local``)?
        dropout, attention_dropout: is there any on hidden states, on attention's scores?
        overlapped_experts: does a forward pass run beside a backward pass of another microbatch
            (``--overlap-moe-expert-parallel-comm``)?
        overlapped_gradients, overlapped_parameters: are gradients reduced beside the backward pass,
            parameters gathered beside the forward pass?
        overlapped_tensor: is the exchange of tensor parallelism hidden behind the products?
        overlapped_pipeline: is the exchange between pipeline stages hidden, with virtual stages?
        graphed: what CUDA graphs cover of a layer: ``attn``, ``mlp``, ``moe``, ``moe_router``,
            ``moe_preprocess``.
        context_by_heads: does context parallelism divide attention by heads (``--cp-comm-type
            a2a``), and not by tokens?
        fp8: are products of linear layers in 8 bits?
        train_only: names of weights, as :func:`.subsets.selected` has them, beside which all
            are frozen; empty where none is.
        imbalance: pairs of a row and an expert on this rank, over the mean of all ranks.
        expert_imbalance: rows of the fullest expert of a rank, over the mean of its experts.
        capacity_factor: experts take so many times the tokens they get on average
            (``--moe-expert-capacity-factor``); None for all that come.
        padded_to_capacity: are they given that many, whatever was selected
            (``--moe-pad-expert-input-to-capacity``)?
    """

    sequence_length: int
    micro_batch: int = 1
    microbatches: int = 1
    distributed_optimizer: bool = False
    optimizer_instances: int = 1
    precision: Precision = field(default_factory=Precision)
    fused_attention: bool = True
    grouped_experts: bool = False
    recompute: frozenset[str] = frozenset()
    recompute_layers: int | None = None
    recompute_unit: int = 1
    fused_activation: bool = True
    fused_weight_gradients: bool = True
    fused_norms: bool = True
    fused_dropout: bool = True
    local: bool = False
    dropout: bool = False
    attention_dropout: bool = False
    overlapped_experts: bool = False
    overlapped_gradients: bool = False
    overlapped_parameters: bool = False
    overlapped_tensor: bool = False
    overlapped_pipeline: bool = False
    graphed: frozenset[str] = frozenset()
    context_by_heads: bool = False
    fp8: bool = False
    train_only: tuple[str, ...] = ()
    imbalance: float = 1.0
    expert_imbalance: float = 1.0
    capacity_factor: float | None = None
    padded_to_capacity: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} ({value}) is not above 0; give a positive number"
            for name, value in (
                ("imbalance", self.imbalance),
                ("capacity_factor", self.capacity_factor),
            )
            if value is not None and not 0 < value < float("inf")
        ]
        if not 1 <= self.expert_imbalance < float("inf"):
            problems.append(
                f"expert_imbalance ({self.expert_imbalance}) is below 1; the fullest of all "
                "experts has the mean at least"
            )
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A job."""

    model: Model
    layout: Layout
    training: Training
