"""For hosts that know a module to import and nothing to call: the import registers GroveMoE."""

from . import register

register()
