import pytest

from tests.helpers import checkpoints


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random checkpoint."""
    return checkpoints.write(checkpoints.oracle(seed=2), tmp_path_factory.mktemp("model"))
