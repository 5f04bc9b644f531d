"""`foveal ask --adapter` and `foveal convert --merge`."""

import json

import pytest

from foveal.cli.main import main
from foveal.families.load import save_folder
from tests.helpers import peft
from tests.helpers.processing import processor

ADAPTER = str(peft.FOLDER / "listed")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_folder(
        folder, family=peft.QWEN2_VL, config=peft.QWEN2_VL_CONFIG, network=peft.qwen2_vl(), processor=processor(),
        generation={},
    )  # fmt: skip
    return str(folder)


def answer(capsys, *options: str) -> str:
    assert main(["ask", *options, "--max-tokens", "8", "--temperature", "0", "--json", "Hello."]) == 0
    return json.loads(capsys.readouterr().out)["raw"]


def test_an_adapter_changes_the_answer_and_merging_keeps_it(base, tmp_path, capsys):
    plain = answer(capsys, "--model", base)
    live = answer(capsys, "--model", base, "--adapter", ADAPTER)
    assert live != plain
    assert main(["convert", "--merge", ADAPTER, base, str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"merged {ADAPTER} into 11 layers of {base}" in out
    assert "live and merged in float32: apart by" in out
    assert out.endswith(f"wrote {tmp_path / 'out'}\n")
    assert answer(capsys, "--model", str(tmp_path / "out")) == live


def test_json(base, tmp_path, capsys):
    assert main(["convert", "--merge", ADAPTER, base, str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["layers"], told["dtype"], told["tolerance"]) == (11, "float32", 1e-5)
    assert told["stored"] < 1e-5 < told["moved"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merge", ADAPTER, "--files", "x"], "--files has no use"),
        (["--tolerance", "0.1"], "--tolerance is for --merge"),
        (["--merge", "nowhere"], "'nowhere' is no folder here"),
        (["--merge", ADAPTER, "--dtype", "bfloat16", "--tolerance", "1e-7"], "1e-07 is allowed"),
    ],
)
def test_errors_are_one_line(base, tmp_path, capsys, options, message):
    assert main(["convert", base, str(tmp_path / "out"), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()
