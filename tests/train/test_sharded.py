"""What of a network a process holds, and which networks cannot be shared; runs in shards are in test_parallel.py."""

from pathlib import Path

import pytest
import torch
from torch import nn

from foveal.core.errors import ConfigError
from foveal.families.siglip import FAMILY as SIGLIP
from foveal.nn.moe import Experts
from foveal.train.checkpoint import read_checkpoint, read_noted, write_checkpoint
from foveal.train.sharded import ShardedRanks, refuse, units
from tests.helpers import training


def ranks(rank: int, world: int, **shapes: tuple[int, ...]) -> ShardedRanks:
    """One of some processes, without the others."""
    made = ShardedRanks.__new__(ShardedRanks)
    made.rank, made.world, made.shapes = rank, world, {name: torch.Size(shape) for name, shape in shapes.items()}
    return made


@pytest.mark.parametrize(("size", "world"), [(8, 2), (7, 2), (5, 4), (1, 3), (3, 1)])
def test_rows_are_those_that_fsdp_gives(size: int, world: int) -> None:
    parts = torch.arange(size).chunk(world)
    for rank in range(world):
        rows = ranks(rank, world, weight=(size, 2)).rows("master/weight", (size, 2))
        assert rows is not None
        expected = parts[rank].tolist() if rank < len(parts) else []
        assert list(range(size))[rows] == expected


def test_what_is_no_parameter_is_read_whole(tmp_path: Path) -> None:
    weight = torch.arange(10.0).view(5, 2)
    tensors = {"master/weight": weight, "exp_avg/weight": -weight, "step/weight": torch.tensor(3.0)}
    tensors |= {"scale": torch.tensor([1.0, 2.0])}
    path = tmp_path / "kept.safetensors"
    write_checkpoint(path, tensors, step=3, stage="toy")
    found, step = read_checkpoint(path, stage="toy", rows=ranks(1, 2, weight=(5, 2)).rows)
    assert step == 3
    assert torch.equal(found["master/weight"], weight[3:]) and torch.equal(found["exp_avg/weight"], -weight[3:])
    assert found["step/weight"] == 3.0 and torch.equal(found["scale"], tensors["scale"])
    # With more processes than rows the last ones have none.
    assert read_noted(path, ranks(3, 4, weight=(5, 2)).rows)[0]["master/weight"].shape == (0, 2)


def test_layers_and_blocks_are_units() -> None:
    network = training.run(Path()).load().network
    found = units(network)
    assert len(found) == len(network.vision.blocks) + len(network.language.layers)
    assert {id(u) for u in found} == {id(u) for u in [*network.vision.blocks, *network.language.layers]}


def test_networks_that_cannot_be_shared() -> None:
    refuse(training.run(Path()).load().network)
    refuse(nn.Sequential(nn.Linear(2, 2), Experts(4, 4, 2)))  # which give gradients to experts without tokens, too
    refuse(SIGLIP.build(SIGLIP.size("tiny")))  # runs are in test_pair_runs.py
    coded = nn.Linear(2, 2)
    coded.codes = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match="codes is quantized"):
        refuse(coded)
