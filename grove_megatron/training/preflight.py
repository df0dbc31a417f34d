"""Everything that would go wrong later, found before a process group or a model exists."""

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta

import torch

from ..arguments import (
    LAYER_SPEC,
    contradictions,
    optimizer_format_notice,
    optimizer_layout_problems,
    placement_problems,
    unknown_problems,
)
from ..checkpoint.layout import goes_on, is_same
from ..checks.flags import flag_of
from ..checks.guarded import lines_of, problems_of
from ..checks.problem import Problem, of_other_flags
from ..checks.ranks import groups_over_nodes
from ..checks.rules import Check
from ..comm.node_groups import NO_NODES, ranks_per_node
from ..config import (
    expert_tensor_parallel_size,
    grove_problems,
    has_adjugates,
    has_grove_layers,
    is_checked,
)
from ..failure.job_store import have_met
from ..kernels.triton_support import why_not
from ..layer_spec import grove_layer_spec
from ..parts.losses.devices import devices_of
from ..placing.file import read
from ..presets.flags import preset_notices
from ..runtime import cpu_is_active, cuda_is_here
from .checkpoint_folder import begins_at_random, checkpoint_folder_problem, read_at_start
from .cpu_arguments import cpu_problems
from .disk import disk_notice
from .idle_flags import idle_flags
from .installed import look, optimizer_problems, package_problems, writer_problems
from .machine import cache_notice
from .metrics_run import record_folder
from .of_ranks import problems_of_rank_0
from .rules import megatron_notices
from .saved_arguments import look_into
from .saving import replaced_run
from .sft_rules import packing_problems, sft_notice
from .subsets import trained_notice
from .tokenizer_files import tokenizer_notice

# For rank 0 to read what is no tensor of a checkpoint; the failure watch ends who waits in vain.
_READING = timedelta(hours=1)


def preflight(args: Namespace, device: str | None = None) -> list[Problem]:
    """Problems of the Grove settings and of what they meet.

    Args:
        args: Megatron's namespace with the Grove flags, parsed and not yet validated.
        device: ``cuda`` or ``cpu``, what the job will run on; None: what this process runs on.
    """
    elsewhere = device == "cuda" and not cuda_is_here()
    device = device or ("cpu" if cpu_is_active() else "cuda")
    problems = grove_problems(args, num_experts=args.num_experts)
    problems += problems_of(_spec_problems, args)
    problems += problems_of(_checkpoint_problems, args)
    if not elsewhere:
        problems += _kernel_problems(args, device)
        problems += optimizer_problems(args)
        problems += writer_problems(args) if is_checked(args) else []
    problems += _node_problems(args)
    if device == "cpu":
        # What is refused beside groups on any device has been said, with its own reason.
        problems += of_other_flags(cpu_problems(args), problems)
    elif cuda_is_here() and is_checked(args):
        # Of another machine than the job's, what is installed says nothing.
        problems += package_problems(args, look())
    return problems


def announce(args: Namespace, *more: Callable[[Namespace], Iterable[str]]) -> None:
    """Say on rank 0 what a run without problems should know before it starts.

    Args:
        args: of the run.
        more: further notices of them.
    """
    if os.environ.get("RANK", "0") == "0":
        for notice in (line for check in (notices, *more) for line in lines_of(check, args)):
            print(f"grove_megatron: {notice}", file=sys.stderr, flush=True)


def notices(args: Namespace) -> list[str]:
    """What is right and may still not be what the user wants, one line each."""
    found = [
        optimizer_format_notice(args),
        sft_notice(args),
        trained_notice(args),
        _dispatcher_notice(args),
        _placement_notice(args),
        _device_loss_notice(args),
        _record_notice(args),
        _restart_notice(args),
        begins_at_random(args),
        replaced_run(args),
        disk_notice(args, getattr(args, "world_size", None)),
        cache_notice(args),
        # Of Megatron's own run nothing was asked.
        tokenizer_notice(args) if is_checked(args) else None,
    ]
    ignored = (*megatron_notices(args), *idle_flags(args)) if is_checked(args) else ()
    # Refused where it holds for a Grove job's own machine; Megatron's own run goes on without.
    told = (*writer_problems(args), *ignored)
    said = [*preset_notices(args), *(notice for notice in found if notice is not None)]
    return [*said, *map(str, told)]


def _dispatcher_notice(args: Namespace) -> str | None:
    ranks = args.expert_model_parallel_size
    if not has_grove_layers(args) or args.moe_token_dispatcher_type != "allgather" or ranks == 1:
        return None
    return (
        "--moe-token-dispatcher-type (allgather), Megatron's default, sends every token to all "
        f"--expert-model-parallel-size ({ranks}) ranks; use alltoall, which sends it once to every "
        "rank it needs"
    )


def _placement_notice(args: Namespace) -> str | None:
    """A token is limited to blocks of experts, and a block is no longer on few ranks."""
    blocks, path = args.moe_router_num_groups, args.grove_placement
    if not args.moe_router_group_topk or (spread := _spread(path, blocks)) is None:
        return None
    before, now = spread
    return (
        f"--grove-placement ({path}) has experts of one of --moe-router-num-groups ({blocks}) on "
        f"up to {now} ranks, not {before}: --moe-router-group-topk ({args.moe_router_group_topk}) "
        "limits what a token selects as before, and no longer the ranks it needs"
    )


def _device_loss_notice(args: Namespace) -> str | None:
    """Blocks of experts are balanced, and a block is no longer on few ranks."""
    blocks, path = devices_of(args), args.grove_placement
    losses = ("grove_device_loss_coeff", "grove_communication_loss_coeff")
    given = [f"{flag_of(name)} ({getattr(args, name)})" for name in losses if getattr(args, name)]
    if not given or (spread := _spread(path, blocks)) is None:
        return None
    before, now = spread
    return (
        f"--grove-placement ({path}) has experts of one of ({blocks}) loss devices on up to {now} "
        f"ranks, not {before}: {' and '.join(given)} balance blocks of consecutive experts as "
        "before, and no longer what a rank gets"
    )


def _spread(path: str | None, blocks: int | None) -> tuple[int, int] | None:
    """The most ranks that hold experts of one block, without a placement and with it.

    None: there is no placement, there are no blocks, or it is the same.
    """
    if path is None or not blocks:
        return None
    assignment = read(path)
    size, held = assignment.experts // blocks, assignment.experts // assignment.ranks

    def most_ranks(order: Sequence[int]) -> int:
        rank_of = {expert: place // held for place, expert in enumerate(order)}
        block = range(size)
        return max(len({rank_of[b * size + e] for e in block}) for b in range(blocks))

    before = most_ranks(range(assignment.experts))
    now = max([before, *map(most_ranks, map(assignment.expert_order, assignment.moved))])
    return None if now == before else (before, now)


def _record_notice(args: Namespace) -> str | None:
    """Metrics are on, and what they count is kept nowhere."""
    if not is_checked(args) or args.grove_metrics_interval == 0 or args.skip_train:
        return None
    if record_folder(args) is not None:
        return None
    return (
        "no record of what the experts do is kept for `grove report`: --grove-metrics-dir (None) "
        f"and --save ({args.save}) name no folder for it; give --grove-metrics-dir, or "
        "--grove-metrics-interval 0 to count nothing"
    )


def _restart_notice(args: Namespace) -> str | None:
    """torchrun will start the ranks again, with the same flags."""
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts == "0" or not args.save or args.skip_train:
        return None
    if goes_on(args):
        return None
    if is_same(args.load, args.save):
        why = f"--finetune ({args.finetune}) begins at 0 with what --load ({args.load}) holds"
        fix = "give --save and --load another folder"
    else:
        why = f"--load ({args.load}) is not --save ({args.save})"
        fix = "give --load the same folder"
    if args.load is not None:
        fix += f", and --pretrained-checkpoint {args.load}"
    fix += " in place of --finetune" if args.finetune else ""
    return (
        f"{why}, so a restart (torchrun --max-restarts {restarts}) does not go on from what is "
        f"saved; {fix}"
    )


def _checkpoint_problems(args: Namespace) -> list[Problem]:
    """What is wrong with the checkpoints the run would load; every rank must call.

    Whether they are there every rank sees for itself. What may be thousands of records is read by
    rank 0 alone, once the ranks have met.
    """
    folders = _folders_to_load(args)
    problems = [why for why in folders.values() if why is not None]
    sound = [load_arg for load_arg, why in folders.items() if why is None]

    def looked() -> list[Problem]:
        return problems_of(_content_problems, args, sound)

    return problems + (problems_of_rank_0(looked, _READING) if have_met() else looked())


def _folders_to_load(args: Namespace) -> dict[str, Problem | None]:
    """By their arguments, with why they cannot be loaded.

    Local ones are known to a manager that there is once the job runs, and loaded in place of these;
    but it may know of none.
    """
    local = args.non_persistent_ckpt_type == "local"
    return {
        name: None if local else checkpoint_folder_problem(args, name)
        for name in read_at_start(args)
    }


def _content_problems(args: Namespace, load_args: list[str]) -> list[Problem]:
    """What must not be loaded, and the Grove settings that a checkpoint has otherwise."""
    problems: list[Problem] = []
    for load_arg in load_args:
        saved, found = look_into(args, load_arg)
        problems += found
        if saved is None or args.non_persistent_ckpt_type == "local":
            continue
        problems += unknown_problems(saved)
        if not args.use_checkpoint_args:
            # With it, the settings are those of the checkpoint already.
            problems += contradictions(args, saved)
        problems += placement_problems(args, saved)
        if load_arg == "load":
            problems += optimizer_layout_problems(args, saved)
            problems += packing_problems(args, saved)
    return problems


def _kernel_problems(args: Namespace, device: str) -> Iterator[Problem]:
    """Kernels that were asked for by name and cannot run here."""
    check = Check(args)
    if not has_grove_layers(args) or args.grove_kernel != "triton":
        return
    split = expert_tensor_parallel_size(args)
    widths = {
        "--hidden-size": args.hidden_size,
        "--moe-ffn-hidden-size": args.moe_ffn_hidden_size or args.ffn_hidden_size,
        "--grove-adjugate-ffn-hidden-size": args.grove_adjugate_ffn_hidden_size,
    }
    local = {
        name: width if name == "--hidden-size" else width // split
        for name, width in widths.items()
        if width
    }
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    reason = why_not(dtype, torch.device(device), num_pairs=1, **local)
    if reason is not None:
        yield check.problem("{grove_kernel} cannot run: {reason}; use auto", reason=reason)


def _node_problems(args: Namespace) -> list[Problem]:
    """Expert-parallel groups that do not lie evenly on the nodes of a hierarchical dispatch."""
    if not (has_grove_layers(args) and args.grove_hierarchical_dispatch):
        return []
    per_node = ranks_per_node()
    if per_node is None:
        return [Problem.of_text(NO_NODES)]
    experts, split = args.expert_model_parallel_size, expert_tensor_parallel_size(args)
    return groups_over_nodes(experts, split, int(os.environ.get("WORLD_SIZE", "1")), per_node)


def _spec_problems(args: Namespace) -> Iterator[Problem]:
    """Megatron only logs a spec it cannot import, and trains its default layer instead."""
    check = Check(args)
    grove = has_grove_layers(args)
    if args.spec is None or (args.spec == ["local"] and not grove):
        return  # the latter is Megatron's own spelling, beside --attention-backend local
    use = f"use --spec {' '.join(LAYER_SPEC)}"
    if len(args.spec) != 2:
        yield check.problem(f"{{spec}} is not a module and a name; {use}")
        return
    module_name, name = args.spec
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:
        sentence = f"{{spec}} names a module that does not import ({{error}}); {use}"
        yield check.problem(sentence, error=error)
        return
    if name not in vars(module):
        yield check.problem(f"{{spec}} names nothing in {{module}}; {use}", module=module_name)
    elif grove and vars(module)[name] is not grove_layer_spec:
        asks = "grove_num_groups" if has_adjugates(args) else "grove_dispatch"
        yield check.problem(
            f"{{spec}} is not the Grove layer that {{{asks}}} asks for; {use}, or remove the "
            "--grove-* flags"
        )
