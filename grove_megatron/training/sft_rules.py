"""What --sft needs: a chat template, conversations, and attention that keeps them apart."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.core.datasets.object_storage_utils import is_object_storage_path

from ..checks.problem import Problem
from ..checks.rules import Check
from ..sft.answers import encoder_of
from ..sft.conversations import first_lines
from .data_files import prefixes

# Formats of Megatron's SFTTokenizer.
_FORMATS = ("nemotron-nano-v2", "nemotron-h-aligned", "identity", "default")
# Lines of every file that are looked at before a model is built; all are before it is trained.
_LOOKED_AT = 20
_TOKENIZERS = ("HuggingFaceTokenizer", "SFTTokenizer")


def sft_problems(args: Namespace, *, own_script: bool = False) -> Iterator[Problem]:
    """Flags with which --sft would train something else.

    Args:
        args: parsed, not yet validated.
        own_script: do they go to a script under grove_megatron.run?
    """
    if not getattr(args, "sft", False):
        return
    kind, is_local = args.tokenizer_type or "GPT2BPETokenizer", args.transformer_impl == "local"
    check = Check(args, tokenizer_type=kind)
    if own_script:
        yield from check.those(
            {
                "{sft} packs conversations, which the attention of {transformer_impl} does not "
                "keep apart in Megatron's own script; use grove_megatron.pretrain, or "
                "--transformer-impl transformer_engine": is_local
            }
        )
        return
    template = getattr(args, "chat_template", None)
    formats, given = ", ".join(_FORMATS), args.sft_tokenizer_prompt_format
    stages = args.pipeline_model_parallel_size
    samples = max(args.micro_batch_size or 1, args.eval_micro_batch_size or 1)
    yield from check.those(
        {
            "{sft} needs the chat template of a tokenizer, which {tokenizer_type} has not; use "
            "HuggingFaceTokenizer with --tokenizer-model": (
                # Left out beside a model, it is named as that.
                kind not in _TOKENIZERS and not (args.tokenizer_model and not args.tokenizer_type)
            ),
            f"{{sft_tokenizer_prompt_format}} is none of {formats}; use default": (
                kind == "SFTTokenizer" and given not in _FORMATS
            ),
            "{chat_template} is no Jinja template but a word; give its text, as "
            '"$(cat FILE)"': template is not None and "{" not in template,
            "{sft} excludes {mock_data}; give a file of conversations as --data-path": (
                args.mock_data
            ),
            "{sft} packs conversations, which fused softmax kernels do not keep apart; add "
            "--no-masked-softmax-fusion": (
                is_local and args.masked_softmax_fusion and (args.bf16 or args.fp16)
            ),
            "{sft} packs conversations, whose borders {window_size} overrules with "
            "{transformer_impl}; remove it": is_local and args.window_size is not None,
            "{sft} packs conversations, over whose borders {mtp_num_layers} would predict with "
            "{transformer_impl}; remove it": is_local and args.mtp_num_layers,
            "{sft} packs conversations, which {experimental_attention_variant} does not keep "
            "apart; remove it": args.experimental_attention_variant is not None,
            "{sft} packs conversations, whose borders Megatron does not pass on with "
            "{overlap_moe_expert_parallel_comm}; remove it": (
                not is_local and args.overlap_moe_expert_parallel_comm
            ),
            "{sft} with {context_parallel_size} needs {calculate_per_token_loss}, or every rank "
            "divides the loss by the answers of its own part; add it": (
                args.context_parallel_size > 1 and not args.calculate_per_token_loss
            ),
            f"{{sft}} makes one row of the samples ({samples}) of a microbatch, which the next "
            "pipeline stage does not expect; use --micro-batch-size 1 and "
            "--eval-micro-batch-size 1": (not is_local and stages > 1 and samples > 1),
        }
    )
    apart = "conversations are apart without it, and end in the loss; remove it"
    for name in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
        yield from check.excludes("sft", name, apart)


def sft_notice(args: Namespace) -> str | None:
    """That answers of a microbatch weigh as much as those of another, however many they are."""
    if not getattr(args, "sft", False) or args.calculate_per_token_loss:
        return None
    return (
        "--sft without --calculate-per-token-loss: every microbatch of every rank weighs the same, "
        "however many tokens of answers it has; add it for one weight a token"
    )


def packing_problems(args: Namespace, checkpoint_args: Namespace) -> Iterator[Problem]:
    """A run that would go on in the middle of other sequences than those that it has seen."""
    both = getattr(args, "sft", False) and getattr(checkpoint_args, "sft", False)
    if not both or args.finetune:
        return
    for name in ("seq_length", "data_path", "train_data_path"):
        before = getattr(checkpoint_args, name, None)
        if getattr(args, name, None) != before:
            yield Check(args).problem(
                f"{{{name}}} differs from that of the checkpoint ({before}), so that conversations "
                "would be met twice, or never; give the same, or begin anew with --finetune",
                before=before,
            )


def conversation_file_problems(args: Namespace) -> Iterator[Problem]:
    """Files of --sft that are not there, or do not begin with conversations."""
    if not getattr(args, "sft", False):
        return
    for path in dict.fromkeys(prefixes(args)):
        if is_object_storage_path(path):
            yield Problem("--data-path", path, "is not on this machine; copy it here for --sft")
        elif not Path(path).is_file():
            yield Problem("--data-path", path, f"{_what(path)}; give a file of conversations")
        else:
            try:
                found = [*first_lines(path, _LOOKED_AT)]
            except ValueError as error:
                yield Problem.of_text(f"--data-path {error}")
                continue
            if not any(conversations for _, conversations in found):
                what = f"answer in its first {len(found)} lines" if found else "conversation"
                fix = "give conversations with messages of assistant"
                yield Problem("--data-path", path, f"has no {what}; {fix}")


def _what(path: str) -> str:
    """What a path is that is no file."""
    if Path(path).is_dir():
        return "is a folder"
    if Path(f"{path}.idx").is_file():
        return "is a prefix of .bin and .idx, which hold no conversations"
    return "is not there"


def sft_tokenizer_problems(args: Namespace, tokenizer: Any) -> Iterator[Problem]:
    """Conversations that the tokenizer's chat template does not take, of the first of each file.

    Args:
        args: Megatron's, validated.
        tokenizer: Megatron's.
    """
    if not getattr(args, "sft", False):
        return
    try:
        encode = encoder_of(tokenizer)
    except ValueError as error:
        yield Problem.of_text(str(error))
        return
    for path in dict.fromkeys(prefixes(args)):
        try:
            for place, conversations in first_lines(path, _LOOKED_AT):
                try:
                    for conversation in conversations:
                        encode(conversation)
                except ValueError as error:
                    raise ValueError(f"{place} {error}") from error
        except ValueError as error:
            yield Problem.of_text(f"--data-path {error}")
