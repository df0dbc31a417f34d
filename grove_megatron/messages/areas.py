"""Which part of the package says a message, in words; and which texts are none."""

import ast

from .source import BESIDE, Def, Module, called

AREAS: dict[str, str] = {
    "start": "Flags and the start of a job",
    "router": "Parts of the router",
    "switches": "Megatron's switches beside Grove layers",
    "files": "Files a job reads and writes",
    "machines": "The machines of a job, before it starts",
    "running": "A running job, and one that fails",
    "launch": "The launch kit and patches",
    "weights": "Weights in and out",
    "text": "Text, conversations, generation",
    "verify": "Checking against authors' numbers",
    "report": "Reports, benchmarks, plans",
    "installation": "Versions, patches, devices",
    "library": "Calls from Python",
}
"""The pages, by file name."""

_OF: dict[str, str] = {
    **dict.fromkeys(("arguments", "config", "unparsed", "checks", "presets", "run"), "start"),
    **dict.fromkeys(("layer_spec", "pretrain", "cli", "__main__", "training"), "start"),
    **dict.fromkeys(("parts", "moe"), "router"),
    **dict.fromkeys(("planner/rules", "planner/flags"), "start"),
    "switches": "switches",
    "training/cpu_arguments": "switches",
    "training/idle_flags": "switches",
    **{
        f"training/{name}": "files"
        for name in (
            *("checkpoint_folder", "data_files", "disk", "folder_lock", "one_job", "saving"),
            *("saved_arguments", "tokenizer_files", "vocabulary", "token_ids", "dropped_weights"),
        )
    },
    **{
        f"training/{name}": "running"
        for name in (
            *("nonfinite", "metrics", "metrics_run", "metrics_values", "reporting", "launch"),
            *("idle_experts", "interval_losses", "evaluations", "lock_beat", "start"),
        )
    },
    "moe/logits_watch": "running",
    **dict.fromkeys(("failure", "agent"), "running"),
    "machines": "machines",
    **dict.fromkeys(BESIDE, "launch"),
    **dict.fromkeys(("checkpoint", "bridge", "model"), "weights"),
    **dict.fromkeys(("data", "inference", "sft"), "text"),
    **dict.fromkeys(("verify_layer", "checkpoint/verify", "checkpoint/golden"), "verify"),
    **dict.fromkeys(("report", "benchmarks", "planner", "placing", "simulate"), "report"),
    **dict.fromkeys(("__init__", "compat", "runtime", "training/installed"), "installation"),
    **dict.fromkeys(
        ("training/machine", "training/clone", "kernels/triton_support"), "installation"
    ),
    **dict.fromkeys(("functional", "kernels", "comm", "layer_count", "printable"), "library"),
}


def area_of(module: str) -> str:
    """The page of what a module says."""
    return _OF.get(module) or _OF[module.split("/")[0]]


def place_of(module: str) -> str:
    """Where its file is in a checkout, without ``.py``."""
    return module if module in BESIDE else f"grove_megatron/{module}"


_LEFT_OUT = (
    # Write pages and pictures.
    *("messages", "cards", "presets/cards", "presets/measured", "parts/page", "parts/__main__"),
    *("reference", "presets/__main__", "simulate/table", "switches/page", "switches/__main__"),
    # Leaves the package, and says what transformers says.
    "checkpoint/hf_code",
)
# Pages, tables and pictures, whose words are theirs; but these modules of them.
_DRAWING = frozenset({"report", "benchmarks", "planner", "presets"})
_SAYING = frozenset(
    {
        *("report/command", "report/files", "report/reading", "report/compared", "report/record"),
        *("report/refused", "report/trace"),
        *("benchmarks/refusals", "benchmarks/commands", "planner/fit", "presets/flags"),
        *(
            "benchmarks/kit/import_rows",
            "benchmarks/run",
            "benchmarks/records",
            "benchmarks/data",
            "benchmarks/agreement",
        ),
    }
)
NOT_FOR_USERS = frozenset(
    {"_Wrong", "NotImplementedError", "KeyError", "EOFError", "AssertionError"}
)
"""Exceptions that somebody catches, or that tell a developer."""
# Not said, but described by: tables that pages are made of, and reasons beside code.
_TABLES = frozenset(
    {
        *("Option", "Argument", "Typer", "Works", "Ignored", "Shown", "Difference", "Preset"),
        *(
            "Part",
            "Area",
            "megatron_patch",
            "torch_patch",
            "Patch",
            "PatchSet",
            "Column",
            "compile",
        ),
        *("sub", "search", "match", "fullmatch", "findall", "ArgumentParser", "add_argument"),
        *("add_argument_group", "Measure", "add_column", "Panel", "Figure"),
    }
)


def fewest_words(module: str, *, alone: bool = False) -> int:
    """Of a message; fewer would be found in anything. How a job ended is said in fewer.

    Args:
        alone: of a text of which nothing but its words says that it is one.
    """
    return 2 if module == "failure/message" else 4 if alone else 3


def is_shared(module: str) -> bool:
    """Does a module say what others tell it to, so that they are where it comes from?"""
    return module.startswith(("checks/", "switches/"))


def says_prose(module: str) -> bool:
    """May a sentence in it be a message, where it is no argument of what makes one?"""
    folder = module.split("/")[0]
    return module in _SAYING or folder not in _DRAWING


def is_left_out(module: str) -> bool:
    """Does a module say nothing?"""
    return any(module == one or module.startswith(f"{one}/") for one in _LEFT_OUT)


def is_no_message(module: Module, node: ast.expr) -> bool:
    """Is a text nothing that is said: a docstring, the help of an option, a row of a table?"""
    parent = module.parents[node]
    if isinstance(parent, ast.Expr | ast.Assert | ast.Compare):
        return True
    inner: ast.AST = node
    while (outer := module.parents.get(inner)) is not None and not isinstance(outer, Def):
        if isinstance(outer, ast.Call) and called(outer) in _TABLES:
            return True
        if isinstance(outer, ast.keyword) and outer.arg == "help":
            return True
        inner = outer
    # At the top of a module nothing is said; what is, has been read where it is.
    return outer is None
