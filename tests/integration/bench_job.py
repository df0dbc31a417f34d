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


def scaling_to_two_ranks(folder: str, argv: list[str]) -> None:
    """``grove bench scaling``; each job of its own ranks imports Megatron."""
    from grove_megatron.benchmarks import scaling

    scaling.RANKS = (1, 2)
    grove(folder, argv)


def local_experts(folder: str, argv: list[str]) -> None:
    """``grove bench local``."""
    grove(folder, argv)


def routers(folder: str, argv: list[str]) -> None:
    """``grove bench routers``."""
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


def dispatch_with_a_lost_row(folder: str, argv: list[str]) -> None:
    """The second hop of two loses a row of the last rank."""
    import torch.distributed as dist

    from grove_megatron.moe.crossing import Crossing

    original = Crossing.send_back

    def send_back(self: Any, y_VH: torch.Tensor) -> torch.Tensor:
        y_UH = original(self, y_VH)
        hops = dist.get_world_size(self.group) < dist.get_world_size()
        if hops and dist.get_rank() == 3:
            y_UH = torch.cat([torch.zeros_like(y_UH[:1]), y_UH[1:]])
        return y_UH

    Crossing.send_back = send_back
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


def layer_with_passes_that_differ(folder: str, argv: list[str]) -> None:
    """The last bit of an output comes and goes, where torch is told to be deterministic."""
    from grove_megatron.benchmarks import agreement

    original, passes = agreement.forward_backward, []

    def forward_backward(*args: Any) -> dict[str, torch.Tensor]:
        found = original(*args)
        if torch.are_deterministic_algorithms_enabled():
            passes.append(None)
            found["output"].view(-1).view(torch.int32)[7] ^= len(passes) % 2
        return found

    agreement.forward_backward = forward_backward
    grove(folder, argv)


def kernels(folder: str, argv: list[str]) -> None:
    """``grove bench kernels``; leaves the routing that it drew."""
    from grove_megatron.benchmarks import kernels as benchmark

    original = benchmark.uniform_routing

    def uniform_routing(*args: Any) -> Any:
        probs, routing_map = original(*args)
        write_result(folder, routing_map.tolist())
        return probs, routing_map

    benchmark.uniform_routing = uniform_routing
    grove(folder, argv)


def kernels_with_a_wrong_gradient(folder: str, argv: list[str]) -> None:
    """One strategy's gradient of an adjugate matrix is a thousandth off in its largest entry."""
    from grove_megatron.benchmarks import concatenated

    original = concatenated.fan_weights

    def fan_weights(*args: Any) -> Any:
        dwide, dnarrow = original(*args)
        if dnarrow is not None:
            wrong = dnarrow.view(-1)
            wrong[wrong.abs().argmax()] *= 1.001
        return dwide, dnarrow

    concatenated.fan_weights = fan_weights
    grove(folder, argv)
