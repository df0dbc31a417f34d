"""On the ranks: the same tokens in other layouts, as the bias and the loss over groups see them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from grove_megatron.parts.part import Draws
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


def losses(folder: str, sizes: dict[str, int]) -> None:
    """Job: a microbatch, split over the ranks that share it; every loss and its gradients."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from grove_megatron.parts import registry

    flags = {part.name: part.tried for part in registry.of_slot("loss")} | {
        "z": "--moe-z-loss-coeff 0.1",
        "z per token": "--moe-z-loss-coeff 0.1 --calculate-per-token-loss",
        "load per token": "--grove-load-loss-coeff 0.1 --grove-noisy-topk "
        "--calculate-per-token-loss",
        "z before a norm": "--moe-z-loss-coeff 0.1 --grove-logit-norm sample",
        "switch": "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.1",
    }
    found = {}
    with megatron(**sizes):
        for name, given in flags.items():
            fp64 = {"params_dtype": torch.float64, "moe_router_dtype": "fp64"}
            router = _router(_config(**_settings(given), **fp64, **sizes))
            router.draws = _Mine()
            generator = torch.Generator().manual_seed(1)
            for weight in router.parameters():
                values = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight.data.copy_(values)
            x_TH = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
            # Unlike numbers of tokens that are none: a mean over ranks would be another one.
            padding_T = torch.arange(TOKENS) < TOKENS // 3
            tracker = get_moe_metrics_tracker()
            tracker.clear()
            probs, _ = router(_mine(x_TH).unsqueeze(1), padding_mask=_mine(padding_T).unsqueeze(1))
            (probs.sum() * 0).backward()
            gradients = [weight.grad for weight in router.parameters()]
            for gradient in gradients:
                dist.all_reduce(gradient)
            tracker._sync_metrics([*tracker.metrics])
            recorded = {name: float(m.values.sum()) for name, m in tracker.metrics.items()}
            found[name] = {
                "losses": recorded,
                "gradients": torch.cat([g.flatten() for g in gradients]).tolist(),
            }
        ranks = parallel_state.get_tensor_and_context_parallel_world_size()
        write_result(folder, {"found": found, "ranks": ranks})


class _Mine(Draws):
    """This rank's part of what is drawn for all tokens."""

    def normal(self, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return _mine(torch.randn(TOKENS, like.shape[1], generator=generator, dtype=like.dtype))


def _settings(flags: str) -> dict[str, Any]:
    """What a command line with these flags has beside the defaults."""
    from argparse import ArgumentParser

    from megatron.training.arguments import add_megatron_arguments

    from grove_megatron.arguments import add_grove_arguments

    parser = add_grove_arguments(add_megatron_arguments(ArgumentParser()))
    plain, given = vars(parser.parse_args([])), vars(parser.parse_args(flags.split()))
    return {name: value for name, value in given.items() if value != plain[name]}


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
