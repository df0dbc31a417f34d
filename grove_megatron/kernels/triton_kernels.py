"""The arithmetic in Triton kernels, for CUDA; :func:`.triton_support.why_not` says what they take.

Importing this imports triton.
"""

from .interface import Kernels
from .triton_products import fan_in, fan_out, fan_weights
from .triton_rows import sum_rows, take_rows
from .triton_swiglu import weighted_swiglu, weighted_swiglu_grad

TRITON = Kernels(
    name="triton",
    take_rows=take_rows,
    sum_rows=sum_rows,
    weighted_swiglu=weighted_swiglu,
    weighted_swiglu_grad=weighted_swiglu_grad,
    fan_out=fan_out,
    fan_in=fan_in,
    fan_weights=fan_weights,
)
