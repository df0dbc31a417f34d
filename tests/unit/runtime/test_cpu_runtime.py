import os
import subprocess
import sys
import threading
from pathlib import Path

import megatron.core.tensor_parallel.random as megatron_random
import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from grove_megatron import runtime
from grove_megatron.runtime.__main__ import main, patch_sets
from grove_megatron.runtime.registry import PatchError, problem, resolve

ALL = [patch for patches in patch_sets() for patch in patches.patches]
CPU_AND_WHEEL = [p for s in patch_sets() if s.name in ("cpu", "wheel") for p in s.patches]
MISSING = object()


def stored() -> dict[str, object]:
    """What every owner holds under the name of a patch, descriptors included."""
    held = {}
    for target in (t for patch in CPU_AND_WHEEL for t in (patch.target, *patch.also)):
        owner, attribute = resolve(target)
        held[target] = vars(owner).get(attribute, MISSING)
    return held


def assert_identical(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] is not after[name]] == []


def test_there_are_patches_to_test():
    assert len(CPU_AND_WHEEL) > 30


@pytest.mark.parametrize(
    "patch", [p for s in patch_sets() for p in s.patches], ids=lambda p: p.name
)
def test_every_patch_fits_what_is_installed(patch):
    assert problem(patch) is None


def test_every_target_is_replaced_inside_and_the_identical_object_afterwards():
    before = stored()
    with runtime.cpu():
        inside = stored()
        assert [name for name in before if before[name] is inside[name]] == []
    assert_identical(before, stored())


def test_a_data_loader_draws_nothing_that_layers_draw_from():
    """A resumed job makes its iterators after the generator is restored, and draws the same."""
    loader = torch.utils.data.DataLoader([1, 2, 3])
    with runtime.cpu():
        state = torch.get_rng_state()
        assert [int(batch) for batch in loader] == [1, 2, 3]
        assert torch.equal(torch.get_rng_state(), state)


def test_nothing_else_in_torch_or_threading_changes():
    owners = [torch, torch.cuda, torch.cuda.nvtx, torch.accelerator, torch.Tensor, threading.Thread]
    with runtime.cpu():  # modules that load lazily are loaded now
        pass
    before = [dict(vars(owner)) for owner in owners]
    with runtime.cpu():
        pass
    for names, owner in zip(before, owners, strict=True):
        assert_identical(names, dict(vars(owner)))


def test_an_exception_inside_restores_everything():
    before = stored()
    with pytest.raises(KeyError), runtime.cpu():
        raise KeyError
    assert_identical(before, stored())
    assert not runtime.cpu_is_active()


def test_nested_use_is_undone_at_the_outermost_exit():
    before, modes = stored(), len(_get_current_function_mode_stack())
    with runtime.cpu():
        inside = stored()
        with runtime.cpu():
            assert_identical(inside, stored())
            assert len(_get_current_function_mode_stack()) == modes + 1
        assert runtime.cpu_is_active()
        assert_identical(inside, stored())
    assert len(_get_current_function_mode_stack()) == modes
    assert_identical(before, stored())


def test_it_can_be_entered_again():
    for _ in range(3):
        assert not runtime.cpu_is_active()
        with runtime.cpu():
            assert runtime.cpu_is_active()
            assert torch.zeros(1, device="cuda").device.type == "cpu"


def test_a_target_that_moved_stops_it_before_anything_is_patched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device, why: None)
    before = stored()
    named = "cuda-synchronize: target torch.cuda:synchronize has changed"
    with pytest.raises(PatchError, match=named), runtime.cpu():
        pytest.fail("must not start")
    assert_identical(before, stored())
    assert not runtime.cpu_is_active()


class TestEnvironment:
    def test_what_megatron_wants_set_is_set_inside_only(self, monkeypatch):
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
        with runtime.cpu():
            assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
        assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ

    def test_what_the_user_set_is_kept(self, monkeypatch):
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
        with runtime.cpu():
            assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
        assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"

    def test_large_tensors_lie_on_huge_pages(self):
        """In a process of its own: torch looks once, before its first tensor."""
        how = Path("/sys/kernel/mm/transparent_hugepage/enabled")
        if not how.exists() or "[never]" in how.read_text():
            pytest.skip("this kernel has no transparent huge pages")
        code = (
            "import grove_megatron.runtime as r\n"
            "with r.cpu():\n"
            "    import megatron.core.tensor_parallel, torch\n"
            "    x = torch.ones(16 << 20)\n"
            "    print(open('/proc/self/smaps_rollup').read())"
        )
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (line,) = (line for line in said.splitlines() if line.startswith("AnonHugePages"))
        assert int(line.split()[1]) > 32 << 10  # kB, of 64 MB


class TestWhatMegatronDoes:
    @pytest.fixture(autouse=True)
    def _cpu(self):
        state = torch.get_rng_state()
        with runtime.cpu():
            yield
        torch.set_rng_state(state)

    def test_devices_streams_and_events_work_together(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x = torch.ones(2, device=torch.cuda.current_device())
        event = torch.cuda.Event(enable_timing=True)
        event.record(side)
        torch.cuda.default_stream().wait_event(event)
        torch.cuda.synchronize()
        assert x.device.type == "cpu"

    def test_a_tensor_can_record_a_stream(self):
        assert torch.ones(2).record_stream(torch.cuda.current_stream()) is None

    def test_the_random_tracker_repeats_its_streams_and_leaves_the_default_one(self):
        tracker = megatron_random.CudaRNGStatesTracker()
        tracker.add("experts", 5)
        default = torch.get_rng_state()
        with tracker.fork("experts"):
            first = torch.rand(3)
        assert torch.equal(torch.get_rng_state(), default)
        with tracker.fork("experts"):
            second = torch.rand(3)
        assert not torch.equal(first, second)
        again = megatron_random.CudaRNGStatesTracker()
        again.add("experts", 5)
        with again.fork("experts"):
            assert torch.equal(torch.rand(3), first)

    def test_the_random_tracker_does_not_warn(self, caplog):
        tracker = megatron_random.CudaRNGStatesTracker()
        tracker.add("experts", 5)
        with tracker.fork("experts"):
            torch.rand(3)
        assert caplog.records == []

    def test_splits_of_a_dispatcher_become_numbers(self):
        from megatron.core.transformer.moe import token_dispatcher

        splits = token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([1, 2]), as_numpy=True)
        assert splits.tolist() == [1, 2]
        assert not torch.is_tensor(splits)
        assert token_dispatcher.maybe_move_tensor_to_cpu(None, as_numpy=True) is None

    def test_a_norm_is_recomputed_without_transformer_engine(self, monkeypatch):
        monkeypatch.setattr(megatron_random, "HAVE_TE", False)
        monkeypatch.delattr(megatron_random, "FP8GlobalStateManager", raising=False)
        norm = torch.nn.LayerNorm(4)
        x = torch.randn(3, 4, requires_grad=True)
        norm(x).square().sum().backward()
        expected, x.grad = x.grad, None
        checkpoint = megatron_random.CheckpointWithoutOutput()
        # The squares keep what the norm gives them, which is thrown away and made again.
        y = checkpoint.checkpoint(norm, x)
        z = y.square()
        checkpoint.discard_output_and_register_recompute(z)
        assert y.untyped_storage().size() == 0
        z.sum().backward()
        torch.testing.assert_close(x.grad, expected, rtol=0, atol=0)

    def test_with_transformer_engine_fp8_is_asked_about_as_before(self, monkeypatch):
        for installed in (True, False):
            monkeypatch.setattr(megatron_random, "HAVE_TE", installed)
            assert megatron_random.CheckpointWithoutOutput().fp8 is installed

    def test_new_threads_mean_the_cpu_too(self):
        made = []

        class OwnRun(threading.Thread):
            def run(self):
                made.append(torch.zeros(1, device="cuda"))

        plain = threading.Thread(target=lambda: made.append(torch.zeros(1, device="cuda")))
        for thread in (plain, OwnRun()):
            thread.start()
            thread.join()
        assert [tensor.device.type for tensor in made] == ["cpu", "cpu"]

    def test_backward_of_a_python_autograd_function_means_the_cpu_too(self):
        class OnCuda(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1

            @staticmethod
            def backward(ctx, grad):
                return grad + torch.ones_like(grad, device="cuda")

        x = torch.zeros(1, requires_grad=True)
        OnCuda.apply(x).sum().backward()
        assert x.grad.item() == 2.0

    def test_what_is_decorated_with_compile_runs_eagerly(self):
        compiled_by = []

        def backend(graph, inputs):
            compiled_by.append(graph)
            return graph

        double = torch.compile(lambda x: x * 2, backend=backend)
        assert double(torch.ones(1)).item() == 2.0
        assert compiled_by == []

    def test_an_optimizer_steps(self):
        parameter = torch.nn.Parameter(torch.ones(2, device="cuda"))
        parameter.grad = torch.ones(2)
        torch.optim.AdamW([parameter], lr=0.1).step()
        assert (parameter < 1).all()


class TestSelected:
    @pytest.fixture(autouse=True)
    def _rank_zero(self, monkeypatch):
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("GROVE_RUNTIME", raising=False)

    def test_the_environment_can_force_the_cpu_and_one_line_says_so(self, monkeypatch, capsys):
        monkeypatch.setenv("GROVE_RUNTIME", "cpu")
        for _ in range(2):
            with runtime.selected():
                assert runtime.cpu_is_active()
            assert not runtime.cpu_is_active()
            expected = "grove_megatron: runtime CPU with gloo (GROVE_RUNTIME=cpu)\n"
            assert capsys.readouterr().err == expected

    def test_only_rank_zero_says_so(self, monkeypatch, capsys):
        monkeypatch.setenv("GROVE_RUNTIME", "cpu")
        monkeypatch.setenv("RANK", "1")
        with runtime.selected():
            pass
        assert capsys.readouterr().err == ""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
    def test_without_cuda_it_is_the_cpu(self, capsys):
        with runtime.selected():
            assert runtime.cpu_is_active()
        assert "no CUDA device found" in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
    def test_forcing_cuda_without_cuda_is_refused(self, monkeypatch):
        monkeypatch.setenv("GROVE_RUNTIME", "cuda")
        message = r"GROVE_RUNTIME \(cuda\) needs a CUDA device, found \(0\); unset it"
        with pytest.raises(ValueError, match=message), runtime.selected():
            pytest.fail("must not start")

    def test_an_unknown_runtime_is_refused(self, monkeypatch):
        monkeypatch.setenv("GROVE_RUNTIME", "gpu")
        message = r"GROVE_RUNTIME \(gpu\) is not one of \(cpu, cuda\); unset it"
        with pytest.raises(ValueError, match=message), runtime.selected():
            pytest.fail("must not start")


class TestInventory:
    def test_it_names_every_patch_its_target_and_reason(self, capsys):
        assert main([]) == 0
        out = capsys.readouterr().out
        for patch in CPU_AND_WHEEL:
            places = ", ".join((patch.target, *patch.also))
            assert f"{patch.name:<34} {places}\n      why: {patch.reason}" in out

    def test_it_exits_1_and_says_what_does_not_fit(self, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device, why: None)
        assert main([]) == 1
        printed = capsys.readouterr()
        assert "cuda-synchronize: target torch.cuda:synchronize has changed" in printed.out
        assert printed.err.startswith("1 patches do not fit")

    def test_it_prints_the_table_of_fingerprints(self, capsys):
        assert main(["--fingerprints"]) == 0
        out = capsys.readouterr().out
        for patch in CPU_AND_WHEEL:
            row = f'"{patch.name}": "{patch.fingerprint}",'
            assert (row in out) == (patch.fingerprint is not None)


def run_python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["grove_megatron", "grove_megatron.runtime"])
def test_importing_it_imports_neither_torch_nor_megatron(package, subprocess_environment):
    code = f"import sys, {package}; print({{'torch', 'megatron'}} & set(sys.modules))"
    assert run_python(code, subprocess_environment) == "set()"


def test_the_pure_packages_import_no_megatron(subprocess_environment):
    code = """
import importlib, pkgutil, sys
import grove_megatron.comm, grove_megatron.functional
for package in (grove_megatron.comm, grove_megatron.functional):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print("torch" in sys.modules, "megatron" in sys.modules)
"""
    assert run_python(code, subprocess_environment) == "True False"


def test_importing_every_module_patches_nothing(subprocess_environment):
    code = """
import importlib, logging, pkgutil, sys, threading
logging.disable(logging.INFO)  # matplotlib says once on a machine that it has looked for fonts
import torch, megatron.training, megatron.training.checkpointing, megatron.training.models.gpt
import megatron.core.tensor_parallel.random, megatron.core.optimizer.distrib_optimizer
import megatron.core.models.gpt.gpt_layer_specs
from torch.overrides import _get_current_function_mode_stack

watched = {
    name: module for name, module in list(sys.modules.items())
    if name.split(".")[0] in ("torch", "megatron", "threading")
}
before = {}
for name, module in watched.items():
    for key, value in list(vars(module).items()):
        before[name, key] = value
        if isinstance(value, type) and value.__module__ == name:
            before.update({(name, key, k): v for k, v in vars(value).items()})

import grove_megatron
imported = 0
for found in pkgutil.walk_packages(grove_megatron.__path__, "grove_megatron."):
    # Importing one of these is asking for a registration in Megatron-Bridge.
    if not found.name.endswith(("__main__", "bridge.plugin", "bridge.registration")):
        importlib.import_module(found.name)
        imported += 1

ignored = {"__doc__", "__weakref__", "__dict__", "__builtins__"}
for (name, key, *rest), value in before.items():
    now = vars(watched[name]).get(key)
    now = vars(now).get(rest[0]) if rest else now
    if now is not value and key not in ignored and not (rest and rest[0] in ignored):
        print("changed", name, key, *rest)
print(imported > 25, len(_get_current_function_mode_stack()))
"""
    assert run_python(code, subprocess_environment) == "True 0"
