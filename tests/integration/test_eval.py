"""``grove eval``: what transformers finds on the export, at every layout."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grove_megatron.inference.questions import Question, judge, rows_of
from grove_megatron.inference.scoring import windows
from tests.ranks import Ranks

from .weights_folders import done

transformers = pytest.importorskip("transformers")

EP2 = ["--expert-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = pytest.mark.long
LENGTH = 24


@pytest.fixture
def evaluate(ranks: Ranks, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*arguments: Any, layout: tuple[int, list[str]] = (1, []), code: int = 0) -> Any:
        size, flags = layout
        folder = tmp_path / "eval"
        argv = ["eval", *map(str, arguments), "--json", *flags]
        target = "tests.integration.verify_job:grove"
        job = ranks.run(size, target, str(folder), argv, folder=folder)
        assert job.codes == [code] * size, job.log(0)[-5000:]
        if code:
            return job.log(0)
        return json.loads((folder / "rank0.stdout").read_text().splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def model(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its export and a tokenizer of 100 words, w3 for 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    source = folder / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_bytes((golden_folder / name).read_bytes())
    words = {f"w{i}": i for i in range(99)} | {"<end>": 99}
    own = Tokenizer(models.WordLevel(words, unk_token="w0"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>")
    fast.save_pretrained(source)
    done("import", "--hf", source, "--save", folder / "megatron")
    done("export", "--load", folder / "megatron", "--hf", folder / "hf")
    return folder


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        model / "hf",
        trust_remote_code=True,
        dtype=torch.float64,
        experts_implementation="eager",
        attn_implementation="eager",
    )


def nll(theirs: Any, ids: list[int]) -> Tensor:
    """Of every token but the first."""
    tokens = torch.tensor(ids)
    with torch.no_grad():
        logits = theirs(tokens[None, :-1]).logits[0]
    return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")


def data(folder: Path) -> tuple[Path, list[int]]:
    """Documents of several lengths, one of a single token."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    generator, ids = np.random.default_rng(0), []
    builder = IndexedDatasetBuilder(str(folder / "data.bin"), dtype=np.uint16)
    for length in (50, 1, 70, 33):
        document = generator.integers(0, 128, length)
        builder.add_document(document, [length])
        ids += document.tolist()
    builder.finalize(str(folder / "data.idx"))
    return folder / "data", ids


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((1, []), id="ep1"),
        pytest.param((2, EP2), id="ep2"),
        pytest.param((2, PP2), id="pp2"),
        pytest.param((2, TP2), id="tp2", marks=LONG),
        pytest.param((4, [*TP2, *EP2]), id="tp2-ep2", marks=LONG),
    ],
)
def test_perplexity_is_that_of_transformers(
    layout: tuple[int, list[str]], model: Path, theirs: Any, evaluate: Any, tmp_path: Path
) -> None:
    prefix, ids = data(tmp_path)
    flags = ["--data", prefix, "--length", LENGTH, "--batch-size", 2]
    found = evaluate("--load", model / "megatron", *flags, layout=layout)
    losses = torch.cat([nll(theirs, list(row.ids)) for row in windows(ids, LENGTH)])
    assert found["tokens"] == len(losses) == len(ids) - 1
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(float(losses.mean())), rel=1e-5)


def test_texts_are_apart(model: Path, theirs: Any, evaluate: Any, tmp_path: Path) -> None:
    texts = [[5, 6, 7, 8, 9] * 7, [1, 2, 3], [4]]
    file = tmp_path / "texts.jsonl"
    words = [" ".join(f"w{i}" for i in ids) for ids in texts]
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in words))
    flags = ["--text", file, "--field", "body", "--length", LENGTH]
    found = evaluate("--hf", model / "hf", *flags)
    rows = [row for ids in texts for row in windows(ids, LENGTH)]
    losses = torch.cat([nll(theirs, list(row.ids)) for row in rows])
    assert found["tokens"] == len(losses) == 34 + 2
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)


def test_the_first_tokens_are_of_the_first_files(
    model: Path, theirs: Any, evaluate: Any, tmp_path: Path
) -> None:
    for name, ids in (("a", [5, 6, 7]), ("b", [8, 9, 10, 11, 12]), ("c", [1, 2])):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"w{i}" for i in ids))
    found = evaluate("--hf", model / "hf", "--text", tmp_path, "--max-tokens", 6)
    losses = torch.cat([nll(theirs, [5, 6, 7]), nll(theirs, [8, 9, 10])])
    assert found["tokens"] == len(losses) == 4
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)


def questions(count: int = 12) -> list[dict[str, Any]]:
    generator = np.random.default_rng(3)

    def some(length: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(0, 99, length))

    return [
        {
            "context": some(6) + " ",
            "choices": [some(int(n)) for n in generator.integers(1, 4, 3)],
            "answer": int(generator.integers(0, 3)),
        }
        for _ in range(count)
    ]


def test_answers_are_those_of_transformers(
    model: Path, theirs: Any, evaluate: Any, tmp_path: Path
) -> None:
    asked, file = questions(), tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    right = right_by_byte = 0
    expected = []
    for one in asked:
        losses = []
        for choice in one["choices"]:
            ids = [int(word[1:]) for word in f"{one['context']}{choice}".split()]
            losses.append(float(nll(theirs, ids)[5:].sum()))
        expected += [-loss for loss in losses]
        by_byte = [n / len(c) for n, c in zip(losses, one["choices"], strict=True)]
        right += losses.index(min(losses)) == one["answer"]
        right_by_byte += by_byte.index(min(by_byte)) == one["answer"]
    assert 0 < right < len(asked)
    for layout in ((1, []), (2, EP2)):
        written = tmp_path / "answers.jsonl"
        flags = ["--choices", file, "--length", LENGTH, "--batch-size", 4, "--answers", written]
        found = evaluate("--load", model / "megatron", *flags, layout=layout)
        answers = [json.loads(line) for line in written.read_text().splitlines()]
        said = [n for one in answers for n in one["log_likelihoods"]]
        assert said == pytest.approx(expected, abs=2e-5)
        assert [one["answer"] for one in answers] == [one["answer"] for one in asked]
        assert sum(one["chosen"] == one["answer"] for one in answers) == right
        assert found == {
            "questions": 12,
            "accuracy": right / 12,
            "accuracy_by_byte": right_by_byte / 12,
        }


TASK = """
task: asked
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def test_answers_are_those_of_lm_evaluation_harness(
    model: Path, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the export, offline; the tokens are ASCII, so that its characters are bytes."""
    pytest.importorskip("lm_eval", reason="pip install 'grove-megatron[lm-eval]'")
    import datasets
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in questions()))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "asked.yaml").write_text(TASK.format(file=file))
    harness = lm_eval.simple_evaluate(
        HFLM(str(model / "hf"), trust_remote_code=True, dtype="float32", device="cpu"),
        tasks=["asked"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
        bootstrap_iters=0,
    )
    flags = ["--choices", file, "--answers", answers]
    found = evaluate("--load", model / "megatron", *flags, layout=(2, EP2))
    theirs = harness["results"]["asked"]
    assert found["accuracy"] == theirs["acc,none"]
    assert found["accuracy_by_byte"] == theirs["acc_norm,none"]
    samples = {one["doc_id"]: one for one in harness["samples"]["asked"]}
    for number, line in enumerate(answers.read_text().splitlines()):
        own = json.loads(line)["log_likelihoods"]
        expected = [float(response[0]) for response in samples[number]["filtered_resps"]]
        assert own == pytest.approx(expected, abs=2e-5)


def test_parts_of_a_text_predict_every_token_but_the_first_once() -> None:
    for count in range(1, 60):
        ids = list(range(count))
        rows = list(windows(ids, 7))
        assert [i for row in rows for i in row.ids[row.start :]] == ids[1:]
        assert all(2 <= len(row.ids) <= 8 for row in rows)


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    encode = lambda text: [int(word) for word in text.split()]  # noqa: E731
    question = Question("1 2 3 4 5 6 ", ("7 8", "9"), 0)
    long, short = rows_of(question, encode, 20), rows_of(question, encode, 4)
    assert [(list(r.ids), r.start) for r in long] == [
        ([1, 2, 3, 4, 5, 6, 7, 8], 6),
        ([1, 2, 3, 4, 5, 6, 9], 6),
    ]
    assert [(list(r.ids), r.start) for r in short] == [([4, 5, 6, 7, 8], 3), ([3, 4, 5, 6, 9], 4)]


def test_judged_by_likelihood_and_by_byte() -> None:
    asked = [Question("", ("a", "bbbb"), 0), Question("", ("a", "bb"), 1)]
    judged = judge(asked, [2.0, 4.0, 1.0, 3.0])
    assert [(one.chosen, one.chosen_by_byte) for one in judged] == [(0, 1), (0, 0)]
    assert [one.log_likelihoods for one in judged] == [[-2.0, -4.0], [-1.0, -3.0]]
    assert [one.answer for one in judged] == [0, 1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "nothing to evaluate is given"),
        (["--data", "nothing/here"], "lacks nothing/here.bin"),
        (["--text", "nothing.jsonl"], "INPUT (nothing.jsonl) is not there"),
        (["--data", "x", "--length", "999"], "--length (999) is above max_position_embeddings"),
        (["--data", "x", "--text", "y"], "--data (x), --text (y): give one of them"),
        (["--data", "x", "--answers", "y"], "--answers (y) are of --choices (None)"),
        (["--choices", "x", "--answers", "no/y"], "--answers (no/y) is in no folder"),
    ],
)
def test_what_it_cannot_do_is_refused(
    flags: list[str], said: str, model: Path, evaluate: Any
) -> None:
    assert said in evaluate("--hf", model / "hf", *flags, code=2)


def test_questions_that_are_none_are_named(model: Path, evaluate: Any, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    good = json.dumps(questions(1)[0])
    bad = ['{"context": "a"}', '{"context": "a", "choices": ["b", "c"], "answer": 2}', "x"]
    file.write_text("\n".join([good, *bad]))
    log = evaluate("--hf", model / "hf", "--choices", file, code=2)
    assert "as answer (2, 3, 4)" in log


def test_a_context_without_a_token_is_refused() -> None:
    """Its choices would be scored but for their first tokens: one of a single token always wins."""
    encode = lambda text: [int(word) for word in text.split()]  # noqa: E731
    with pytest.raises(ValueError, match=r"the context \(' '\) .* has no token"):
        rows_of(Question(" ", ("7", "8 9"), 0), encode, 20)
