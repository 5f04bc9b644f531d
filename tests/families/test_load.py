"""Which of a family's name maps a checkpoint is read with."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from foveal.families.base import Family
from foveal.families.load import fitting_map
from foveal.families.qwen2_vl import FAMILY as QWEN2_VL

MAPS = {
    None: "skip ids\nmodel.{i}.{a,b} -> layers.{i}.{a,b}",
    "older": "old.{i}.{a,b} -> layers.{i}.{a,b}\nold.c -> c",
    "zeroth": "old.{i}.{a,b} -> layers.{i}.{b,a}",
}


@dataclass(frozen=True, kw_only=True)
class Several(Family):
    """Qwen2-VL's declaration with three made-up maps."""

    def map_text(self, layout: str | None = None) -> str:
        return MAPS[layout]

    def layouts(self) -> list[str | None]:
        return list(MAPS)


SEVERAL = Several(**vars(QWEN2_VL))


@pytest.mark.parametrize(
    ("tensors", "where"),
    [
        (["model.0.a", "ids"], "qwen2_vl.map"),
        (["old.0.a", "old.c"], "qwen2_vl.older.map"),
        (["old.0.a"], "qwen2_vl.older.map"),
        (["old.0.a", "model.0.a"], "qwen2_vl.map"),
        (["stray"], "qwen2_vl.map"),
    ],
)
def test_the_first_map_that_knows_every_name_is_used(tensors: list[str], where: str):
    assert fitting_map(SEVERAL, tensors).where == where


def test_every_layout_in_the_package_can_be_read():
    assert QWEN2_VL.layouts() == [None]
    assert fitting_map(QWEN2_VL, ["visual.merger.ln_q.bias"]).where == "qwen2_vl.map"


def test_opening_a_model_leaves_torchs_compiler_alone():
    """It takes a second to import, which every start would pay."""
    code = (
        "import sys, foveal; model = foveal.load(device='cpu'); "
        "model.chat([{'role': 'user', 'content': 'a'}], max_tokens=2); "
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
