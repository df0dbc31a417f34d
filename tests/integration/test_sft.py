"""Fine-tuning on conversations: packed they are trained as alone, at every layout."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chat_tokenizers import save_chat_tokenizer
from tests.ranks import Job, Ranks

from .flags import GROVE, MOE, SIZE

LENGTH = 96
CHATS = [
    [("two and three?", "five"), ("and one?", "six")],
    [("a tree?", "über")],
    [("?", "the sum of two and three is five")],
]
RUN = (
    f"--seq-length {LENGTH} --max-position-embeddings {LENGTH} --micro-batch-size 1 "
    "--train-iters 2 --eval-iters 0 --eval-interval 100 --log-interval 1 --num-workers 0 "
    "--split 1,0,0 --optimizer sgd --sgd-momentum 0 --lr 0.5 --lr-decay-style constant "
    "--clip-grad 0 --weight-decay 0 --calculate-per-token-loss --padded-vocab-size 384 "
    "--tokenizer-type HuggingFaceTokenizer --sft"
).split()
# Of losses that are sums over what shares a batch, none.
BALANCE = ("--moe-router-load-balancing-type", "--moe-aux-loss-coeff", "--moe-z-loss-coeff")


def without(flags: list[str], names: tuple[str, ...]) -> list[str]:
    at = [i for i, word in enumerate(flags) if word in names]
    return [word for i, word in enumerate(flags) if i not in at and i - 1 not in at]


MODEL = [
    *without(SIZE, ("--seq-length", "--max-position-embeddings", "--micro-batch-size", "--lr")),
    *without(MOE, BALANCE),
]
MODEL = [
    *without(MODEL, ("--global-batch-size", "--train-iters")),
    *"--moe-router-load-balancing-type none".split(),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("chats")
    lines = []
    for chat in CHATS:
        messages = []
        for question, answer in chat:
            messages += [{"role": "user", "content": question}]
            messages += [{"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "chats.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = save_chat_tokenizer(folder / "tokenizer")
    return ["--data-path", str(folder / "chats.jsonl"), "--tokenizer-model", str(tokenizer)]


@pytest.fixture(scope="module")
def run(files: list[str], ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def train(
        processes: int, *flags: str, alone: bool = False, plain: bool = False, tied: bool = False
    ) -> Job:
        folder = tmp_path_factory.mktemp("run")
        argv = [*MODEL, *([] if plain else GROVE), *RUN, *files, *flags]
        argv = [word for word in argv if not (tied and word.startswith("--untie"))]
        target = "tests.integration.sft_job:train"
        return ranks.run(processes, target, str(folder), argv, alone, folder=folder).check()

    return train


@pytest.fixture(scope="module")
def trained(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From the same weights, which other layouts would draw otherwise."""
    folder = str(tmp_path_factory.mktemp("start") / "ckpt")
    run(
        1,
        *"--global-batch-size 1 --train-iters 1 --lr 1e-9 --save-interval 1 --save".split(),
        folder,
    )

    def train(processes: int, *flags: str, alone: bool = False) -> Job:
        return run(processes, *flags, "--load", folder, "--finetune", alone=alone)

    return train


@pytest.fixture(scope="module")
def alone(trained: Any) -> dict[str, Any]:
    return trained(1, "--global-batch-size", str(len(CHATS)), alone=True).results()[0]


def losses_of(batches: list[dict[str, Any]]) -> list[dict[tuple[int, ...], list[float]]]:
    """Of both iterations: conversation up to the token -> its loss, of the tokens of answers."""
    found: list[dict[tuple[int, ...], list[float]]] = [{}, {}]
    count = len(batches) // 2
    for number, batch in enumerate(batches):
        rows = zip(
            batch["tokens"], batch["labels"], batch["loss_mask"], batch["losses"], strict=True
        )
        for tokens, labels, masks, losses in rows:
            start = 0
            for place, (label, mask) in enumerate(zip(labels, masks, strict=True)):
                # A conversation begins with <|im_start|>user, its first line.
                if tokens[place : place + 1] == [1] and place and labels[place - 1] == 0:
                    start = place
                if mask:
                    key = (*tokens[start : place + 1], label)
                    assert key not in found[number // count]
                    found[number // count][key] = losses[place]
    return found


def test_packed_conversations_are_trained_as_alone(trained: Any, alone: dict[str, Any]) -> None:
    packed = trained(1, "--global-batch-size", "1").results()[0]
    assert len(alone["batches"]) == 2 * len(CHATS)
    assert len(packed["batches"]) == 2
    # Gradients of two steps: SGD without momentum adds them up.
    assert packed["changes"].keys() == alone["changes"].keys()
    for name, expected in alone["changes"].items():
        change, found = torch.tensor(expected), torch.tensor(packed["changes"][name])
        assert change.abs().max() > 1e-4, name
        torch.testing.assert_close(found, change, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (1, ""),
        (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
        (2, "--pipeline-model-parallel-size 2"),
        (2, "--expert-model-parallel-size 2 --global-batch-size 2"),
    ],
)
def test_every_layout_has_the_losses_of_conversations_alone(
    processes: int, flags: str, trained: Any, alone: dict[str, Any]
) -> None:
    batch = "" if "batch" in flags else "--global-batch-size 1"
    results = trained(processes, *flags.split(), *batch.split()).results()
    if "pipeline" in flags:
        # Tokens are on the first stage, labels and losses on the last.
        first, last = (result["batches"] for result in results)
        results = [{"batches": [a | b for a, b in zip(first, last, strict=True)]}]
    expected, found = losses_of(alone["batches"]), losses_of(results[0]["batches"])
    for before, after in zip(expected, found, strict=True):
        assert before.keys() == after.keys()
        assert max(abs(before[key] - after[key]) for key in before) < 2e-5
    assert sum(expected[1].values()) < sum(expected[0].values())


DISTRIBUTED = ["--use-distributed-optimizer"]
PLACES = {
    "adjugates": r"\.adjugate_experts\.",
    "experts": r"\.mlp\.experts\.",
    r"layers\.1\..*adjugate": r"layers\.1\..*\.adjugate_experts\.",
}
BALANCED = (
    "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1.0 --moe-z-loss-coeff 1.0 "
    "--moe-router-enable-expert-bias --moe-router-score-function sigmoid "
    "--moe-router-bias-update-rate 0.1"
).split()


RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


@pytest.mark.parametrize(
    ("processes", "layout", "chosen"),
    [
        (1, "--global-batch-size 1", "adjugates"),
        (2, "--global-batch-size 2 --expert-model-parallel-size 2", "adjugates"),
        (2, "--global-batch-size 1 --pipeline-model-parallel-size 2", "adjugates"),
        (1, f"--global-batch-size 1 {RECOMPUTE}", "adjugates"),
        (
            1,
            "--global-batch-size 1 --recompute-granularity selective --recompute-modules moe",
            "adjugates",
        ),
        # A number is that of the whole model, on every stage.
        (2, "--global-batch-size 1 --pipeline-model-parallel-size 2", r"layers\.1\..*adjugate"),
        # The layer without groups.
        (1, "--global-batch-size 1 --grove-dispatch", "experts"),
    ],
)
def test_what_is_chosen_alone_is_trained(
    processes: int, layout: str, chosen: str, run: Any
) -> None:
    """Nothing else moves: no weight, no bias of a router, and no loss of one moves the rest."""
    adam = ["--optimizer", "adam", *"--lr 1e-2 --train-iters 3 --grove-train-only".split(), chosen]
    flags, plain = [*layout.split(), *adam, *DISTRIBUTED], chosen == "experts"
    job = run(processes, *flags, *BALANCED, plain=plain)
    scored = run(processes, *flags, *BALANCED[6:9], plain=plain)
    seen = set()
    for balanced, without in zip(job.results(), scored.results(), strict=True):
        for name, change in balanced["changes"].items():
            moved = any(change)
            assert moved == bool(re.search(PLACES[chosen], name)), name
            if moved:
                assert change == without["changes"][name]
        seen |= balanced["changes"].keys()
    assert any(name.endswith("expert_bias") for name in seen)
    assert any(re.search(PLACES[chosen], name) for name in seen)
    said = job.log(0)
    # 2 layers: 4 adjugates of 3 matrices of 32 x 16, 8 experts of 32 x 32.
    trained = {"adjugates": "12,288", "experts": "49,152"}.get(chosen, "6,144")
    assert f"--grove-train-only ({chosen}): {trained} of " in said


def test_virtual_stages_train_what_is_chosen(run: Any) -> None:
    flags = (
        "--global-batch-size 2 --num-layers 4 --pipeline-model-parallel-size 2 "
        "--num-layers-per-virtual-pipeline-stage 1 --train-iters 2 --optimizer adam"
    ).split()
    job = run(2, *flags, "--grove-train-only", r"layers\.2\..*adjugate")
    changes = {n: c for result in job.results() for n, c in result["changes"].items()}
    moved = {name for name, change in changes.items() if any(change)}
    assert moved == {name for name in changes if "layers.2." in name and "adjugate" in name}
    assert moved


@pytest.mark.parametrize("chosen", ["output_layer", r"embedding\.word"])
def test_a_tied_embedding_is_trained_on_both_stages(chosen: str, run: Any) -> None:
    flags = ["--global-batch-size", "1", "--pipeline-model-parallel-size", "2"]
    job = run(2, *flags, "--grove-train-only", chosen, tied=True)
    first, last = (result["changes"] for result in job.results())
    assert any(first["embedding.word_embeddings.weight"])
    assert first["embedding.word_embeddings.weight"] == last["output_layer.weight"]
    others = {n: c for changes in (first, last) for n, c in changes.items() if "layers" in n}
    assert not any(any(change) for change in others.values())


# Megatron's plain optimizer, and two formats of the distributed one.
OPTIMIZERS = ["", DISTRIBUTED[0], f"{DISTRIBUTED[0]} --dist-ckpt-optim-fully-reshardable"]


@pytest.mark.parametrize(
    ("processes", "layout"),
    [
        (1, "--global-batch-size 1"),
        # The dense weights have an optimizer of their own, and it has none of them.
        (2, "--global-batch-size 2 --expert-model-parallel-size 2"),
    ],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["plain", "distributed", "reshardable"])
def test_a_run_goes_on_with_the_same_choice_alone(
    optimizer: str, processes: int, layout: str, run: Any, tmp_path: Path
) -> None:
    save = ["--save", str(tmp_path / "ckpt"), "--save-interval", "2"]
    adam = "--optimizer adam --train-iters 4 --exit-interval 2 --grove-train-only"
    flags = [*layout.split(), *optimizer.split(), *adam.split()]
    run(processes, *flags, "adjugates", *save)
    load = ["--load", str(tmp_path / "ckpt"), "--exit-interval", "100"]
    again = run(processes, *flags, "adjugates", *load).results()
    whole = run(processes, *flags, "adjugates", "--exit-interval", "100").results()
    for mine, expected in zip(again, whole, strict=True):
        assert mine["batches"] == expected["batches"][2:]
    if processes == 1:
        with pytest.raises(AssertionError, match=r"--grove-train-only \(experts\) differs"):
            run(1, *flags, "experts", *load)
        assert run(1, *flags, "experts", *load, "--finetune").results()


def test_a_stage_without_a_trained_weight_is_not_saved(run: Any, tmp_path: Path) -> None:
    flags = "--global-batch-size 1 --pipeline-model-parallel-size 2 --grove-train-only".split()
    save = ["--save", str(tmp_path / "ckpt"), "--save-interval", "2"]
    with pytest.raises(AssertionError, match="is in no weight of some pipeline stage, whose opt"):
        run(2, *flags, r"layers\.1\..*adjugate", *save)
    assert run(2, *flags, r"layers\.1\..*adjugate", *save, "--no-save-optim").results()


def test_a_choice_of_nothing_is_refused(run: Any, ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match=r"--grove-train-only \(nothing\) is in no weight"):
        run(1, "--global-batch-size", "1", "--grove-train-only", "adjugates", "nothing")
    with pytest.raises(AssertionError, match=r"--grove-train-only \(\(\) is no regular"):
        run(1, "--global-batch-size", "1", "--grove-train-only", "(")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--split 969,30,1 --eval-iters 1", "gives valid none of the lines"),
        ("--data-path {file} {file}", "is read once, 2 sequences, and the job takes 3; give a"),
    ],
)
def test_a_file_that_is_too_small_is_refused(
    more: str, said: str, run: Any, files: list[str]
) -> None:
    flags = [word.format(file=files[1]) for word in more.split()]
    with pytest.raises(AssertionError, match=said):
        run(1, "--global-batch-size", "1", "--train-iters", "3", *flags)


def test_a_blend_with_weights_is_read_again(run: Any, files: list[str]) -> None:
    paths = ["--data-path", "1", files[1], "2", files[1]]
    (result,) = run(1, "--global-batch-size", "1", "--train-iters", "5", *paths).results()
    assert len(result["batches"]) == 5


def test_parts_that_nobody_reads_may_be_empty(run: Any) -> None:
    """As those of a small file are with Megatron's usual split."""
    assert run(1, "--global-batch-size", "1", "--split", "969,30,1").results()
