"""What every patch replaces, recorded when it was written.

Made by ``python -m grove_megatron.runtime --fingerprints`` with torch 2.13.0 and megatron-core
0.19.2, after reading each source beside its replacement.
"""

from collections.abc import Callable
from typing import Any

from ..compat import MEGATRON_REQUIREMENT, TORCH_REQUIREMENT
from .registry import Patch

FINGERPRINTS: dict[str, str] = {
    "dataset-helpers": "source:84029a50ae8cfac1",
    "optimizer-state-before-first-step": "source:fe621ae6a622b587",
    "optimizer-step-after-load": "source:7e5f988b86b48501",
    "optimizer-state-without-step": "source:40cab784659711a8",
    "optimizers-of-another-layout": "source:403774c7dde1d546",
    "optimizers-without-weights": "source:ad1bad1074f0c523",
    "recompute-without-engine": "source:72036565b77136f2",
    "atomic-tracker": "value:MaybeMultiStorageClient",
    "overwritten-checkpoint": "source:e9626ecdf679a001",
    "checkpoint-manager": "source:e395fb0e86a062e2",
    "flags": "source:580b80fbe5867b22",
    "checks": "source:47bfcd3af0d8687f",
    "checkpoint-flags": "source:f10371ee69b2232b",
    "store-of-attempt": "source:eb2767aec5eacb8d",
    "token-ids": "source:1f53bc68dccca32d",
    "config-class": "class:megatron.core.transformer.transformer_config.TransformerConfig",
    "config-class-of-latent-attention": (
        "class:megatron.core.transformer.transformer_config.MLATransformerConfig"
    ),
    "builder": "str:megatron.training.models.gpt.GPTModelBuilder",
    "flops": "source:f9ed9b380e17ebd3",
    "arguments": "source:1930963d3725fcf5",
    "theoretical-weights": "source:3b373c1b70eaa4a1",
    "theoretical-activations": "source:bc2fd8c5ebf31fa5",
    "theoretical-activations-otherwise": "source:a1428184ecb403bd",
    "engine-for-flags": "source:95220642e70bf2f5",
    "engine-for-configuration": "source:95220642e70bf2f5",
    "flashinfer": "source:3bf484fc1dcfccad",
    "dsa-kernels": "source:46e3d6d1de125a3b",
    "evaluation-losses": "source:a8be7269bc278373",
    "evaluation-set": "source:699dfbe69cf22ec4",
    "cuda-is-available": "signature:()",
    "cuda-is-initialized": "signature:()",
    "cuda-init": "signature:()",
    "cuda-device-count": "signature:()",
    "cuda-current-device": "signature:()",
    "cuda-set-device": "signature:(device)",
    "cuda-device": "class:torch.cuda.device",
    "cuda-device-of": "class:torch.cuda.device_of",
    "cuda-synchronize": "signature:(device)",
    "cuda-ipc-collect": "signature:()",
    "cuda-is-current-stream-capturing": "signature:()",
    "cuda-Stream": "class:torch.cuda.streams.Stream",
    "cuda-Event": "class:torch.cuda.streams.Event",
    "cuda-StreamContext": "class:torch.cuda.StreamContext",
    "cuda-current-stream": "signature:(device)",
    "cuda-default-stream": "signature:(device)",
    "cuda-stream": "signature:(stream)",
    "cuda-set-stream": "signature:(stream)",
    "cuda-manual-seed": "signature:(seed)",
    "cuda-manual-seed-all": "signature:(seed)",
    "cuda-seed": "signature:()",
    "cuda-seed-all": "signature:()",
    "cuda-initial-seed": "signature:()",
    "cuda-get-rng-state": "signature:(device)",
    "cuda-set-rng-state": "signature:(new_state, device)",
    "cuda-get-rng-state-all": "signature:()",
    "cuda-set-rng-state-all": "signature:(new_states)",
    "cuda-default-generators": "value:tuple",
    "cuda-get-device-properties": "signature:(device)",
    "cuda-get-device-capability": "signature:(device)",
    "cuda-get-device-name": "signature:(device)",
    "cuda-get-arch-list": "signature:()",
    "cuda-empty-cache": "signature:()",
    "cuda-memory-allocated": "signature:(device)",
    "cuda-max-memory-allocated": "signature:(device)",
    "cuda-memory-reserved": "signature:(device)",
    "cuda-max-memory-reserved": "signature:(device)",
    "cuda-reset-peak-memory-stats": "signature:(device)",
    "cuda-reset-accumulated-memory-stats": "signature:(device)",
    "cuda-reset-max-memory-allocated": "signature:(device)",
    "cuda-reset-max-memory-cached": "signature:(device)",
    "cuda-memory-stats": "signature:(device)",
    "cuda-memory-stats-as-nested-dict": "signature:(device)",
    "cuda-host-memory-stats": "signature:()",
    "cuda-host-memory-stats-as-nested-dict": "signature:()",
    "cuda-reset-accumulated-host-memory-stats": "signature:()",
    "cuda-reset-peak-host-memory-stats": "signature:()",
    "cuda-memory-summary": "signature:(device, abbreviated)",
    "cuda-mem-get-info": "signature:(device)",
    "cuda-device-memory-used": "signature:(device)",
    "cuda-memory-usage": "signature:(device)",
    "cuda-utilization": "signature:(device)",
    "cuda-temperature": "signature:(device)",
    "cuda-power-draw": "signature:(device)",
    "cuda-clock-rate": "signature:(device)",
    "cuda-nvtx-range-push": "signature:(msg)",
    "cuda-nvtx-range-pop": "signature:()",
    "cuda-nvtx-range-start": "signature:(msg)",
    "cuda-nvtx-range-end": "signature:(range_id)",
    "cuda-nvtx-mark": "signature:(msg)",
    "generator": "class:torch._C.Generator",
    "default-device": "signature:(self, device)",
    "record-stream": "builtin:record_stream",
    "accelerator-current": "signature:(check_available)",
    "accelerator-available": "signature:()",
    "accelerator-count": "signature:()",
    "thread-device": "signature:(self)",
    "loader-seed": "signature:(self, loader)",
    "backward-device": "signature:(t_outputs, args, kwargs)",
    "rng-get": "source:aa26caaa069c5c4f",
    "rng-set": "source:b179c9d95438b61c",
    "inference-between-stages": "source:5d8a848ad65c1b6f",
    "dispatcher-splits": "source:8fc5847a887d7319",
}


def megatron_patch(*, name: str, target: str, reason: str, make: Callable[[Any], Any]) -> Patch:
    """A patch of Megatron with its recorded fingerprint; without one it refuses to be applied."""
    return Patch(
        name=name,
        target=target,
        reason=reason,
        requires=MEGATRON_REQUIREMENT,
        fingerprint=_recorded(name),
        make=make,
    )


def torch_patch(
    *,
    name: str,
    target: str,
    reason: str,
    make: Callable[[Any], Any],
    also: tuple[str, ...] = (),
    refuses: bool = False,
) -> Patch:
    """A patch of torch, or of Python on its behalf.

    Args:
        also: see :class:`.registry.Patch`.
        refuses: the replacement does nothing but refuse, and so stands for nothing of the original.
    """
    return Patch(
        name=name,
        target=target,
        also=also,
        reason=reason,
        requires=TORCH_REQUIREMENT,
        fingerprint=None if refuses else _recorded(name),
        make=make,
    )


def _recorded(name: str) -> str:
    return FINGERPRINTS.get(name, "nothing recorded")
