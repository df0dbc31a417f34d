"""The arithmetic in plain torch: any device, any dtype, any width.

The reference for the other implementations, and the fast one on a CPU.
"""

from .interface import Kernels
from .torch_products import fan_in, fan_out, fan_weights
from .torch_rows import sum_rows, take_rows
from .torch_swiglu import weighted_swiglu, weighted_swiglu_grad

TORCH = Kernels(
    name="torch",
    take_rows=take_rows,
    sum_rows=sum_rows,
    weighted_swiglu=weighted_swiglu,
    weighted_swiglu_grad=weighted_swiglu_grad,
    fan_out=fan_out,
    fan_in=fan_in,
    fan_weights=fan_weights,
)
