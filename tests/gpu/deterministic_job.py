"""A process that prints digests of what a layer computes; see test_deterministic.py.

python -m tests.gpu.deterministic_job KERNEL FILE
"""

import hashlib
import json
import sys

import torch
import torch.distributed as dist

from tests.gpu.layers import grove_layer_of, one_rank, run, tokens

SIZE = {
    "hidden_size": 256,
    "num_moe_experts": 32,
    "moe_ffn_hidden_size": 128,
    "moe_router_topk": 4,
    "grove_num_groups": 16,
    "grove_adjugate_ffn_hidden_size": 64,
    # Rows and pairs of many sizes: one expert has most of the tokens.
    "moe_router_enable_expert_bias": True,
}


def main(kernel: str, file: str) -> None:
    torch.use_deterministic_algorithms(True)
    with one_rank(dist.FileStore(file, 1)):
        layer = grove_layer_of(torch.bfloat16, kernel, **SIZE)
        layer.router.expert_bias[5] = 10.0
        x, upstream = tokens(700, layer.config.hidden_size, torch.bfloat16)
        passes = []
        for _ in range(3):
            found = run(layer, x, upstream)
            assert all(tensor.isfinite().all() for tensor in found.values())
            digests = {}
            for name, tensor in found.items():
                data = tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
                digests[name] = hashlib.sha256(data).hexdigest()
            passes.append(digests)
    print(json.dumps(passes))


if __name__ == "__main__":
    main(*sys.argv[1:])
