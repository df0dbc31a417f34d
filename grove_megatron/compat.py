"""What this plugin needs of the packages it stands on. The only file that knows versions.

Nothing of Megatron is imported here, so that a version it does not know is named before its
internals are touched.
"""

import importlib.metadata
import importlib.util
import runpy
from pathlib import Path

from packaging.specifiers import SpecifierSet

MEGATRON_RANGE = SpecifierSet(">=0.19,<0.20", prereleases=True)
TORCH_RANGE = SpecifierSet(">=2.11", prereleases=True)
MEGATRON_REQUIREMENT = f"megatron-core{MEGATRON_RANGE}"
TORCH_REQUIREMENT = f"torch{TORCH_RANGE}"


def megatron_version() -> str | None:
    """Version of the Megatron that ``import megatron.core`` would bring, without importing it.

    A clone on ``sys.path`` goes before an installed wheel, so the package's own file is asked. It
    adds the commit of the repository around it: of an installed wheel that is whatever repository
    the environment lies in, so it is left out.
    """
    try:
        spec = importlib.util.find_spec("megatron.core")
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    info = Path(spec.origin).with_name("package_info.py")
    if not info.is_file():
        return None
    version = str(runpy.run_path(str(info))["__version__"])
    return version.partition("+")[0] if "site-packages" in info.parts else version


def environment_problems() -> list[str]:
    """What is wrong with the installed packages, one line each."""
    problems = []
    version = megatron_version()
    if version is None:
        problems.append(
            f"megatron-core (not installed) is not in the range ({MEGATRON_RANGE}); "
            f"pip install 'megatron-core[training]{MEGATRON_RANGE}'"
        )
    elif version not in MEGATRON_RANGE:
        problems.append(
            f"megatron-core ({version}) is not in the range ({MEGATRON_RANGE}) this version of "
            f"grove_megatron was tested with; pip install 'megatron-core[training]{MEGATRON_RANGE}'"
        )
    torch_version = installed_version("torch")
    if torch_version is None or torch_version not in TORCH_RANGE:
        problems.append(
            f"torch ({torch_version or 'not installed'}) is not in the range ({TORCH_RANGE}); "
            f"pip install 'torch{TORCH_RANGE}'"
        )
    if is_foreign_apex():
        problems.append(
            "apex (the package of that name on PyPI) is not NVIDIA Apex, and Megatron takes it for "
            "that; pip uninstall apex, and build NVIDIA Apex from source if you want it "
            "(CONTRIBUTING.md)"
        )
    return problems


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_foreign_apex() -> bool:
    """Is ``apex`` installed without what Megatron uses of NVIDIA's? Looks, does not import."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return False
    folders = list(spec.submodule_search_locations or [])
    return not any((Path(folder) / "multi_tensor_apply").is_dir() for folder in folders)
