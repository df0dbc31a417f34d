"""What experts do while a job trains: to the log line, TensorBoard, W&B and the record.

After every iteration Megatron asks its tracker of MoE metrics for a report, on every rank
(training.py:2782 @ 0.19). The tracker installed here reports the auxiliary losses as Megatron's
does, and every ``--grove-metrics-interval`` iterations and after the last one what the layers have
counted meanwhile: one all-reduce of one table, layers x :class:`Columns`, over all ranks, pipeline
stages included.
"""

import sys
import time
from argparse import Namespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_logging import MoEMetricsTracker, set_moe_metrics_tracker
from megatron.core.utils import get_model_config
from megatron.training import get_args

from ..config import GroveTransformerConfig, has_grove_layers
from ..moe.counts import SCALARS, Columns, LayerCounts
from ..moe.layer import GroveMoELayer
from ..moe.router import loss_names
from ..parts import registry
from ..report.measures import Idle
from ..report.record import Evaluation, Interval, Run, Writer
from .idle_experts import IdleExperts
from .interval_losses import IntervalLosses
from .metrics_run import describe_run, record_folder
from .metrics_values import log_line, scalars, write
from .reporting import set_measured_groups_per_token
from .summary import count_parameters


def watch_routing(models: list[Any]) -> list[Any]:
    """Have the layers count and Megatron report it; a ``post_wrap_hooks`` entry of its builder.

    Without Grove layers, or with ``--grove-metrics-interval 0`` and no loss over groups, nothing is
    installed: no layer has counters and Megatron keeps its own tracker.

    Args:
        models: this rank's model chunks; every rank must call, also one without a MoE layer.

    Returns:
        ``models``.
    """
    config = get_model_config(models[0])
    if not has_grove_layers(config):
        return models
    args = get_args()
    if args.grove_metrics_interval != 0 or config.grove_group_aux_loss_coeff:
        set_moe_metrics_tracker(RoutingTracker(models, config, args))
    return models


class RoutingTracker(MoEMetricsTracker):
    """Megatron's tracker, that also reports what Grove layers have counted.

    It reports when the iteration is a multiple of the interval and after the first one of a run,
    as Megatron's log line does, and after the last; each report is of the iterations since the
    one before. With interval 0 it only adds the balancing loss over groups, which Megatron does
    not ask for.
    """

    def __init__(
        self, models: list[torch.nn.Module], config: GroveTransformerConfig, args: Namespace
    ) -> None:
        super().__init__()
        assert config.num_moe_experts is not None
        self._models, self._config, self._args = models, config, args
        interval = args.grove_metrics_interval
        self.interval = args.log_interval if interval is None else interval
        local = registry.local_experts(config)
        most = config.moe_router_topk
        if any(part.any_number for part in registry.active(config)):
            most = config.num_moe_experts
        self._columns = Columns.of(
            config.num_moe_experts,
            config.grove_num_groups or 0,
            most,
            config.expert_model_parallel_size,
            local,
            args.grove_metrics_coactivation,
        )
        self._layers: dict[int, GroveMoELayer] = {}
        for layer in (m for model in models for m in model.modules()):
            if self.interval and isinstance(layer, GroveMoELayer):
                layer.counts = LayerCounts(
                    layer.token_dispatcher, most, local, args.grove_metrics_coactivation
                )
                self._layers[self._slot(layer)] = layer
        self._losses, self._idle = IntervalLosses(), Idle()
        self._idle_experts = IdleExperts()
        self._iterations = 0
        self._reported = False
        self._run: Run | None = None
        folder = record_folder(args) if logs_here() else None
        self._writer = None if folder is None else Writer(folder)
        # Has the file this run's line, and has a failure to write been told?
        self._begun = self._told = False

    def report(
        self,
        loss_scale: float,
        iteration: int,
        writer: Any = None,
        wandb_writer: Any = None,
        per_layer_logging: bool = False,
        **rest: Any,
    ) -> str:
        """As Megatron's, and the routing's where it is due; every rank must call.

        Returns:
            what Megatron puts into its log line; nothing of the routing where no report is due.
        """
        names = rest.pop("track_names", None)
        if names is not None:
            names = [*names, *loss_names(self._config)]
        line: str = super().report(
            loss_scale,
            iteration,
            writer,
            wandb_writer,
            per_layer_logging,
            track_names=names,
            **rest,
        )
        if not self.interval:
            return line
        self._iterations += 1
        if logs_here():
            self._losses.see(rest.get("total_loss_dict") or {})
        if self._is_due(iteration):
            line += self.report_routing(iteration, writer, wandb_writer, per_layer_logging)
        return line

    def report_routing(
        self, iteration: int, writer: Any, wandb_writer: Any, per_layer_logging: bool
    ) -> str:
        """What the layers have counted since the last report; every rank must call.

        Returns:
            what of it goes into the log line.
        """
        line = ""
        interval = self._gather(iteration)
        if interval is not None:
            line = log_line(interval)
            idle_LE = self._idle.see(interval)
            values = scalars(interval, idle_LE, per_layer_logging)
            write(values, iteration, writer, wandb_writer)
            if said := self._idle_experts.see(idle_LE, interval.run.layers, iteration):
                print(f"grove_megatron: {said}", file=sys.stderr, flush=True)
            self._record(interval)
        self._reported, self._iterations = True, 0
        return line

    def _is_due(self, iteration: int) -> bool:
        """Alike on all ranks. After the last iteration too, where it is known to be the last.

        Megatron computes ``train_iters`` from ``--train-samples`` before it trains.
        """
        args = self._args
        return (
            iteration % self.interval == 0
            or not self._reported
            or iteration == args.train_iters
            or bool(args.exit_interval and iteration % args.exit_interval == 0)
        )

    def _gather(self, iteration: int) -> Interval | None:
        """All ranks' sums; None where nothing is logged, or nothing has been built.

        The latter is a pipeline stage without MoE layers that stands for a whole job
        (``--fake-process-group``).
        """
        parameters = None if self._reported else count_parameters(self._models)
        slots = self._config.num_layers + (self._config.mtp_num_layers or 0)
        table = torch.zeros(
            (slots, self._columns.total), dtype=torch.float64, device=torch.cuda.current_device()
        )
        for slot, layer in self._layers.items():
            assert layer.counts is not None
            table[slot] = layer.counts.take(layer.router.expert_bias)
        dist.all_reduce(table)
        self._tell_flops(table)
        if not logs_here():
            return None
        values = table.cpu().numpy()
        built = np.flatnonzero(values[:, 0])
        if not built.size:
            return None
        if parameters is not None:
            names = tuple(self._name(int(slot)) for slot in built)
            before = iteration - self._iterations
            self._run = describe_run(self._args, self._config, names, parameters, before)
        assert self._run is not None
        return _interval(
            self._run, self._columns, values[built], iteration, self._iterations, self._losses
        )

    def _tell_flops(self, table_LC: torch.Tensor) -> None:
        """Megatron counts FLOPs on every rank, so every rank has to know of what."""
        widths = self._columns.widths
        parts = dict(zip(widths, torch.split(table_LC, [*widths.values()], dim=1), strict=True))
        names = ("groups", "sharing", "experts")
        met, tokens, pairs = torch.stack([parts[name].sum() for name in names]).tolist()
        if tokens:
            set_measured_groups_per_token(met / tokens, pairs / tokens)

    def evaluated(self, of: str, iteration: int, seconds: float, losses: dict[str, float]) -> None:
        """Put an evaluation into the record, on the rank that writes it; see evaluations.py."""
        # Nothing has been trained and counted with --skip-train.
        if self._run is not None:
            made = {"of": of, "iteration": iteration, "seconds": seconds, "losses": losses}
            self._record(Evaluation(run=self._run, time=time.time(), **made))

    def _record(self, made: Interval | Evaluation) -> None:
        if self._writer is None:
            return
        try:
            if not self._begun:
                self._writer.run(made.run)
                self._begun = True
            if isinstance(made, Interval):
                self._writer.interval(made)
            else:
                self._writer.evaluation(made)
        except OSError as error:
            # The job is worth more than its metrics. What is torn now is ignored if a run follows.
            self._begun = False
            if not self._told:
                print(
                    f"grove_megatron: the record of metrics in {self._writer.file.parent} cannot "
                    f"be written at iteration {made.iteration}: {error}; the job goes on, and "
                    "every further report tries again",
                    file=sys.stderr,
                    flush=True,
                )
            self._told = True

    def _slot(self, layer: GroveMoELayer) -> int:
        # MTP layers have numbers of their own, from 1.
        assert layer.layer_number is not None
        return int(layer.layer_number - 1 + layer.is_mtp_layer * self._config.num_layers)

    def _name(self, slot: int) -> str:
        layers = self._config.num_layers
        return str(slot + 1) if slot < layers else f"mtp {slot + 1 - layers}"


def logs_here() -> bool:
    """Is this the rank whose log line, TensorBoard and W&B Megatron shows?"""
    if dist.get_backend() == "fake":
        return True
    return dist.get_rank() == dist.get_world_size() - 1


def _interval(
    run: Run,
    columns: Columns,
    table_LC: Any,
    iteration: int,
    iterations: int,
    losses: IntervalLosses,
) -> Interval:
    edges = np.cumsum([0, *columns.widths.values()])
    parts = {
        name: table_LC[:, begin:end]
        for name, begin, end in zip(columns.widths, edges[:-1], edges[1:], strict=True)
    }
    biased_L1 = parts["biased"]
    bias = parts["bias"] / np.maximum(biased_L1, 1)
    counted = {
        name: (part[:, 0] if name in SCALARS else part).astype(np.int64)
        for name, part in parts.items()
        if name not in ("holders", "biased", "bias")
    }
    if columns.coactivation:
        of_pairs = counted["coactivation"].reshape(-1, columns.units, columns.units)
        counted["coactivation"] = of_pairs
    return Interval(
        run=run,
        iteration=iteration,
        iterations=iterations,
        time=time.time(),
        losses=losses.take(),
        bias=bias[:, : columns.experts].astype(np.float32) if biased_L1.any() else None,
        **counted,
    )
