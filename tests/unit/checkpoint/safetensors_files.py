"""Write safetensors files by hand, sound or damaged."""

import json
from pathlib import Path
from typing import Any

Header = dict[str, Any]


def parts(file: Path) -> tuple[Header, bytes]:
    """Header and data of a file."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def put(file: Path, header: Header | bytes, data: bytes, length: int | None = None) -> None:
    """A file of this header and data, whatever they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    file.write_bytes(size.to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list[int], start: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
