"""The products of experts and adjugates in Triton: rows out to two widths, back, and the weights.

Each is one launch over both widths; see the three modules for how.
"""

from .triton_fan_in import fan_in
from .triton_fan_out import fan_out
from .triton_fan_weights import fan_weights

__all__ = ["fan_in", "fan_out", "fan_weights"]
