"""The flags of the job, parsed and compared as at its start."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from datetime import timedelta

from megatron.training.arguments import parse_args

from ..arguments import add_grove_arguments, yaml_problems
from ..checks.problem import Problem
from ..failure.watch import begin
from ..planner.inputs import Sizes
from ..runtime import cpu_is_active
from ..training.checks import as_launched, every_problem, refusal
from ..training.cpu_arguments import set_cpu_defaults
from ..training.late_rules import timeout_problems
from ..training.of_ranks import problems_of_all
from ..training.refuse import refuse
from ..training.same_flags import compare_ranks
from ..training.sizes import sizes_of
from ..unparsed import report_errors


@dataclass(frozen=True)
class Job:
    """What is known of a job before its machines are looked at.

    Attributes:
        args: Megatron's, parsed and not validated.
        problems: that it would not start with, those of files and folders among them.
        notes: flags that differ between ranks and may.
        sizes: what the planner knows of it; None: nothing.
    """

    args: Namespace
    problems: list[Problem]
    notes: list[str]
    sizes: Sizes | None

    @property
    def timeout(self) -> timedelta:
        """How long ranks wait for one another."""
        return timedelta(minutes=self.args.distributed_timeout_minutes)


def this_job(flags: list[str]) -> Job:
    """Parse the flags and compare them with those of the other ranks; every rank must call.

    What cannot be parsed at all ends the process here.

    Args:
        flags: of the job.
    """
    if problems := yaml_problems(flags):
        refuse(problems)
    given, sys.argv = sys.argv, ["grove_megatron.pretrain", *flags]
    try:
        args = parse_args(extra_args_provider=_add_arguments)
    except Exception as error:
        refuse(refusal(error))
    finally:
        sys.argv = given
    if args.fake_process_group:
        refuse([Problem("--fake-process-group", True, "has no machines; leave it out")])
    if problems := [*timeout_problems(args)]:
        # By it, ranks wait for each other below.
        refuse(problems)
    begin(args)
    different, notes = compare_ranks(args)
    problems = problems_of_all(args, every_problem(args, args.world_size))
    sizes = None
    try:
        sizes = sizes_of(args)
    except Exception as error:
        if not problems:
            notes.append(f"sizes and memory are not planned: {error}")
    return Job(args, different + problems, notes, sizes)


def _other_problems(args: Namespace) -> list[Problem]:
    as_launched(args)
    return every_problem(args, args.world_size)


def _add_arguments(parser: ArgumentParser) -> ArgumentParser:
    parser = report_errors(add_grove_arguments(parser), refuse, _other_problems)
    return set_cpu_defaults(parser) if cpu_is_active() else parser
