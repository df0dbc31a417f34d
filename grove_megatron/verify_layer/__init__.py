"""``grove verify --layer``: one MoE layer of a released system against its authors' numbers.

A folder has ``config.json`` and ``layer.safetensors``, or ``layer.<variant>.safetensors``: inputs,
weights and results of the authors' code in fp64. ``systems`` says, in one file for each system,
what of that is which flag and which parameter of this package's layer.
"""
