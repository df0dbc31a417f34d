"""The ``entry`` patches: what ``grove_megatron.run`` rebinds for a foreign entry script."""

from ..runtime.registry import PatchSet

ENTRY = PatchSet("entry", "what grove_megatron.run rebinds for a foreign script", [])
