"""What Megatron reads of data and settings by itself runs nothing either."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import _IndexReader
from megatron.core.quantization.quant_config import RecipeConfig
from megatron.core.safe_globals import safe_numpy_load

from ..planted import KINDS


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap_mode", ["r", None])
@pytest.mark.parametrize("is_array", [False, True])
def test_an_index_in_the_data_cache(
    is_array: bool, mmap_mode: str | None, kind: str, marker: Path, tmp_path: Path
) -> None:
    file, planted = tmp_path / "index.npy", KINDS[kind](marker)
    if is_array:
        np.save(file, np.array([planted], dtype=object), allow_pickle=True)
    else:
        file.write_bytes(pickle.dumps(planted))
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        safe_numpy_load(file, allow_pickle=True, mmap_mode=mmap_mode)
    assert not marker.exists()


def test_the_index_of_a_dataset(marker: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.idx"
    file.write_bytes(pickle.dumps(KINDS["a command"](marker)))
    with pytest.raises(AssertionError, match="bad header"):
        _IndexReader(str(file), multimodal=False)
    assert not marker.exists()


def test_a_recipe_in_yaml(marker: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"matchers: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(Exception, match="could not determine a constructor for the tag"):
        RecipeConfig.from_yaml_file(str(file))
    assert not marker.exists()
