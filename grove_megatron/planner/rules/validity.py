"""Which layouts Megatron refuses, and why: its own rules and ours, known without either.

megatron-core 0.19.2 says them in validate_args (training/arguments.py), TransformerConfig,
parallel_state and the schedule, one at a time; here all of them are said at once. A job is checked
by the same rules (``training/rules.py``), so that a plan and ``grove doctor`` never disagree.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...checks.guarded import problems_of
from ...checks.problem import Problem
from ...checks.ranks import groups_over_nodes
from ...model.settings import expert_tensor_parallel_size, has_grove_layers
from . import basic_rules, expert_rules, latent_rules, pipeline_rules, rank_rules, recompute_rules

TENSOR, PIPELINE = "tensor_model_parallel_size", "pipeline_model_parallel_size"
CONTEXT = "context_parallel_size"
EXPERT, EXPERT_TENSOR = "expert_model_parallel_size", "expert_tensor_parallel_size"
CHUNKS = "num_virtual_stages_per_pipeline_rank"
MICRO_BATCH, HIERARCHICAL = "micro_batch_size", "grove_hierarchical_dispatch"
DISPATCHER = "moe_token_dispatcher_type"
RECOMPUTE = ("recompute_granularity", "recompute_modules")


@dataclass(frozen=True)
class Rule:
    """Problems of a command line and a number of processes.

    Attributes:
        check: finds them.
        reads: of the settings that a search of layouts changes, those that it looks at.
    """

    check: Callable[[Namespace, int], Iterable[Problem]]
    reads: tuple[str, ...]


_SIZES = (TENSOR, PIPELINE, CONTEXT, EXPERT, EXPERT_TENSOR)
# By what a search has chosen when they can be asked.
OF_MODEL = (Rule(basic_rules.whole_model, ()),)
OF_RANKS = (
    Rule(rank_rules.ranks, _SIZES),
    Rule(rank_rules.widths, (TENSOR,)),
    Rule(latent_rules.latent_problems, (TENSOR,)),
    Rule(rank_rules.context, (TENSOR, CONTEXT)),
)
OF_EXPERTS = (Rule(expert_rules.experts, (TENSOR, EXPERT, EXPERT_TENSOR)),)
OF_COPIES = (Rule(rank_rules.copies, _SIZES),)
OF_STAGES = (Rule(pipeline_rules.pipeline, (PIPELINE, CHUNKS, *pipeline_rules.COUNTED)),)
OF_BATCH = (Rule(rank_rules.batch, (TENSOR, PIPELINE, CONTEXT, CHUNKS, MICRO_BATCH)),)
OF_RECOMPUTE = (
    Rule(recompute_rules.recompute, RECOMPUTE),
    Rule(recompute_rules.overlap, (EXPERT, PIPELINE, CHUNKS, *RECOMPUTE)),
)
RULES = (*(*OF_MODEL, *OF_RANKS, *OF_BATCH, *OF_STAGES, *OF_EXPERTS, *OF_RECOMPUTE, *OF_COPIES),)
"""Of a job and of a plan."""

OF_LAYERS = (Rule(expert_rules.over_ranks, (*_SIZES, *RECOMPUTE)),)
"""What of a job the configuration says."""


def layout_problems(args: Namespace, world_size: int) -> list[Problem]:
    """What is wrong with a layout for Megatron.

    Args:
        args: parsed, not yet validated, without basic problems.
        world_size: processes of the job.
    """
    return [found for rule in RULES for found in problems_of(rule.check, args, world_size)]


def problems(args: Namespace, world_size: int, per_node: int) -> list[Problem]:
    """What is wrong with a layout, for Megatron or for a Grove layer.

    Args:
        args: parsed.
        world_size, per_node: processes of the job, and of a node.
    """
    if basic := problems_of(basic_rules.basic_problems, args):
        return basic
    return [
        *layout_problems(args, world_size),
        *(found for rule in OF_LAYERS for found in problems_of(rule.check, args, world_size)),
        *problems_of(over_nodes, args, world_size, per_node),
    ]


def over_nodes(args: Namespace, world_size: int, per_node: int) -> list[Problem]:
    """Expert-parallel groups of a hierarchical dispatch that do not lie evenly on nodes."""
    if not (has_grove_layers(args) and args.grove_hierarchical_dispatch):
        return []
    experts, split = args.expert_model_parallel_size, expert_tensor_parallel_size(args)
    return groups_over_nodes(experts, split, world_size, per_node)
