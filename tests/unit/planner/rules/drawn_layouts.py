"""Command lines of small jobs with drawn layouts, about half of them such as no job can have."""

import random
from collections.abc import Iterator

BASE = (
    "--num-attention-heads 8 --seq-length 64 --max-position-embeddings 64 --train-iters 10 "
    "--lr 1e-3 --num-experts 8 --moe-router-topk 2 --moe-token-dispatcher-type alltoall "
    "--mock-data --tokenizer-type NullTokenizer --vocab-size 96 --eval-interval 100 --swiglu "
    "--disable-bias-linear --hidden-size 64 --bf16 --use-distributed-optimizer"
)
GROVE = "--grove-num-groups 4 --grove-adjugate-ffn-hidden-size 16 --grove-adjugate-scale 0.3"
PER_NODE = 8


def drawn(seed: int, count: int) -> Iterator[tuple[list[str], int]]:
    """Words of a job, and its processes."""
    draw = random.Random(seed)
    for _ in range(count):
        yield _one(draw)


def _one(draw: random.Random) -> tuple[list[str], int]:
    flags: dict[str, object] = {}
    odd = draw.random() < 0.4
    tensor = draw.choice([1, 1, 2, 4, *([3, 8, 16] if odd else [])])
    stages = draw.choice([1, 2, 4, *([3, 5] if odd else [])])
    context = draw.choice([1, 1, 2, *([3, 64] if odd else [])])
    expert_tensor = draw.choice([None, 1, 1, tensor, *([3] if odd else [])])
    experts = draw.choice([1, 2, 4, *([3, 8, 16] if odd else [])])
    dense = tensor * stages * context
    routed = experts * stages * (expert_tensor or tensor)
    world = dense
    while world % routed and world < 512:
        world += dense
    world *= draw.choice([1, 2])
    if odd and draw.random() < 0.2:
        world += draw.choice([1, stages])
    copies = max(1, world // dense)
    micro = draw.choice([1, 2])
    microbatches = draw.choice([stages, 2 * stages, 4 * stages, *([1, 3, 5] if odd else [])])
    batch = micro * copies * microbatches + (draw.choice([0, 0, 1]) if odd else 0)
    layers = draw.choice([stages * 2, stages * 4, *([7, 10] if odd else [])])
    words = BASE.split()
    if draw.random() < 0.6:
        words += GROVE.split()
    elif draw.random() < 0.5:
        words += ["--grove-dispatch"]
    # Of Megatron's own layers widths are known when they are built.
    widths = odd and len(words) > len(BASE.split())
    flags |= {
        "--tensor-model-parallel-size": tensor,
        "--pipeline-model-parallel-size": stages,
        "--context-parallel-size": context,
        "--expert-model-parallel-size": experts,
        "--expert-tensor-parallel-size": expert_tensor,
        "--micro-batch-size": micro,
        "--global-batch-size": batch,
        "--num-layers": layers,
        "--moe-ffn-hidden-size": draw.choice([32, *([36, 30] if widths else [])]),
        "--ffn-hidden-size": draw.choice([64, *([66] if widths else [])]),
    }
    if tensor > 1 and not (odd and draw.random() < 0.3):
        words.append("--sequence-parallel")
    flags |= _of_stages(draw, odd, stages, layers)
    flags |= _of_others(draw, odd, words)
    for flag, value in flags.items():
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, *str(value).split()]
    return words, world


def _of_stages(draw: random.Random, odd: bool, stages: int, layers: int) -> dict[str, object]:
    kind = draw.choice(["", "", "chunks", "per chunk", "uneven", "counted", "letters"])
    if kind == "chunks":
        chunks = draw.choice([1, 2, *([3, 4] if odd else [])])
        group = draw.choice([None, None, stages, 2 * stages, *([1, 3] if odd else [])])
        return {
            "--num-virtual-stages-per-pipeline-rank": chunks,
            "--microbatch-group-size-per-virtual-pipeline-stage": group,
            "--no-overlap-p2p-communication": odd and draw.random() < 0.3,
        }
    if kind == "per chunk":
        return {"--num-layers-per-virtual-pipeline-stage": draw.choice([1, 2, 3])}
    if kind == "uneven":
        last = draw.choice([None, 1, 2, 3])
        found: dict[str, object] = {"--decoder-last-pipeline-num-layers": last}
        if last is None or draw.random() < 0.5:
            found["--decoder-first-pipeline-num-layers"] = draw.choice([1, 2, 3, 0])
        if draw.random() < 0.3:
            found["--num-virtual-stages-per-pipeline-rank"] = draw.choice([1, 2])
        if draw.random() < 0.1:
            found["--account-for-loss-in-pipeline-split"] = True
        return found
    if kind == "counted":
        number = layers + draw.choice([-2, -1, 0, -2])
        found = {"--num-layers": max(1, number)}
        for name in ("embedding", "loss"):
            found[f"--account-for-{name}-in-pipeline-split"] = draw.random() < 0.8
        if draw.random() < 0.4:
            found["--num-virtual-stages-per-pipeline-rank"] = draw.choice([2, 1])
        return found
    if kind == "letters":
        return {"--pipeline-model-parallel-layout": _letters(draw, odd, stages, layers)}
    return {}


def _letters(draw: random.Random, odd: bool, stages: int, layers: int) -> str:
    chunks = stages * draw.choice([1, 1, 2])
    counts = [layers // chunks + (i < layers % chunks) for i in range(chunks)]
    pieces = ["t" * count for count in counts]
    pieces[0] = f"E{pieces[0]}"
    pieces[-1] += "L"
    if odd:
        where = draw.randrange(len(pieces))
        pieces[where] += draw.choice(["", "t", "E", "m", "L", "x", "|"])
    return "|".join(pieces)


def _of_others(draw: random.Random, odd: bool, words: list[str]) -> dict[str, object]:
    kind = draw.choice(["", "", "", "recompute", "overlap", "mtp", "groups", "instances", "norm"])
    if kind == "recompute":
        return {
            "--recompute-granularity": draw.choice(["full", "selective"]),
            "--recompute-method": draw.choice(["uniform", None]) if odd else "uniform",
            "--recompute-num-layers": draw.choice([1, None]) if odd else 1,
        }
    if kind == "overlap":
        return {
            "--overlap-moe-expert-parallel-comm": True,
            "--overlap-grad-reduce": draw.random() < 0.5,
            "--overlap-param-gather": draw.random() < 0.5,
            "--tp-comm-overlap": odd and draw.random() < 0.3,
        }
    if kind == "mtp":
        return {"--mtp-num-layers": 1, "--position-embedding-type": "rope"}
    if kind == "groups":
        groups = draw.choice([4, 2, *([1, 3] if odd else [])])
        return {"--group-query-attention": True, "--num-query-groups": groups}
    if kind == "instances":
        return {"--num-distributed-optimizer-instances": draw.choice([1, 2])}
    if kind == "norm" and any(word.startswith("--grove") for word in words):
        whole = {"--qk-layernorm": True, "--grove-whole-qk-norm": True}
        return {**whole, "--normalization": "RMSNorm"}
    return {}
