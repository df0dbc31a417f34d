"""Data, loss and forward step of GPT pretraining, as Megatron's training loop wants them."""

import json
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.transformer.multi_token_prediction import get_mtp_ranks, mtp_on_this_rank
from megatron.core.utils import (
    get_attr_wrapped_model,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
)
from megatron.training import get_args, get_timers, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage
from torch import Tensor

from ..checks.problem import Problem
from ..checks.rules import Check
from ..sft.attention import apart
from ..sft.dataset import PackedConversations
from .late_rules import needed
from .token_ids import check_tokens, vocabulary_size
from .transformer_config import transformer_config

# A loss this many times the largest seen is a spike, as in Megatron's pretrain_gpt.py.
_SPIKE = 10

_FIELDS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")
# Where the conversations of --sft begin; all stages have them.
_BORDERS = ("cu_seqlens", "cu_seqlens_padded", "max_seqlen")

# Modes of Megatron's pretrain_gpt.py that this entry point leaves to it.
_ELSEWHERE = (
    "fim_data",
    "dataloader_inter_document_masking",
    "hybrid_context_parallel",
    "perform_rl_step",
    "logits_load_dir",
    "inprocess_restart",
    "log_straggler",
)


_SOURCES = ("mock_data", "data_path", "data_args_path", "per_split_data_args_path")
# One source together.
_SPLITS = ("train_data_path", "valid_data_path", "test_data_path")


def entry_problems(args: Namespace) -> Iterator[Problem]:
    """What this entry point has not: modes of Megatron's own script, other data."""
    check = Check(args)
    for name in _ELSEWHERE:
        if getattr(args, name, None):
            yield check.problem(
                f"{{{name}}} is not a mode of grove_megatron.pretrain; use torchrun -m "
                "grove_megatron.run path/to/pretrain_gpt.py with the same flags"
            )
    if args.dataloader_type == "external":
        yield check.problem(
            "{dataloader_type} needs a script that brings its own data loaders, which "
            "grove_megatron.pretrain does not; use single or cyclic"
        )
    yield from needed(args)
    # Where the tokens come from: one place, which Megatron's validation does not ask for.
    splits = [name for name in _SPLITS if getattr(args, name, None)]
    given = [f"{{{name}}}" for name in (*_SOURCES, *splits[:1]) if getattr(args, name, None)]
    if not given:
        fix = "give a prefix of .bin and .idx files, or --mock-data"
        if args.sft:
            fix = "give a file of conversations"
        yield check.problem(f"{{data_path}} is needed; {fix}")
    elif len(given) > 1:
        others = " and ".join(given[1:])
        yield check.problem(f"{given[0]} excludes {others}; give one source of data")


def datasets(num_samples: list[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Train, validation and test datasets of ``--data-path`` and relatives or ``--mock-data``.

    Of text in Megatron's format, or of conversations with ``--sft``.
    """
    args = get_args()
    kind = MockGPTDataset if args.mock_data else PackedConversations if args.sft else GPTDataset
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    per_dataset = args.per_dataset_sequences_path
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=build_tokenizer(args),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader and not args.sft,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        allow_ambiguous_pad_tokens=args.allow_ambiguous_pad_tokens,
        fast_cache_load=args.dataloader_fast_cache_load,
        defer_npy_index_mmap=args.dataloader_defer_npy_index_mmap,
        sequences_per_dataset=json.loads(Path(per_dataset).read_text()) if per_dataset else None,
        context_parallel_size=args.context_parallel_size,
        data_parallel_size=args.data_parallel_size,
        sequence_parallel_size=args.tensor_model_parallel_size * args.sequence_parallel,
    )
    builder = BlendedMegatronDatasetBuilder(
        kind,
        num_samples,
        partial(_is_built_here, vp_stage=vp_stage),
        config,
    )
    train, valid, test = builder.build()
    if args.sft and train is not None and num_samples[0] and len(train) < num_samples[0]:
        raise ValueError(
            f"--data-path without weights is read once, {len(train)} sequences, and the job takes "
            f"{num_samples[0]}; give a weight before every file, or lower --train-iters"
        )
    if args.sft:
        # A loader asks for a sample; of parts that nobody reads there may be none.
        valid, test = (part if part is not None and len(part) else None for part in (valid, test))
    return train, valid, test


# Every rank builds (or skips) its datasets; Megatron then does not broadcast sizes from rank 0.
datasets.is_distributed = True  # type: ignore[attr-defined]


def _is_built_here(vp_stage: int | None = None) -> bool:
    return mpu.get_tensor_model_parallel_rank() == 0 and _sees_tokens(vp_stage)


def _sees_tokens(vp_stage: int | None) -> bool:
    return bool(get_args().sft or is_first_or_last_pipeline_stage(vp_stage) or _has_mtp(vp_stage))


def _has_mtp(vp_stage: int | None) -> bool:
    config = transformer_config(get_args())
    return bool(
        mtp_on_this_rank(
            layout=config.pipeline_model_parallel_layout,
            mtp_num_layers=config.mtp_num_layers,
            ignore_virtual=False,
            vp_stage=vp_stage,
        )
    )


def embedding_ranks(pp_ranks: list[int]) -> list[int]:
    """Global ranks of a pipeline that hold word embeddings, the MTP stage included."""
    ranks = {pp_ranks[0]}
    if len(pp_ranks) > 1:
        if not get_args().untie_embeddings_and_output_weights:
            ranks.add(pp_ranks[-1])
        ranks.update(get_mtp_ranks(pp_ranks, transformer_config(get_args())))
    return sorted(ranks)


def _batch(
    data: Iterator[dict[str, Tensor]], vp_stage: int | None, micro_batch: int
) -> tuple[dict[str, Tensor | None], PackedSeqParams | None]:
    """One microbatch of B samples on this rank's device: [B, S] tensors, None on inner stages.

    With --sft, what keeps its conversations apart: a mask for local attention, or its parameters.
    """
    if not _sees_tokens(vp_stage):
        return dict.fromkeys(_FIELDS), None
    args = get_args()
    tp_rank = mpu.get_tensor_model_parallel_rank()
    batch: dict[str, Tensor | None] = {}
    if tp_rank == 0:
        loaded = next(data)
        check_tokens(loaded, vocabulary_size(get_tokenizer()), args)
        batch = {
            name: loaded[name].cuda(non_blocking=True) if loaded.get(name) is not None else None
            for name in (*_FIELDS, *_BORDERS)
        }
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=args.sft,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=(
            args.create_attention_mask_in_dataloader and not args.sft
        ),
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tp_rank,
        micro_batch_size=micro_batch,
        seq_length=args.seq_length,
        mtp_on_this_rank=_has_mtp(vp_stage),
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    borders = None
    if args.sft:
        batch, borders = apart(batch, args.seq_length, is_local=args.transformer_impl == "local")
    batch = get_batch_on_this_cp_rank(
        batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group()
    )
    return {name: batch.get(name) for name in _FIELDS}, borders


def loss(
    loss_mask: Tensor, output: Tensor, model: GPTModel | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Summed loss, number of tokens, and the report Megatron averages over data parallelism."""
    losses = output.view(-1).float()
    mask = loss_mask.view(-1).float()
    total = torch.sum(losses * mask)
    num_tokens = mask.sum().clone().detach().to(torch.int)
    if get_args().check_for_nan_in_loss_and_grad:
        for reject, what in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=total,
                rejection_func=reject,
                message=f"found {what} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    if get_args().check_for_spiky_loss:
        machine = get_rerun_state_machine()
        machine.validate_result(
            result=total,
            rejection_func=partial(machine.is_unexpectedly_large, threshold=_SPIKE, context="loss"),
            message="Spiky loss",
            tolerance=0.0,
            fatal=False,
        )
    report = {"lm loss": torch.cat([total.clone().detach().view(1), num_tokens.view(1)])}
    return total, num_tokens, report


def forward_step(
    data: Iterator[dict[str, Tensor]], model: GPTModel, return_schedule_plan: bool = False
) -> tuple[Any, Any]:
    """One microbatch through this stage; Megatron's schedules call it."""
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    args = get_args()
    samples = args.micro_batch_size if model.training else args.eval_micro_batch_size
    batch, borders = _batch(data, get_attr_wrapped_model(model, "vp_stage"), samples)
    timers("batch-generator").stop()
    loss_function = partial(loss, batch["loss_mask"], model=model)
    inputs = (batch["tokens"], batch["position_ids"], batch["attention_mask"])
    named = {"labels": batch["labels"], "loss_mask": batch["loss_mask"]}
    if return_schedule_plan:
        return model.build_schedule_plan(*inputs, **named), loss_function
    return model(*inputs, **named, packed_seq_params=borders), loss_function
