"""On the ranks: single layers that count, in passes of every kind."""

from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

TOKENS = 12
# More than the experts of a rank, whose weights travel as rows too.
HIDDEN = 16


def _counting(coactivation: bool = False, **settings: Any) -> Any:
    from grove_megatron.moe.counts import LayerCounts

    config = grove_config(
        hidden_size=HIDDEN,
        num_moe_experts=8,
        grove_num_groups=4,
        grove_adjugate_ffn_hidden_size=4,
        **settings,
    )
    layer = moe_layer(config).train()
    layer.counts = LayerCounts(
        layer.token_dispatcher, config.moe_router_topk, coactivation=coactivation
    )
    return layer


def _tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(dist.get_rank())
    # A batch of two, so that [S, B] is not [B, S].
    return torch.randn(TOKENS // 2, 2, HIDDEN, generator=generator).requires_grad_()


def _taken(layer: Any) -> dict[str, list[float]]:
    row = layer.counts.take(layer.router.expert_bias).tolist()
    found = {}
    for name, width in layer.counts.columns.widths.items():
        found[name], row = row[:width], row[width:]
    assert not row
    return found


def passes(folder: str) -> None:
    """Job: one batch with gradients, without, in evaluation, and with padding."""
    from megatron.core.tensor_parallel import checkpoint

    with megatron(expert_model_parallel_size=2):
        layer = _counting(coactivation=True)
        x = _tokens()
        found: dict[str, Any] = {}
        layer(x)[0].sum().backward()
        found["training"] = _taken(layer)
        found["taken"] = _taken(layer)
        layer(x)
        layer(x)
        found["twice"] = _taken(layer)
        checkpoint(lambda h: layer(h)[0], False, x).sum().backward()
        found["recompute"] = _taken(layer)
        layer.eval()
        layer(x)
        with torch.no_grad():
            layer(x)
        found["evaluation"] = _taken(layer)
        layer.train()
        # True where padding: every third token. Megatron takes [B, S].
        padding_SB = (torch.arange(TOKENS) % 3 == 0).reshape(TOKENS // 2, 2)
        layer(x, padding_mask=padding_SB.T)
        found["padded"] = _taken(layer)
        with torch.no_grad():
            chosen = layer.route(x)[1]
        found["routing"] = [row.nonzero()[:, 0].tolist() for row in chosen]
        write_result(folder, found)


def collectives(folder: str) -> None:
    """Job: the collectives of one forward and backward pass, with counts and without."""
    from grove_megatron.benchmarks.traffic import Collectives

    with megatron(expert_model_parallel_size=2):
        layer = _counting(coactivation=True)
        x = _tokens()
        counts, found = layer.counts, []
        for layer.counts in (None, counts):
            with Collectives(HIDDEN * 4) as seen:
                layer(x)[0].sum().backward()
            found.append([[s.operator, s.sent_bytes] for s in seen.sent])
        write_result(folder, {"without": found[0], "with": found[1], "counted": _taken(layer)})


def nothing(folder: str) -> None:
    """Job: a layer that nobody asked to count, and one without tokens or routed experts."""
    with megatron(expert_model_parallel_size=2):
        plain = moe_layer(
            grove_config(hidden_size=HIDDEN, grove_num_groups=2, grove_adjugate_ffn_hidden_size=4)
        )
        plain.train()(_tokens())
        layer = _counting()
        layer.counts.add(torch.zeros(0, 8, dtype=torch.bool), None)
        layer.counts.add(torch.zeros(3, 8, dtype=torch.bool), None)
        write_result(folder, {"counts": plain.counts, "taken": _taken(layer)})


def sent(folder: str, dispatcher: str, nodes: bool, expert_ranks: int, tensor_ranks: int) -> None:
    """Job, four ranks: rows that leave a rank, and what collectives carry them there."""
    import os

    from grove_megatron.benchmarks.traffic import Collectives

    if nodes:
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    sizes = {
        "expert_model_parallel_size": expert_ranks,
        "expert_tensor_parallel_size": tensor_ranks,
    }
    with megatron(**sizes):
        layer = _counting(
            **sizes,
            moe_ffn_hidden_size=8,
            # Leaves some tokens without experts.
            moe_expert_capacity_factor=0.5 if expert_ranks == 1 else None,
            grove_hierarchical_dispatch=nodes,
            moe_token_dispatcher_type=dispatcher,
            grove_kernel="megatron",
        )
        x = _tokens()
        layer(x)
        _taken(layer)
        with Collectives(HIDDEN * 4) as seen:
            layer(x)[0].sum().backward()
        taken = _taken(layer)
        of_layer = layer.token_dispatcher
        traffic = dict(vars(of_layer.traffic))
        if dispatcher == "allgather":
            # Without waiting for the device: there is nothing to read in what has no data.
            map_TE = torch.empty(TOKENS, 8, dtype=torch.bool, device="meta")
            of_layer.dispatch_preprocess(x.detach().to("meta"), map_TE, map_TE.float())
        # Every pass sends the same; there were two.
        write_result(
            folder,
            {
                "left": taken["left_rows"][0],
                "node_rows": taken["node_rows"][0],
                "rows": sum(taken["rows"]),
                "pairs": sum(taken["experts"]),
                "traffic": {name: value / 2 for name, value in traffic.items()},
                "crossed": None if dispatcher == "allgather" else seen.leaving(1),
            },
        )
