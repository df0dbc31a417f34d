"""What `06_whole_way.sh` begins with: text, conversations, questions, a tokenizer and a parent.

`08_staged.sh` begins with the text and the parent.

The text says all sums of two numbers below ten, in words. The conversations ask for most of them,
the questions for the others: what a sum is can be learned from the text alone, how to answer from
the conversations. The parent is a Qwen3-MoE of random weights, as transformers makes it.
"""

import json
import random
import sys
from pathlib import Path

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
).split()
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ASKED = 20


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    sums = [(a, b) for a in range(10) for b in range(10)]
    documents = [document(rng, sums) for _ in range(400)]
    write(folder / "text.jsonl", [{"text": text} for text in documents])
    rng.shuffle(sums)
    write(folder / "questions.jsonl", [question(rng, *pair) for pair in sums[:ASKED]])
    write(folder / "chats.jsonl", [chat(*pair) for pair in sums[ASKED:]])
    make_parent(folder / "parent", documents)


def document(rng: random.Random, sums: list[tuple[int, int]]) -> str:
    said = [f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}." for a, b in rng.sample(sums, 8)]
    return " ".join(said)


def asked(a: int, b: int) -> str:
    return f"{NUMBERS[a]} plus {NUMBERS[b]} is"


def chat(a: int, b: int) -> dict[str, object]:
    messages = [
        {"role": "user", "content": asked(a, b)},
        {"role": "assistant", "content": f" {NUMBERS[a + b]}"},
    ]
    return {"messages": messages}


def question(rng: random.Random, a: int, b: int) -> dict[str, object]:
    """Four answers, one of them right, as the chat template has them."""
    others = [number for number in range(19) if number != a + b]
    numbers = [a + b, *rng.sample(others, 3)]
    rng.shuffle(numbers)
    return {
        "context": f"<|im_start|>user\n{asked(a, b)}<|im_end|>\n<|im_start|>assistant\n",
        "choices": [f" {NUMBERS[number]}" for number in numbers],
        "answer": numbers.index(a + b),
    }


def make_parent(folder: Path, texts: list[str]) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)


def write(file: Path, lines: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
