import inspect

import pytest
import torch

from grove_megatron.runtime import cuda_stand_in
from grove_megatron.runtime.__main__ import patch_sets
from grove_megatron.runtime.registry import resolve


@pytest.fixture(autouse=True)
def _random_state():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def replaced_functions():
    for patches in patch_sets():
        for patch in patches.patches:
            owner, attribute = resolve(patch.target)
            original = getattr(owner, attribute)
            if inspect.isfunction(original) and not hasattr(original, "__wrapped__"):
                yield pytest.param(original, patch.make(original), id=patch.name)


@pytest.mark.parametrize(("original", "replacement"), replaced_functions())
def test_a_replacement_takes_what_the_original_takes(original, replacement):
    theirs, ours = inspect.signature(original).parameters, inspect.signature(replacement)
    kinds = inspect.Parameter
    positional = [p for p in theirs.values() if p.kind is kinds.POSITIONAL_OR_KEYWORD]
    required = [p for p in positional if p.default is kinds.empty]
    ours.bind(*[None] * len(positional))
    ours.bind(*[None] * len(required))
    ours.bind(*[None] * len(required), **{p.name: None for p in positional[len(required) :]})


class TestStreams:
    def test_there_is_always_a_current_stream(self):
        assert cuda_stand_in.current_stream() is cuda_stand_in.DEFAULT_STREAM
        assert cuda_stand_in.current_stream(0) is cuda_stand_in.DEFAULT_STREAM

    def test_a_stream_is_current_within_its_block_only(self):
        outer, inner = cuda_stand_in.Stream(), cuda_stand_in.Stream(device="cuda", priority=-1)
        with cuda_stand_in.stream(outer):
            with cuda_stand_in.stream(inner):
                assert cuda_stand_in.current_stream() is inner
            assert cuda_stand_in.current_stream() is outer
        assert cuda_stand_in.current_stream() is cuda_stand_in.DEFAULT_STREAM

    def test_an_exception_leaves_the_block_too(self):
        with pytest.raises(KeyError), cuda_stand_in.stream(cuda_stand_in.Stream()):
            raise KeyError
        assert cuda_stand_in.current_stream() is cuda_stand_in.DEFAULT_STREAM

    def test_no_stream_means_the_current_one(self):
        current = cuda_stand_in.Stream()
        with cuda_stand_in.stream(current), cuda_stand_in.stream(None):
            assert cuda_stand_in.current_stream() is current

    def test_a_stream_is_a_block_of_its_own(self):
        outer, inner = cuda_stand_in.Stream(), cuda_stand_in.Stream()
        with outer, inner:
            with outer:
                assert cuda_stand_in.current_stream() is outer
            assert cuda_stand_in.current_stream() is inner
        assert cuda_stand_in.current_stream() is cuda_stand_in.DEFAULT_STREAM

    def test_a_context_can_be_entered_again(self):
        side = cuda_stand_in.Stream()
        context = cuda_stand_in.StreamContext(side)
        with context, context:
            assert cuda_stand_in.current_stream() is side
        with context:
            assert cuda_stand_in.current_stream() is side
        assert cuda_stand_in.current_stream() is cuda_stand_in.DEFAULT_STREAM

    def test_a_stream_can_be_set(self):
        new = cuda_stand_in.Stream()
        with cuda_stand_in.stream(cuda_stand_in.Stream()):
            cuda_stand_in.set_stream(new)
            cuda_stand_in.set_stream(None)
            assert cuda_stand_in.current_stream() is new
        assert cuda_stand_in.current_stream() is cuda_stand_in.DEFAULT_STREAM

    def test_streams_wait_for_each_other_and_for_events(self):
        one, two = cuda_stand_in.Stream(), cuda_stand_in.Stream()
        one.wait_stream(two)
        one.wait_event(two.record_event())
        one.synchronize()
        assert one.query()

    def test_a_stream_records_the_event_it_is_given_or_a_new_one(self):
        stream, event = cuda_stand_in.Stream(), cuda_stand_in.Event()
        assert stream.record_event(event) is event
        assert event.recorded
        assert stream.record_event().recorded


class TestEvents:
    def test_time_between_recorded_events_is_zero(self):
        start, end = cuda_stand_in.Event(enable_timing=True), cuda_stand_in.Event()
        start.record()
        end.record(cuda_stand_in.current_stream())
        end.synchronize()
        assert end.query()
        assert start.elapsed_time(end) == 0.0

    @pytest.mark.parametrize("recorded", ["start", "end", "neither"])
    def test_time_from_or_to_an_event_nobody_recorded_is_refused(self, recorded):
        events = {"start": cuda_stand_in.Event(), "end": cuda_stand_in.Event()}
        if recorded in events:
            events[recorded].record()
        with pytest.raises(RuntimeError, match="must be recorded"):
            events["start"].elapsed_time(events["end"])


class TestRandomNumbers:
    def test_the_state_that_is_read_can_be_put_back(self):
        state = cuda_stand_in.get_rng_state()
        first = torch.rand(3)
        cuda_stand_in.set_rng_state(state)
        assert torch.equal(torch.rand(3), first)

    def test_a_seed_makes_numbers_repeat(self):
        cuda_stand_in.manual_seed(5)
        first = torch.rand(3)
        cuda_stand_in.manual_seed(5)
        assert torch.equal(torch.rand(3), first)
        cuda_stand_in.manual_seed(6)
        assert not torch.equal(torch.rand(3), first)

    def test_the_seed_can_be_read_and_be_a_random_one(self):
        cuda_stand_in.manual_seed(5)
        assert cuda_stand_in.initial_seed() == 5
        cuda_stand_in.seed()
        assert cuda_stand_in.initial_seed() == torch.initial_seed() != 5

    def test_states_of_all_devices_are_that_of_the_one(self):
        states = cuda_stand_in.get_rng_state_all()
        first = torch.rand(3)
        cuda_stand_in.set_rng_state_all(states)
        assert torch.equal(torch.rand(3), first)

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda", 0), "cpu"])
    def test_a_generator_is_one_of_the_cpu(self, device):
        generator = cuda_stand_in.Generator(device=device)
        assert type(generator) is torch._C.Generator
        assert generator.device.type == "cpu"
        assert isinstance(generator, cuda_stand_in.Generator)
        first = torch.rand(2, generator=generator.manual_seed(3))
        assert torch.equal(torch.rand(2, generator=generator.manual_seed(3)), first)

    def test_every_generator_is_one_and_nothing_else_is(self):
        assert isinstance(torch.default_generator, cuda_stand_in.Generator)
        assert not isinstance(5, cuda_stand_in.Generator)


def test_there_is_one_device_and_it_is_number_zero():
    assert cuda_stand_in.is_available()
    assert cuda_stand_in.is_initialized()
    assert cuda_stand_in.device_count() == 1
    assert cuda_stand_in.current_device() == 0
    assert type(cuda_stand_in.current_device()) is int
    with cuda_stand_in.device(0) as nothing:
        assert nothing is None


def test_no_accelerator_is_reported_to_torch():
    assert cuda_stand_in.current_accelerator(check_available=True) is None
    assert not cuda_stand_in.no_accelerator()
    assert cuda_stand_in.no_accelerator_devices() == 0


def test_capability_and_properties_agree():
    properties = cuda_stand_in.get_device_properties(0)
    assert cuda_stand_in.get_device_capability(0) == (properties.major, properties.minor)
    assert cuda_stand_in.get_device_name(0) == properties.name


def test_memory_is_zero_whatever_is_asked():
    assert cuda_stand_in.zero(device=0) == 0
    assert cuda_stand_in.mem_get_info() == (0, 0)
    assert cuda_stand_in.memory_stats()["allocated_bytes.all.peak"] == 0
    assert cuda_stand_in.memory_stats(0)["anything"] == 0
    assert "no CUDA memory" in cuda_stand_in.memory_summary(0, abbreviated=True)


class TestRefusing:
    def test_a_function_says_what_needs_a_gpu(self):
        refuse = cuda_stand_in.refusing("torch.cuda.cudart")(torch.cuda.cudart)
        with pytest.raises(RuntimeError, match=r"torch\.cuda\.cudart needs a GPU, and the CPU run"):
            refuse()

    def test_a_type_stays_one(self):
        class Pool:
            size = 3

        refusing = cuda_stand_in.refusing("Pool")(Pool)
        assert issubclass(refusing, Pool)
        assert refusing.size == 3
        assert (refusing | None).__args__[0] is refusing
        with pytest.raises(RuntimeError, match="Pool needs a GPU"):
            refusing(1, of="any")
