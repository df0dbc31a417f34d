"""Packaging of grove_megatron."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Refuses another Python in words. Of python_requires pip speaks after everything it needs itself,
# and then of hundreds of versions of megatron-core.
PACKAGE = runpy.run_path(str(HERE / "grove_megatron" / "__init__.py"))
# A wheel has no repository around it.
ABOUT_PATHS = """\
> Paths in this text are those of the repository. An installed package has what is below
> `grove_megatron/`, its pages included; `docs/`, `examples/`, `patches/`, `tests/`, `Makefile`,
> `CHANGELOG.md` and `CONTRIBUTING.md` are in the source distribution, the `.tar.gz` of the same
> version.

"""

setup(
    name="grove-megatron",
    version=PACKAGE["__version__"],
    author="The grove_megatron authors",
    description="Grove MoE for unmodified Megatron: adjugate experts, group-local placement, "
    "deduplicated expert-parallel dispatch, and a CPU runtime",
    long_description=ABOUT_PATHS + (HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["grove_megatron", "grove_megatron.*"]),
    # In a wheel; the source distribution has what MANIFEST.in says.
    package_data={
        "grove_megatron": [
            *("py.typed", "**/README.md", "benchmarks/results/*.csv"),
            *("messages/*.json", "messages/*.toml", "benchmarks/kit/run.sh"),
            *(
                "planner/speed/machine_files/*.toml",
                "planner/speed/public/*.toml",
                "planner/*.json",
            ),
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.12,<3.14",
    # NVIDIA Apex is not on PyPI; the package called "apex" there is a stranger's.
    install_requires=[
        "megatron-core[training]>=0.19,<0.20",
        "torch>=2.11",
        "numpy",
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
        # matplotlib draws the pictures.
        "docs": [
            "sphinx",
            "myst-parser",
            "furo",
            "sphinx-copybutton",
            "linkify-it-py",
            "matplotlib",
        ],
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
            "sphinx",
            "myst-parser",
            "furo",
            "sphinx-copybutton",
            "linkify-it-py",
        ],
    },
    entry_points={"console_scripts": ["grove=grove_megatron.cli:main"]},
)
