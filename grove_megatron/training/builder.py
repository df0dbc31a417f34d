"""Megatron's GPT builder with Grove layers in the MTP block, and a count of what was built."""

from dataclasses import dataclass
from typing import Any, ClassVar, override

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel.utils import (
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import get_args
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig, mtp_block_spec
from megatron.training.vocab_utils import calculate_padded_vocab_size

from ..layer_count import check_after_build
from ..layer_spec import adapt_spec, grove_layer_spec, swap_classes
from ..moe import balance
from .carrying import CarryingMTPLayer, carry
from .dropped_weights import check_no_weight_is_dropped
from .metrics import watch_routing
from .nonfinite import watch_logits
from .subsets import train_only


@dataclass(kw_only=True)
class GroveGPTModelConfig(GPTModelConfig):
    """Megatron's GPTModelConfig, built by :class:`GroveGPTModelBuilder`."""

    builder: ClassVar[str] = "grove_megatron.training.builder.GroveGPTModelBuilder"


class GroveGPTModelBuilder(GPTModelBuilder):
    """Build a GPT whose MTP layers are Grove layers too, and check that it is one.

    Megatron takes the decoder layers from ``--spec`` but makes the MTP block from a spec of its
    own, and it trains its default layer when it cannot import ``--spec``. Any model that does not
    use our spec is built by Megatron's builder untouched.
    """

    @override
    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        cfg = self._model_config
        if cfg.transformer_layer_spec is not grove_layer_spec:
            return super().build_model(pg_collection, pre_process, post_process, vp_stage)
        transformer: TransformerConfig = cfg.transformer
        if getattr(transformer, "grove_router_selector", None) == "hash":
            self._size_table(transformer)
        layer_spec = grove_layer_spec(cfg, vp_stage=vp_stage)
        vp_size = transformer.virtual_pipeline_model_parallel_size
        if pre_process is None:
            first = is_vp_first_stage(vp_stage=vp_stage, vp_size=vp_size)
            pre_process = first and is_pp_first_stage(pg_collection.pp)
        if post_process is None:
            last = is_vp_last_stage(vp_stage=vp_stage, vp_size=vp_size)
            post_process = last and is_pp_last_stage(pg_collection.pp)
        model = GPTModel(
            config=transformer,
            transformer_layer_spec=layer_spec,
            mtp_block_spec=swap_classes(
                adapt_spec(mtp_block_spec(cfg, layer_spec, vp_stage=vp_stage), transformer),
                {MultiTokenPredictionLayer: CarryingMTPLayer},
            ),
            vocab_size=self._vocab_size(),
            max_sequence_length=cfg.seq_length,
            fp16_lm_cross_entropy=cfg.fp16_lm_cross_entropy,
            parallel_output=cfg.parallel_output,
            share_embeddings_and_output_weights=cfg.share_embeddings_and_output_weights,
            position_embedding_type=cfg.position_embedding_type,
            rotary_percent=cfg.rotary_percent,
            rotary_base=cfg.rotary_base,
            rope_scaling=cfg.rope_scaling,
            rope_scaling_factor=cfg.rope_scaling_factor,
            seq_len_interpolation_factor=cfg.seq_len_interpolation_factor,
            scatter_embedding_sequence_parallel=cfg.scatter_embedding_sequence_parallel,
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=pg_collection,
            vp_stage=vp_stage,
        )
        return carry(model)

    def _size_table(self, transformer: Any) -> None:
        """Give the table of hash layers a row for every token id."""
        table = transformer.grove_hash_vocabulary or self._vocab_size()
        if table < self._vocab_size():
            raise ValueError(
                f"--grove-hash-vocabulary ({table}) is below the token ids of the model "
                f"({self._vocab_size()}); leave it out"
            )
        transformer.grove_hash_vocabulary = table

    def _vocab_size(self) -> int:
        cfg = self._model_config
        if not cfg.should_pad_vocab:
            return int(cfg.vocab_size)
        return int(
            calculate_padded_vocab_size(
                cfg.vocab_size,
                cfg.make_vocab_size_divisible_by,
                cfg.transformer.tensor_model_parallel_size,
            )
        )

    @override
    def build_distributed_models(
        self, pg_collection: ProcessGroupCollection, *args: Any, **kwargs: Any
    ) -> list[GPTModel]:
        # Also where the layers are not ours: a spec that does not import is none of ours.
        check_after_build(self._model_config)
        hooks = self._model_config.post_wrap_hooks
        for hook in (check_no_weight_is_dropped, watch_routing, watch_logits):
            if hook not in hooks:
                hooks.append(hook)
        chosen = getattr(get_args(), "grove_train_only", None)
        before = self._model_config.pre_wrap_hooks
        if chosen and train_only(tuple(chosen)) not in before:
            before.append(train_only(tuple(chosen)))
        # Before train() sets Megatron's function where there is none.
        balance.install(self._model_config.transformer, _iterations_done)
        models: list[GPTModel] = super().build_distributed_models(pg_collection, *args, **kwargs)
        return models


def _iterations_done() -> int:
    """The iterations before the one that runs, those of earlier runs included."""
    done = getattr(get_args(), "curr_iteration", None)
    if done is None:
        raise ValueError(
            "--grove-bias-rate-decay-style needs args.curr_iteration (None), the iterations before "
            "this one, which Megatron's train() sets; set it in your own loop, or use constant"
        )
    return int(done)
