import sys
from importlib.metadata import version

import pytest

from grove_megatron.runtime.registry import Patch, PatchError, PatchSet, fingerprint, resolve

SOURCE = """
LIMIT = "low"

def area(width, height):
    return width * height

class Base:
    def inherited(self):
        return "base"

class Shape(Base):
    def corners(self):
        return 4

    @staticmethod
    def unit():
        return "cm"
"""


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A module of its own for every test, imported like any other."""
    (tmp_path / "shapes.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("shapes")
    del sys.modules["shapes"]


def patch(target, make=lambda original: lambda *args: "new", **changes) -> Patch:
    settings = {
        "name": target.rpartition(":")[2],
        "target": target,
        "reason": "a test",
        "requires": "packaging>=20",
        "make": make,
    }
    if "fingerprint" not in changes:
        owner, attribute = resolve(target)
        settings["fingerprint"] = fingerprint(getattr(owner, attribute))
    return Patch(**{**settings, **changes})


def patches(*members: Patch) -> PatchSet:
    return PatchSet("test", "a test", list(members))


TARGETS = ["area", "LIMIT", "Shape", "Shape.corners", "Shape.unit", "Shape.inherited"]


@pytest.mark.parametrize("path", TARGETS)
def test_leaving_puts_the_identical_object_back(shapes, path):
    owner, attribute = resolve(f"shapes:{path}")
    before = dict(vars(owner))
    with patches(patch(f"shapes:{path}")).applied():
        assert vars(owner)[attribute] is not before.get(attribute)
    after = dict(vars(owner))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_static_method_is_replaced_by_a_static_method(shapes):
    with patches(patch("shapes:Shape.unit", lambda original: lambda: original() + "²")).applied():
        assert shapes.Shape.unit() == shapes.Shape().unit() == "cm²"
    assert isinstance(vars(shapes.Shape)["unit"], staticmethod)


def test_a_method_still_gets_its_object(shapes):
    def make(original):
        return lambda self: original(self) + 1

    with patches(patch("shapes:Shape.corners", make)).applied():
        assert shapes.Shape().corners() == 5
    assert shapes.Shape().corners() == 4


def test_patching_an_inherited_method_leaves_the_parent_alone(shapes):
    with patches(patch("shapes:Shape.inherited")).applied():
        assert shapes.Shape().inherited() == "new"
        assert shapes.Base().inherited() == "base"
    assert shapes.Shape().inherited() == "base"


def test_other_names_of_the_same_object_are_replaced_and_put_back_too(shapes):
    shapes.surface = original = shapes.area
    with patches(patch("shapes:area", also=("shapes:surface",))).applied():
        assert shapes.surface is shapes.area is not original
    assert shapes.surface is shapes.area is original


def test_a_replacement_that_relies_on_nothing_needs_a_target_and_no_fingerprint(shapes):
    with patches(patch("shapes:area", fingerprint=None)).applied():
        assert shapes.area() == "new"
    members = patches(patch("shapes:volume", fingerprint=None))
    with pytest.raises(PatchError, match="shapes:volume is missing"), members.applied():
        pass


def test_an_exception_in_the_block_undoes_too(shapes):
    original = shapes.area
    with pytest.raises(KeyError), patches(patch("shapes:area")).applied():
        raise KeyError
    assert shapes.area is original


def test_nested_use_applies_once_and_undoes_at_the_outermost_exit(shapes):
    original, made = shapes.area, []
    members = patches(patch("shapes:area", lambda o: made.append(o) or (lambda: "new")))
    assert not members.active
    with members.applied():
        with members.applied():
            assert members.active
        assert members.active
        assert shapes.area() == "new"
    assert not members.active
    assert shapes.area is original
    assert made == [original]


def test_the_first_to_enter_may_be_the_first_to_leave(shapes):
    original = shapes.area
    members = patches(patch("shapes:area"))
    first, second = members.applied(), members.applied()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert members.active
    assert shapes.area is not original
    second.__exit__(None, None, None)
    assert shapes.area is original


def test_later_patches_are_undone_first(shapes):
    first, second = patches(patch("shapes:area")), patches(patch("shapes:Shape.corners"))
    area, corners = shapes.area, shapes.Shape.corners
    with first.applied(), second.applied():
        pass
    assert (shapes.area, shapes.Shape.corners) == (area, corners)


def test_a_set_can_be_applied_again(shapes):
    members = patches(patch("shapes:area"))
    for _ in range(2):
        with members.applied():
            assert shapes.area() == "new"
        assert shapes.area(2, 3) == 6


def test_a_replacement_that_cannot_be_made_leaves_nothing_patched(shapes):
    def fail(original):
        raise KeyError("no replacement")

    original = shapes.area
    members = patches(patch("shapes:area"), patch("shapes:Shape.corners", fail))
    with pytest.raises(KeyError, match="no replacement"), members.applied():
        pass
    assert shapes.area is original
    assert not members.active


def test_an_owner_that_cannot_be_changed_leaves_nothing_patched(shapes):
    original = shapes.area
    members = patches(patch("shapes:area"), patch("datetime:datetime.isoformat", fingerprint="x"))
    members.check = lambda: None
    with pytest.raises(TypeError), members.applied():
        pass
    assert shapes.area is original


class TestCheck:
    def refusal(self, *members: Patch) -> str:
        with pytest.raises(PatchError) as caught, patches(*members).applied():
            pytest.fail("nothing may run under patches that do not fit")
        return str(caught.value)

    def test_a_target_that_changed_is_named_with_both_fingerprints(self, shapes):
        message = self.refusal(patch("shapes:area", fingerprint="signature:(width)"))
        assert "area: target shapes:area has changed: " in message
        assert "signature:(width, height) instead of signature:(width)" in message
        assert f"packaging {version('packaging')} is installed" in message
        assert "the patch was written for packaging>=20" in message

    @pytest.mark.parametrize("target", ["shapes:volume", "shapes:Circle.area", "nowhere:area"])
    def test_a_missing_target_is_named_and_never_created(self, shapes, target):
        message = self.refusal(patch(target, fingerprint="signature:()"))
        assert f"target {target} is missing (" in message
        assert not hasattr(shapes, "volume")

    def test_an_unfit_version_is_named_with_the_range(self, shapes):
        message = self.refusal(patch("shapes:area", requires="packaging<1"))
        installed = version("packaging")
        assert (
            f"packaging {installed} is installed, the patch was written for packaging<1" in message
        )

    def test_a_missing_distribution_is_named(self, shapes):
        message = self.refusal(patch("shapes:area", requires="no-such-distribution>=1"))
        assert "no-such-distribution is not installed; it needs no-such-distribution>=1" in message

    def test_megatrons_version_is_that_of_the_code_that_would_run(self, shapes):
        import megatron.core

        message = self.refusal(patch("shapes:area", requires="megatron-core<0.1"))
        assert f"megatron-core {megatron.core.__version__} is installed" in message

    def test_all_problems_are_listed_and_nothing_is_patched(self, shapes):
        original = shapes.area
        message = self.refusal(
            patch("shapes:area"),
            patch("shapes:volume", fingerprint="x"),
            patch("shapes:Shape.corners", fingerprint="y"),
        )
        assert message.startswith("2 of 3 patches of the 'test' set do not fit")
        assert "volume: target" in message
        assert "Shape.corners: target" in message
        assert "Nothing was patched." in message
        assert "--fingerprints" in message
        assert shapes.area is original

    def test_a_target_that_cannot_be_fingerprinted_is_listed(self, shapes):
        message = self.refusal(patch("builtins:str.join", fingerprint="signature:(self)"))
        assert "str.join" in message


@pytest.mark.parametrize("key", ["name", "target"])
def test_two_patches_with_one_name_or_target_are_refused(shapes, key):
    first = patch("shapes:area", name="one")
    second = patch("shapes:Shape.corners", name="two")
    second = Patch(**{**vars(second), key: getattr(first, key)})
    with pytest.raises(ValueError, match=rf"patch set 'test': duplicate {key} \("):
        patches(first, second)


def test_fingerprints_tell_interfaces_bodies_classes_and_strings_apart(shapes):
    from megatron.core.datasets.utils import compile_helpers

    assert fingerprint(shapes.area) == "signature:(width, height)"
    assert fingerprint(shapes.Shape) == "class:shapes.Shape"
    assert fingerprint(shapes.LIMIT) == "str:low"
    assert fingerprint(compile_helpers).startswith("source:")


def test_the_fingerprint_of_a_megatron_function_changes_with_its_body(tmp_path, monkeypatch):
    prints = []
    for name, body in (("one", "return 1"), ("two", "return 2")):
        (tmp_path / f"{name}.py").write_text(f"def function(a):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        function = __import__(name).function
        function.__module__ = "megatron.core.anything"
        prints.append(fingerprint(function))
    assert prints[0] != prints[1]
