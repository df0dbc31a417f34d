"""A small tokenizer of chats, made here: byte-level BPE as Qwen's, with its templates."""

from pathlib import Path
from typing import Any

# As Qwen2.5 has it, without its default system message.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3 has it: thoughts stand in the last answer alone, and empty ones if it has none.
THINKING = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > last.user and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content.strip() + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3 has it: another end of turn, and the beginning of text.
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '<|sep|>\n\n' + "
    "m.content.strip() + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|sep|>\n\n' }}{% endif %}"
)
# As Mistral has it: no word before an answer, which ends the text.
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
# One that marks answers for transformers.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "marked": MARKED,
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|sep|>", "<|begin|>"]
_TEXTS = [
    "What is the sum of two and three? The sum of two and three is five.",
    "user system assistant think INST tree über answer question",
]


def chat_tokenizer(
    template: str | None = CHATML, *, pad: str | None = "<|endoftext|>", trims: bool = False
) -> Any:
    """A tokenizer of transformers with 300 ids; any text, and no unknown token.

    Args:
        template, pad: of it.
        trims: does it say that a token's spaces are none of its characters, as GPT-NeoX's?
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(_TEXTS, trainer)
    if trims:
        own.post_processor = processors.ByteLevel(trim_offsets=True)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token="<|im_end|>", pad_token=pad, bos_token="<|begin|>"
    )
    made.chat_template = template
    return made


def save_chat_tokenizer(folder: Path, template: str | None = CHATML, **named: Any) -> Path:
    """Its folder, as --tokenizer-model takes it."""
    chat_tokenizer(template, **named).save_pretrained(folder)
    return folder
