"""``grove generate``: Megatron's engine continues as the model itself does, at every layout."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ranks import Ranks

from .tiny_grove import TinyGrove
from .weights_folders import done, write_biased

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5], [60]]
NEW = 8
EP2 = ["--expert-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2"]
PP2 = ["--pipeline-model-parallel-size", "2"]
LONG = pytest.mark.long


@dataclass(frozen=True)
class Output:
    """Of rank 0."""

    codes: list[int]
    stdout: str
    log: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.codes == [0] * len(self.codes), self.log[-5000:]
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found

    @property
    def tokens(self) -> list[list[int]]:
        found: list[list[int]] = self.result["tokens"]
        return found

    def refused(self) -> str:
        assert self.codes == [2] * len(self.codes), self.log[-5000:]
        assert "nothing was started" in self.log
        return self.log


@pytest.fixture
def generate(ranks: Ranks, tmp_path: Path) -> Callable[..., Output]:
    def run(*arguments: Any, layout: tuple[int, list[str]] = (1, []), as_json: bool = True):
        size, flags = layout
        folder = tmp_path / "generate"
        argv = ["generate", *map(str, arguments), *(["--json"] if as_json else []), *flags]
        target = "tests.integration.verify_job:grove"
        job = ranks.run(size, target, str(folder), argv, folder=folder)
        return Output(job.codes, (folder / "rank0.stdout").read_text(), job.log(0))

    return run


def given(prompts: list[list[int]] = PROMPTS, new: int = NEW) -> list[str]:
    words = [word for one in prompts for word in ("--prompt-ids", ",".join(map(str, one)))]
    return [*words, "--max-new-tokens", str(new)]


def best(folder: Path, prompt: list[int], new: int = NEW) -> list[int]:
    """Token by token, each of all tokens before it, in fp64 without a cache."""
    config = json.loads((folder / "config.json").read_text())
    config.setdefault("small_experts_weight", 0.05)
    model = TinyGrove(config, load_file(folder / "model.safetensors"))
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def expected(golden_folder: Path) -> list[list[int]]:
    return [best(golden_folder, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((1, []), id="ep1"),
        pytest.param((2, EP2), id="ep2"),
        pytest.param((2, TP2), id="tp2"),
        pytest.param((2, PP2), id="pp2"),
        pytest.param((4, [*TP2, *EP2]), id="tp2-ep2", marks=LONG),
        pytest.param((4, [*PP2, *EP2]), id="pp2-ep2", marks=LONG),
    ],
)
def test_the_best_tokens_are_those_of_the_model_without_a_cache(
    layout: tuple[int, list[str]], generate: Any, golden_folder: Path, expected: Any
) -> None:
    output = generate("--hf", golden_folder, *given(), layout=layout)
    assert output.tokens == expected
    assert output.result["tokens_per_second"] > 0


def test_prompts_in_batches_are_continued_alike(
    generate: Any, golden_folder: Path, expected: Any
) -> None:
    output = generate("--hf", golden_folder, *given(), "--batch-size", 2)
    assert output.tokens == expected


def test_a_megatron_checkpoint_is_continued_alike(
    generate: Any, golden_folder: Path, expected: Any, tmp_path: Path
) -> None:
    done("import", "--hf", golden_folder, "--save", tmp_path / "megatron")
    output = generate("--load", tmp_path / "megatron", *given(), layout=(2, EP2))
    assert output.tokens == expected


def test_a_bias_of_the_experts_has_its_say(
    generate: Any, golden_folder: Path, expected: Any, tmp_path: Path
) -> None:
    folder = write_biased(tmp_path / "biased", golden_folder)
    found = generate("--hf", folder, *given(), layout=(2, PP2)).tokens
    assert found != expected
    done("import", "--hf", folder, "--save", tmp_path / "megatron")
    assert generate("--load", tmp_path / "megatron", *given()).tokens == found


def test_moe_plus_plus_goes_on_at_two_layouts(generate: Any, moepp_folder: Path) -> None:
    one = generate("--hf", moepp_folder, *given()).tokens
    assert generate("--hf", moepp_folder, *given(), layout=(2, EP2)).tokens == one
    pp3 = (3, ["--pipeline-model-parallel-size", "3"])
    refused = generate("--hf", moepp_folder, *given(), layout=pp3).refused()
    assert "excludes --pipeline-model-parallel-size (3) in inference, whose stages" in refused


def test_choices_are_those_of_the_seed(generate: Any, golden_folder: Path) -> None:
    sampled = ["--hf", golden_folder, *given(new=12), "--temperature", "0.8", "--top-p", "0.9"]
    first = generate(*sampled, "--seed", 1).tokens
    assert generate(*sampled, "--seed", 1, layout=(2, EP2)).tokens == first
    assert generate(*sampled, "--seed", 2).tokens != first


def test_ranks_that_would_part_go_on_together(
    ranks: Ranks, golden_folder: Path, tmp_path: Path
) -> None:
    """Rounded otherwise, as on GPUs, they would wait for one another for ever."""
    target = "tests.integration.generate_job:apart"
    job = ranks.run(2, target, str(tmp_path), str(golden_folder), EP2, folder=tmp_path)
    assert job.check().results() == [[[5, 5, 5], [5, 5, 5]]] * 2


# ------------------------------------------------------------------------------------------ text


@pytest.fixture(scope="module")
def with_tokenizer(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a tokenizer of 100 words, w3 for 3, and a chat template."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((golden_folder / name).read_bytes())
    words = {f"w{i}": i for i in range(99)} | {"<end>": 99}
    own = Tokenizer(models.WordLevel(words, unk_token="w0"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>")
    fast.chat_template = "{% for m in messages %}w1 {{ m['content'] }} {% endfor %}w2"
    fast.save_pretrained(folder)
    return folder


def words_of(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def test_text_goes_in_and_comes_out(generate: Any, with_tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "w9 w8 w7"}\n\n{"prompt": "w60"}\n')
    flags = ["--prompt", "w1 w2", "--prompts", file, "--max-new-tokens", 6]
    result = generate("--hf", with_tokenizer, *flags).result
    by_ids = generate("--hf", with_tokenizer, *given([[1, 2], [9, 8, 7], [60]], 6)).result
    assert result["prompts"] == ["w1 w2", "w9 w8 w7", "w60"]
    assert result["tokens"] == by_ids["tokens"]
    assert result["answers"] == by_ids["answers"] == [words_of(t) for t in result["tokens"]]
    # 28 rows of the embedding are no word.
    assert max(max(tokens) for tokens in result["tokens"]) < 100


def test_text_streams_as_it_is_made(generate: Any, with_tokenizer: Path) -> None:
    flags = ["--hf", with_tokenizer, "--prompt", "w9 w8 w7", "--max-new-tokens", 6]
    answer = generate(*flags).result["answers"][0]
    streamed = generate(*flags, "--stream", as_json=False)
    assert streamed.codes == [0]
    # Behind what Megatron's loggers say.
    assert streamed.stdout.splitlines()[-1] == answer


def test_a_chat_is_a_prompt_in_its_template(generate: Any, with_tokenizer: Path) -> None:
    flags = ["--hf", with_tokenizer, "--max-new-tokens", 6]
    chat = generate(*flags, "--chat", "--prompt", "w9 w8").result
    assert chat["tokens"] == generate(*flags, "--prompt", "w1 w9 w8 w2").result["tokens"]


def test_generation_ends_with_the_text(
    generate: Any, golden_folder: Path, with_tokenizer: Path, tmp_path: Path
) -> None:
    """A copy whose end of text is the third token that the model would say."""
    tokens = best(golden_folder, [9, 8, 7], 6)
    assert tokens[2] not in tokens[:2]
    folder = tmp_path / "model"
    folder.mkdir()
    for file in with_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokens[2] < 99
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"eos_token": f"w{tokens[2]}"})
    )
    flags = ["--hf", folder, "--prompt", "w9 w8 w7", "--max-new-tokens", 6]
    assert generate(*flags).tokens == [tokens[:2]]
    assert len(generate(*flags, "--ignore-end").tokens[0]) == 6
    assert tokens[1] != tokens[0]
    ends = {"eos_token_id": [98, tokens[1]]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    assert generate(*flags).tokens == [tokens[:1]]


# --------------------------------------------------------------------------------- what is refused


def test_all_that_is_wrong_is_said_at_once(generate: Any, golden_folder: Path) -> None:
    flags = ["--load", "x", "--top-p", 3, "--max-new-tokens", 0, "--chat", "--prompt-ids", 1]
    log = generate("--hf", golden_folder, *flags).refused()
    for said in ("give one of them", "--top-p (3.0)", "--max-new-tokens (0)", "--chat (True)"):
        assert said in log


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt", "hello"], "--tokenizer (absent) is needed"),
        (["--prompt-ids", "1,200"], "token (200), which is not below the vocabulary (128)"),
        (["--prompt-ids", "1,x"], "--prompt-ids (1,x) is not a list of token ids"),
        (["--prompt-ids", "1", "--max-new-tokens", "300"], "are above max_position_embeddings"),
        ([], "no prompt is given"),
        (["--prompt", "a", "--prompt", "b", "--stream"], "--stream (True) is for one prompt"),
        (["--prompt-ids", "1", "--temperature", "nan"], "--temperature (nan) is not a finite"),
        (["--prompt-ids", "1", "--temperature", "1e-9"], "--temperature (1e-09) is above 0 and be"),
        (["--prompt-ids", "1", "--temperature", "1", "--top-k", "128"], "--top-k (128) is not bel"),
        (["--prompt-ids", "1", "--seed", str(2**64)], "is not from 0 to below 2^63"),
    ],
)
def test_what_it_cannot_do_is_refused(
    flags: list[str], said: str, generate: Any, golden_folder: Path
) -> None:
    assert said in generate("--hf", golden_folder, *flags).refused()


def test_prompts_that_are_none_are_named(
    generate: Any, golden_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\nc\n')
    log = generate("--hf", golden_folder, "--prompts", file).refused()
    assert "has lines without a text named prompt (2, 3)" in log


def test_a_damaged_folder_is_refused_as_a_conversion_is(
    generate: Any, golden_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text((golden_folder / "config.json").read_text())
    tensors = load_file(golden_folder / "model.safetensors")
    del tensors["model.layers.1.mlp.chunk_experts.3.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    log = generate("--hf", folder, *given()).refused()
    assert "model.layers.1.mlp.chunk_experts.3.up_proj.weight (absent) is needed" in log


def test_a_chat_template_that_fails_is_refused(
    generate: Any, with_tokenizer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in with_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no user') }}")
    log = generate("--hf", folder, "--prompt", "w1", "--chat").refused()
    assert "needs a chat template that works, and the tokenizer's does not: no user" in log
