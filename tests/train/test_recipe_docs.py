"""The recipe on the page about training is one."""

import json
import re
from pathlib import Path
from typing import Any

from foveal.train.recipe import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "train.md"


def test_the_example_makes_a_run(tmp_path: Path, monkeypatch: Any) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    row = {"id": "a", "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}
    (tmp_path / "captions").mkdir()
    for name in ("mine.jsonl", "captions/one.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "recipe.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    run = load_recipe("recipe.py", ("train.rate=1e-4", "tune.steps=5", "tune.warmup=1"))
    (stage,) = run.stages
    assert stage.rate == 1e-4 and stage.steps == 5
    assert dict(stage.trainable)["adapter.*"] == 1e-4 and dict(stage.trainable)["*"] == 5e-5
    assert stage.data.at(3)[0].text == "Hello\nGood day"
