"""Two of the ``reporting`` patches: losses of validation and test sets go into the record too.

Megatron prints them and hands them to TensorBoard; its hooks around an evaluation
(``non_loss_data_func``, ``process_non_loss_data_func``) are not told them. What it computes, prints
and writes stays as it is.
"""

import re
import time
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

from ..runtime.fingerprints import megatron_patch

# Of the evaluation that is printed at present: means and seconds of every set, in order.
_made: list[tuple[dict[str, float], float]] = []


def _evaluate(original: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate(*args: Any, **named: Any) -> Any:
        """Megatron's, and its means are kept."""
        begun = time.time()
        found = original(*args, **named)
        # None where a time limit ended it; on pipeline stages without the loss it is empty.
        losses = {name: float(value) for name, value in (found[0] or {}).items()}
        _made.append((losses, time.time() - begun))
        return found

    return evaluate


def _evaluate_and_print(original: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate_and_print_results(
        prefix: str, step: Any, data: Any, model: Any, iteration: int, *args: Any, **named: Any
    ) -> Any:
        """Megatron's, and then the record's; it means the test set where it says so."""
        from megatron.training import get_args

        _made.clear()
        returned = original(prefix, step, data, model, iteration, *args, **named)
        tracker = get_moe_metrics_tracker()
        # Megatron's own without Grove layers or metrics.
        if hasattr(tracker, "evaluated"):
            of = "test" if re.search(r"\btest set$", prefix) else "validation"
            names = get_args().validation_set_names or range(len(_made))
            for name, (losses, seconds) in zip(names, _made, strict=False):
                several = f"{of}-{name}" if get_args().multiple_validation_sets else of
                if losses:
                    tracker.evaluated(several, iteration, seconds, losses)
        return returned

    return evaluate_and_print_results


PATCHES = [
    megatron_patch(
        name="evaluation-losses",
        target="megatron.training.training:evaluate",
        reason="what it returns is printed by its caller and told to no hook",
        make=_evaluate,
    ),
    megatron_patch(
        name="evaluation-set",
        target="megatron.training.training:evaluate_and_print_results",
        reason="it alone knows the iteration, and whether the set is for validation or test",
        make=_evaluate_and_print,
    ),
]
