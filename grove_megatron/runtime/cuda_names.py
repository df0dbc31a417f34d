"""Every public name of ``torch.cuda``, and what it is on a CPU.

    STAND_INS     replaced by what a CPU can answer
    NEEDS_A_GPU   replaced by an error that says so
    AS_THEY_ARE   left alone: types, constants, and what works without a device

What is in none of them asks CUDA to start (``_lazy_init``), which is such an error too: so is the
default of a name that a newer torch brings. ``tests/unit/runtime/test_cuda_names.py`` calls them
all.
"""

from typing import Any

import torch

from . import cuda_stand_in as stand_in

STAND_INS: dict[str, tuple[Any, str]] = {
    "is_available": (stand_in.is_available, "initialize_megatron asserts it"),
    "is_initialized": (stand_in.is_initialized, "goes with is_available"),
    "init": (stand_in.nothing, "goes with is_initialized"),
    "device_count": (stand_in.device_count, "0 silently skips model-parallel and RNG setup"),
    "current_device": (stand_in.current_device, "device of nearly every buffer"),
    "set_device": (stand_in.nothing, "initialize_megatron calls it"),
    "device": (stand_in.device, "context manager around RNG state"),
    "device_of": (stand_in.device_of, "goes with device"),
    "synchronize": (stand_in.nothing, "timers, checkpointing, pipeline communication"),
    "ipc_collect": (stand_in.nothing, "goes with empty_cache"),
    "is_current_stream_capturing": (
        stand_in.is_current_stream_capturing,
        "asked by optimizers and CUDA graph code",
    ),
    "Stream": (stand_in.Stream, "DDP, dispatcher and checkpoint copy streams"),
    "Event": (stand_in.Event, "DDP, dispatcher and schedule events"),
    "StreamContext": (stand_in.StreamContext, "stream context of DDP and dispatcher"),
    "current_stream": (stand_in.current_stream, "DDP, dispatcher and schedule streams"),
    "default_stream": (stand_in.current_stream, "DDP streams"),
    "stream": (stand_in.stream, "stream context of DDP and dispatcher"),
    "set_stream": (stand_in.set_stream, "schedule streams"),
    "manual_seed": (stand_in.manual_seed, "seeds of the RNG tracker"),
    "manual_seed_all": (stand_in.manual_seed, "called by torch.manual_seed"),
    "seed": (stand_in.seed, "goes with manual_seed"),
    "seed_all": (stand_in.seed, "goes with manual_seed"),
    "initial_seed": (stand_in.initial_seed, "goes with manual_seed"),
    "get_rng_state": (stand_in.get_rng_state, "RNG tracker, checkpoints, rerun state"),
    "set_rng_state": (stand_in.set_rng_state, "RNG tracker, checkpoints, rerun state"),
    "get_rng_state_all": (stand_in.get_rng_state_all, "goes with get_rng_state"),
    "set_rng_state_all": (stand_in.set_rng_state_all, "goes with set_rng_state"),
    "default_generators": ((torch.default_generator,), "random state of CUDA graphs"),
    "get_device_properties": (stand_in.get_device_properties, "argument validation"),
    "get_device_capability": (stand_in.get_device_capability, "argument validation"),
    "get_device_name": (stand_in.get_device_name, "logging"),
    "get_arch_list": (stand_in.no_list, "asks CUDA where there is said to be one"),
    "empty_cache": (stand_in.nothing, "evaluation and checkpointing"),
    "memory_allocated": (stand_in.zero, "memory report"),
    "max_memory_allocated": (stand_in.zero, "memory report"),
    "memory_reserved": (stand_in.zero, "memory report"),
    "max_memory_reserved": (stand_in.zero, "memory report"),
    "reset_peak_memory_stats": (stand_in.nothing, "memory report"),
    "reset_accumulated_memory_stats": (stand_in.nothing, "memory report"),
    "reset_max_memory_allocated": (stand_in.nothing, "memory report"),
    "reset_max_memory_cached": (stand_in.nothing, "memory report"),
    "memory_stats": (stand_in.memory_stats, "memory report"),
    "memory_stats_as_nested_dict": (stand_in.memory_stats, "memory report"),
    "host_memory_stats": (stand_in.memory_stats, "memory report"),
    "host_memory_stats_as_nested_dict": (stand_in.memory_stats, "memory report"),
    "reset_accumulated_host_memory_stats": (stand_in.nothing, "memory report"),
    "reset_peak_host_memory_stats": (stand_in.nothing, "memory report"),
    "memory_summary": (stand_in.memory_summary, "memory report"),
    "mem_get_info": (stand_in.mem_get_info, "memory report"),
    "device_memory_used": (stand_in.zero, "--log-device-memory-used"),
    "memory_usage": (stand_in.zero, "goes with utilization"),
    "utilization": (stand_in.zero, "--log-straggler"),
    "temperature": (stand_in.zero, "--log-straggler"),
    "power_draw": (stand_in.zero, "--log-straggler"),
    "clock_rate": (stand_in.zero, "--log-straggler"),
    "nvtx.range_push": (stand_in.zero, "profiling ranges need the CUDA library"),
    "nvtx.range_pop": (stand_in.zero, "profiling ranges need the CUDA library"),
    "nvtx.range_start": (stand_in.zero, "profiling ranges need the CUDA library"),
    "nvtx.range_end": (stand_in.nothing, "profiling ranges need the CUDA library"),
    "nvtx.mark": (stand_in.nothing, "profiling ranges need the CUDA library"),
}
"""Name below torch.cuda: what stands in for it, and for whom."""

NEEDS_A_GPU: tuple[str, ...] = tuple(
    """
    _lazy_init cudart check_error memory_snapshot list_gpu_processes get_allocator_backend
    caching_allocator_alloc caching_allocator_delete caching_allocator_enable
    caching_allocator_disabled change_current_allocator CUDAPluggableAllocator MemPool use_mem_pool
    CUDAGraph graph graph_pool_handle make_graphed_callables export_dot export_graph_data
    graphs.register_graph_capture_start_hook graphs.register_graph_capture_end_hook
    graphs.register_graph_replay_start_hook graphs.register_graph_replay_end_hook
    graphs.register_graph_instantiate_hook graphs.register_graph_destroy_hook
    ExternalStream get_stream_from_external
    memory._record_memory_history memory._snapshot memory._dump_snapshot
    """.split()
)
"""Names below torch.cuda, of any version: a refusal relies on nothing of what it replaces."""

AS_THEY_ARE: tuple[str, ...] = tuple(
    """
    AcceleratorError CudaError DeferredCudaCallError OutOfMemoryError cudaStatus
    GreenContext has_half has_magma is_bf16_supported is_tf32_supported get_gencode_flags
    memory_cached max_memory_cached
    """.split()
)
"""Names below torch.cuda."""
