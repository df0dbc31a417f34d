"""Who may import whom. A new module gets a rule here, or is refused."""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import grove_megatron

ROOT = Path(grove_megatron.__file__).parent
STDLIB = frozenset(sys.stdlib_module_names)
ANYTHING_INSIDE = frozenset({"grove_megatron"})
MODEL = frozenset(
    {"checks", "functional", "kernels", "comm", "compat", "config", "model", "moe", "parts"}
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a part may import: ``inside`` the package, ``outside`` it, and only ``in_functions``."""

    inside: frozenset[str] | set[str] = frozenset()
    outside: frozenset[str] | set[str] = frozenset()
    in_functions: frozenset[str] | set[str] = frozenset()


MEGATRON_AND_TORCH = {"torch", "numpy", "packaging", "megatron.core", "megatron.training"}
AROUND_THE_MODEL = Rule(inside=ANYTHING_INSIDE, outside=MEGATRON_AND_TORCH)

TORCH_KERNELS = (
    "torch_kernels",
    "torch_owners",
    "torch_products",
    "torch_rows",
    "torch_swiglu",
)

# A part is a folder of grove_megatron or a module; a module goes before its folder.
RULES = {
    "__init__": Rule(),
    "printable": Rule(),
    # Said by everybody below.
    "checks": Rule(inside={"checks"}),
    "functional": Rule(inside={"functional", "kernels"}, outside={"torch"}),
    # Only the modules that hold Triton kernels, which are imported where they can run.
    "kernels": Rule(inside={"kernels"}, outside={"torch", "triton"}),
    **{
        f"kernels/{module}": Rule(inside={"kernels"}, outside={"torch"})
        for module in ("__init__", "interface", "triton_support", *TORCH_KERNELS)
    },
    # What a router is composed of, in torch; Megatron where it is Megatron's own part.
    "parts": Rule(
        inside={"parts", "functional", "checks", "model.architecture", "model.weights"},
        outside={"torch"},
    ),
    "parts/drop/capacity": Rule(
        inside={"parts", "functional", "checks"}, outside={"torch", "megatron.core"}
    ),
    # The exact assignment of its reference, for tests.
    "parts/selector/base": Rule(
        inside={"parts", "functional", "checks"},
        outside={"torch"},
        in_functions={"numpy", "scipy"},
    ),
    # Writes the page, and the cards.
    "parts/__main__": Rule(inside={"parts", "cards"}),
    "comm": Rule(inside={"comm", "checks"}, outside={"torch"}),
    "compat": Rule(outside={"packaging", "transformer_engine"}),
    "config": Rule(inside=MODEL | {"switches", "placing.file"}, outside={"torch", "megatron.core"}),
    "moe": Rule(inside=MODEL, outside={"torch", "megatron.core"}),
    "moe/placed": Rule(
        inside={"checks", "comm", "functional", "placing.file"}, outside={"torch", "megatron.core"}
    ),
    # Apex's RMSNorm, where it is asked for.
    "moe/norm": Rule(outside={"torch", "megatron.core"}, in_functions={"apex"}),
    "layer_spec": Rule(inside=MODEL | {"layer_count"}, outside={"torch", "megatron.core"}),
    "layer_count": Rule(inside=MODEL, outside={"torch", "megatron.core"}),
    "checkpoint/commands": Rule(
        inside={"checkpoint", "checks", "printable"},
        outside={"typer"},
        in_functions={"torch", "rich", "grove_megatron"},
    ),
    # What a model is: read by all who plan, convert and train one.
    "model": Rule(inside={"model"}),
    "checkpoint": Rule(
        inside={"checkpoint", "checks", "functional", "config", "model"},
        outside={"torch", "safetensors", "tqdm"},
        in_functions={"transformers"},
    ),
    # For transformers, beside exported weights; nothing else of the package is there.
    "checkpoint/hf_code/configuration_grove_moe": Rule(outside={"transformers"}),
    "checkpoint/hf_code/modeling_grove_moe": Rule(
        inside={"checkpoint.hf_code"}, outside={"torch", "transformers"}
    ),
    # What files and flags say of a model, without its weights.
    "checkpoint/config_keys": Rule(),
    **{
        f"checkpoint/{module}": Rule(
            inside={
                *("model", "checkpoint.config_keys", "checkpoint.layer_settings"),
                *("checkpoint.moe_plus_plus", "checkpoint.family_rules", "checks"),
            }
        )
        for module in ("hf_config", "megatron_args")
    },
    "checkpoint/family_rules": Rule(inside={"model"}),
    "checkpoint/layer_settings": Rule(inside={"model", "planner.parts"}),
    "checkpoint/moe_plus_plus": Rule(
        inside={
            *("model", "checkpoint.config_keys", "checkpoint.layer_settings", "checks"),
            "planner.parts",
        }
    ),
    # Where the weights meet a Megatron model; names and transforms stay free of it.
    "checkpoint/local_names": Rule(
        inside={"checkpoint", "model"}, outside={"torch", "megatron.core"}
    ),
    # Weights meet Megatron's parser, its loader and its models inside functions alone.
    **{
        f"checkpoint/{module}": Rule(
            inside={"checkpoint", "model"},
            outside={"torch", "tqdm"},
            in_functions={"megatron.core", "megatron.training", "grove_megatron"},
        )
        for module in ("convert", "model_run", "torch_dist", "verify")
    },
    # One layer of a system: of the package what makes a layer and reads weights.
    "verify_layer": Rule(
        inside={
            *("verify_layer", "checkpoint", "checks", "config", "layer_spec", "model", "moe"),
            "parts",
        },
        outside={"torch", "safetensors"},
        in_functions={"megatron.core", "megatron.training"},
    ),
    "verify_layer/command": Rule(
        inside={"verify_layer"}, outside={"typer"}, in_functions={"rich", "grove_megatron"}
    ),
    # Imported without Megatron-Bridge, and by hosts that have not decided anything yet.
    "bridge": Rule(inside={"bridge", "checkpoint", "compat", "model"}, outside={"packaging"}),
    "bridge/registration": Rule(
        inside=MODEL | {"bridge", "checkpoint", "layer_spec"},
        outside={"torch", "transformers", "megatron.core", "megatron.bridge"},
    ),
    # A record is read where there is neither torch nor Megatron.
    "report": Rule(inside={"report", "planner.traffic"}, outside={"numpy"}),
    **{
        f"report/{module}": Rule(
            inside={"report", "planner.traffic"}, outside={"numpy", "matplotlib"}
        )
        for module in (
            *("draw", "flow_figures", "line_panels", "lines", "load_figures", "loss_figures"),
            "shown",
        )
    },
    # Reordered as grove place would.
    "report/coactivation": Rule(inside={"report", "placing"}, outside={"numpy"}),
    "report/trace": Rule(
        inside={"report", "checks", "placing.file"}, outside={"numpy", "safetensors"}
    ),
    "report/coactivation_figures": Rule(inside={"report"}, outside={"numpy", "matplotlib"}),
    # Imported by the command line; the rest of the report, and matplotlib, when it draws.
    # Text into tokens, by Megatron's tokenizers and its builder.
    "data": Rule(inside={"data"}, outside={"numpy", "tqdm"}, in_functions={"megatron.core"}),
    "data/documents": Rule(in_functions={"zstandard", "pyarrow", "datasets"}),
    "data/tokenizers": Rule(in_functions={"megatron.core", "megatron.training"}),
    "data/command": Rule(inside={"data", "printable"}, outside={"typer"}),
    # Conversations into sequences.
    "sft": Rule(
        inside={"sft"}, outside={"torch", "numpy", "tqdm", "megatron.core", "megatron.training"}
    ),
    **{
        f"sft/{module}": Rule(
            inside={"sft"},
            outside={"numpy", "tqdm"},
            in_functions={"megatron.training", "transformers"},
        )
        for module in ("answers", "conversations", "counting", "packing")
    },
    # Text from a model, by Megatron's engine.
    "inference": Rule(
        inside={"inference", "checkpoint", "config", "model", "moe", "parts"},
        outside={"torch", "megatron.core"},
    ),
    "inference/tokens": Rule(in_functions={"transformers"}),
    "inference/questions": Rule(inside={"inference"}),
    "inference/lines": Rule(),
    **{
        f"inference/{module}": Rule(
            inside={"inference", "checkpoint.commands", "checkpoint.source", "printable"},
            outside={"typer"},
            in_functions={"grove_megatron", "numpy"},
        )
        for module in ("command", "eval_command")
    },
    "report/refused": Rule(inside={"checks"}),
    "report/command": Rule(
        inside={"printable"}, outside={"typer"}, in_functions={"grove_megatron.report"}
    ),
    "planner": Rule(inside={"planner", "model", "checks", "presets.flags", "unparsed", "switches"}),
    # Asks the readers of configurations and tokenizers, which are as free of torch.
    "planner/pages/front": Rule(
        inside={"planner", "model", "checks", "presets.flags"},
        in_functions={"grove_megatron.checkpoint", "grove_megatron.training.vocabulary"},
    ),
    "planner/pages/latent_hf": Rule(inside={"checks", "checkpoint.config_keys"}),
    "planner/pages/command": Rule(
        inside={"checks", "printable"},
        outside={"typer"},
        in_functions={
            *("grove_megatron.planner", "grove_megatron.training.doctor_command"),
            "grove_megatron.report.refused",
        },
    ),
    "planner/pages/shown": Rule(inside={"planner", "model", "checks"}, outside={"rich"}),
    # Make the table of flags, of the parser itself.
    "planner/known": Rule(inside=ANYTHING_INSIDE, in_functions=MEGATRON_AND_TORCH),
    "planner/__main__": Rule(inside={"planner"}),
    # Imported when a page is asked for.
    **{
        f"planner/pages/{module}": Rule(
            inside={"planner", "model", "report"}, outside={"matplotlib"}
        )
        for module in ("figures", "numbers", "page", "sharing_figures")
    },
    # The dispatcher's plans without its ranks, and so without Megatron.
    "simulate": Rule(
        inside={
            *("simulate", "checks", "functional", "comm.node_groups", "model.selection"),
            *("placing.file", "planner.traffic", "presets.table", "printable", "report"),
        },
        outside={"torch", "numpy", "safetensors", "rich"},
    ),
    # Of a real job.
    "simulate/recording": Rule(
        inside={"simulate", "report.trace"}, outside={"torch"}, in_functions={"megatron.core"}
    ),
    # Imported by the command line before anything is decided.
    "simulate/command": Rule(
        inside={"checks", "printable"}, outside={"typer"}, in_functions={"grove_megatron"}
    ),
    # Its file is read where there is neither torch nor Megatron; placements are made there too.
    "placing": Rule(inside={"placing", "checks"}, outside={"numpy"}),
    "placing/run": Rule(inside={"placing", "checks", "planner.speed.machines"}, outside={"numpy"}),
    "placing/file": Rule(inside={"placing", "checks"}),
    "placing/records": Rule(inside={"placing", "checks", "report.record"}, outside={"numpy"}),
    "placing/traces": Rule(inside={"placing", "checks", "report.trace"}, outside={"numpy"}),
    "placing/table": Rule(inside={"placing", "printable"}, outside={"rich"}),
    "placing/command": Rule(
        inside={"printable"},
        outside={"typer"},
        in_functions={"grove_megatron.placing", "grove_megatron.checks"},
    ),
    # Said of released models before anything of Megatron's is imported.
    "presets": Rule(inside={"presets", "checks", "model.families.moe_plus_plus"}),
    "presets/measured": Rule(
        inside={"presets", "benchmarks.environment"},
        in_functions={"safetensors", "grove_megatron.verify_layer"},
    ),
    # Reads the source, and imports nothing of it; its command answers at once.
    "messages": Rule(inside={"messages", "checks"}),
    "messages/command": Rule(inside={"messages"}, outside={"typer"}),
    # Pages of flags and commands.
    "reference": Rule(inside=ANYTHING_INSIDE, outside={"typer"}),
    # Read by the configuration, the tests and the page.
    "switches": Rule(inside={"checks", "switches"}),
    # In processes that wait for one another: little, and nothing that could wait itself.
    "failure": Rule(inside={"failure", "checkpoint.layout"}, in_functions={"torch"}),
    "training": AROUND_THE_MODEL,
    # Asks what Hugging Face keeps on this machine; also where there is no torch.
    "training/vocabulary": Rule(in_functions={"huggingface_hub", "megatron.core"}),
    # Imported by the command line before anything is decided.
    "training/doctor_command": Rule(
        inside={"checks"}, outside={"typer"}, in_functions=ANYTHING_INSIDE | {"torch"}
    ),
    # Before anything is imported, in processes that do not know their ranks yet.
    "training/launchers": Rule(inside={"checks"}),
    "training/tokenizer_files": Rule(inside={"checks"}, in_functions={"huggingface_hub", "torch"}),
    # All machines of a job, before it starts. What is judged is judged without asking anybody.
    "machines": Rule(inside=ANYTHING_INSIDE, outside=MEGATRON_AND_TORCH),
    **{f"machines/{module}": Rule() for module in ("records", "rounds")},
    "machines/cards": Rule(inside={"machines"}),
    "machines/problems": Rule(inside={"machines", "checks", "failure.message"}),
    "machines/borders": Rule(inside={"machines", "model", "planner"}),
    "machines/planned": Rule(inside={"machines", "config", "planner"}),
    "machines/doors": Rule(inside={"machines"}),
    "machines/meeting": Rule(inside={"machines", "failure.job_store"}),
    "machines/exchange": Rule(inside={"machines"}, outside={"torch"}),
    "machines/table": Rule(inside={"machines", "failure.message", "printable"}, outside={"rich"}),
    "runtime": AROUND_THE_MODEL,
    "benchmarks": Rule(inside=ANYTHING_INSIDE, outside=MEGATRON_AND_TORCH, in_functions={"rich"}),
    # Imported by the command line before anything is decided.
    "benchmarks/commands": Rule(inside={"benchmarks"}, outside={"typer"}),
    "benchmarks/shape": Rule(inside={"benchmarks"}),
    # On the other machine before anything is installed.
    **{
        f"benchmarks/kit/{module}": Rule(inside={"benchmarks.kit"})
        for module in ("__init__", "install", "items", "journal", "parts", "plan", "stream")
    },
    "benchmarks/kit/perform": Rule(
        inside={"benchmarks", "cli", "runtime"}, in_functions={"pytest", "torch"}
    ),
    "benchmarks/data": Rule(in_functions={"tokenizers", "transformers"}),
    "arguments": AROUND_THE_MODEL,
    "cards": AROUND_THE_MODEL,
    "unparsed": Rule(inside={"checks"}),
    "cli": Rule(inside=ANYTHING_INSIDE, outside={"typer"}, in_functions={"rich"}),
    "__main__": AROUND_THE_MODEL,
    # torchrun's process: of torch the launcher alone.
    "agent": Rule(in_functions={"torch"}),
    "pretrain": AROUND_THE_MODEL,
    "run": AROUND_THE_MODEL,
}


@dataclass(frozen=True, kw_only=True)
class Import:
    name: str
    line: int
    in_function: bool


def imports(source: str, package: str) -> list[Import]:
    """Every import of a module of ``package``, relative ones made absolute.

    ``from a import b`` counts as ``a.b``: b may be a module.
    """
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        found.extend(Import(name=n, line=node.lineno, in_function=in_function) for n in names)
        inner = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(source), False)
    return found


def is_below(name: str, parents: frozenset[str] | set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def package_of(part: str) -> str:
    folder = part.split("/")[0]
    return f"grove_megatron.{folder}" if (ROOT / folder).is_dir() else "grove_megatron"


def violations(part: str, source: str, package: str) -> list[str]:
    rule = RULES[part]
    inside = {p if p == "grove_megatron" else f"grove_megatron.{p}" for p in rule.inside}
    broken = []
    for found in imports(source, package):
        allowed = (
            found.name.split(".")[0] in STDLIB
            or is_below(found.name, inside | rule.outside)
            or (found.in_function and is_below(found.name, rule.in_functions))
        )
        if not allowed:
            broken.append(f"line {found.line}: {part} may not import {found.name}")
    return broken


def modules() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    module = path.with_suffix("").as_posix()
    return module if module in RULES else module.split("/")[0]


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_module_imports_only_what_its_part_may(path):
    assert part_of(path) in RULES, f"{path} belongs to no part; give it a rule"
    package = ".".join(["grove_megatron", *path.parent.parts])
    assert violations(part_of(path), (ROOT / path).read_text(), package) == []


def test_nobody_imports_tests():
    importing = [
        f"{path}:{found.line}"
        for path in modules()
        for found in imports((ROOT / path).read_text(), "grove_megatron")
        if is_below(found.name, {"tests"})
    ]
    assert importing == []


def test_there_are_modules_to_look_at():
    assert len(modules()) > 30


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("functional", "import megatron.core"),
        ("functional", "from ..config import has_adjugates"),
        ("functional", "from .. import config"),
        ("functional", "def f():\n    import transformers"),
        ("comm", "from ..functional.groups import group_map"),
        ("moe", "from megatron.training import get_args"),
        ("moe", "import megatron.training"),
        ("moe", "from megatron import training"),
        ("moe", "from ..runtime import cpu"),
        ("moe", "from grove_megatron.training import gpt"),
        ("moe", "import transformer_engine"),
        ("moe", "def f():\n    import apex"),
        ("moe/norm", "import apex"),
        ("config", "import transformers"),
        ("layer_spec", "if True:\n    from .runtime import cpu"),
        ("checkpoint", "import transformers"),
        ("checkpoint", "from ..moe import layer"),
        ("checkpoint", "from megatron.core import mpu"),
        ("checkpoint/hf_config", "import torch"),
        ("checkpoint/hf_config", "from .transforms import Transform"),
        ("checkpoint/megatron_args", "from ..config import has_adjugates"),
        ("checkpoint/verify", "from megatron.core import mpu"),
        ("checkpoint/verify", "from ..training import launch"),
        ("bridge", "import megatron.bridge"),
        ("bridge", "from ..layer_spec import grove_layer_spec"),
        ("bridge/registration", "from megatron.training import get_args"),
        ("report", "import torch"),
        ("report", "import matplotlib"),
        ("report", "from ..config import has_adjugates"),
        ("report/command", "from .figures import draw_all"),
        ("planner", "import torch"),
        ("simulate", "import megatron.core"),
        ("simulate", "from ..moe import crossing"),
        ("simulate/command", "import torch"),
        ("model", "import torch"),
        ("model", "from ..config import has_adjugates"),
        ("checks", "import torch"),
        ("checks", "from ..switches import refusals"),
        ("messages", "from ..config import has_adjugates"),
        ("messages/command", "import torch"),
        ("switches", "import torch"),
        ("switches", "from ..config import has_adjugates"),
        ("machines/problems", "import torch"),
        ("machines/borders", "import megatron.core"),
        ("training/doctor_command", "from .doctor import diagnose"),
        ("planner", "from grove_megatron.config import has_adjugates"),
        ("training", "import tests.unit"),
        ("training", "import transformer_engine"),
        ("benchmarks", "import tests.unit"),
        ("benchmarks", "import transformers"),
        ("benchmarks/commands", "import torch"),
        ("benchmarks/commands", "from ..moe.layer import GroveMoELayer"),
        ("benchmarks/shape", "import torch"),
        ("__init__", "import torch"),
        ("__init__", "from . import runtime"),
        ("compat", "import megatron.core"),
    ],
)
def test_a_forbidden_import_is_found(part, source):
    assert len(violations(part, source, package_of(part))) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("functional", "import torch\nfrom dataclasses import dataclass\nfrom .groups import f"),
        ("comm", "import torch.distributed as dist"),
        ("moe", "from ..functional.groups import group_map\nfrom megatron.core import mpu"),
        ("checkpoint", "import safetensors\ndef f():\n    import transformers"),
        ("checkpoint/megatron_args", "from .config_keys import refuse_all"),
        ("checkpoint/verify", "def f():\n    from ..training import launch"),
        ("bridge/registration", "from megatron.bridge.models.gpt_provider import GPTModelProvider"),
        ("switches", "from ..checks.flags import flag_of"),
        ("planner", "import json\nfrom ..model.architecture import Model"),
        ("training", "from ..moe.layer import GroveMoELayer\nimport megatron.training"),
        ("benchmarks", "import torch\nfrom ..moe import layer\ndef f():\n    import rich.table"),
        ("benchmarks/commands", "import typer\nfrom .shape import Shape"),
        ("compat", "import importlib.metadata\nfrom packaging.version import Version"),
    ],
)
def test_an_allowed_import_is_accepted(part, source):
    assert violations(part, source, package_of(part)) == []
