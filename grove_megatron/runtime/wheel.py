"""The ``wheel`` patches: what the PyPI wheel lacks on any machine, with or without CUDA."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from .checkpoint_files import (
    invalidate_before_save,
    with_atomic_tracker,
    with_manager_that_ends,
)
from .fingerprints import megatron_patch
from .optimizer_chain import load_into_chain, with_idle
from .registry import PatchSet


def _compile_helpers(original: Callable[[], None]) -> Callable[[], None]:
    def compile_helpers() -> None:
        """Compile the dataset helpers, unless the compiled module is already installed."""
        if importlib.util.find_spec("megatron.core.datasets.helpers_cpp") is None:
            original()

    return compile_helpers


def _optimizer_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    def state_dict(self: Any) -> dict[str, Any]:
        """As Megatron's, also before the first step, when torch's Adam has no ``step`` yet."""
        from megatron.core.optimizer import distrib_optimizer

        if distrib_optimizer.HAVE_APEX_OR_TE or self.optimizer.state:
            saved: dict[str, Any] = original(self)
            return saved
        inner = self.optimizer.state_dict()
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "step": 0.0}
            for group in inner["param_groups"]
        ]
        outer = {"optimizer": {**{k: v for k, v in inner.items() if k != "state"}}}
        outer["optimizer"]["param_groups"] = groups
        if self.grad_scaler:
            outer["grad_scaler"] = self.grad_scaler.state_dict()
        return outer

    return state_dict


def _optimizer_load_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        """As Megatron's; then torch's Adam gets the step that was saved, for each parameter."""
        from megatron.core.optimizer import distrib_optimizer

        with torch.no_grad():
            original(self, state_dict)
        if distrib_optimizer.HAVE_APEX_OR_TE:
            return
        (step,) = {group["step"] for group in state_dict["optimizer"]["param_groups"]}
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(float(step))

    return load_state_dict


def _set_optimizer_state(original: Callable[..., Any]) -> Callable[..., Any]:
    def set_main_param_and_optimizer_states(self: Any, model_param: Any, tensors: Any) -> None:
        """As Megatron's, where the checkpoint keeps torch's ``step`` apart from the tensors."""
        original(self, model_param, {"step": None, **tensors})

    return set_main_param_and_optimizer_states


def _recompute_without_engine(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, fp8: Any = False) -> None:
        """As Megatron's; without TransformerEngine there is no FP8 to ask it about."""
        from megatron.core.tensor_parallel import random

        original(self, fp8 if random.HAVE_TE else None)

    return __init__


WHEEL = PatchSet(
    "wheel",
    "what the PyPI wheel lacks (CUDA machines too)",
    [
        megatron_patch(
            name="dataset-helpers",
            target="megatron.core.datasets.utils:compile_helpers",
            reason="runs make in a folder whose Makefile the wheel does not ship and exits the "
            "process, although the wheel ships the compiled helpers",
            make=_compile_helpers,
        ),
        megatron_patch(
            name="optimizer-state-before-first-step",
            target="megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict",
            reason="asserts on a fresh torch.optim.Adam, so a run without Apex or "
            "TransformerEngine can save with the distributed optimizer but never resume",
            make=_optimizer_state_dict,
        ),
        megatron_patch(
            name="optimizer-step-after-load",
            target="megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",
            reason="with torch.optim.Adam writes fp32 parameters in place where autograd forbids "
            "it, and leaves the step at 0, which silently changes the bias correction",
            make=_optimizer_load_state_dict,
        ),
        megatron_patch(
            name="optimizer-state-without-step",
            target="megatron.core.optimizer.distrib_optimizer:"
            "DistributedOptimizer._set_main_param_and_optimizer_states",
            reason="with torch.optim.Adam and --dist-ckpt-optim-fully-reshardable dies of "
            "KeyError 'step': a checkpoint that can be saved and not loaded",
            make=_set_optimizer_state,
        ),
        megatron_patch(
            name="optimizers-of-another-layout",
            target="megatron.core.optimizer.optimizer:ChainedOptimizer.load_state_dict",
            reason="finds the groups and the step only where the run that saved had as many "
            "optimizers, so no state crosses between expert-parallel size 1 and more; and takes "
            "the step from rank 0, which writes none where it has no expert",
            make=load_into_chain,
        ),
        megatron_patch(
            name="optimizers-without-weights",
            target="megatron.core.optimizer.optimizer:ChainedOptimizer.__init__",
            reason="asks the optimizer of the dense weights for its state where all of them are "
            "frozen and there is none, so that no such run can be saved",
            make=with_idle,
        ),
        megatron_patch(
            name="recompute-without-engine",
            target="megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
            reason="asks TransformerEngine whether FP8 is on whenever a norm or an activation is "
            "recomputed, and ends with a NameError where that is not installed",
            make=_recompute_without_engine,
        ),
        megatron_patch(
            name="atomic-tracker",
            target="megatron.training.checkpointing:maybe_msc",
            reason="empties latest_checkpointed_iteration.txt before it writes it, and a job that "
            "was killed in between ends with exit code 0 at every restart",
            make=with_atomic_tracker,
        ),
        megatron_patch(
            name="overwritten-checkpoint",
            target="megatron.core.dist_checkpointing:save",
            reason="leaves the mark of a complete checkpoint in a folder it writes over, so a "
            "half-written one passes for complete",
            make=invalidate_before_save,
        ),
        megatron_patch(
            name="checkpoint-manager",
            target="megatron.core.dist_checkpointing.strategies.filesystem_async:"
            "get_write_results_queue",
            reason="starts a process that outlives a rank that is killed, for ever, and holds the "
            "output of the job open",
            make=with_manager_that_ends,
        ),
    ],
)
