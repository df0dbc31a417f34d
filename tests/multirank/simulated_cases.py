"""On the ranks: the tokens of a trace, sent by every dispatcher there is, and what was handed over.

The routing is the trace's; nothing of the simulator runs here but its reader of files.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.multirank.on_ranks import grove_config, megatron, moe_layer
from tests.ranks import write_result

HIDDEN = 16
# Name: settings, and is the layer ours?
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "flat": ({}, True),
    "two_hops": ({"grove_hierarchical_dispatch": True}, True),
    "stock": ({}, False),
    "all_gather": ({"moe_token_dispatcher_type": "allgather"}, False),
}


def send(folder: str, trace: str) -> None:
    """Job, four ranks on two nodes: bytes of every collective of one dispatch, by way."""
    from grove_megatron.benchmarks.traffic import Collectives
    from grove_megatron.report.trace import open_trace
    from grove_megatron.simulate.replay import routing_map

    os.environ["LOCAL_WORLD_SIZE"] = "2"
    with megatron(expert_model_parallel_size=4):
        tokens = torch.from_numpy(open_trace(Path(trace)).of("1")).long().chunk(4)[dist.get_rank()]
        map_TE = routing_map(tokens, 8)
        hidden = torch.randn(len(tokens), 1, HIDDEN)
        found = {}
        for name, (settings, ours) in WAYS.items():
            config = grove_config(
                hidden_size=HIDDEN,
                num_moe_experts=8,
                expert_model_parallel_size=4,
                **({"grove_num_groups": 4, "grove_adjugate_ffn_hidden_size": 4} if ours else {}),
                **settings,
            )
            dispatcher: Any = moe_layer(config, grove=ours).token_dispatcher
            with Collectives(HIDDEN * 4) as seen:
                rows, probs = dispatcher.dispatch_preprocess(hidden, map_TE, map_TE.float())
                dispatcher.token_dispatch(rows, probs)
            found[name] = [sent.sent_bytes for sent in seen.sent]
        write_result(folder, found)
