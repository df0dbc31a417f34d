"""Large wheels in parts that a small folder may carry, and whole again on the other machine."""

import hashlib
import json
import sys
from pathlib import Path

PARTS = "parts.json"
PART_BYTES = 50_000_000
_ENGINE = "te"


def split(wheels: Path, target: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write all wheels of a folder as parts, with a list of them.

    Raises:
        ValueError: there is no wheel.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise ValueError(f"TE ({wheels}) has no wheels; name the folder that pip wrote them to")
    target.mkdir(parents=True)
    listed, written = {}, []
    for wheel in found:
        names: list[str] = []
        digest = hashlib.sha256()
        with wheel.open("rb") as file:
            while piece := file.read(part_bytes):
                digest.update(piece)
                part = target / f"{wheel.name}.{len(names):02}"
                part.write_bytes(piece)
                names.append(part.name)
                written.append(part)
        listed[wheel.name] = {"parts": names, "sha256": digest.hexdigest()}
    (target / PARTS).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return written


def joined(bundle: Path, into: Path | None) -> list[Path]:
    """The wheels whose parts lie in ``te`` in the bundle, or in the folder beside it.

    Where a part is missing or damaged, a line says so and there are none: the wheels need each
    other.

    Args:
        into: where to write them; None: only look whether all parts are there.
    """
    for folder in (bundle / _ENGINE, bundle.with_name(f"{bundle.name}-{_ENGINE}")):
        if (folder / PARTS).is_file():
            break
    else:
        return []
    made = []
    for name, listed in json.loads((folder / PARTS).read_text(encoding="utf-8")).items():
        parts = [folder / part for part in listed["parts"]]
        if lost := [part.name for part in parts if not part.is_file()]:
            print(
                f"grove_megatron: without TransformerEngine: no {', '.join(lost)}", file=sys.stderr
            )
            return []
        whole = (into or folder) / name
        made.append(whole)
        if into is None:
            continue
        digest = hashlib.sha256()
        with whole.open("wb") as file:
            for part in parts:
                piece = part.read_bytes()
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != listed["sha256"]:
            print(f"grove_megatron: without TransformerEngine: {name} is damaged", file=sys.stderr)
            return []
    return made
