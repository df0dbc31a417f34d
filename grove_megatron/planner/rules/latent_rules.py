"""Rules of multi-latent attention that Megatron asserts at start, or late: in a layer that is
built, or in its first forward pass."""

from argparse import Namespace
from collections.abc import Iterator

from ...checks.problem import Problem
from ...checks.rules import Check


def latent_problems(args: Namespace, _: int = 1) -> Iterator[Problem]:
    """Of a parsed command line; none without ``--multi-latent-attention``."""
    if not args.multi_latent_attention:
        return
    check = Check(args)
    for name in ("group_query_attention", "rotary_interleaved", "attention_output_gate"):
        yield from check.excludes("multi_latent_attention", name, "remove one of them")
    least = [
        *check.at_least("q_lora_rank", 1, "give the width, or leave it out to project queries"),
        *check.at_least("kv_lora_rank", 1),
        *check.at_least("qk_head_dim", 1),
        *check.at_least("qk_pos_emb_head_dim", 2),
        *check.at_least("v_head_dim", 1),
    ]
    yield from least
    rules = {
        "{qk_pos_emb_head_dim} is not even, as rotary positions are; use an even width": (
            not least and args.qk_pos_emb_head_dim % 2
        ),
        "{position_embedding_type} gives positions that {multi_latent_attention} does not take; "
        "use rope, and --rope-type yarn": args.position_embedding_type == "yarn",
        "{qk_layernorm} without {q_lora_rank} is a norm before the projection of queries, which "
        "{transformer_impl} has not; give a rank, or leave out the norms": (
            args.transformer_impl == "local" and args.qk_layernorm and args.q_lora_rank is None
        ),
        "{cache_mla_latents} is of generation alone; remove it to train": (
            args.cache_mla_latents and not args.skip_train
        ),
    }
    yield from check.those(rules)
    if not least and args.transformer_impl == "local":
        yield from _widths(args)


def _widths(args: Namespace) -> Iterator[Problem]:
    """Of what a local layer divides over tensor-parallel ranks, and TransformerEngine does not."""
    tensor = args.tensor_model_parallel_size
    keys = args.kv_lora_rank + args.qk_pos_emb_head_dim
    splits = (
        " is not a multiple of {tensor_model_parallel_size}, over which --transformer-impl local "
        "splits it; change one of them"
    )
    rules = {
        f"{{q_lora_rank}}{splits}": args.q_lora_rank and args.q_lora_rank % tensor,
        f"{{kv_lora_rank}} + {{qk_pos_emb_head_dim}}{splits}": keys % tensor,
    }
    yield from Check(args).those(rules)
