"""The models that ``compare.py`` trains: their experts, their flags, and that they are alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain_text import MODEL, SEQUENCE_LENGTH, VOCABULARY

from grove_megatron.model.architecture import Model
from grove_megatron.model.parameters import active_parameters, total_parameters
from grove_megatron.planner.traffic import groups_per_token

COUNTS = "counts.json"
"""Beside the text: how often each byte is in what is trained on, for ``--grove-hash-counts``."""


@dataclass(frozen=True)
class Arm:
    """One model: its experts, and the flags of its routing and balance.

    Attributes:
        flags: ``DATA`` in one of them is the folder of the text.
        layers: of the model, all with experts.
        parts: of the router that it is about, ``<slot>-<name>`` each.
        note: what has to be known of its figures.
    """

    name: str
    width: int
    flags: str
    groups: int = 0
    adjugate_width: int = 0
    local: int = 0
    tau: float = 1.0
    experts: int = 16
    topk: int = 4
    layers: int = 4
    parts: tuple[str, ...] = ()
    note: str = ""

    @property
    def folder(self) -> str:
        """Its name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9+]+", "-", self.name)

    def words(self, data: Path) -> list[str]:
        """Its part of the command line."""
        size = f"--num-experts {self.experts} --moe-router-topk {self.topk}"
        size += f" --moe-ffn-hidden-size {self.width}"
        words = f"{size} {self.flags}".split()
        return [word.replace("DATA", str(data)) for word in words]

    def model(self) -> Model:
        """Its sizes, to count parameters and operations; without what parts of a router have."""
        sizes = _sizes(MODEL)
        heads = sizes["num-attention-heads"]
        return Model(
            hidden_size=sizes["hidden-size"],
            num_attention_heads=heads,
            num_query_groups=heads,
            head_dim=sizes["hidden-size"] // heads,
            vocab_size=VOCABULARY,
            moe_layers=(True,) * self.layers,
            num_experts=self.experts,
            moe_ffn_hidden_size=self.width,
            topk=self.topk,
            local_experts=self.local,
            local_tau=self.tau,
            num_groups=self.groups,
            adjugate_ffn_hidden_size=self.adjugate_width,
        )


def _sizes(flags: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"--([a-z-]+) (\d+)\b", flags)}


@dataclass(frozen=True)
class Comparison:
    """Models, and what each of them is trained on.

    Attributes:
        arms: the first is what the others are compared with.
        iterations: of each, of ``batch`` sequences.
        evaluations: of each, evenly spaced, and one more at the end; 0: that alone.
        held_out: files of which every evaluation reads all.
    """

    arms: tuple[Arm, ...]
    iterations: int
    seeds: tuple[int, ...] = (1, 2, 3)
    batch: int = 8
    evaluations: int = 4
    held_out: int = 6

    @property
    def tokens(self) -> int:
        """Of a training step."""
        return self.batch * SEQUENCE_LENGTH


_BALANCED = "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2"
_FREE = "--moe-router-load-balancing-type none"

# --------------------------------------------------------------------------- MoE++ and groups

_GROUPS = {"groups": 8, "adjugate_width": 18}
_GROVE = "--grove-num-groups 8 --grove-adjugate-ffn-hidden-size 18"
_MOEPP = """
    --grove-zero-experts 1 --grove-copy-experts 1 --grove-constant-experts 2
    --grove-gating-residual --grove-heterogeneous-loss-coeff 0.05 --grove-local-tau 0.75
    --moe-router-load-balancing-type none
"""
_LOCAL = {"local": 4, "tau": 0.75}

_MOEPP_ARMS = (
    Arm("plain", 96, f"--grove-dispatch {_BALANCED}"),
    Arm("Grove", 80, f"{_GROVE} {_BALANCED}", **_GROUPS),
    Arm("MoE++", 128, f"--grove-dispatch {_MOEPP}", **_LOCAL),
    Arm("Grove x MoE++", 111, f"{_GROVE} {_MOEPP}", **_GROUPS, **_LOCAL),
)

# --------------------------------------------------------------------------- routers

LAYERS, WIDTH, ADJUGATE = 2, 96, 16


def _two(name: str, flags: str, *parts: str, note: str = "") -> Arm:
    """16 experts, two a token."""
    words = f"--num-layers {LAYERS} --grove-dispatch {flags}"
    return Arm(name, WIDTH, words, topk=2, layers=LAYERS, parts=parts, note=note)


def _one(name: str, flags: str, *parts: str) -> Arm:
    """8 experts twice as wide, one a token: as many parameters, and as many active ones."""
    words = f"--num-layers {LAYERS} --grove-dispatch {flags}"
    return Arm(name, 2 * WIDTH, words, experts=8, topk=1, layers=LAYERS, parts=parts)


def _grouped(name: str, flags: str, *parts: str) -> Arm:
    """16 experts in 8 groups, narrower by what a token's adjugates take."""
    words = f"--num-layers {LAYERS} --grove-num-groups 8 "
    words += f"--grove-adjugate-ffn-hidden-size {ADJUGATE} {flags}"
    sizes = {"groups": 8, "adjugate_width": ADJUGATE, "topk": 2, "layers": LAYERS}
    return Arm(name, WIDTH - ADJUGATE, words, parts=parts, note=_FEWER, **sizes)


_SEES = (
    "its losses are too low: which experts a token gets depends on the tokens after it, in "
    "validation too; not comparable"
)
_FEWER = "as many active parameters, but fewer in total: experts are narrower by their adjugates"
_SELECTOR = f"{_FREE} --moe-aux-loss-coeff 0 --grove-router-selector"

_ROUTER_ARMS = (
    _two("plain", _BALANCED, "selector-topk", "scoring-softmax"),
    _two("plain, no balance", _FREE, "selector-topk"),
    _two(
        "expert bias",
        f"{_FREE} --moe-router-score-function sigmoid --moe-router-enable-expert-bias "
        "--moe-router-bias-update-rate 1e-2 --grove-bias-update-rule sign",
        "update-sign",
    ),
    _two("quantile balancing", "--moe-router-load-balancing-type quantile_balancing"),
    _two(
        "adaptive loss",
        # So few iterations are no time for the paper's decay, and its limit is plain's weight.
        f"{_BALANCED} --grove-adaptive-aux-loss --grove-adaptive-decay 0.9 "
        "--grove-adaptive-slope 1 --grove-adaptive-max 0.1",
        "coefficient-adaptive",
    ),
    _two("attention gate", f"{_FREE} --grove-router-gate attention", "gate-attention"),
    _two("two-layer gate", f"{_BALANCED} --grove-router-gate two_layer", "gate-two_layer"),
    _two(
        "noisy top-k",
        f"{_FREE} --grove-noisy-topk --grove-importance-loss-coeff 0.1 --grove-load-loss-coeff 0.1",
        *("logits-noise", "loss-importance", "loss-load"),
    ),
    _two("logit norm", f"{_BALANCED} --grove-logit-norm population", "logits-norm"),
    _two("Sinkhorn", f"{_SELECTOR} sinkhorn", "selector-sinkhorn"),
    _two(
        "expert choice",
        f"{_SELECTOR} expert_choice --grove-expert-choice-sees-future",
        "selector-expert_choice",
        note=_SEES,
    ),
    _two("REINFORCE", f"{_BALANCED} --grove-router-selector reinforce", "selector-reinforce"),
    _one("top-1", f"{_BALANCED} --moe-router-pre-softmax", "selector-topk"),
    _one(
        "Switch",
        f"{_BALANCED} --moe-router-pre-softmax --moe-expert-capacity-factor 1.25 "
        "--moe-token-drop-policy position --grove-capacity-scope sequence",
        "drop-sequence",
    ),
    _one("BASE", f"{_SELECTOR} base", "selector-base"),
    _one("hash, random", f"{_SELECTOR} hash", "selector-hash"),
    _one(
        "hash, balanced",
        f"{_SELECTOR} hash --grove-hash-table balanced --grove-hash-counts DATA/{COUNTS}",
        "selector-hash",
    ),
    _grouped("Grove", _BALANCED, "scoring-grove"),
    _grouped("Grove, Sinkhorn", f"{_SELECTOR} sinkhorn", "selector-sinkhorn"),
)

COMPARISONS = {
    "moepp": Comparison(_MOEPP_ARMS, iterations=180),
    "routers": Comparison(_ROUTER_ARMS, iterations=120, evaluations=0),
}


def refuse_unlike(arms: Sequence[Arm]) -> None:
    """Routers are compared where all else is the same.

    Raises:
        ValueError: an arm whose experts have more or fewer parameters than those of the first, in
            total or of a token; one with groups of which a token uses others by more than 0.5 %.
    """
    total, active = _counted(arms[0])
    for arm in arms[1:]:
        own_total, own_active = _counted(arm)
        alike = own_total == total and own_active == active
        if arm.groups:
            alike = abs(own_active - active) < 0.005 * active
        if not alike:
            raise ValueError(
                f"{arm.name} has {own_total:,} parameters, of which a token uses "
                f"{own_active:,.0f}; {arms[0].name} has {total:,} and {active:,.0f}"
            )


def _counted(arm: Arm) -> tuple[int, float]:
    """Parameters in total and of a token, without the matrices of routers."""
    model = arm.model()
    router = arm.layers * model.hidden_size * (arm.experts + arm.local)
    met = groups_per_token(model) if arm.groups else 0
    return total_parameters(model).total - router, active_parameters(model, met) - router
