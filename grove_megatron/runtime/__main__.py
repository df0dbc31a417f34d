"""``python -m grove_megatron.runtime``: the inventory of run-time patches and their state."""

import argparse
import sys
import warnings
from pathlib import Path

from .registry import Patch, PatchSet, fingerprint, problem, resolve
from .unpacked import trouble


def patch_sets() -> list[PatchSet]:
    from ..training.elsewhere import ELSEWHERE
    from ..training.entry import ENTRY
    from ..training.reporting import REPORTING
    from ..training.transformer_config import LATENT
    from .cpu_runtime import CPU
    from .wheel import WHEEL

    return [WHEEL, ENTRY, LATENT, REPORTING, ELSEWHERE, CPU]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grove_megatron.runtime", description=__doc__)
    parser.add_argument(
        "--fingerprints",
        action="store_true",
        help="print the table of fingerprints.py for what is installed now",
    )
    parser.add_argument(
        "--tree",
        type=Path,
        metavar="FOLDER",
        help="say which targets in Megatron an unpacked one still has, without importing it",
    )
    options = parser.parse_args(argv)
    if options.tree is not None:
        return _look_at_tree(options.tree)
    # Megatron warns of missing optional packages while the targets are looked up.
    warnings.simplefilter("ignore")
    problems = 0
    for patches in patch_sets():
        if not options.fingerprints:
            print(f"{patches.name}: {patches.purpose}")
        for patch in patches.patches:
            trouble = problem(patch)
            if options.fingerprints:
                if patch.fingerprint is not None:
                    print(_table_row(patch))
                continue
            problems += trouble is not None
            places = ", ".join((patch.target, *patch.also))
            print(f"  {patch.name:<34} {places}\n      why: {patch.reason}")
            print(f"      for: {patch.requires}  {patch.fingerprint or 'whatever it is'}")
            print(f"      now: {trouble or 'fits'}")
    if problems:
        print(f"{problems} patches do not fit; the runtime refuses to start.", file=sys.stderr)
    return 1 if problems else 0


def _look_at_tree(tree: Path) -> int:
    patches = [p for s in patch_sets() for p in s.patches if p.target.startswith("megatron.")]
    troubles = [trouble(patch, tree) for patch in patches]
    for patch, unfit in zip(patches, troubles, strict=True):
        print(f"  {patch.name:<34} {unfit or 'fits'}")
    fitting = troubles.count(None)
    print(f"{fitting} of {len(patches)} patch targets in {tree} fit")
    return int(fitting < len(patches))


def _table_row(patch: Patch) -> str:
    try:
        owner, attribute = resolve(patch.target)
        return f'    "{patch.name}": "{fingerprint(getattr(owner, attribute))}",'
    except (ImportError, AttributeError) as error:
        return f"    # {patch.name}: target {patch.target} is missing ({error})"


if __name__ == "__main__":
    sys.exit(main())
