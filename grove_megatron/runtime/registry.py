"""Named, checked, undoable run-time patches.

A :class:`Patch` names one attribute of one module or class, says why it has to differ and which
versions it was written for, and carries a fingerprint of what it replaces. Applying a
:class:`PatchSet` first checks every patch and reports all problems at once; leaving the ``with``
block puts the identical objects back. Nothing here knows about CUDA or Megatron.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

logger = logging.getLogger(__name__)

_MISSING = object()


class PatchError(RuntimeError):
    """Some patch does not fit the installed packages; the message lists every such patch."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One attribute to replace while a runtime is active.

    Args:
        name: unique short name, used by the inventory and by error messages.
        target: ``"package.module:Attribute.path"``.
        reason: why the original cannot be used as it is.
        requires: distribution and version range, for example ``"megatron-core>=0.19,<0.20"``.
        fingerprint: what :func:`fingerprint` gave for the original when the patch was written;
            None: the replacement relies on nothing of it.
        make: ``original -> replacement``.
        also: further targets, other names of the same object.
    """

    name: str
    target: str
    reason: str
    requires: str
    fingerprint: str | None
    make: Callable[[Any], Any]
    also: tuple[str, ...] = ()


class PatchSet:
    """An ordered collection of patches that is applied and undone as a whole.

    Raises:
        ValueError: two patches share a name or a target.
    """

    def __init__(self, name: str, purpose: str, patches: list[Patch]):
        for key in ("name", "target"):
            seen: set[str] = set()
            for patch in patches:
                value = getattr(patch, key)
                if value in seen:
                    raise ValueError(f"patch set {name!r}: duplicate {key} ({value})")
                seen.add(value)
        self.name = name
        self.purpose = purpose
        self.patches = tuple(patches)
        self._depth = 0
        self._undo: list[tuple[Any, str, Any]] = []

    @property
    def active(self) -> bool:
        return self._depth > 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply on entry, restore the identical objects on exit; nested use applies once.

        Raises:
            PatchError: a target is missing or differs from the one the patch was written for.
        """
        if self._depth == 0:
            self._undo = self._apply()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for owner, attribute, original in reversed(self._undo):
                    _put(owner, attribute, original)
                self._undo = []

    def _apply(self) -> list[tuple[Any, str, Any]]:
        self.check()
        undo: list[tuple[Any, str, Any]] = []
        try:
            for patch in self.patches:
                owner, attribute = resolve(patch.target)
                replacement = patch.make(getattr(owner, attribute))
                for target in (patch.target, *patch.also):
                    undo.append(_replace(target, replacement))
                logger.debug("patched %s (%s): %s", patch.target, patch.name, patch.reason)
        except BaseException:
            for owner, attribute, original in reversed(undo):
                _put(owner, attribute, original)
            raise
        return undo

    def check(self) -> None:
        """Raise :class:`PatchError` that lists every patch that does not fit."""
        installed = functools.cache(_installed_version)  # reading one takes 20 ms
        problems = [p for p in (problem(patch, installed) for patch in self.patches) if p]
        if problems:
            listing = "\n".join(f"  - {line}" for line in problems)
            raise PatchError(
                f"{len(problems)} of {len(self.patches)} patches of the {self.name!r} set do not "
                f"fit what is installed:\n{listing}\n"
                "Nothing was patched. Install a version in the stated range, or, if you maintain "
                "grove_megatron, compare the source with the replacement and record the new "
                "fingerprint (python -m grove_megatron.runtime --fingerprints)."
            )


def _replace(target: str, replacement: Any) -> tuple[Any, str, Any]:
    """Put ``replacement`` there; what :func:`_put` needs to undo it."""
    owner, attribute = resolve(target)
    # The entry of the owner itself, not what getattr makes of it: a staticmethod has to come back
    # as the same staticmethod object.
    stored = vars(owner).get(attribute, _MISSING)
    if isinstance(stored, staticmethod):
        replacement = staticmethod(replacement)
    setattr(owner, attribute, replacement)
    return owner, attribute, stored


def _put(owner: Any, attribute: str, original: Any) -> None:
    if original is _MISSING:
        delattr(owner, attribute)
    else:
        setattr(owner, attribute, original)


def resolve(target: str) -> tuple[Any, str]:
    """``"pkg.module:A.b"`` -> (the object that holds ``b``, ``"b"``).

    Raises:
        ImportError, AttributeError: the module or a parent of the attribute does not exist.
    """
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, attribute


def fingerprint(original: Any) -> str:
    """What a replacement relies on, as a short string.

    For Python functions of Megatron this is a hash of their source: a replacement stands for a
    body. Other callables stand for a documented interface, so their parameters are recorded;
    classes and plain values are recorded by name.
    """
    if isinstance(original, type):
        return f"class:{original.__module__}.{original.__qualname__}"
    if isinstance(original, str):
        return f"str:{original}"
    function = inspect.unwrap(original)
    if not inspect.isroutine(function):
        return f"value:{type(function).__name__}"
    if (getattr(function, "__module__", None) or "").split(".")[0] == "megatron":
        return source_fingerprint(inspect.getsource(function))
    try:
        return f"signature:({', '.join(inspect.signature(function).parameters)})"
    except ValueError:
        return f"builtin:{function.__name__}"


def source_fingerprint(source: str) -> str:
    """Of a function, from the first decorator to the last line of its body."""
    return "source:" + hashlib.sha256(source.encode()).hexdigest()[:16]


def problem(
    patch: Patch, installed_version: Callable[[str], str | None] | None = None
) -> str | None:
    """Why ``patch`` cannot be applied here, as one line, or None.

    Args:
        installed_version: of a distribution; None: ask what is installed.
    """
    distribution, specifier = _split_requirement(patch.requires)
    version = (installed_version or _installed_version)(distribution)
    if version is None:
        return f"{patch.name}: {distribution} is not installed; it needs {patch.requires}"
    where = f"{patch.name}: target {patch.target}"
    installed = f"{distribution} {version} is installed, the patch was written for {patch.requires}"
    if version not in specifier:
        return f"{where}: {installed}"
    try:
        owner, attribute = resolve(patch.target)
        original = getattr(owner, attribute)
    except (ImportError, AttributeError) as error:
        return f"{where} is missing ({error}); {installed}"
    if patch.fingerprint is None:
        return None
    if (found := fingerprint(original)) != patch.fingerprint:
        return f"{where} has changed: {found} instead of {patch.fingerprint}; {installed}"
    return None


def _installed_version(distribution: str) -> str | None:
    try:
        if distribution == "megatron-core":
            # The code that will run: a clone on sys.path goes before the installed wheel.
            return str(importlib.import_module("megatron.core.package_info").__version__)
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ImportError):
        return None


def _split_requirement(requires: str) -> tuple[str, SpecifierSet]:
    end = next((i for i, c in enumerate(requires) if c in "<>=!~"), len(requires))
    return requires[:end].strip(), SpecifierSet(requires[end:], prereleases=True)
