"""What a user asks to be planned: a model alone, or a job, on a command line or in a folder."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checks.flags import words_of
from ...checks.problem import UNSAID, Problem, Refusal
from ...model.families import FAMILIES
from ...model.settings import choose_kernel, has_grove_layers
from ...presets.flags import preset_problems
from ..choice.search import Job
from ..flags import given_settings, parse
from ..parts import router_parts

_LENGTH, _TOKENS = 4096, 2**22
# A line that says none of these is a model, and not a job.
_OF_A_JOB = frozenset(
    "global_batch_size seq_length encoder_seq_length train_iters train_samples "
    "step_batch_size_schedule".split()
)
_PRECISIONS = ("bf16", "fp16", "fp8")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job to plan, and what was made of the words for it.

    Attributes:
        job: to plan.
        assumed: words of a command line that were taken for what a model alone does not say.
        flags: all words, those of a folder of Hugging Face's and the assumed ones among them.
        tokens_of: where the number of tokens is from, or why it is not known.
    """

    job: Job
    assumed: tuple[str, ...]
    flags: tuple[str, ...]
    tokens_of: str


def asked(words: Sequence[str], hf: Path | None = None, *, as_given: bool = False) -> Asked:
    """The job of a command line.

    Args:
        words: flags of Megatron and of grove_megatron.
        hf: a folder with a ``config.json``, or the file, whose model the flags go on from.
        as_given: leave nothing open; what the words do not say has Megatron's defaults.

    Raises:
        Refusal: what cannot be parsed or is not planned, all at once.
    """
    flags = [*(_of_hf(hf) if hf is not None else ()), *words]
    args = parse(flags)
    if problems := [*_not_planned(args), *preset_problems(args)]:
        raise Refusal(problems)
    given = given_settings(flags)
    assumed = _assumed(args) if not as_given and given.isdisjoint(_OF_A_JOB) else {}
    vars(args).update(assumed)
    if has_grove_layers(args):
        choose_kernel(args)
    # As Megatron's validation does.
    args.num_layers = args.num_layers or args.encoder_num_layers
    args.seq_length = args.seq_length or args.encoder_seq_length
    if as_given:
        given = frozenset(vars(args))
    elif "micro_batch_size" not in given:
        # What the search begins with.
        args.micro_batch_size = 1
    tokens, tokens_of = _vocabulary(args)
    job = Job(args=args, given=given, parts=router_parts(args), tokens=tokens)
    said = tuple(words_of(assumed))
    return Asked(job=job, assumed=said, flags=(*flags, *said), tokens_of=tokens_of)


def _of_hf(path: Path) -> list[str]:
    """The model of a folder of Hugging Face's, as flags."""
    from ...checkpoint.config_keys import brief
    from ...checkpoint.hf_config import architecture_of, is_handled, read_config
    from ...checkpoint.megatron_args import megatron_flags
    from .latent_hf import CLASSES, latent_class, latent_flags

    folder = path.parent if path.name == "config.json" else path
    where = str(folder / "config.json")
    try:
        config = read_config(folder)
        if latent_class(config) is not None:
            return latent_flags(config, where)
        if not is_handled(config):
            named = config.get("architectures") or config.get("model_type") or "no architectures"
            taken = ", ".join([*(one.class_name for one in FAMILIES), *CLASSES.values()])
            text = f"is of {brief(named)}; --hf takes {taken}: give the flags of the model instead"
            raise Refusal([Problem("--hf", path, text)])
        return megatron_flags(architecture_of(config, where))
    except Refusal:
        raise
    except ValueError as error:
        # The first line says where, of more than one.
        first, *lines = str(error).splitlines()
        said = [f"{first} {line.strip()}" for line in lines] or [first]
        raise Refusal([Problem.of_text(line) for line in said]) from error


def _not_planned(args: Namespace) -> list[Problem]:
    """What stands for flags that are not on the command line."""
    fix = "is read by the job alone; give the flags of the model and the layout"
    names = {"--yaml-cfg": args.yaml_cfg, "--use-checkpoint-args": args.use_checkpoint_args}
    return [Problem(flag, UNSAID, fix) for flag, value in names.items() if value]


def _assumed(args: Namespace) -> dict[str, Any]:
    """Of a model alone: how it would be trained today."""
    longest = args.max_position_embeddings
    length = min(_LENGTH, longest or _LENGTH)
    found: dict[str, Any] = {"seq_length": length, "global_batch_size": _TOKENS // length}
    if longest is None:
        found["max_position_embeddings"] = length
    if not any(getattr(args, name) for name in _PRECISIONS):
        found["bf16"] = True
    if not args.use_distributed_optimizer:
        found["use_distributed_optimizer"] = True
    for name in ("overlap_grad_reduce", "overlap_param_gather"):
        if not getattr(args, name):
            found[name] = True
    return found


def _vocabulary(args: Namespace) -> tuple[int | None, str]:
    from ...training.vocabulary import read_vocabulary

    found = read_vocabulary(args)
    if args.padded_vocab_size:
        return found.tokens, "--padded-vocab-size"
    return found.tokens, str(found)
