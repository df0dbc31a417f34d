"""``--grove-train-only``: which weights are trained, and what becomes of routers that are not.

A frozen weight has no gradient, no buffer for one and no state of the optimizer, as Megatron makes
them of weights that require a gradient alone (distributed_data_parallel.py:115,
optimizer/__init__.py:330 @ 0.19.2).
"""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
import torch.distributed as dist
from megatron.training import get_args
from megatron.training.utils import print_rank_0

from ..checkpoint.local_names import global_name
from ..checks.problem import Problem
from ..model.parameters import total_parameters, whole_model
from ..model.subsets import SUBSETS, TIED, names_of, selected, trained_parameters
from ..moe.router import GroveRouter
from .sizes import sizes_of
from .summary import count_parameters

Models = list[torch.nn.Module]


def subset_problems(args: Namespace, world_size: int) -> Iterator[Problem]:
    """Choices of --grove-train-only that are no regular expressions, or find nothing.

    Args:
        args: parsed, not yet validated.
        world_size: processes of the job.
    """
    chosen = getattr(args, "grove_train_only", None) or ()
    names = _names(args, world_size) if chosen else frozenset[str]()
    listed = f"use {', '.join(SUBSETS)}, several with spaces between, or correct it"
    for one in chosen:
        try:
            found = not names or any(selected(name, [one]) for name in names)
        except re.error as error:
            yield Problem("--grove-train-only", one, f"is no regular expression: {error}; {listed}")
            continue
        if not found:
            yield Problem("--grove-train-only", one, f"is in no weight of the model; {listed}")


def trained_notice(args: Namespace) -> str | None:
    """How many of a model's parameters are trained, as one line, before it is built."""
    chosen = getattr(args, "grove_train_only", None)
    if not chosen:
        return None
    model = sizes_of(args).model
    trained, total = trained_parameters(model, chosen).total, total_parameters(model).total
    words = [one for one in chosen if one not in SUBSETS]
    searched = f"; searched for in all names: {', '.join(words)}" if words else ""
    return f"--grove-train-only ({' '.join(chosen)}): {trained:,} of {total:,} parameters{searched}"


def _names(args: Namespace, world_size: int) -> frozenset[str]:
    """Of the model's parameters, in any implementation; none where the planner does not know it."""
    try:
        model = sizes_of(args, world_size).model
    except Exception:  # what is wrong with the sizes others say
        return frozenset()
    held = [(weight, prefix) for weight, prefix in whole_model(model) if not weight.buffer]
    return frozenset().union(
        *(names for weight, prefix in held for names in names_of(weight, prefix, model))
    )


@cache
def train_only(chosen: tuple[str, ...]) -> Callable[[Models], Models]:
    """A hook of a model's configuration, to be called before the model is wrapped; one a choice."""
    return partial(_freeze, chosen=chosen)


def _check_that_it_can_be_saved(trains: bool) -> None:
    """Megatron takes what is no tensor of an optimizer's state from rank 0.

    Raises:
        ValueError: some rank has no optimizer, and the run saves its state.
    """
    args = get_args()
    everywhere = torch.tensor([int(trains)], device=torch.cuda.current_device())
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    if not int(everywhere) and args.save is not None and not args.no_save_optim:
        raise ValueError(
            f"--grove-train-only ({' '.join(args.grove_train_only)}) is in no weight of some "
            "pipeline stage, whose optimizer's state could not be saved with the others; choose "
            "weights of every stage (norms beside them), fewer stages, or --no-save-optim"
        )


def with_both(chosen: Sequence[str]) -> Sequence[str]:
    """With the other name of a tied embedding where one is chosen."""
    if any(selected(name, chosen) for name in TIED):
        return [*chosen, *(f"^{re.escape(name)}$" for name in TIED)]
    return chosen


def _let_recompute_see_gradients(model: torch.nn.Module) -> None:
    """Have hidden states ask for a gradient though the embedding has none.

    Megatron's checkpointed layers return what asks for none where their input asks for none, and
    the backward pass then ends without a word (torch.utils.checkpoint says so for its own).
    """
    embedding = getattr(model, "embedding", None)
    if embedding is None or any(weight.requires_grad for weight in embedding.parameters()):
        return

    def ask(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            output.requires_grad_()

    embedding.register_forward_hook(ask)


def _freeze(models: Models, chosen: Sequence[str]) -> Models:
    """Freeze every other weight of the models of this rank; every rank must call.

    Raises:
        ValueError: a choice finds nothing on any rank; on every rank.
    """
    named = [
        (global_name(model, name), weight)
        for model in models
        for name, weight in model.named_parameters()
    ]
    found = torch.tensor(
        [sum(selected(name, [one]) for name, _ in named) for one in chosen],
        device=torch.cuda.current_device(),
    )
    dist.all_reduce(found)
    if missing := [one for one, count in zip(chosen, found.tolist(), strict=True) if not count]:
        raise ValueError(
            f"--grove-train-only ({' '.join(missing)}) is in no weight of the model; use "
            f"{', '.join(SUBSETS)}, or a regular expression that finds one of Megatron's names, "
            f"as {named[0][0]}"
        )
    _check_that_it_can_be_saved(any(selected(name, chosen) for name, _ in named))
    total = count_parameters(models)
    for model in models:
        if getattr(model, "share_embeddings_and_output_weights", False):
            # One weight, of which the last stage has a copy: both are trained, or none.
            chosen = with_both(chosen)
    for name, weight in named:
        weight.requires_grad_(selected(name, chosen))
    for router in (m for model in models for m in model.modules() if isinstance(m, GroveRouter)):
        # Experts without an FFN are parts of it, and say nothing of who is selected.
        own = [w for name, w in router.named_parameters() if not name.startswith("local_")]
        if not any(weight.requires_grad for weight in own):
            router.freeze()
    for model in models:
        _let_recompute_see_gradients(model)
    trained = count_parameters(models, lambda weight: weight.requires_grad)
    print_rank_0(
        f"--grove-train-only ({' '.join(chosen)}): {trained.total:,} of {total.total:,} parameters "
        "are trained"
    )
    return models
