"""Runs on a rank: ``grove bench`` with what it was given written down, or with a fault put in."""

from typing import Any

import torch

from tests.integration.verify_job import grove
from tests.ranks import write_result


def dispatch(folder: str, argv: list[str]) -> None:
    """``grove bench dispatch``; leaves the routing that it drew."""
    from grove_megatron.benchmarks import dispatch as benchmark

    original = benchmark.inputs

    def inputs(shape: Any, seed: int) -> Any:
        given = original(shape, seed)
        write_result(folder, given.routing_map.tolist())
        return given

    benchmark.inputs = inputs
    grove(folder, argv)


def dispatch_with_a_wrong_gradient(folder: str, argv: list[str]) -> None:
    """One entry of a gradient of our dispatcher is a thousandth off, on the last rank alone."""
    import torch.distributed as dist

    from grove_megatron.benchmarks import dispatch as benchmark
    from grove_megatron.moe.dispatcher import GroveTokenDispatcher

    original = benchmark.there_and_back

    def there_and_back(dispatcher: Any, given: Any) -> dict[str, torch.Tensor]:
        found = original(dispatcher, given)
        if isinstance(dispatcher, GroveTokenDispatcher) and dist.get_rank() == 1:
            wrong = found["gradient of probs"].view(-1)
            wrong[wrong.abs().argmax()] *= 1.001
        return found

    benchmark.there_and_back = there_and_back
    grove(folder, argv)


def layer(folder: str, argv: list[str]) -> None:
    """``grove bench layer``; leaves the routing of the first kernel."""
    from grove_megatron.benchmarks import layer as benchmark

    original = benchmark.work_of

    def work_of(layer: Any, x: torch.Tensor, num_groups: int) -> Any:
        with torch.no_grad():
            write_result(folder, layer.route(x)[1].tolist())
        return original(layer, x, num_groups)

    benchmark.work_of = work_of
    grove(folder, argv)


def layer_with_a_wrong_naive(folder: str, argv: list[str]) -> None:
    """naive evaluates adjugates with a weight that is a thousandth off."""
    from grove_megatron.benchmarks import variants

    original = variants.NaiveGroveLayer.__init__

    def __init__(self: Any, config: Any, *args: Any, **named: Any) -> None:
        import copy

        config = copy.deepcopy(config)
        config.grove_adjugate_scale *= 1.001
        original(self, config, *args, **named)

    variants.NaiveGroveLayer.__init__ = __init__
    grove(folder, argv)


def layer_with_a_wrong_plain(folder: str, argv: list[str]) -> None:
    """plain has one weight that is not grove's."""
    from grove_megatron.benchmarks import layer as benchmark

    original = benchmark.layers

    def layers(*args: Any) -> dict[str, Any]:
        built = original(*args)
        with torch.no_grad():
            weight = next(built["plain"].experts.parameters()).view(-1)
            weight[weight.abs().argmax()] *= 1.1
        return built

    benchmark.layers = layers
    grove(folder, argv)
