"""What a part of a router is: one row, from which everything that knows parts is made.

A router is a composition of parts, each in a slot:

    gate      makes the logits of a token; one, or Megatron's matrix
    logits    changes the logits before anything reads them; any number, in ``order``
    selector  selects and weighs by a rule of its own, in place of the next four; one, or none
    scoring   what experts are selected by, and what they are weighed by; one
    select    what may be selected from; one, or everything
    weigh     changes the weights of the selected; one, or nothing
    keep      which of the selected experts a token goes to; one, or all
    drop      what experts with too many tokens give up; one, or nothing
    counts    which pairs losses count as load; one
    loss      an auxiliary loss; any number
    coefficient  how the weight of the balance loss moves after a global batch; one, or not
    update    how the expert bias moves after a global batch; one
    schedule  how the rate of that decays; one
    local     experts beside the routed ones, computed where the token is; any kinds, in ``order``

Shape suffixes, here and in every part: T tokens, E experts a token can select (the router's
columns: the routed ones, then the local ones), K experts per token, H hidden, G groups with an
adjugate each, D groups of devices, L layers, C local experts of one kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from ..checks.problem import Problem

Carried = Literal["ids", "reward", "logits"]
"""What travels beside the hidden states from layer to layer, see moe/carried.py."""

Slot = Literal[
    "gate",
    "logits",
    "selector",
    "scoring",
    "select",
    "weigh",
    "keep",
    "drop",
    "counts",
    "loss",
    "coefficient",
    "update",
    "schedule",
    "local",
]


class Draws:
    """Random numbers of a forward pass, from the generator that recomputation restores."""

    def uniform(self, like: Tensor) -> Tensor:
        """From [0, 1), in the shape of ``like``."""
        return torch.rand_like(like)

    def normal(self, like: Tensor) -> Tensor:
        """Of mean 0 and standard deviation 1."""
        return torch.randn_like(like)


def widened(tensor: Tensor) -> Tensor:
    """In fp32, or wider if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a part may look at of one forward pass, beside the logits.

    Args:
        x_TH: input of the router; None where logits alone are routed.
        ids_T: int64, token ids, for a part that needs them; or None.
        previous_TE: logits that the MoE layer before handed on; None in the first.
        padding_T: bool, True where padding; or None.
        batch_size: sequences; token t is of sequence t % batch_size.
        training: of the module.
        learns: training, with gradients: not in the first pass of what recompute runs again.
        draws: random numbers.
        everywhere: sum over the ranks that share the batch; its gradient is that of the sum.
        gather: rows of all those ranks, one after the other, no gradient comes back; of [T, X] it
            makes the tokens of whole sequences, t of sequence t % batch_size.
        ranks: how many share it.
        rank: which of them this is.
    """

    x_TH: Tensor | None = None
    ids_T: Tensor | None = None
    previous_TE: Tensor | None = None
    padding_T: Tensor | None = None
    batch_size: int = 1
    training: bool = False
    learns: bool = False
    draws: Draws = field(default_factory=Draws)
    everywhere: Callable[[Tensor], Tensor] = _alone
    gather: Callable[[Tensor], Tensor] = _alone
    ranks: int = 1
    rank: int = 0

    def without_padding(self, rows_TX: Tensor) -> Tensor:
        """Rows of padding become 0 or False."""
        if self.padding_T is None:
            return rows_TX
        valid_T1 = ~self.padding_T.unsqueeze(-1)
        return rows_TX & valid_T1 if rows_TX.dtype == torch.bool else rows_TX * valid_T1

    def together(self, rows_TX: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of all ranks that share the batch, and their padding."""
        padding_T = None if self.padding_T is None else self.gather(self.padding_T)
        return self.gather(rows_TX), padding_T

    def own(self, rows_TX: Tensor) -> Tensor:
        """This rank's rows of those of all."""
        return rows_TX.chunk(self.ranks)[self.rank]

    def tokens(self, like_TX: Tensor) -> Tensor:
        """Tokens of this rank without padding, int64 [1]."""
        tokens_1 = torch.full((1,), like_TX.shape[0], dtype=torch.int64, device=like_TX.device)
        return tokens_1 if self.padding_T is None else tokens_1 - self.padding_T.sum()


@dataclass(frozen=True, kw_only=True)
class Logits:
    """The logits on their way through the transforms.

    Args:
        z_TE: what everything after reads.
        raw_TE: before they were normalised; None if they were not.
        clean_TE: before noise was added; None without.
        deviation_TE: standard deviation of that noise; None without.
    """

    z_TE: Tensor
    raw_TE: Tensor | None = None
    clean_TE: Tensor | None = None
    deviation_TE: Tensor | None = None

    @property
    def before(self) -> Tensor:
        """Neither normalised nor noisy: those whose size the z-loss keeps small."""
        if self.raw_TE is not None:
            return self.raw_TE
        return self.z_TE if self.clean_TE is None else self.clean_TE


@dataclass(frozen=True, kw_only=True)
class Routed:
    """Where tokens go.

    Args:
        index_TK: int64, the selected experts, best first; None where tokens have different numbers
            of them.
        selected_TE: the same as a map.
        probs_TE: combine weights, 0 where a token does not go.
        map_TE: bool, where it goes: ``selected_TE`` without what it was kept or dropped from.
    """

    index_TK: Tensor | None
    selected_TE: Tensor
    probs_TE: Tensor
    map_TE: Tensor

    @property
    def choices_TK(self) -> Tensor:
        """``index_TK``, for what is of choices in an order."""
        assert self.index_TK is not None, "as many choices of every token"
        return self.index_TK

    def only(self, kept_TE: Tensor) -> Self:
        """Without the other pairs; the weights of the rest stay as they are."""
        return replace(self, probs_TE=self.probs_TE * kept_TE, map_TE=self.map_TE & kept_TE)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What a loss is made of; rows of padding are 0.

    Args:
        seen: as above.
        logits: as above, padding included.
        routed: before capacity drops any; padding included.
        sent: after.
        distribution_TE: the scoring's probabilities, rows sum to 1.
        counted_TE: bool, the pairs that ``--grove-aux-loss-counts`` counts.
        per_token: how many these are of a token.
    """

    seen: Seen
    logits: Logits
    routed: Routed
    sent: Routed
    distribution_TE: Tensor
    counted_TE: Tensor
    per_token: int

    def totals(self, load_X: Tensor) -> tuple[Tensor, Tensor]:
        """A load of this rank and its tokens, summed over the ranks that share the batch.

        Args:
            load_X: int64 [X], of experts, groups or devices.

        Returns:
            The load [X] and the tokens without padding, 1 or more, in one collective; in the width
            of the probabilities, because a quotient of integers would be fp32.
        """
        tokens_1 = self.seen.tokens(self.counted_TE)
        everywhere = self.seen.everywhere(torch.cat([load_X, tokens_1]))
        everywhere = everywhere.to(self.distribution_TE.dtype)
        return everywhere[:-1], everywhere[-1].clamp(min=1)

    def whole(self, loss: Tensor) -> Tensor:
        """This rank's part of a loss that every rank has computed whole from summed statistics.

        Parts add up to the loss; the gradient is that of the whole, of which each rank's tokens
        are a part.
        """
        return loss - loss.detach() * (1 - 1 / self.seen.ranks)


class Gate(Protocol):
    """Slot ``gate``, an nn.Module."""

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits [..., E] of tokens [..., H], computed in ``dtype``."""


class Transform(Protocol):
    """Slot ``logits``; an nn.Module if it has weights."""

    def __call__(self, logits: Logits, seen: Seen) -> Logits: ...


class Selector(Protocol):
    """Slot ``selector``; an nn.Module if it has weights or buffers.

    ``reads_logits``: does it? Otherwise the router has no matrix, and its logits are 0.
    """

    reads_logits: bool

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        """Int64 [T, K], different experts of every token, or a bool map [T, E]; no gradient comes
        back. What padding selects is thrown away, and changes nothing for others."""

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor | None:
        """Weights [T, K] of what :meth:`choose` gave as indices, or [T, E]; with gradient. None:
        as the scoring does."""


class Scoring(Protocol):
    """Slot ``scoring``."""

    def select(self, z_TE: Tensor, bias_E: Tensor | None) -> Tensor:
        """[T, E], of which the largest are selected; no gradient comes back."""

    def weigh(self, z_TE: Tensor, index_TK: Tensor) -> Tensor:
        """[T, K] combine weights, with gradient."""

    def distribution(self, z_TE: Tensor) -> Tensor:
        """[T, E] in fp32 or wider, rows sum to 1: what losses balance; with gradient."""


class Select(Protocol):
    """Slot ``select``: what may be selected from."""

    def __call__(self, scores_TE: Tensor) -> Tensor:
        """The scores, -inf where an expert may not be selected."""


class Weigh(Protocol):
    """Slot ``weigh``."""

    def __call__(self, weights_TK: Tensor, index_TK: Tensor, columns: int) -> Tensor:
        """Weights [T, K] in their place.

        Args:
            index_TK: the selected.
            columns: E.
        """


class Keep(Protocol):
    """Slot ``keep``."""

    def __call__(self, weights_TK: Tensor, seen: Seen) -> Tensor | None:
        """Bool [T, K], or None for all."""


class Drop(Protocol):
    """Slot ``drop``."""

    def __call__(self, routed: Routed, seen: Seen) -> Routed: ...


class Loss(Protocol):
    """Slot ``loss``."""

    name: str
    coefficient: float

    def __call__(self, balance: Balance) -> Tensor:
        """This rank's part, coefficient included; the parts of all ranks add up to the loss."""


class Counts(Protocol):
    """Slot ``counts``."""

    per_token: int

    def __call__(self, distribution_TE: Tensor, routed: Routed) -> Tensor:
        """Bool [T, E], padding included."""


class Coefficient(Protocol):
    """Slot ``coefficient``, an nn.Module with what it knows as buffers."""

    value: float
    pairs: Tensor

    def see(self, routed: Routed, sent: Routed, seen: Seen) -> None:
        """Add a microbatch of training to ``pairs``, [2] int64: dropped, and all."""

    def step(self, pairs: Tensor) -> None:
        """Move ``value`` by those of a global batch, and begin ``pairs`` anew."""


class Update(Protocol):
    """Slot ``update``; None where Megatron's own rule, by sign, is it."""

    def __call__(self, counts_LE: Tensor, rate: float) -> Tensor:
        """Fp64 [L, E], what is added to the biases of L layers.

        Args:
            counts_LE: int64, tokens that selected each expert in the whole global batch.
            rate: 0 or more.
        """


class Schedule(Protocol):
    """Slot ``schedule``."""

    def __call__(self, gone: float) -> float:
        """How much of the decay is left, 1 to 0, after this part (0 to 1) of its iterations."""


class Local(Protocol):
    """Slot ``local``; an nn.Module if it has weights."""

    count: int

    def __call__(self, x_TH: Tensor, weights_TC: Tensor) -> Tensor | None:
        """Their outputs times their weights (0 where not selected), summed: [T, H] in the dtype of
        x; None where there is nothing to add."""


def _nothing(_: Any) -> list[Problem]:
    return []


def _none(_: Any) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A row.

    Args:
        slot: where it goes.
        name: a choice of the slot's flag, and how pages call it.
        help: one clause, of what it does.
        source: paper and equation, and whose code was compared with.
        is_on: do these settings (a configuration or an argument namespace) ask for it?
        build: its step, see the protocol of the slot, from a configuration; a module of weights
            where it has any.
        reference: the same step in a few slow lines, from the same configuration and, where there
            are weights, these by name.
        settings: dataclass of its flags, each with a docstring; None: it has none of its own. A
            flag is spelled as its field, ``grove_*``.
        reads: such dataclasses of other parts whose flags it reads too.
        switch: the one of these that turns it on; the others are refused without it.
        rules: what is wrong with the settings if it is on.
        needs_groups: does it mean nothing without groups, which have an adjugate each?
        free: fields that may change from one run of a checkpoint to the next.
        draws: does it draw random numbers in training? By Megatron's default generator: the ranks
            of a pipeline stage draw the same.
        tried: flags that ask for it, for tests.
        formula: what it computes, in plain letters with the suffixes above, a line or a few.
        when: one or two sentences: who would choose it, and its price.
        order: of several in a slot, the lower first.
        needs: what it reads that a layer does not get from Megatron.
        sees: other tokens of the batch, on which the choice of a token depends: in ``training``,
            ``always``, or ``nothing``.
        crowds: do tokens take places of an expert from one another, in training and evaluation?
        any_number: may a token get more experts than ``--moe-router-topk``?
        columns: how many columns of the router are its own.
        weights: names of its weights, with their dims as letters of a model's sizes (``R`` columns
            of the router, ``H``); in a checkpoint they are below ``mlp.router.<slot>_<name>``.
        buffers: the same of what no gradient belongs to.
    """

    slot: Slot
    name: str
    help: str
    source: str
    is_on: Callable[[Any], bool]
    build: Callable[[Any], Any]
    reference: Callable[..., Any]
    settings: type | None = None
    reads: tuple[type, ...] = ()
    switch: str | None = None
    rules: Callable[[Any], list[Problem]] = _nothing
    needs_groups: bool = False
    free: tuple[str, ...] = ()
    draws: bool = False
    tried: str = ""
    formula: str = ""
    when: str = ""
    order: int = 0
    needs: frozenset[Carried] = frozenset()
    sees: Literal["nothing", "training", "always"] = "nothing"
    crowds: bool = False
    any_number: bool = False
    columns: Callable[[Any], int] = _none
    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buffers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def experts_of(settings: Any) -> int | None:
    """Routed experts: a configuration and Megatron's namespace name them differently."""
    found: int | None = getattr(settings, "num_moe_experts", getattr(settings, "num_experts", None))
    return found
