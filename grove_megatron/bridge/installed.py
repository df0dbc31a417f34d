"""Is there a Megatron-Bridge to register with? Looks, and imports nothing of it."""

import importlib.util
import runpy
from importlib.machinery import ModuleSpec
from pathlib import Path

from packaging.specifiers import SpecifierSet

from ..compat import environment_problems

# The methods that registration.py overrides were read in 0.6.0 and 0.6.2.
BRIDGE_RANGE = SpecifierSet(">=0.6,<0.7", prereleases=True)


def problems() -> list[str]:
    """What keeps the bridge from being registered, a line each, with what to do about it."""
    found = environment_problems()
    version = bridge_version()
    if version is None or version not in BRIDGE_RANGE:
        found.append(
            f"megatron-bridge ({version or 'not installed'}) is not in the range ({BRIDGE_RANGE}) "
            f"this was written for; pip install 'megatron-bridge{BRIDGE_RANGE}'"
        )
    if _spec("transformer_engine") is None:
        # megatron/bridge/peft/lora_layers.py:20 @ 0.6.2 imports it, and every import of
        # megatron.bridge comes by there.
        found.append(
            "transformer_engine (not installed) is needed by every import of megatron.bridge; "
            "pip install --no-build-isolation 'transformer-engine[pytorch]'"
        )
    return found


def bridge_version() -> str | None:
    """Version of what ``import megatron.bridge`` would bring, a clone on ``sys.path`` included."""
    spec = _spec("megatron.bridge")
    if spec is None or spec.origin is None:
        return None
    info = Path(spec.origin).with_name("package_info.py")
    return str(runpy.run_path(str(info))["__version__"]) if info.is_file() else None


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
