"""``grove bench``: the layer beside what one would use instead. Start at ``benchmarks/README.md``.

Importing this package imports neither torch nor Megatron.
"""
