"""Optimizer states of a checkpoint, arranged for the optimizers of this run.

Megatron gives the experts an optimizer of their own where they are reduced over ranks of their
own: with expert parallelism, or with another tensor-parallel size than the dense layers. A
checkpoint holds the tensors of all of them by the names of the parameters, so they fit any layout;
but what is not a tensor (parameter groups, step) lies where the optimizers of the saving run were:
at the top, if there was one, else under 0, 1, ... Megatron looks for it where the optimizers of the
loading run are, and a group has to be marked as expert parallel in both.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

State = dict[Any, Any]


def load_into_chain(original: Callable[..., None]) -> Callable[..., None]:
    """The replacement of ``ChainedOptimizer.load_state_dict``."""

    def load_state_dict(self: Any, state_dict: Any) -> None:
        """As Megatron's, from any arrangement of expert and other optimizers."""
        if _is_arranged_by_megatron_alone(self, state_dict):
            original(self, state_dict)
            return
        groups = [optimizer.optimizer.param_groups for optimizer in self.chained_optimizers]
        original(self, arranged(state_dict, groups))

    return load_state_dict


def with_idle(original: Callable[..., None]) -> Callable[..., None]:
    """The replacement of ``ChainedOptimizer.__init__``."""

    def __init__(self: Any, chained_optimizers: list[Any]) -> None:
        """As Megatron's; an optimizer without a weight to train has a state, of nothing."""
        original(self, chained_optimizers)
        idle = [one for one in chained_optimizers if getattr(one, "is_stub_optimizer", False)]
        for one in idle:
            one.state_dict = one.sharded_state_dict = lambda *_, **__: {}
            one.load_state_dict = lambda *_, **__: None
        if not idle:
            return
        synchronize = self._synchronize_steps

        def of_the_others() -> Any:
            self.chained_optimizers = [one for one in chained_optimizers if one not in idle]
            try:
                return synchronize()
            finally:
                self.chained_optimizers = chained_optimizers

        self._synchronize_steps = of_the_others

    return __init__


def _is_arranged_by_megatron_alone(chain: Any, state_dict: Any) -> bool:
    """Is this another format: a list of old, of Megatron-FSDP, or of optimizers that differ?"""
    from megatron.core.optimizer.optimizer import ChainedOptimizer

    if type(chain) is not ChainedOptimizer or not isinstance(state_dict, dict):
        return True
    if chain.config.optimizer not in ("adam", "sgd"):
        return True  # some chain optimizers that count no steps with Adam
    for optimizer in chain.chained_optimizers:
        fsdp = getattr(getattr(optimizer, "ddp_config", None), "use_megatron_fsdp", False)
        if fsdp or optimizer.is_stub_optimizer:
            return True
    return False


def arranged(state_dict: State, current: list[list[State]]) -> State:
    """A loaded optimizer state in the arrangement of ``current``.

    Args:
        state_dict: what Megatron loaded: what the checkpoint holds besides tensors, where the
            saving run had it, and the tensors and parameter numbers of this run, where this run
            has them. One optimizer is at the top, several are under 0, 1, ...
        current: parameter groups of every optimizer of this run.

    Returns:
        The state as this run would have saved it. Every group is the saved one that is equal in
        all that Megatron tells groups by, expert parallelism aside (one that is equal in that too
        goes first). The step is that of the run, also where the rank that wrote the checkpoint
        had no parameter in a group and so wrote none, or 0.

    Raises:
        ValueError: a group of this run is not in the checkpoint, or its steps differ.
    """
    numbered = {key: value for key, value in state_dict.items() if isinstance(key, int)}
    top = {key: value for key, value in state_dict.items() if key not in numbered}
    parts: list[State] = [part for part in (top, *numbered.values()) if part]
    saved = [group for part in parts for group in _groups(part) if group.keys() - {"params"}]
    step = _step(parts, saved)
    own = [top] if len(current) == 1 else [numbered.get(i, {}) for i in range(len(current))]
    result = [
        _arranged_one(part, groups, saved, step) for part, groups in zip(own, current, strict=True)
    ]
    for key in ("grad_scaler", "param_state_sharding_type"):
        values = [part[key] for part in parts if key in part]
        for part in result if values else []:
            part.setdefault(key, copy.deepcopy(values[0]))
    return result[0] if len(result) == 1 else dict(enumerate(result))


def _arranged_one(part: State, current: list[State], saved: list[State], step: Any) -> State:
    """The state of one optimizer: its own tensors, with groups and step of the checkpoint."""
    part = dict(part)
    # The plain fp32 optimizer's state is torch's own; in that of the others torch's is one entry.
    inner = part
    if "param_groups" not in part:
        inner = part["optimizer"] = dict(part.get("optimizer", {}))
    own = [group["params"] for group in inner.get("param_groups", []) if "params" in group]
    if own and len(own) != len(current):
        raise ValueError(
            f"parameter groups in the loaded state ({len(own)}) differ from those of this run's "
            f"optimizer ({len(current)}); use --no-load-optim"
        )
    groups = [
        {**_matching(group, saved), "is_expert_parallel": _expert(group)} for group in current
    ]
    for group in groups:
        group.pop("params", None)
        if "step" in group or (step is not None and any("step" in other for other in saved)):
            group["step"] = step
    for group, params in zip(groups, own, strict=False):
        group["params"] = params
    inner["param_groups"] = groups
    if step is not None and not any("step" in group for group in saved):
        inner["state"] = {**inner.get("state", {}), "common_step": step}
    return part


def _expert(group: State) -> bool:
    return bool(group.get("is_expert_parallel"))


def _inner(part: State) -> State:
    """Torch's own part of an optimizer's state."""
    inner: State = part.get("optimizer", part)
    return inner


def _groups(part: State) -> list[State]:
    groups: list[State] = _inner(part).get("param_groups", [])
    return groups


def _steps(parts: list[State], saved: list[State]) -> Iterator[Any]:
    for part in parts:
        # Torch's Adam counts for every parameter; Megatron writes one number.
        state = _inner(part).get("state", {})
        if "common_step" in state:
            yield state["common_step"]
    yield from (group["step"] for group in saved if group.get("step") is not None)


def _step(parts: list[State], saved: list[State]) -> Any:
    """The number of steps that was saved, None if none was."""
    steps = list(_steps(parts, saved))
    taken = [step for step in steps if float(step) != 0]
    if len({float(step) for step in taken}) > 1:
        raise ValueError(
            f"optimizer steps in the checkpoint ({sorted({float(s) for s in taken})}) differ, "
            "so none is that of the run; use --no-load-optim"
        )
    return (taken or steps or [None])[0]


def _matching(group: State, saved: list[State]) -> State:
    """The saved group that stands for ``group``."""
    wanted = _identity(group)
    alike = [other for other in saved if _identity(other) == wanted]
    if not alike:
        raise ValueError(_no_match(wanted, [_identity(other) for other in saved]))
    same_kind = [other for other in alike if _expert(other) == _expert(group)]
    return (same_kind or alike)[0]


def _identity(group: State) -> State:
    """What Megatron tells parameter groups by, without where their parameters live."""
    from megatron.core.optimizer.optimizer import param_group_identifier_keys

    names = [name for name in param_group_identifier_keys if name != "is_expert_parallel"]
    # As in Megatron: NeMo writes some of them with a prefix, and absent is None.
    return {name: group.get(name, group.get(f"pre_{name}")) for name in names}


def _no_match(wanted: State, saved: list[State]) -> str:
    if not saved:
        return "parameter groups in the checkpoint (0) are none to load; use --no-load-optim"
    others = [[name for name in wanted if wanted[name] != other[name]] for other in saved]
    nearest = min(range(len(saved)), key=lambda i: len(others[i]))
    differs = " and ".join(
        f"{name} ({wanted[name]}) differs from {name} of the checkpoint ({saved[nearest][name]})"
        for name in others[nearest]
    )
    return f"optimizer parameter group: {differs}; give the checkpoint's flags, or --no-load-optim"
