"""No tensor of the host is mixed in with a device's, and no device is asked for what MPS does not have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import clip, engines, siglip, vit

ROOT = Path(__file__).parents[2]
FIXED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen_vl", "deepseek_vl")
ANSWERING = (*FIXED, "qwen3_vl_moe", "deepseek_vl2")
SEEING = ("clip", "siglip", "vit")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("devices")
    for family in ANSWERING:
        engines.write(family, root / family)
    for helper in (clip, siglip, vit):
        helper.write(helper.oracle(), root / helper.__name__.rsplit(".", 1)[-1])
    said = subprocess.run(
        [sys.executable, "-m", "tests.helpers.pretend", *(str(root / name) for name in (*ANSWERING, *SEEING))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(("src", "."))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return {record["folder"]: record for record in map(json.loads, said.stdout.splitlines())}


@pytest.mark.parametrize("family", [*ANSWERING, *SEEING])
def test_a_forward_pass_stays_on_its_device(found, family):
    assert found[family]["device"] == "pretend"
    # MPS has no float64; bfloat16 is only there because a checkpoint is loaded in it.
    assert set(found[family]["types"]) <= {"float32", "int64", "bool"}


@pytest.mark.parametrize("family", ANSWERING)
def test_a_tensor_that_is_left_behind_is_noticed(found, family):
    assert "Expected all tensors to be on the same device" in found[family]["left behind"]


@pytest.mark.parametrize("family", FIXED)
def test_a_fixed_step_copies_nothing_and_asks_for_no_number(found, family):
    """Asking for a number (`.item()`, `.tolist()`, a shape that depends on one) fails there: no tensor has any."""
    assert found[family]["fixed copies"] == 0
    assert found[family]["copies"] > 0


def test_other_families_have_no_fixed_steps(found):
    assert all("fixed copies" not in found[family] for family in ("qwen3_vl_moe", "deepseek_vl2"))
