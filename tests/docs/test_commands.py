"""A command in a document is one that its program understands."""

import pytest

from .commands import CHECKED_INLINE, Wrong, problem
from .fences import Fence, documents, fences, fences_in, inline_code
from .shell import commands

SHELL = ("sh", "bash", "shell", "console")


def problems(blocks: list[Fence]) -> list[str]:
    """Of the blocks of one document: later ones see what earlier ones have assigned."""
    variables: dict[str, str] = {}
    return [
        f"line {fence.line}: {found}"
        for fence in blocks
        for command in commands(fence.text, variables)
        if (found := problem(command))
    ]


@pytest.mark.parametrize("document", documents())
def test_commands_in_blocks_are_understood(document: str) -> None:
    assert problems([one for one in fences(*SHELL) if one.document == document]) == []


@pytest.mark.parametrize("document", documents())
def test_commands_in_a_line_are_understood(document: str) -> None:
    found = []
    for code in inline_code(document):
        check = CHECKED_INLINE.get(code.partition(" ")[0])
        if check is None or "..." in code or "COMMAND" in code:
            continue
        ((_, *words),) = commands(code, {})
        try:
            check(words)
        except Wrong as error:
            found.append(f"{code}: {error}")
    assert found == []


TINY = "tests/data/grovemoe-tiny"


@pytest.mark.parametrize(
    "text",
    [
        "grove exprot --load a --hf b",
        "grove export --load a --hf b --hf-confg c",
        "grove export --load a",  # --hf is needed
        "grove bench dispatch --rank 2",
        "grove bench dispach",
        "grove doctor --device cuda --num-layer 2",
        "grove doctor torchrun --nproc-per-node 2 -m grove_megatron.pretrain --num-layer 2",
        "grove generate --hf x --prompt a --max-new-token 3",
        "grove --versions",
        "make tests",
        "torchrun --nproc-per-rank 2 -m grove_megatron.pretrain",
        "torchrun --nproc-per-node 2 -m grove_megatron.pretrian",
        "torchrun --nproc-per-node 2 -m grove_megatron.pretrain --grove-num-group 4",
        "torchrun --nproc-per-node 2 -m grove_megatron.pretrain --grove-num-groups four",
        "torchrun --nproc-per-node 2 -m grove_megatron.pretrain <flags> --lr",
        f"torchrun --nproc-per-node 2 -m grove_megatron verify --hf {TINY} --gold x",
        "torchrun --nproc-per-node 2 -m grove_megatron.run path/to/x.py --grove-kernels auto",
        "torchrun -m grove_megatron.run",
        "srun --nodes 2 torchrun -m grove_megatron.pretrain --num-expert 8",
        "python -m grove_megatron.runtime --fingerprint",
        "python -m grove_megatron.runtimes",
        "python -m tests.docs --rite",
        "python examples/pretrain.py",
        "examples/01_cpu_two_ranks.sh --grove-num-group 3",
        "examples/06_whole_way.sh --updat",
        "RUN_DIR=a examples/04_weight.sh",
        "pip install -e '.[tee]'",
        "pip install 'grove-megatron[tensorbord]'",
        "wget https://example.com",
        '--grove-dispatched',
        'x="grove"; $x import --hf a --save b --no-such',
        'echo="$(grove import --hf a)"',
        "for step in a b; do\n  grove eval --lode $step\ndone",
        "cat file | grove report --no-such",
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(text: str) -> None:
    assert [problem(one) for one in commands(text, {}) if problem(one)]


def test_words_of_commands() -> None:
    variables: dict[str, str] = {}
    text = """
WAY="${WAY:-runs/way}"   # where
flags="--a 1
  --b"
python x.py $flags <your flags> "$WAY/y" $(cat z | head) ... && cd w
python - "$WAY" <<'END'
import grove  # wget
END
for one in a b; do
  ls "$one" |\
    sort
done
A=1 B='$2' run '$A'
"""
    assert commands(text, variables) == [
        ("cat", "z"),
        ("head",),
        ("python", "x.py", "--a", "1", "--b", "1/y"),
        ("cd", "w"),
        ("python", "-", "1"),
        ("ls", "1"),
        ("sort",),
        ("run", "$A"),
    ]
    assert variables["flags"] == "--a 1\n  --b"
    with pytest.raises(ValueError, match="a quote is not closed"):
        commands("grove report 'a\n", {})
    (fence,) = fences_in("- a\n\n  ```sh\n  make x\n  ```\n", "a.md")
    assert (fence.language, fence.text, fence.line) == ("sh", "make x\n", 4)
