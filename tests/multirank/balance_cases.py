"""On the ranks: the same tokens in other layouts, as the bias and the loss over groups see them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.multirank.on_ranks import gathered, grove_config, megatron
from tests.ranks import write_result

EXPERTS, GROUPS, HIDDEN, LAYERS, TOKENS, BATCHES = 16, 8, 8, 3, 96, 40


def biases(folder: str, sizes: dict[str, int], microbatches: int) -> None:
    """Job: global batches of the same logits, over ranks and microbatches; the biases, in bits."""
    from megatron.core.distributed.finalize_model_grads import reset_model_temporary_tensors
    from megatron.core.process_groups_config import ProcessGroupCollection

    from grove_megatron.moe import balance

    with megatron(**sizes):
        config = _config(moe_router_enable_expert_bias=True, **_decay(), **sizes)
        model = torch.nn.Module()
        model.config = config
        model.layers = torch.nn.ModuleList(_router(config) for _ in range(LAYERS))
        done = iter(range(BATCHES))
        config.finalize_model_grads_func = lambda model, *_, **__: reset_model_temporary_tensors(
            config, model
        )
        balance.install(config, lambda: next(done))
        collectives = _count_all_reduces()
        for batch in range(BATCHES):
            for layer, router in enumerate(model.layers):
                mine = _mine(_logits(100 * batch + layer))
                for microbatch in mine.chunk(microbatches):
                    router.routing(microbatch.unsqueeze(1))
            config.finalize_model_grads_func(
                [model], None, pg_collection=ProcessGroupCollection.use_mpu_process_groups()
            )
        found = torch.stack([router.expert_bias for router in model.layers])
        assert all(torch.equal(found, other) for other in gathered(found))
        write_result(
            folder,
            {
                "bits": found.view(torch.int32).tolist(),
                "largest": float(found.abs().max()),
                "collectives": collectives,
            },
        )


def group_loss(folder: str, sizes: dict[str, int]) -> None:
    """Job: a microbatch, split over the ranks that share it; its loss and router gradient."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from grove_megatron.moe.router import GROUP_LOSS

    with megatron(**sizes):
        router = _router(_config(grove_group_aux_loss_coeff=0.3, **sizes))
        generator = torch.Generator().manual_seed(1)
        router.weight.data.copy_(torch.randn(EXPERTS, HIDDEN, generator=generator))
        x_TH = torch.randn(TOKENS, HIDDEN, generator=generator)
        # Unlike numbers of tokens that are none: a mean over ranks would be another one.
        padding_T = torch.arange(TOKENS) < TOKENS // 3
        probs, _ = router(_mine(x_TH).unsqueeze(1), padding_mask=_mine(padding_T).unsqueeze(1))
        (probs.sum() * 0).backward()
        gradient = router.weight.grad
        dist.all_reduce(gradient)
        tracker = get_moe_metrics_tracker()
        tracker._sync_metrics([GROUP_LOSS])
        result = {
            "loss": float(tracker.metrics[GROUP_LOSS].values.sum()),
            "gradient": gradient.tolist(),
            "ranks": parallel_state.get_tensor_and_context_parallel_world_size(),
        }
        write_result(folder, result)


def _decay() -> dict[str, Any]:
    return {"grove_bias_rate_decay_style": "cosine", "grove_bias_rate_decay_iters": BATCHES}


def _config(**settings: Any) -> Any:
    settings["sequence_parallel"] = settings.get("tensor_model_parallel_size", 1) > 1
    return grove_config(
        hidden_size=HIDDEN,
        num_moe_experts=EXPERTS,
        grove_num_groups=GROUPS,
        grove_adjugate_ffn_hidden_size=8,
        moe_router_bias_update_rate=1e-2,
        **settings,
    )


def _router(config: Any) -> Any:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from grove_megatron.moe.router import GroveRouter

    router = GroveRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    router.set_layer_number(1)
    return router


def _logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, EXPERTS, generator=generator) + torch.linspace(-1, 1, EXPERTS)


def _mine(whole: Tensor) -> Tensor:
    """This rank's part of what all ranks together have."""
    return whole.chunk(dist.get_world_size())[dist.get_rank()]


def _count_all_reduces() -> list[str]:
    """The dtype and shape of every tensor that is all-reduced from now on."""
    seen: list[str] = []
    original = dist.all_reduce

    def all_reduce(tensor: Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(f"{tensor.dtype} {tuple(tensor.shape)}")
        return original(tensor, *rest, **named)

    dist.all_reduce = all_reduce
    return seen
