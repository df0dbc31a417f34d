"""One folder that tests and measures this package on a machine with a GPU and without a network.

``python -m grove_megatron.benchmarks.kit.build`` makes it, ``run.sh`` in it does the rest, and
``grove bench import`` puts what comes back beside the other results. README.md says how.
"""

THERE = ("torch", "triton", "numpy", "pytest")
"""What the other machine has, with all that these need."""
COMMIT = "grove_megatron/benchmarks/COMMIT"
"""The file, beside the package, that says of which commit an installed one is."""
