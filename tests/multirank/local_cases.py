"""On the ranks: MoE++ layers of random sizes, routers included, against the equations, token by
token."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.multirank.dispatch_cases import assemble, differ, mlps
from tests.multirank.drawn_cases import run_drawn
from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

LAYERS = 2


@dataclass(frozen=True)
class Case:
    """Two layers, the second of which sees the logits of the first; ``tokens`` of every rank."""

    experts_per_group: int
    groups_per_rank: int
    plain: bool
    constant: int
    copy: int
    zero: int
    topk: int
    tokens: list[int]
    scoring: str
    others: bool
    gate: str
    norm: str
    residual: bool
    scaled: bool
    scale: float
    kernel: str
    seed: int


def property_test(folder: str, examples: int, sizes: dict[str, int]) -> None:
    """Job: ``examples`` random cases at these Megatron parallel sizes."""
    torch.set_default_dtype(torch.float64)
    with megatron(**sizes):
        write_result(folder, run_drawn(examples, _cases, _run))


def _cases() -> Any:
    from hypothesis import strategies as st

    ranks = dist.get_world_size()
    return st.builds(
        Case,
        experts_per_group=st.integers(1, 4),
        groups_per_rank=st.integers(1, 3),
        plain=st.booleans(),
        constant=st.integers(0, 3),
        copy=st.integers(0, 2),
        zero=st.integers(0, 3),
        topk=st.integers(2, 6),
        # Megatron's gate takes no empty input; ranks that get no rows there are all the same.
        tokens=st.lists(st.integers(1, 5), min_size=ranks, max_size=ranks),
        scoring=st.sampled_from(["softmax", "before", "sigmoid", "grove"]),
        others=st.booleans(),
        gate=st.sampled_from(["linear", "two_layer"]),
        norm=st.sampled_from(["none", "population", "sample"]),
        residual=st.booleans(),
        scaled=st.booleans(),
        scale=st.sampled_from([0.05, 1.0]),
        kernel=st.sampled_from(["grouped", "megatron"]),
        seed=st.integers(0, 2**31),
    )


class Sizes:
    """What of a case follows from the rest."""

    def __init__(self, case: Case) -> None:
        from megatron.core import mpu

        self.ranks = mpu.get_expert_model_parallel_world_size()
        self.groups = case.groups_per_rank * self.ranks
        self.experts = self.groups * case.experts_per_group
        self.columns = self.experts + case.constant + case.copy + case.zero
        # Of one column there is no spread.
        self.norm = case.norm if self.columns > 1 else "none"
        self.topk = min(case.topk, self.columns)
        scoring = "softmax" if case.plain and case.scoring == "grove" else case.scoring
        # Their weights sum to 1, so raw ones are none.
        self.others = case.others and case.zero > 0
        if self.others and scoring == "before":
            scoring = "softmax"
        # Megatron and our own scoring refuse weights that are 1 whatever the logits.
        self.scoring = "before" if self.topk == 1 else scoring


def _config(case: Case, sizes: Sizes) -> Any:
    groups = {
        "grove_num_groups": sizes.groups,
        "grove_adjugate_ffn_hidden_size": 4,
        "grove_adjugate_scale": case.scale,
        "grove_allow_scale_above_bound": True,
        "grove_router_scoring": "grove" if sizes.scoring == "grove" else "softmax",
    }
    return grove_config(
        num_layers=LAYERS,
        num_moe_experts=sizes.experts,
        moe_router_topk=sizes.topk,
        moe_router_dtype="fp64",
        moe_router_pre_softmax=sizes.scoring == "before",
        **({"moe_router_score_function": "sigmoid"} if sizes.scoring == "sigmoid" else {}),
        **({"grove_dispatch": True} if case.plain else groups),
        grove_kernel=case.kernel,
        grove_constant_experts=case.constant,
        grove_copy_experts=case.copy,
        grove_zero_experts=case.zero,
        grove_zero_expert_weight="others" if sizes.others else "own",
        grove_router_gate=case.gate,
        grove_logit_norm=sizes.norm,
        grove_gating_residual=case.residual,
        grove_topk_scaled_input=case.scaled,
        params_dtype=torch.float64,
        expert_model_parallel_size=sizes.ranks,
    )


def _run(case: Case) -> list[str]:
    """Forward and backward on all ranks; rank 0 returns what differs from the equations."""
    from megatron.core import mpu

    rank, sizes = dist.get_rank(), Sizes(case)
    config = _config(case, sizes)
    alike = torch.Generator().manual_seed(case.seed)
    layers = [moe_layer(config) for _ in range(LAYERS)]
    for layer in layers:
        for weight in layer.router.parameters():
            # Small: far from 0 a sigmoid has ties.
            weight.data.normal_(std=0.3, generator=alike)
    own = torch.Generator().manual_seed(case.seed + 1 + rank)
    shape = (LAYERS, case.tokens[rank], 1, config.hidden_size)
    x = torch.randn(shape, generator=own, requires_grad=True)
    weight = torch.randn(shape, generator=own)
    handed, y = None, []
    for layer, of_layer in zip(layers, x, strict=True):
        layer.previous = handed
        output, _ = layer(of_layer)
        handed = layer.handed
        y.append(output)
    (torch.stack(y) * weight).sum().backward()
    mine = {
        "x": x.detach(),
        "weight": weight,
        "y": torch.stack(y).detach(),
        "x.grad": x.grad,
        "routers": [
            {n: (w.detach(), w.grad) for n, w in layer.router.named_parameters()}
            for layer in layers
        ],
        "layers": [
            {n: mlps(getattr(layer, n)) for n in ("experts", "adjugate_experts")}
            for layer in layers
        ],
        "pairs": [layer.token_dispatcher.traffic.routed_pairs for layer in layers],
        "place": (mpu.get_expert_model_parallel_rank(), 0),
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return _compare(case, sizes, everyone) if rank == 0 else []


def _compare(case: Case, sizes: Sizes, everyone: list[dict[str, Any]]) -> list[str]:
    errors: list[str] = []
    loss = torch.zeros(())
    of_layers = [_Layer(case, sizes, everyone, number) for number in range(LAYERS)]
    inputs = [mine["x"].clone().requires_grad_() for mine in everyone]
    for rank, (mine, x) in enumerate(zip(everyone, inputs, strict=True)):
        handed: list[Tensor] | None = None
        for number, layer in enumerate(of_layers):
            y, handed, pairs = layer(x[number, :, 0], handed if case.residual else None)
            errors += differ(f"layer {number} of rank {rank}", mine["y"][number, :, 0], y)
            loss = loss + (y * mine["weight"][number, :, 0]).sum()
            if mine["pairs"][number] != pairs:
                errors.append(f"{mine['pairs'][number]} pairs instead of {pairs}")
    if loss.requires_grad:
        loss.backward()
    for mine, x in zip(everyone, inputs, strict=True):
        errors += differ("x.grad", mine["x.grad"], x.grad)
    for layer in of_layers:
        errors += layer.gradients()
    return errors


class _Layer:
    """The equations of arXiv 2410.07348, and of 2508.07785 for groups, with one layer's weights."""

    def __init__(
        self, case: Case, sizes: Sizes, everyone: list[dict[str, Any]], number: int
    ) -> None:
        self.case, self.sizes = case, sizes
        first = everyone[0]["routers"][number]
        self.router = {n: w.clone().requires_grad_() for n, (w, _) in first.items()}
        self.router_grads = {
            n: [mine["routers"][number][n][1] for mine in everyone] for n in self.router
        }
        places = [{"mlps": mine["layers"][number], "place": mine["place"]} for mine in everyone]
        self.whole = {n: assemble(places, n) for n in ("experts", "adjugate_experts")}
        self.leaves = {
            n: [{fc: w.clone().requires_grad_() for fc, (w, _) in mlp.items()} for mlp in found]
            for n, found in self.whole.items()
        }

    def __call__(
        self, x_TH: Tensor, before: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], int]:
        """Outputs, the logits to hand on, and how many pairs went to experts with an FFN."""
        from grove_megatron.functional.reference import grove_layer, swiglu

        calls = {
            n: [lambda v, m=m: swiglu(v, m["linear_fc1"], m["linear_fc2"]) for m in found]
            for n, found in self.leaves.items()
        }
        outputs, handed, pairs = [], [], 0
        for t, x in enumerate(x_TH):
            z = self._logits(x, None if before is None else before[t])
            handed.append(z)
            weights = self._weights(self._normed(z))
            routed = {i: w for i, w in weights.items() if i < self.sizes.experts}
            pairs += len(routed)
            seen = self.sizes.topk * x if self.case.scaled else x
            probs = torch.stack([routed.get(i, torch.zeros(())) for i in range(self.sizes.experts)])
            chosen = torch.tensor([i in routed for i in range(self.sizes.experts)])
            (y,) = grove_layer(
                seen[None],
                probs[None],
                chosen[None],
                calls["experts"],
                calls["adjugate_experts"],
                self.case.scale,
            )
            outputs.append(y + self._of_local(seen, weights))
        return torch.stack(outputs) if outputs else torch.zeros_like(x_TH), handed, pairs

    def _logits(self, x: Tensor, before: Tensor | None) -> Tensor:
        router = self.router
        if self.case.gate == "linear":
            z = router["weight"] @ x
        else:
            gate = "gate_two_layer."
            z = router[f"{gate}second"] @ torch.tanh(router[f"{gate}first"] @ x)
        return z if before is None else z + router["logits_residual.weight"] @ before

    def _normed(self, z: Tensor) -> Tensor:
        if self.sizes.norm == "none":
            return z
        return (z - z.mean()) / z.std(correction=int(self.sizes.norm == "sample"))

    def _weights(self, z: Tensor) -> dict[int, Tensor]:
        """Of the selected, by column."""
        chosen = z.topk(self.sizes.topk).indices.tolist()
        if self.sizes.scoring == "before":
            weights = dict(zip(chosen, z.softmax(0)[chosen], strict=True))
        elif self.sizes.scoring == "sigmoid":
            scores = torch.sigmoid(z[chosen])
            weights = dict(zip(chosen, scores / scores.sum(), strict=True))
        else:
            weights = dict(zip(chosen, z[chosen].softmax(0), strict=True))
        if not self.sizes.others:
            return weights
        first_zero = self.sizes.columns - self.case.zero
        rest = {i: w for i, w in weights.items() if i < first_zero}
        return {i: w / torch.stack([*rest.values()]).sum() for i, w in rest.items()}

    def _of_local(self, x: Tensor, weights: dict[int, Tensor]) -> Tensor:
        y, first = torch.zeros_like(x), self.sizes.experts
        for i, w in weights.items():
            constant = i - first
            if 0 <= constant < self.case.constant:
                rows = self.router["local_constant.weight"][2 * constant : 2 * constant + 2]
                one, two = (rows @ x).softmax(0)
                y = y + w * (one * x + two * self.router["local_constant.vector"][constant])
            elif 0 <= constant - self.case.constant < self.case.copy:
                y = y + w * x
        return y

    def gradients(self) -> list[str]:
        """What differs of those of the ranks, summed."""
        errors = []
        for name, grads in self.router_grads.items():
            summed = sum(grads[1:], grads[0])
            errors += differ(f"router.{name}.grad", summed, self.router[name].grad)
        for name, found in self.whole.items():
            for i, mlp in enumerate(found):
                for fc, (_, grad) in mlp.items():
                    errors += differ(f"{name}.{i}.{fc}.grad", grad, self.leaves[name][i][fc].grad)
        return errors
