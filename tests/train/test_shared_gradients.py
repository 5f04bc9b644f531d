"""Two processes train as one: every gradient is the mean of theirs."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json
import sys
from pathlib import Path
import torch
from torch import distributed, nn
from foveal.train.loop import share_gradients

distributed.init_process_group("gloo")
rank = distributed.get_rank()
one, other, unused = (nn.Parameter(torch.zeros(n)) for n in (3, 2, 4))
one.grad = torch.full((3,), 1.0 + rank)
if rank == 0:
    other.grad = torch.tensor([4.0, 8.0])
share_gradients([one, other, unused])
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps([p.grad.tolist() for p in (one, other, unused)]))
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_mean_of_two_processes(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*command, str(tmp_path)], capture_output=True, timeout=400, check=True)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == [[1.5, 1.5, 1.5], [2.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
