"""Every public name of torch.cuda on the CPU runtime: it answers, or says that it needs a GPU."""

import inspect
import types

import pytest
import torch

from grove_megatron import runtime
from grove_megatron.runtime.cuda_names import AS_THEY_ARE, NEEDS_A_GPU, STAND_INS

REFUSAL = "needs a GPU, and the CPU runtime of grove_megatron has none"
# A torch that was built without CUDA says so itself.
NO_TYPE = "Torch not compiled with CUDA enabled"
MODULES = ("", "graphs", "memory", "nvtx", "profiler", "random", "streams")


def module(path: str) -> types.ModuleType:
    return getattr(torch.cuda, path) if path else torch.cuda


def public(path: str) -> list[str]:
    """What ``torch.cuda`` or a module of it offers, without further modules."""
    here = module(path)
    names = getattr(here, "__all__", [n for n in vars(here) if not n.startswith("_")])
    own = [n for n in names if getattr(vars(here)[n], "__module__", "torch").startswith("torch")]
    return sorted(n for n in own if not isinstance(vars(here)[n], types.ModuleType))


NAMES = [f"{path}.{name}".lstrip(".") for path in MODULES for name in public(path)]


def called(path: str) -> object:
    """Call it with one of everything it demands; what it is, if it cannot be called."""
    parent, _, name = path.rpartition(".")
    value = getattr(module(parent), name)
    if not callable(value):
        return value
    state = torch.get_rng_state()
    given = {"new_state": state, "new_states": [state], "stream": None}
    try:
        demanded = [
            p.name
            for p in inspect.signature(value).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
    except ValueError:
        demanded = ["size"]
    return value(*[given.get(name, 0) for name in demanded])


@pytest.fixture(autouse=True, scope="module")
def _cpu():
    state = torch.get_rng_state()
    with runtime.cpu():
        yield
    torch.set_rng_state(state)


def test_no_name_is_in_two_tables_and_all_are_names_of_torch():
    tables = [*STAND_INS, *NEEDS_A_GPU, *AS_THEY_ARE]
    assert len(tables) == len(set(tables))
    assert [n for n in STAND_INS if n not in NAMES] == []


@pytest.mark.parametrize("path", NAMES)
def test_a_public_name_answers_or_says_that_it_needs_a_gpu(path):
    short = path.rpartition(".")[2]
    if {path, short} & set(AS_THEY_ARE):
        return
    if {path, short} & set(STAND_INS):
        called(path)
        return
    # Also what a torch newer than these tables brings.
    if path in ("nvtx.range", "profiler.profile"):
        return  # contexts around what is decided
    with pytest.raises((RuntimeError, TypeError), match=f"{REFUSAL}|{NO_TYPE}"):
        called(path)


@pytest.mark.parametrize("path", [n for n in AS_THEY_ARE if not n[0].isupper()])
def test_what_is_left_alone_works(path):
    called(path)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.cuda.default_generators[0].get_state(),
        lambda: torch.Generator(device="cuda").initial_seed(),
        lambda: torch.Generator(torch.cuda.current_device()),
        lambda: torch.cuda.random.get_rng_state(device="cuda"),
        lambda: torch.cuda.random.set_rng_state(torch.cuda.random.get_rng_state()),
        lambda: torch.cuda.memory_summary(),
        lambda: torch.cuda.memory.memory_summary(abbreviated=True),
        lambda: torch.cuda.initial_seed(),
        lambda: torch.cuda.memory.mem_get_info(),
        lambda: torch.rand(2, generator=torch.Generator("cuda"), device="cuda"),
    ],
)
def test_calls_of_scripts_for_a_gpu_work(call):
    call()


def test_the_tables_name_the_private_functions_that_are_called_by_name():
    for name in ("_record_memory_history", "_snapshot", "_dump_snapshot"):
        with pytest.raises(RuntimeError, match=rf"torch\.cuda\.memory\.{name} {REFUSAL}"):
            getattr(torch.cuda.memory, name)()


def test_torch_itself_cannot_start_cuda():
    with pytest.raises((RuntimeError, TypeError), match=f"{REFUSAL}|{NO_TYPE}"):
        torch.cuda.FloatTensor(2)


def test_no_two_names_share_a_function():
    """The rules of torch's compiler are by object; where two differ, its profiler fails."""
    inside = [
        getattr(module(parent), name)
        for parent, _, name in (path.rpartition(".") for path in STAND_INS)
    ]
    functions = [value for value in inside if inspect.isfunction(value)]
    assert len({id(function) for function in functions}) == len(functions)


def test_a_profiler_traces_steps(tmp_path):
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
    trace = tmp_path / "trace.json"
    with torch.profiler.profile(
        schedule=schedule, on_trace_ready=lambda done: done.export_chrome_trace(str(trace))
    ) as profiler:
        for _ in range(3):
            torch.ones(3).sum()
            profiler.step()
    assert "aten::sum" in trace.read_text()


def test_both_generators_are_one_and_take_one_seed():
    torch.cuda.manual_seed_all(7)
    assert torch.initial_seed() == 7
    torch.manual_seed(5)
    assert torch.cuda.initial_seed() == 5
    first = torch.rand(3)
    torch.cuda.manual_seed_all(5)
    assert torch.equal(torch.rand(3), first)


def test_a_default_device_is_the_cpu_too():
    torch.set_default_device("cuda")
    try:
        assert torch.empty(1).device.type == "cpu"
        with torch.device("cuda", 0):
            assert torch.empty(1).device.type == "cpu"
        with torch.device("meta"):
            assert torch.empty(1).device.type == "meta"
    finally:
        torch.set_default_device(None)


def test_a_device_is_asked_for_as_torch_does():
    assert isinstance(torch.cuda.device(0), torch.cuda.device)
    assert torch.cuda.reset_peak_memory_stats(torch.cuda.device(0)) is None
