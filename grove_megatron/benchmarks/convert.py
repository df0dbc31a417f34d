"""``grove bench convert``: import and export beside a copy of the same bytes.

A Hugging Face folder with the names and shapes of the released model and random entries is copied
(``cp`` and an fsync of every file), imported, and exported again, in turns. Before each the source
is read once, so that all of them find it in the page cache as far as it fits.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.convert import Options, write_hf
from ..checkpoint.source import Source
from ..checkpoint.transforms import Shape as TensorShape
from ..checkpoint.units import hf_shapes
from ..checkpoint.weights import DTYPES, TensorInfo
from ..model.architecture import Architecture
from .harness import Samples
from .records import Value
from .report import Findings, Table
from .shape import Settings, Shape

GIB = 2**30
_DTYPE = {"fp32": "F32", "bf16": "BF16"}
# Beside the largest file.
ALLOWED_BYTES = 2 * GIB


def architecture(shape: Shape) -> Architecture:
    """The released model but for the sizes that can be chosen."""
    return Architecture(
        hidden_size=shape.hidden,
        num_attention_heads=max(shape.hidden // 64, 1),
        num_query_groups=max(shape.hidden // 512, 1),
        head_dim=128,
        vocab_size=151936 if shape.hidden >= 2048 else 512,
        max_position_embeddings=40960,
        norm_epsilon=1e-6,
        rotary_base=1e6,
        qk_layernorm=True,
        moe_layers=(True,) * shape.layers,
        num_experts=shape.experts,
        moe_ffn_hidden_size=shape.expert_width,
        topk=shape.topk,
        num_groups=shape.groups,
        adjugate_ffn_hidden_size=shape.adjugate_width,
        adjugate_scale=0.05,
    )


class RandomWeights:
    """Normal entries for every tensor of a model: windows of one long stream."""

    def __init__(self, shapes: Mapping[str, TensorShape], dtype: str, seed: int):
        largest = max(torch.Size(shape).numel() for shape in shapes.values())
        generator = torch.Generator().manual_seed(seed)
        stream = torch.randn(min(largest, 2**26), generator=generator).to(DTYPES[dtype])
        self._stream = stream.repeat(-(-largest // stream.numel()) + 1)
        self._shapes, self._dtype = shapes, dtype
        self._start = {name: 997 * i % stream.numel() for i, name in enumerate(shapes)}

    def infos(self) -> Mapping[str, TensorInfo]:
        return {n: TensorInfo(shape, self._dtype, "random") for n, shape in self._shapes.items()}

    def read(self, name: str) -> Tensor:
        shape, start = self._shapes[name], self._start[name]
        return self._stream[start : start + torch.Size(shape).numel()].clone().reshape(shape)

    def identity(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class Run:
    """One command: how long it took, and the most anonymous memory it had (RssAnon)."""

    seconds: float
    peak_bytes: int


def measure(settings: Settings) -> Findings:
    """Copy, import and export ``settings.rounds`` times."""
    folder = Path(tempfile.mkdtemp(prefix="grove-convert-", dir=settings.folder))
    try:
        return _measure(settings, folder)
    finally:
        shutil.rmtree(folder)


def _measure(settings: Settings, folder: Path) -> Findings:
    hf, megatron, back, copy = (folder / name for name in ("hf", "megatron", "back", "copy"))
    model = architecture(settings.shape)
    dtype = _DTYPE[settings.shape.dtype]
    weights = RandomWeights(hf_shapes(model), dtype, settings.seed)
    options = Options()
    write_hf(Source(weights, model, {}, [], None, None, {}), hf, options, {}, grove_keys=True)
    del weights
    runs: dict[str, list[Run]] = {}
    for number in range(settings.rounds):
        steps: dict[str, Callable[[], Run]] = {
            "copy of hf": lambda: _timed([_COPY, str(hf), str(copy)], hf),
            "import": lambda: _grove(["import", "--hf", str(hf), "--save", str(megatron)], hf),
            "copy of megatron": lambda: _timed([_COPY, str(megatron), str(copy)], megatron),
            "export": lambda: _grove(
                ["export", "--load", str(megatron), "--hf", str(back), "--write-grove-keys"],
                megatron,
            ),
        }
        # Of a copy and a conversion, each is first as often.
        names = list(steps)
        if number % 2:
            names = ["import", "copy of hf", "export", "copy of megatron"]
        for name in names:
            runs.setdefault(name, []).append(steps[name]())
            shutil.rmtree(copy, ignore_errors=True)
        _compare(hf, back)
        for made in (megatron, back):
            shutil.rmtree(made)
    sizes = [file.stat().st_size for file in hf.glob("*.safetensors")]
    return _findings(settings, runs, sum(sizes), max(sizes))


# A shell that stays the parent: it has no memory of its own to speak of.
_COPY = 'cp --reflink=never -r "$0" "$1" && find "$1" -type f -exec sync {} +'


def _grove(arguments: list[str], source: Path) -> Run:
    return _timed([sys.executable, "-m", "grove_megatron", *arguments], source)


def _timed(command: list[str], source: Path) -> Run:
    """Run a command on a source that was just read, on a disk that has nothing left to write."""
    if command[0] == _COPY:
        command = ["sh", "-c", *command]
    os.sync()
    for file in sorted(source.rglob("*")):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(2**24):
                    pass
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.returncode:
        assert process.stderr is not None
        raise RuntimeError(f"{command} failed: {process.stderr.read()[-4000:]}")
    return Run(seconds, peak)


def _anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and none of its children; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _compare(hf: Path, back: Path) -> None:
    """Every byte of the weights came back."""
    from .agreement import DisagreementError

    for file in sorted(hf.glob("*.safetensors")):
        if subprocess.run(["cmp", "-s", file, back / file.name]).returncode:
            raise DisagreementError(f"{file.name} is not what was imported")


def _findings(
    settings: Settings, runs: Mapping[str, list[Run]], total: int, largest: int
) -> Findings:
    times = {name: Samples(tuple(run.seconds for run in of)) for name, of in runs.items()}
    values, lines, summary = [], [], dict[str, float | None]()
    allowed = largest + ALLOWED_BYTES
    for name, samples in times.items():
        time_value = Value.milliseconds(name, "", samples)
        values.append(time_value)
        speed = total / GIB / samples.median
        cells = [name, f"{samples.median:.1f}", f"{speed:.3f}"]
        copied = times.get("copy of hf" if name == "import" else "copy of megatron")
        if name in ("import", "export"):
            assert copied is not None
            relative = copied.median / samples.median
            peak = max(run.peak_bytes for run in runs[name])
            values += [
                Value.once(name, "", "speed_over_copy", "ratio", relative),
                Value.once(name, "", "peak_bytes", "bytes", peak),
                Value.once(name, "", "peak_bytes_allowed", "bytes", allowed),
            ]
            summary |= {f"{name}_speed_over_copy": relative, f"{name}_peak_bytes": float(peak)}
            cells += [f"{relative:.2f}", f"{peak / GIB:.2f} of {allowed / GIB:.2f}"]
        else:
            cells += ["", ""]
        lines.append(tuple(cells))
    values.append(Value.once("", "", "weight_bytes", "bytes", total))
    s = settings.shape
    title = (
        f"{total / GIB:.2f} GiB of weights: {s.layers} layers of hidden {s.hidden} {s.dtype}, "
        f"{s.experts} experts x {s.expert_width}, {s.groups} adjugates x {s.adjugate_width}"
    )
    header = ("", "s, median", "GiB/s", "speed / copy", "RssAnon, GiB, of allowed")
    notes = ["Copy: cp --reflink=never and sync of every file. Allowed: the largest file + 2 GiB."]
    return Findings(
        values=values,
        summary=summary | {"weight_bytes": float(total), "peak_bytes_allowed": float(allowed)},
        tables=[Table(title=title, header=header, lines=lines)],
        notes=notes,
    )
