"""Optional packages: which are installed, what a run takes from them, which it cannot do without.

Megatron takes TransformerEngine and Apex by itself wherever they can be imported, and many of its
defaults need them; without, a job ends with an ImportError or an assertion some minutes after its
start. Here both are known from its flags. Looks, never imports: TransformerEngine raises more than
ImportError where it is only half there, and the ``apex`` of PyPI is a stranger's.
"""

import importlib.metadata
import importlib.util
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checks.problem import UNSAID, Problem
from ..checks.rules import Check
from ..compat import is_foreign_apex

APEX_KERNELS = {
    "amp_C": "optimizers",
    "fused_layer_norm_cuda": "norms",
    "fused_weight_gradient_mlp_cuda": "weight gradients",
    "scaled_masked_softmax_cuda": "softmax",
}
"""Extension modules of an Apex that was built with ``APEX_CUDA_EXT=1``, and what they are for."""


@dataclass(frozen=True)
class Package:
    """One optional package.

    Args:
        name: as people call it.
        version: None if it is not installed.
        lacks: the parts that are missing although it is installed.
    """

    name: str
    version: str | None
    lacks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.version is not None and not self.lacks

    def __str__(self) -> str:
        if self.version is None:
            return f"{self.name} (not installed)"
        lacking = f", without {', '.join(self.lacks)}" if self.lacks else ""
        return f"{self.name} ({self.version}{lacking})"


@dataclass(frozen=True)
class Installed:
    """The optional packages of one machine; see :func:`look`."""

    transformer_engine: Package
    apex: Package
    triton: Package

    def has_kernel(self, name: str) -> bool:
        """Is this one of Apex's extension modules, and there?"""
        return self.apex.version is not None and name not in self.apex.lacks


def look() -> Installed:
    """The optional packages of this machine."""
    return Installed(_transformer_engine(), _apex(), _one("Triton", "triton"))


def uses(args: Namespace, found: Installed, device: str) -> list[str]:
    """What a run of these flags computes its parts with, one line each.

    Args:
        args: Megatron's namespace with the Grove flags.
        device: ``cuda`` or ``cpu``; on the CPU runtime nothing of the optional packages is used.
    """
    engine = found.transformer_engine
    if device == "cpu":
        return ["layers, experts, norms and optimizer: torch, on the CPU"]
    lines = [f"layers: {engine if args.transformer_impl != 'local' else 'Megatron and torch'}"]
    lines.append(f"experts and adjugates: {_experts(args, found)}")
    lines.append(f"norms: {_norms(args, found)}")
    fused = engine if engine.complete else found.apex if found.has_kernel("amp_C") else "torch"
    lines.append(f"optimizer: {fused}")
    return lines


def package_problems(args: Namespace, found: Installed) -> Iterator[Problem]:
    """Flags of a job on CUDA whose packages are not there."""
    for package in (found.transformer_engine, found.apex):
        if package.version is not None and package.lacks and not _may_lack(package, found):
            yield Problem(
                package.name,
                package.version,
                f"is installed without ({', '.join(package.lacks)}) and Megatron would take it for "
                "complete; uninstall it, or install it as CONTRIBUTING.md says",
            )
    yield from Check(args, **dict.fromkeys(_NOT_GIVEN, UNSAID)).those(
        {sentence: is_so(args, found) for sentence, is_so in _RULES.items()}
    )


def optimizer_problems(args: Namespace) -> list[Problem]:
    """An optimizer that is not Megatron's, and not there; on a CPU too."""
    if args.optimizer in ("adam", "sgd") or importlib.util.find_spec("emerging_optimizers"):
        return []
    needs = "needs the package emerging-optimizers (not installed)"
    return [Check(args).problem(f"{{optimizer}} {needs}; install it, or use adam")]


_WRITERS = {
    # Megatron warns on the last rank alone, and writes nothing (global_vars.py:225 @ 0.19.2).
    "tensorboard_dir": ("tensorboard", "grove-megatron[tensorboard]"),
    # Imported by the last rank, after the process group is made (global_vars.py:238).
    "wandb_project": ("wandb", "wandb"),
}
"""Flag of a log, the module that writes it, and where that comes from."""


def writer_problems(args: Namespace) -> list[Problem]:
    """Logs that are asked for and that nothing on this machine can write."""
    return [
        Check(args).problem(
            f"{{{name}}} needs {module} (not installed here), which writes it; pip install "
            f"'{requirement}', or remove it"
        )
        for name, (module, requirement) in _WRITERS.items()
        if getattr(args, name) and importlib.util.find_spec(module) is None
    ]


def _is_local(args: Namespace) -> bool:
    return bool(args.transformer_impl == "local")


def _fuses_softmax(args: Namespace, found: Installed) -> bool:
    """Will Megatron call the kernel? For some shapes it does not (fused_softmax.py:238 @ 0.19)."""
    half = args.bf16 or args.fp16
    sequence = args.seq_length or 0
    heads = args.micro_batch_size * args.num_attention_heads // args.tensor_model_parallel_size
    fits = 16 < sequence <= 4096 and sequence % 4 == 0 and heads % 4 == 0
    fuses = _is_local(args) and half and args.masked_softmax_fusion and fits
    return bool(fuses and not found.has_kernel("scaled_masked_softmax_cuda"))


def _keeps_persistent_norm(args: Namespace, found: Installed) -> bool:
    if not _is_local(args) or args.no_persist_layer_norm:
        return False
    if args.normalization == "LayerNorm" and found.has_kernel("fused_layer_norm_cuda"):
        return False
    # Sequence parallelism has norms of this package, which do not ask.
    return not (args.sequence_parallel and args.tensor_model_parallel_size > 1)


def _fuses_rope(args: Namespace, found: Installed) -> bool:
    rotary = args.position_embedding_type == "rope" or args.use_rotary_position_embeddings
    fuses = _is_local(args) and rotary and args.apply_rope_fusion
    return bool(fuses and not found.transformer_engine.complete)


def _fuses_gradients(args: Namespace, found: Installed) -> bool:
    # Of the output layer, whatever the implementation of the others.
    fuses = args.gradient_accumulation_fusion and not args.fp8_output_proj
    return bool(fuses and not found.has_kernel("fused_weight_gradient_mlp_cuda"))


# What turns a default off.
_NOT_GIVEN = (
    *("no_gradient_accumulation_fusion", "no_masked_softmax_fusion"),
    *("no_persist_layer_norm", "no_rope_fusion"),
)
_RULES: dict[str, Callable[[Namespace, Installed], bool]] = {
    "{transformer_impl} needs TransformerEngine (not installed); install it as CONTRIBUTING.md "
    "says, or use --transformer-impl local": (
        lambda args, found: not _is_local(args) and found.transformer_engine.version is None
    ),
    "{no_gradient_accumulation_fusion} is not given, and the fusion needs "
    "fused_weight_gradient_mlp_cuda (not installed) of NVIDIA Apex; give it, or build Apex as "
    "CONTRIBUTING.md says": _fuses_gradients,
    "{no_masked_softmax_fusion} is not given beside {transformer_impl}, and the fusion needs "
    "scaled_masked_softmax_cuda (not installed) of NVIDIA Apex; give it, or build Apex as "
    "CONTRIBUTING.md says": _fuses_softmax,
    "{no_persist_layer_norm} is not given beside {transformer_impl} and {normalization}, for which "
    "torch's norm stands; give it": _keeps_persistent_norm,
    "{no_rope_fusion} is not given beside {transformer_impl}, and the fusion needs "
    "TransformerEngine (not installed); give it, or install that as CONTRIBUTING.md "
    "says": _fuses_rope,
}
"""What a default or a flag of Megatron needs that is not there, and when it is asked for."""


def _may_lack(package: Package, found: Installed) -> bool:
    """Apex's softmax and gradient kernels are asked for by flags, which have rules of their own.

    Its optimizers are not: Megatron takes them wherever there is no TransformerEngine.
    """
    if package is not found.apex:
        return False
    return "amp_C" not in package.lacks or found.transformer_engine.complete


def _experts(args: Namespace, found: Installed) -> str:
    if args.transformer_impl != "local":
        shape = "grouped" if args.moe_grouped_gemm else "one by one"
        return f"{found.transformer_engine}, {shape}"
    if args.grove_kernel == "megatron":
        return "Megatron's, one by one"
    triton = found.triton if found.triton.complete else "torch"
    return f"grouped, {triton}"


def _norms(args: Namespace, found: Installed) -> str:
    if args.transformer_impl != "local":
        return str(found.transformer_engine)
    if args.normalization == "LayerNorm" and found.has_kernel("fused_layer_norm_cuda"):
        return str(found.apex)
    return "torch"


def _one(name: str, module: str) -> Package:
    if importlib.util.find_spec(module) is None:
        return Package(name, None)
    return Package(name, _version(module) or "unknown version")


def _transformer_engine() -> Package:
    """Complete with its library for torch, which a source build has in another place than a wheel.

    The package of that name on PyPI is empty without its extras.
    """
    spec = importlib.util.find_spec("transformer_engine")
    version = _version("transformer_engine")
    if version is None and spec is None:
        return Package("TransformerEngine", None)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    places = [p for folder in folders for p in (folder, folder / "wheel_lib", folder.parent)]
    built = any(any(place.glob("transformer_engine_torch*.so")) for place in places)
    lacks = () if built else ("transformer_engine_torch",)
    return Package("TransformerEngine", version or "unknown version", lacks)


def _apex() -> Package:
    if importlib.util.find_spec("apex") is None or is_foreign_apex():
        return Package("Apex", None)
    lacks = tuple(name for name in APEX_KERNELS if importlib.util.find_spec(name) is None)
    return Package("Apex", _version("apex") or "unknown version", lacks)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
