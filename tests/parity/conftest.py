"""Tiny random checkpoints, written by transformers, opened by Foveal."""

import pytest

import foveal
from tests.helpers import checkpoints


@pytest.fixture(scope="session", params=["untied", "tied", "sharded", "flat"])
def pair(request, tmp_path_factory):
    """The same weights in transformers and in Foveal."""
    oracle = checkpoints.oracle(tied=request.param == "tied", seed=len(request.param))
    folder = checkpoints.write(
        oracle, tmp_path_factory.mktemp(request.param), shard="60KB" if request.param == "sharded" else "5GB"
    )
    if request.param == "flat":
        checkpoints.flatten(folder)
    return oracle, foveal.load(folder, dtype="float32", device="cpu")
