"""Every part in the registry, in one process: the router that it is in computes what it says.

The oracle is the same composition of the parts' slow references, in fp64, with every gradient.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch.testing import assert_close

from grove_megatron.config import GroveTransformerConfig
from grove_megatron.moe.carried import Carried, digits
from grove_megatron.moe.router import GroveRouter
from grove_megatron.parts import registry
from grove_megatron.parts.part import Draws, Part, experts_of
from tests.router_oracle import oracle, reference

pytestmark = pytest.mark.usefixtures("on_one_rank")
HIDDEN, SEQUENCE, BATCH, VOCABULARY = 10, 7, 3, 300
ROUTED = [part for part in registry.parts() if part.slot not in ("update", "schedule")]


def name_of(part: Part) -> str:
    return f"{part.slot}-{part.name}"


class Fixed(Draws):
    """The same numbers every time they are asked for."""

    def uniform(self, like):
        return torch.rand(like.shape, generator=self.generator(), dtype=like.dtype)

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator(), dtype=like.dtype)

    def generator(self):
        return torch.Generator().manual_seed(7)


def config_of(flags: str, parse, *, groups: bool) -> GroveTransformerConfig:
    """The configuration of these flags: 12 experts, in 6 groups or none, 4 a token."""
    args = parse(f"--num-experts 12 --moe-router-topk 4 {flags}")
    names = {field.name for field in dataclasses.fields(GroveTransformerConfig)}
    given = {
        name: value
        for name, value in vars(args).items()
        if name in names and name.startswith(("grove_", "moe_"))
    }
    for name, value in given.items():
        if isinstance(value, list) and len(value) == 1:
            # As Megatron's validation does.
            given[name] = value[0]
    of_groups = {"grove_num_groups": 6, "grove_adjugate_ffn_hidden_size": 4}
    return GroveTransformerConfig(
        **given
        | {
            "num_layers": 2,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_moe_experts": experts_of(args),
            "add_bias_linear": False,
            "moe_token_dispatcher_type": "alltoall",
            "params_dtype": torch.float64,
            "moe_router_dtype": "fp64",
            "grove_hash_vocabulary": VOCABULARY if args.grove_router_selector == "hash" else None,
        }
        | (of_groups if groups else {"grove_dispatch": True})
    )


def make_router(config: GroveTransformerConfig) -> GroveRouter:
    torch.manual_seed(3)
    config.grove_moves = True
    router = GroveRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    router.set_layer_number(1)
    for weight in router.parameters():
        weight.data = torch.randn(weight.shape, dtype=torch.float64) * 0.5
    if router.expert_bias is not None:
        router.expert_bias.copy_(torch.linspace(-0.1, 0.1, len(router.expert_bias)))
    router.draws = Fixed()
    return router


def inputs(padded: bool, columns: int = 12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SEQUENCE, BATCH, HIDDEN, dtype=torch.float64, generator=generator)
    upstream = torch.randn(SEQUENCE * BATCH, columns, dtype=torch.float64, generator=generator)
    padding = torch.rand(SEQUENCE, BATCH, generator=generator) < 0.25 if padded else None
    if padding is not None:
        upstream[padding.reshape(-1)] = 0
    return x.requires_grad_(), upstream, padding


def carried_of(router: GroveRouter, sequence: int = SEQUENCE, batch: int = BATCH) -> Carried:
    """What comes beside the tokens: logits to add, token ids, columns for rewards."""
    generator = torch.Generator().manual_seed(2)
    shape = (sequence, batch, router.num_experts)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    ids = torch.randint(VOCABULARY, shape[:2], generator=generator)
    reward = torch.zeros((*shape[:2], 4), dtype=torch.float64)
    found = {
        "logits": logits,
        "ids": digits(ids, torch.float64),
        "reward": reward if router.training else None,
    }
    return Carried(**{name: found[name] for name in router.needs})


def weights_of_routing(router: GroveRouter) -> list[torch.nn.Parameter]:
    """All but those of experts."""
    return [w for name, w in router.named_parameters() if not name.startswith("local_")]


def layouts(part: Part) -> list[bool]:
    return [True] if part.needs_groups else [True, False]


CASES = [(part, groups) for part in ROUTED for groups in layouts(part)]
IDS = [f"{name_of(part)}-{'groups' if groups else 'plain'}" for part, groups in CASES]


@pytest.mark.parametrize(("part", "groups"), CASES, ids=IDS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_router_with_the_part_is_the_oracle(part, groups, padded, training, parse):
    # Without groups the scoring is Megatron's, and no flag says so.
    flags = "" if part.slot == "scoring" and not groups else part.tried
    config = config_of(flags, parse, groups=groups)
    assert part in registry.active(config)
    router = make_router(config).train(training)
    x, upstream, padding = inputs(padded, router.num_experts)
    router.carried = carried = carried_of(router)
    get_moe_metrics_tracker().clear()
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1.0))
    probs, chosen = router(x, padding_mask=padding)
    expected_probs, expected_map, loss = oracle(
        router, x, padding, draws=Fixed(), previous=carried.logits, ids=carried.ids_T
    )
    assert torch.equal(chosen, expected_map)
    assert_close(probs, expected_probs, rtol=1e-10, atol=1e-12)
    if not router.reads_logits:
        assert not probs.requires_grad
        return
    parameters = [x, *weights_of_routing(router)]
    if carried.logits is not None:
        parameters.append(carried.logits)
    found = torch.autograd.grad((probs * upstream).sum(), parameters, allow_unused=True)
    expected = torch.autograd.grad(
        (expected_probs * upstream).sum() + loss, parameters, allow_unused=True
    )
    for mine, theirs in zip(found, expected, strict=True):
        if theirs is None:
            # What evaluation does not read.
            assert mine is None
        else:
            assert_close(mine, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))
    if training and part.slot == "loss":
        recorded = get_moe_metrics_tracker().metrics[part.build(config).name].values.sum()
        own = sum(p.build(config).coefficient for p in registry.active(config, "loss"))
        assert float(recorded) * own == pytest.approx(float(loss), rel=1e-6)
        assert float(loss) > 0


@pytest.mark.parametrize("part", ROUTED, ids=name_of)
def test_evaluation_draws_nothing_and_a_recomputed_pass_has_the_same_bits(part, parse):
    config = config_of(part.tried, parse, groups=True)
    router = make_router(config).eval()
    router.draws = Draws()
    router.carried = carried_of(router)
    x, _, _ = inputs(False)
    state = torch.get_rng_state()
    first, again = router(x), router(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    router.train()
    router.carried = carried_of(router)
    with torch.no_grad():
        thrown_away = router(x)
    torch.set_rng_state(state)
    kept = router(x)
    assert torch.equal(thrown_away[0], kept[0])
    assert torch.equal(thrown_away[1], kept[1])


@pytest.mark.parametrize("part", ROUTED, ids=name_of)
def test_the_weights_of_a_part_are_those_it_names(part, parse):
    router = make_router(config_of(part.tried, parse, groups=True))
    local = router.num_experts - 12
    sizes = {"R": 12 + local, "H": HIDDEN, "W": 8 * (12 + local), "C": 2, "B": 4}
    sizes |= {"Y": 3 * 12, "1": 1, "V": VOCABULARY, "T": 4}
    expected = {
        f"{p.slot}_{p.name}.{name}": tuple(sizes[dim] for dim in dims)
        for p in registry.active(router.config)
        for name, dims in p.weights.items()
    }
    found = {name: tuple(w.shape) for name, w in router.named_parameters() if name != "weight"}
    assert found == expected
    # Every weight once, or a checkpoint is loaded as if some were missing.
    of_megatron = {"expert_bias", "local_tokens_per_expert"} | (
        set() if part.slot == "gate" or not router.reads_logits else {"weight"}
    )
    buffers = {f"{part.slot}_{part.name}.{name}" for name in part.buffers}
    assert {*router.state_dict()} - of_megatron == expected.keys() | buffers
    for name, dims in part.buffers.items():
        buffer = router.get_submodule(f"{part.slot}_{part.name}").get_buffer(name)
        assert tuple(buffer.shape) == tuple(sizes[dim] for dim in dims)
    assert (router.weight is None) == (part.slot == "gate" or not router.reads_logits)
    assert local == part.columns(router.config) or part.slot in ("loss", "drop", "weigh")
    assert all(hasattr(weight, "sequence_parallel") for weight in router.parameters())


@pytest.mark.parametrize("part", registry.of_slot("local"), ids=name_of)
def test_local_experts_are_their_reference(part, parse):
    """Added to the layer's output, with gradients of tokens, weights and parameters."""
    router = make_router(config_of(part.tried, parse, groups=True))
    generator = torch.Generator().manual_seed(4)
    x, probs, upstream = (
        torch.randn(9, size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in (HIDDEN, 14, HIDDEN)
    )
    chosen = torch.rand(9, 14, generator=generator) < 0.4
    routed, where, added = router.divide(x, probs * chosen, chosen)
    assert torch.equal(routed, (probs * chosen)[:, :12])
    assert torch.equal(where, chosen[:, :12])
    expected = reference(router, part)(x, (probs * chosen)[:, 12:])
    if added is None:
        assert expected is None
        return
    assert_close(added, expected, rtol=1e-10, atol=1e-12)
    parameters = [x, probs, *(w for n, w in router.named_parameters() if n.startswith("local_"))]
    found = torch.autograd.grad((added * upstream).sum(), parameters)
    theirs = torch.autograd.grad((expected * upstream).sum(), parameters)
    assert_close(found, theirs, rtol=1e-10, atol=1e-12)


def test_a_gate_of_its_own_leaves_no_bias_that_nothing_reads(parse):
    config = config_of("--grove-router-gate two_layer", parse, groups=True)
    router = make_router(dataclasses.replace(config, add_bias_linear=True))
    assert {name for name, _ in router.named_parameters()} == {
        "gate_two_layer.first",
        "gate_two_layer.second",
    }


def test_updates_and_schedules_are_their_references(parse):
    counts = torch.tensor([[5, 0, 3], [7, 7, 7], [0, 0, 0]])
    for part in registry.of_slot("update"):
        config = config_of(part.tried, parse, groups=True)
        fast, slow = part.build(config), part.reference(config)
        if fast is not None:
            assert_close(fast(counts, 0.1), slow(counts, 0.1), rtol=1e-12, atol=0)
    for part in registry.of_slot("schedule"):
        config = config_of(part.tried, parse, groups=True)
        for gone in (0.0, 0.3, 0.999):
            assert part.build(config)(gone) == pytest.approx(part.reference(config)(gone), 1e-12)


@pytest.mark.parametrize("kind", registry.settings_classes(), ids=lambda kind: kind.__module__)
def test_every_flag_of_a_part_is_refused_without_its_part(kind, parse):
    """No setting is read by nobody, and none is silently ignored."""
    users = [part for part in registry.parts() if part.settings is kind and part.switch]
    off = parse("--num-experts 12 --moe-router-topk 4 --grove-dispatch")
    for field in dataclasses.fields(kind):
        if not users or field.name in {part.switch for part in users}:
            continue
        other = SimpleNamespace(**vars(off) | {field.name: 3})
        (problem,) = [
            p for p in registry.problems(other) if p.flag.endswith(field.name[6:].replace("_", "-"))
        ]
        assert "is set without" in problem.text
        assert problem.text.count("; ") == 1
