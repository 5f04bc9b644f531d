import pytest

import foveal
from tests.helpers import checkpoints


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = checkpoints.write(checkpoints.oracle(seed=7), tmp_path_factory.mktemp("engine"))
    return foveal.load(folder, dtype="float32", device="cpu")
