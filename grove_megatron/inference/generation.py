"""Tokens from a Megatron model, by Megatron's static inference engine and its cache of keys and
values.

The static engine (megatron-core 0.19.2 static_engine.py) is plain torch and runs on a CPU; the
dynamic one needs FlashAttention's kernels. It fills the cache with the shortest prompt of a batch
at once, and from there goes token by token through all of them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.engines.static_engine import StaticInferenceEngine
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import (
    GPTInferenceWrapper,
)
from megatron.core.inference.sampling_params import SamplingParams
from megatron.core.inference.text_generation_controllers.text_generation_controller import (
    TextGenerationController,
)
from megatron.core.inference.utils import InferenceMode
from megatron.core.transformer.moe.moe_layer import BaseMoELayer
from megatron.core.transformer.utils import set_model_to_sequence_parallel
from megatron.core.utils import get_model_config, unwrap_model
from torch import Tensor

from ..checkpoint.model_run import Load, ModelRun
from ..config import has_grove_layers
from ..model.architecture import Architecture
from ..moe.carried import carrying_flags, no_stages
from ..parts import registry

# Row of the batch and token, as it is made.
Heard = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Args:
        temperature: of the softmax; 0 takes the best.
        top_k: choose among so many of the best; 0 among all.
        top_p: choose among the best that have this probability together; 0 among all.
        seed: of the choices, the same on every rank.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 1234


@dataclass(frozen=True)
class _Ids:
    """What the engine asks of a tokenizer: prompts are token ids already."""

    vocab_size: int
    eod: int
    bos: None = None

    def detokenize(self, ids: list[int]) -> str:
        return ""


class _Controller(TextGenerationController):
    """Chooses among tokens that there are, and tells whoever listens what it chose."""

    heard: Heard | None = None
    ends: Tensor

    @staticmethod
    def tokenize_prompt(tokenizer: _Ids, prompt: Any, add_BOS: bool = False) -> list[int]:
        return list(prompt)

    def sample_from_logits(self, last_token_logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sampled = self.choose(last_token_logits, *args, **kwargs)
        # The engine knows one end.
        sampled[torch.isin(sampled, self.ends.to(sampled))] = self.tokenizer.eod
        # All have all prompts, and experts of one are asked by the others: rounded otherwise, they
        # would part, and wait for one another.
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        dist.broadcast(sampled, dist.get_process_group_ranks(group)[0], group)
        return sampled

    def choose(self, last_token_logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of this rank, ids [B] of logits [B, V]."""
        # The vocabulary is padded with rows that nobody has trained.
        logits = last_token_logits.clone()
        logits[:, self.tokenizer.vocab_size :] = -torch.inf
        sampled: Tensor = super().sample_from_logits(logits, *args, **kwargs)
        return sampled

    def update_generation_status(
        self,
        updated_prompts_tokens: Tensor,
        generation_started: Tensor,
        current_context_end_position: int,
        is_generation_done_tensor: Tensor,
        generated_sequence_lengths: Tensor,
        termination_id: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        going = generation_started & ~is_generation_done_tensor
        done, lengths = super().update_generation_status(
            updated_prompts_tokens,
            generation_started,
            current_context_end_position,
            is_generation_done_tensor,
            generated_sequence_lengths,
            termination_id,
        )
        if self.heard is not None:
            latest = updated_prompts_tokens[:, current_context_end_position].tolist()
            for row, is_new in enumerate((going & ~done).tolist()):
                if is_new:
                    self.heard(row, latest[row])
        return done, lengths


class _StaticEngine(StaticInferenceEngine):
    """Without the engine's own line of progress."""

    def run_engine(self) -> None:
        while self.scheduler.have_requests_pending():
            waiting = self.scheduler.active_request_pool.copy()
            done = self.controller.generate_all_output_tokens_static_batch(waiting, {})
            self.scheduler.update_requests_pools(result_dict=done)


class Engine:
    """A model that continues token ids.

    Args:
        model: of this rank, in eval mode or not.
        vocab_size: tokens that there are; rows of the embedding beyond are padding.
        batch_size: prompts at a time, at most.
        length: tokens of a prompt and its continuation, at most.
        ends: ids after which a continuation is over.
    """

    def __init__(
        self, model: Any, *, vocab_size: int, batch_size: int, length: int, ends: Sequence[int]
    ) -> None:
        self._batch_size = batch_size
        self._model = model
        wrapper = GPTInferenceWrapper(model, StaticInferenceContext(batch_size, length))
        # -1 is no token: what it is compared with never ends.
        self._controller = _Controller(wrapper, _Ids(vocab_size, ends[0] if ends else -1))
        self._controller.ends = torch.tensor(ends, dtype=torch.int64)
        with warnings.catch_warnings():
            # That it will go one day: the other cannot do without CUDA.
            warnings.simplefilter("ignore", UserWarning)
            self._engine = _StaticEngine(self._controller, batch_size, legacy=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        sampling: Sampling,
        heard: Heard | None = None,
    ) -> list[list[int]]:
        """Continue every prompt, which every rank has; every rank gets the same back.

        Args:
            prompts: token ids, one or more each.
            new_tokens: of each, at most; the one that ends it is not among them.
            sampling: how.
            heard: told every token, with the prompt's number, as it is made.
        """
        greedy = sampling.temperature == 0
        params = SamplingParams(
            temperature=1.0 if greedy else sampling.temperature,
            top_k=1 if greedy else sampling.top_k,
            top_p=0.0 if greedy else sampling.top_p,
            num_tokens_to_generate=new_tokens,
        )
        self._controller.sampling_rng.manual_seed(sampling.seed)
        found: list[list[int]] = []
        for start in range(0, len(prompts), self._batch_size):
            batch = list(prompts[start : start + self._batch_size])
            if heard is not None:
                self._controller.heard = _shifted(heard, start)
            done = self._engine.generate(prompts=batch, sampling_params=params)
            found += [request.generated_tokens.tolist() for request in done]
        self._controller.heard = None
        return found

    def close(self) -> None:
        """Let the model compute as in training again."""
        InferenceMode.unset_active()


def _shifted(heard: Heard, start: int) -> Heard:
    return lambda row, token: heard(start + row, token)


def whole_sequences(models: Sequence[Any]) -> None:
    """Every rank has all tokens between MoE layers, as the engine wants it.

    It does so itself, with expert parallelism beside tensor parallelism alone.
    """
    if mpu.get_tensor_model_parallel_world_size() == 1:
        return
    for model in unwrap_model(list(models)):
        set_model_to_sequence_parallel(model, False, exclude_modules=[BaseMoELayer])


def build(
    architecture: Architecture,
    load: Load,
    flags: list[str],
    *,
    vocab_size: int,
    batch_size: int,
    length: int,
    ends: Sequence[int],
) -> Engine:
    """A model with its weights, on this rank's part of a job.

    Args:
        architecture: of it.
        load: puts the weights in.
        flags: Megatron's, such as parallel sizes.
        vocab_size, batch_size, length, ends: see :class:`Engine`.

    Raises:
        ValueError: a layout in which it cannot generate.
    """
    shape = (batch_size, length)
    run = ModelRun(architecture, shape, flags, load, gradients=False)
    stages = mpu.get_pipeline_model_parallel_world_size()
    config = get_model_config(run.models[0])
    carries = has_grove_layers(config) and carrying_flags(config)
    if stages > 1 and carries:
        raise ValueError(no_stages(config, stages))
    sees = [part for part in registry.active(config) if part.sees == "always"]
    if has_grove_layers(config) and sees:
        raise ValueError(
            f"--grove-router-selector ({sees[0].name}) chooses among the tokens of a whole batch, "
            "and generation has one token of a sequence at a time; use another selector"
        )
    if len(run.models) > 1:
        raise ValueError(
            f"virtual pipeline stages ({len(run.models)}) have no place in Megatron's inference "
            "engine; remove --num-layers-per-virtual-pipeline-stage and the like"
        )
    whole_sequences(run.models)
    (model,) = run.models
    return Engine(model, vocab_size=vocab_size, batch_size=batch_size, length=length, ends=ends)
