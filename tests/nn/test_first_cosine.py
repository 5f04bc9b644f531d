"""The first rotation of a process is as exact as every later one (see the note at the top of `foveal.nn.rope`)."""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
import foveal.nn.rope
torch.set_num_threads(2)
angles = torch.linspace(0, 50, 40000).reshape(-1, 16)
first = angles.cos(), angles.sin()
assert (first[0] - angles.double().cos()).abs().max() < 1e-6, "cosine"
assert (first[1] - angles.double().sin()).abs().max() < 1e-6, "sine"
"""


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(12))
def test_first_cosine_of_a_process(attempt):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
