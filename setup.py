"""Packaging of grove_megatron."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Refuses another Python in words. Of python_requires pip speaks after everything it needs itself,
# and then of hundreds of versions of megatron-core.
runpy.run_path(str(HERE / "grove_megatron" / "__init__.py"))

setup(
    name="grove-megatron",
    version="0.1.0",
    description="Grove MoE for unmodified Megatron: adjugate experts, group-local placement, "
    "deduplicated expert-parallel dispatch, and a CPU runtime",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["grove_megatron", "grove_megatron.*"]),
    package_data={
        "grove_megatron": ["py.typed", "**/README.md", "messages/*.json", "messages/*.toml"]
    },
    python_requires=">=3.12,<3.14",
    # NVIDIA Apex is not on PyPI; the package called "apex" there is a stranger's.
    install_requires=[
        "megatron-core[training]>=0.19,<0.20",
        "torch>=2.11",
        "packaging",
        "safetensors",
        "typer",
        "rich",
        "tqdm",
    ],
    extras_require={
        "te": ["transformer-engine[pytorch]"],
        "hf": ["transformers>=5.2"],
        "report": ["matplotlib"],
        "data": ["transformers>=5.2", "zstandard", "pyarrow", "datasets"],
        "lm-eval": ["lm-eval[hf]"],
        "tensorboard": ["tensorboard"],
        "dev": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "einops",
            "hypothesis",
            "scipy",
            "pyarrow",
            "zstandard",
            "matplotlib",
            "tensorboard",
            "ruff",
            "mypy",
            "pre-commit",
        ],
    },
    entry_points={"console_scripts": ["grove=grove_megatron.cli:main"]},
)
