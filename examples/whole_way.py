"""Run the commands of ``whole_way.md`` and show what matters of their output.

whole_way.py [--update]
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
_COMMANDS = re.compile(r"```sh\n(.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)", re.MULTILINE)
_MARK = "@@ commands"
# What is shown: of the rest, the log has all.
_SHOWN = re.compile(
    r"accounted for|documents, |conversations of|\] iteration +\d+/|^(loss|perplexity|accuracy): "
    r"|^largest difference|^passed|^-> |tokens/s|^\{|^==> |^transformers: "
)
_ITERATION = re.compile(r".*(iteration +\d+/ *\d+) .*(lm loss: \S+).*")


def main() -> int:
    """Exit code: that of the commands."""
    if unknown := [word for word in sys.argv[1:] if word != "--update"]:
        print(f"{unknown[0]} is no option; there is --update", file=sys.stderr)
        return 2
    page = PAGE.read_text(encoding="utf-8")
    run_dir = Path(os.environ.get("RUN_DIR") or tempfile.mkdtemp())
    run_dir.mkdir(parents=True, exist_ok=True)
    print(f"results and log: {run_dir}", flush=True)
    found = [*_COMMANDS.finditer(page)]
    blocks = [match[1] for match in found]
    headings = [_HEADING.findall(page[: match.start()])[-1] for match in found]
    shown: list[list[str]] = []
    for line in run(blocks, run_dir):
        if line.startswith(_MARK):
            shown.append([])
            print(f"== {headings[len(shown) - 1]}", flush=True)
        elif _SHOWN.search(line):
            short = _ITERATION.sub(r" ... \1 | ... | \2 | ...", line)
            shown[-1].append(short.replace(str(run_dir), "runs/way"))
            print(short, flush=True)
    code = int((run_dir / "code").read_text())
    if code:
        print(f"failed; the end of {run_dir / 'log'}:", file=sys.stderr)
        print("\n".join((run_dir / "log").read_text().splitlines()[-20:]), file=sys.stderr)
    elif "--update" in sys.argv:
        texts = iter(shown)
        PAGE.write_text(_COMMANDS.sub(lambda match: with_output(match[1], next(texts)), page))
    return code


def with_output(commands: str, shown: list[str]) -> str:
    text = "\n".join(shown)
    return f"```sh\n{commands}```\n" + (f"\n```text\n{text}\n```\n" if shown else "")


def run(blocks: list[str], run_dir: Path) -> Iterator[str]:
    """Lines of the output of all blocks, by one shell; its exit code becomes a file."""
    script = "set -euo pipefail\n" + "".join(f"echo '{_MARK}'\n{block}" for block in blocks)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"WAY": str(run_dir), "PATH": path, "COLUMNS": "100"}
    with (
        (run_dir / "log").open("w") as log,
        subprocess.Popen(
            ["bash", "-c", script],
            cwd=CHECKOUT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as shell,
    ):
        assert shell.stdout is not None
        for line in shell.stdout:
            log.write(line)
            log.flush()
            yield line.rstrip("\n")
    (run_dir / "code").write_text(str(shell.returncode))


if __name__ == "__main__":
    sys.exit(main())
