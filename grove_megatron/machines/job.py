"""The flags of the job, parsed and compared as at its start."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from megatron.training.arguments import parse_args

from ..arguments import add_grove_arguments, yaml_problems
from ..checks.problem import Problem
from ..failure.watch import begin
from ..planner.inputs import Sizes
from ..run import script_problems
from ..runtime import cpu_is_active
from ..training.checks import as_launched, every_problem, refusal
from ..training.cpu_arguments import set_cpu_defaults
from ..training.doctor_command import JobCommand
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


def this_job(command: JobCommand) -> Job:
    """Parse the flags and compare them with those of the other ranks; every rank must call.

    What cannot be parsed at all ends the process here.

    Args:
        command: of the job.
    """
    if problems := yaml_problems(command.flags):
        refuse(problems)
    given, sys.argv = sys.argv, ["grove_megatron.pretrain", *command.flags]
    try:
        args = parse_args(extra_args_provider=partial(_add_arguments, command.own_script))
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
    problems = [] if command.script is None else script_problems(command.script)
    problems = problems_of_all(args, problems + _problems(command.own_script, args))
    sizes = None
    try:
        sizes = sizes_of(args)
    except Exception as error:
        if not problems:
            notes.append(f"sizes and memory are not planned: {error}")
    return Job(args, different + problems, notes, sizes)


def _problems(own_script: bool, args: Namespace) -> list[Problem]:
    return every_problem(args, args.world_size, own_script=own_script)


def _other_problems(own_script: bool, args: Namespace) -> list[Problem]:
    as_launched(args)
    return _problems(own_script, args)


def _add_arguments(own_script: bool, parser: ArgumentParser) -> ArgumentParser:
    others = partial(_other_problems, own_script)
    parser = report_errors(add_grove_arguments(parser), refuse, others)
    return set_cpu_defaults(parser) if cpu_is_active() else parser
