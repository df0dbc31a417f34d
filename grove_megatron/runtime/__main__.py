"""``python -m grove_megatron.runtime``: the inventory of run-time patches and their state."""

import argparse
import sys
import warnings

from .registry import Patch, PatchSet, fingerprint, problem, resolve


def patch_sets() -> list[PatchSet]:
    from ..training.entry import ENTRY
    from ..training.reporting import REPORTING
    from .cpu_runtime import CPU
    from .wheel import WHEEL

    return [WHEEL, ENTRY, REPORTING, CPU]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grove_megatron.runtime", description=__doc__)
    parser.add_argument(
        "--fingerprints",
        action="store_true",
        help="print the table of fingerprints.py for what is installed now",
    )
    options = parser.parse_args(argv)
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


def _table_row(patch: Patch) -> str:
    try:
        owner, attribute = resolve(patch.target)
        return f'    "{patch.name}": "{fingerprint(getattr(owner, attribute))}",'
    except (ImportError, AttributeError) as error:
        return f"    # {patch.name}: target {patch.target} is missing ({error})"


if __name__ == "__main__":
    sys.exit(main())
