"""Where weights come from, with everything that is known of their model."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checks.flags import flag_of
from ..config import NOT_OF_THE_WEIGHTS, layer_defaults, unknown_settings
from ..model.architecture import Architecture
from ..model.families import family_of, is_buffer
from .config_keys import brief, is_number, refuse_all
from .hf_config import DEQUANTISE, architecture_of, read_config
from .hf_files import HfWeights
from .manifest import read_checksums
from .megatron_args import architecture_of_args
from .megatron_weights import MegatronWeights, checkpoint_args, iteration_folder
from .side_files import adapter_weights, side_problems, unread
from .torch_dist import TorchDistReader
from .units import hf_shapes
from .weights import Problem, TensorInfo, Weights, mismatches

# What GPTQ, AWQ, compressed-tensors, ModelOpt, bitsandbytes and FP8 releases have beside, or in
# place of, a weight.
_QUANTISED_PARTS = frozenset(
    {
        *("qweight", "qzeros", "scales", "g_idx", "SCB", "absmax", "quant_map", "quant_state"),
        *("weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale", "weight_packed"),
        *("weight_shape", "weight_zero_point", "weight_blocks", "weight_scales", "weight_absmax"),
    }
)

# Beside the weights, a Megatron checkpoint keeps the rest of the Hugging Face folder here.
HF_FILES = "hf"


@dataclass(frozen=True)
class Source:
    """Weights with everything that is known of their model.

    Args:
        weights: the tensors.
        architecture: of the model.
        checksums: of the tensors, from the manifest of the conversion that wrote them.
        problems: found in the headers, beyond what :func:`.weights.mismatches` finds.
        hf_files: folder with the model's config, tokenizer and other files; None: there is none.
        config: the config in that folder.
        generated: see :class:`.manifest.Manifest`.
        notices: what is right and may still not be what the user wants, one line each.
        tokenizer: folder that a Megatron checkpoint was trained with, if it is here.
        train_only: what the run that saved it trained beside frozen weights; empty: everything.
    """

    weights: Weights
    architecture: Architecture
    checksums: dict[str, tuple[str, str]]
    problems: list[Problem]
    hf_files: Path | None
    config: dict[str, Any] | None
    generated: dict[str, Any]
    notices: tuple[str, ...] = ()
    tokenizer: Path | None = None
    train_only: tuple[str, ...] = ()

    def infos(self) -> Mapping[str, TensorInfo]:
        return self.weights.infos()

    def refusals(self, skip: frozenset[str] = frozenset(), *, can_skip: bool = True) -> list[str]:
        """Everything that the headers show to be wrong, one line each, but for skipped tensors.

        Args:
            skip: names of tensors.
            can_skip: has the command ``--skip``, which the lines are to name?
        """
        remaining = [problem for problem in self.problems if problem.remains(skip)]
        lines = [problem.shown if can_skip else problem.line for problem in remaining]
        return lines + mismatches(hf_shapes(self.architecture), self.infos(), skip, can_skip)


def hf_source(folder: Path) -> Source:
    """A Hugging Face model folder.

    Raises:
        ValueError: everything that is wrong with its config and its headers.
    """
    config = read_config(folder)
    architecture = architecture_of(config, str(folder / "config.json"))
    weights = HfWeights(folder, family_of(architecture))
    _refuse_quantised(folder, weights)
    if architecture.is_grove and any(map(is_buffer, weights.infos())):
        # A buffer that the release's config says nothing about.
        architecture = replace(architecture, expert_bias=True)
    if architecture.tied_embeddings:
        # Some folders of tied models have the one matrix twice.
        weights.drop_copy("lm_head.weight", of="model.embed_tokens.weight")
    checksums = read_checksums(folder)
    problems = weights.problems + list(map(Problem, side_problems(folder, weights.files)))
    notices = (*_unread(folder), *_balance_loss(config, architecture))
    return Source(weights, architecture, checksums, problems, folder, config, {}, notices)


def _refuse_quantised(folder: Path, weights: HfWeights) -> None:
    """In place of a line for every part of every such weight, and for every weight it is not."""
    parts = [name for name in weights.infos() if name.rpartition(".")[2] in _QUANTISED_PARTS]
    if parts:
        raise ValueError(
            f"{folder} has {len(parts)} tensors such as {parts[0]}, which are parts of quantised "
            f"weights; {DEQUANTISE}"
        )


def _balance_loss(config: dict[str, Any], architecture: Architecture) -> Iterator[str]:
    """What the coefficient of transformers is in Megatron, whose loss is of one layer.

    That of transformers is of the logits of all layers together, and k times as large
    (models/mixtral/modeling_mixtral.py:107-152 @ 4.46.3).
    """
    said, layers = config.get("router_aux_loss_coef"), sum(architecture.moe_layers)
    if not is_number(said) or not said or not layers or architecture.expert_bias:
        return
    of_layer = said * architecture.topk / layers
    yield (
        f"router_aux_loss_coef ({said}) is one loss of all layers, k times Megatron's; to train "
        "with as strong a one, where experts are balanced: --moe-router-load-balancing-type "
        f"aux_loss --moe-aux-loss-coeff {of_layer:.3g}, which is {said} x {architecture.topk} / "
        f"{layers} layers"
    )


def _unread(folder: Path) -> tuple[str, ...]:
    names = unread(folder)
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"{folder} has {', '.join(names[:3])}{more}; safetensors alone are read",)


def megatron_source(
    load: Path, step: int | None, hf_files: Path | None, vocab_size: int | None = None
) -> Source:
    """A Megatron distributed checkpoint.

    Args:
        load: as Megatron's ``--load``.
        step: the iteration; None: the latest.
        hf_files: folder with config and tokenizer; None: where an import put it, if it did.
        vocab_size: of the model, without padding, where no config says it.

    Raises:
        ValueError: everything that is wrong with its arguments and metadata.
    """
    folder = iteration_folder(load, step)
    reader = TorchDistReader(folder)
    args = checkpoint_args(reader)
    architecture = architecture_of_args(args)
    refuse_parts(args, f"the arguments in {folder}", said=dict(architecture.settings))
    if hf_files is None and (folder.parent / HF_FILES / "config.json").is_file():
        hf_files = folder.parent / HF_FILES
    config = None if hf_files is None else read_config(hf_files, "--hf-config")
    problems: list[Problem] = []
    if hf_files is not None:
        problems += map(Problem, adapter_weights(hf_files))
    if config is not None:
        said = architecture_of(config, f"{hf_files}/config.json")
        problems += map(Problem, _contradictions(said, architecture, hf_files, folder))
        architecture = replace(architecture, vocab_size=said.vocab_size)
    elif vocab_size is not None and vocab_size < architecture.vocab_size:
        architecture = replace(architecture, vocab_size=vocab_size)
    weights = MegatronWeights(reader, architecture)
    return Source(
        weights,
        weights.architecture,
        read_checksums(folder),
        problems + weights.problems(),
        hf_files,
        config,
        {},
        _capacity(args),
        _tokenizer(args),
        _train_only(args),
    )


def _tokenizer(args: Any) -> Path | None:
    kind, model = getattr(args, "tokenizer_type", None), getattr(args, "tokenizer_model", None)
    if kind not in ("HuggingFaceTokenizer", "SFTTokenizer") or not isinstance(model, str):
        return None
    return Path(model) if Path(model).is_dir() else None


def _train_only(args: Any) -> tuple[str, ...]:
    chosen = getattr(args, "grove_train_only", None)
    return tuple(map(str, chosen)) if isinstance(chosen, list) else ()


def _capacity(args: Any) -> tuple[str, ...]:
    names = ("moe_expert_capacity_factor", "grove_expert_capacity")
    given = {name: getattr(args, name, None) for name in names}
    return tuple(
        f"{flag_of(name)} ({value}) drops tokens where the model was trained; the code of the "
        "Hugging Face model drops none"
        for name, value in given.items()
        if value is not None
    )


# Of the settings that make another model, those that a Hugging Face model has.
_IN_HF = frozenset(
    (
        "grove_num_groups",
        "grove_adjugate_ffn_hidden_size",
        "grove_adjugate_scale",
        "grove_router_scoring",
    )
)


def refuse_parts(args: Any, where: str, said: Container[str] = ()) -> None:
    """Parts of the router without which it is another model, and which no config.json can say.

    Args:
        args: a configuration or an argument namespace.
        where: for the error.
        said: settings that the config of this model says.
    """
    of_model = {
        name: getattr(args, name, default)
        for name, default in layer_defaults().items()
        if name not in {*_IN_HF, *NOT_OF_THE_WEIGHTS}
        and name not in said
        and getattr(args, name, default) != default
    }
    given = {flag_of(name): value for name, value in (of_model | unknown_settings(args)).items()}
    if given:
        fix = (
            "and no Hugging Face model has it that is made here; keep Megatron's checkpoint, which "
            "trains and evaluates it"
        )
        lines = [f"{flag} ({value}) is not its default, {fix}" for flag, value in given.items()]
        refuse_all(where, lines)


def _contradictions(
    said: Architecture, trained: Architecture, hf_files: Path | None, folder: Path
) -> list[str]:
    problems = []
    theirs, ours = said.described(), trained.described()
    for name in theirs | ours:
        # A setting that only one of them has.
        value, own = theirs.get(name, "the default"), ours.get(name, "the default")
        padded = name == "vocab_size" and value <= own
        if value != own and not padded and name != "expert_bias":
            problems.append(
                f"{name} ({brief(value)}) of {hf_files}/config.json differs from {name} "
                f"({brief(own)}) of the arguments in {folder}; if it was trained so on purpose, "
                f"name with --hf-config a copy of {hf_files} that says {brief(own)}"
            )
    return problems
