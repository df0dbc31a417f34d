"""Hash layers: a fixed table says which experts a token id has; nothing is learned."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...checks.problem import Problem
from ...checks.rules import Check
from ...functional.hash_tables import balanced_table, random_table
from .. import registry
from ..exclusions import carrying_problems, selector_problems
from ..part import Part, Seen, experts_of


@dataclass
class Settings:
    """Hash layers."""

    grove_hash_table: Literal["random", "balanced"] = "random"
    """The experts of a token id with --grove-router-selector hash: drawn, or such that all experts
    have as many tokens of a corpus (--grove-hash-counts). The same in every layer; kept in
    checkpoints."""

    grove_hash_seed: int = 42
    """Of the draw; that of the authors' code."""

    grove_hash_counts: str | None = None
    """How often each token id is in a corpus, for the balanced table: a JSON list, which grove data
    writes."""

    grove_hash_vocabulary: int | None = None
    """Token ids that the table has; by default those of the model's embedding."""


class HashTable(torch.nn.Module):
    """table [V, K] int32; every expert of a token weighs 1 / K.

    Args:
        table: the experts of every id.
    """

    reads_logits = False

    def __init__(self, table_VK: Tensor) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table_VK.clone())

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        """[T, K]."""
        if seen.ids_T is None:
            raise ValueError(
                "--grove-router-selector (hash) got no token ids beside the hidden states; build "
                "the model with grove_megatron.pretrain or grove_megatron.run, and give it tokens, "
                "not embeddings"
            )
        return self.table[seen.ids_T].long()

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        """[T, K]."""
        return z_TE.new_full(chosen.shape, 1 / chosen.shape[1])


class Reference:
    """Token by token."""

    reads_logits = False

    def __init__(self, table: Tensor) -> None:
        self.rows = table.tolist()

    def choose(self, z_TE: Tensor, seen: Seen) -> Tensor:
        assert seen.ids_T is not None, "token ids"
        return torch.tensor([self.rows[token] for token in seen.ids_T.tolist()])

    def weigh(self, z_TE: Tensor, chosen: Tensor) -> Tensor:
        return torch.stack([torch.ones(len(row)).to(z_TE) / len(row) for row in chosen])


def read_counts(file: str) -> list[int]:
    """Of every token id, from 0.

    Raises:
        ValueError: no list of whole numbers of 0 or more.
        OSError: no such file.
    """
    found: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(found, list) or any(type(n) is not int or n < 0 for n in found):
        raise ValueError("it holds no list of whole numbers, how often each token id is there")
    if not any(found):
        raise ValueError(f"all its counts ({len(found)}) are 0")
    counts: list[int] = found
    return counts


def _table(config: Any) -> Tensor:
    vocabulary, topk = config.grove_hash_vocabulary, config.moe_router_topk
    if vocabulary is None:
        raise ValueError(
            "--grove-hash-vocabulary (None) is not known where --grove-router-selector (hash) "
            "builds its table; give the rows of the embedding"
        )
    if config.grove_hash_table == "random":
        return random_table(vocabulary, config.num_moe_experts, topk, config.grove_hash_seed)
    counts = read_counts(config.grove_hash_counts)
    if len(counts) > vocabulary:
        raise ValueError(
            f"--grove-hash-counts ({config.grove_hash_counts}) counts {len(counts)} token ids, and "
            f"the model has {vocabulary}; make one with grove data --check PREFIX --counts FILE"
        )
    counts += [0] * (vocabulary - len(counts))
    return balanced_table(tuple(counts), config.num_moe_experts, topk)


def rules(settings: Any) -> list[Problem]:
    check, name = Check(settings, num_experts=experts_of(settings)), "grove_router_selector"
    experts, topk = experts_of(settings), settings.moe_router_topk
    balanced = settings.grove_hash_table == "balanced"
    broken = {
        f"{{moe_router_topk}} of {{num_experts}} is more than {{{name}}} has different ones; use "
        "fewer": experts is not None and topk > experts,
        "{grove_hash_counts} is needed for {grove_hash_table}; make it with grove data --check "
        "PREFIX --counts FILE": (balanced and settings.grove_hash_counts is None),
        "{grove_hash_counts} is not read with {grove_hash_table}; use balanced, or remove it": (
            not balanced and settings.grove_hash_counts is not None
        ),
        f"{{moe_z_loss_coeff}} is of logits, and {{{name}}} has none; remove it": bool(
            settings.moe_z_loss_coeff
        ),
        f"{{moe_token_drop_policy}} chooses by weights, which are all alike with {{{name}}}; use "
        "position": (
            registry.one(settings, "drop") is not None and settings.moe_token_drop_policy == "probs"
        ),
        f"{{moe_input_jitter_eps}} is of a router that reads tokens, and {{{name}}} reads their "
        "ids; remove it": bool(settings.moe_input_jitter_eps),
    }
    # Of a command line, once it is known.
    rows = getattr(settings, "padded_vocab_size", None) or getattr(settings, "vocab_size", None)
    table = settings.grove_hash_vocabulary
    if table is not None and rows is not None and table < rows:
        broken[
            f"{{grove_hash_vocabulary}} is below the {rows} token ids of the model, some of which "
            "would have no expert; leave it out"
        ] = True
    problems = [*check.one_of("grove_hash_table", ("random", "balanced"), "use random")]
    problems += check.at_least("grove_hash_vocabulary", 1, "leave it out")
    problems += check.those(broken)
    if balanced and settings.grove_hash_counts is not None:
        try:
            counted = len(read_counts(settings.grove_hash_counts))
            known: int | None = table or rows
            if known is not None and counted > known:
                raise ValueError(f"it counts {counted} token ids, and the model has {known}")
        except OSError as error:
            sentence = "{grove_hash_counts} cannot be read: {why}; correct it"
            problems.append(check.problem(sentence, why=error.strerror))
        except ValueError as error:
            sentence = (
                "{grove_hash_counts} is of no use for this model: {why}; make one with grove data "
                "--check PREFIX --counts FILE"
            )
            problems.append(check.problem(sentence, why=error))
    of_logits = [p for p in registry.active(settings) if p.slot in ("gate", "logits")]
    problems += [
        check.problem(f"{{{registry.setting(p)}}} is of logits, and {{{name}}} has none; remove it")
        for p in of_logits
    ]
    return problems + selector_problems(settings) + carrying_problems(settings, name)


PARTS = (
    Part(
        slot="selector",
        name="hash",
        help="a fixed table says which experts a token id has",
        source="arXiv 2106.04426, section 3.2; facebookresearch/ParlAI@a29567f hash_ladder.py",
        settings=Settings,
        formula="e_TK = table_VK[id_T]\nw_TK = 1 / K",
        when="As a baseline that says what a learned router is worth, or where routing must "
        "neither change nor collapse. Nothing is learned, so frequent tokens crowd their "
        "experts unless the table is balanced by counts of a corpus.",
        is_on=lambda s: s.grove_router_selector == "hash",
        build=lambda c: HashTable(_table(c)),
        reference=lambda c, table: Reference(table),
        rules=rules,
        needs=frozenset({"ids"}),
        tried="--grove-router-selector hash --moe-aux-loss-coeff 0 --moe-z-loss-coeff 0",
        buffers={"table": ("V", "T")},
        free=("grove_hash_counts",),
    ),
)
