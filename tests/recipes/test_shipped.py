"""Shipped recipes: what learns in every stage, published values, and that the tiny size runs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.core.errors import ConfigError
from foveal.families.describe import families
from foveal.train.plan import outline, plan
from foveal.train.recipe import load_recipe
from foveal.train.run import Fresh, Run
from foveal.train.stage import Stage
from foveal.train.trainer import train

ROOT = Path(__file__).parents[2] / "recipes"
FAMILIES = ("qwen_vl", "qwen2_vl", "deepseek_vl", "clip", "siglip")
RECIPES = sorted(f"{family}/{path.stem}" for family in FAMILIES for path in (ROOT / family).glob("[0-9]_*.py"))
GOLDEN = Path(__file__).parents[1] / "data_files" / "trainable.json"


def tiny(name: str, *settings: str) -> Run:
    model = () if name.split("/", maxsplit=1)[0] in ("clip", "siglip") else ("model=tiny",)
    return load_recipe(ROOT / f"{name}.py", ("size=tiny", *model, *settings))


def learned(run: Run) -> list[str]:
    network = outline(run).network
    return sorted(name for name, _, _ in run.stages[0].rates(network.named_parameters()))


def full(name: str, monkeypatch: Any) -> Stage:
    """The stage of "RECIPE SETTINGS..." in full size, with data that do not exist."""
    from foveal.train import shipped

    recipe, *settings = name.split()
    monkeypatch.setattr(shipped, "open_source", lambda path, name: shipped.ToySet("caption", 4, name=name))
    monkeypatch.setattr(Path, "exists", lambda self: True)
    (stage,) = load_recipe(ROOT / f"{recipe}.py", ("model=some/folder", "data=elsewhere", *settings)).stages
    return stage


def summary(names: list[str]) -> dict[str, Any]:
    """Numbers of tensors by part, and a hash of all names."""
    parts: dict[str, int] = {}
    for name in names:
        part = name.rpartition(".")[0].partition(".")[0] or name
        parts[part] = parts.get(part, 0) + 1
    return {"parts": parts, "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def test_all_recipes_are_listed() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == RECIPES
    assert len(RECIPES) == 11


@pytest.mark.parametrize("name", RECIPES)
def test_the_exact_set_of_trainable_tensors(name: str) -> None:
    """Recorded for the tiny sizes after reading the lists; a changed pattern or tensor shows here."""
    assert summary(learned(tiny(name))) == json.loads(GOLDEN.read_text())[name]


RULES = {
    "qwen_vl/1_align": lambda n: not n.startswith("language.") and n != "adapter.positions",
    "qwen_vl/2_multitask": lambda n: n != "adapter.positions",
    "qwen_vl/3_chat": lambda n: not n.startswith("vision.") and n != "adapter.positions",
    "qwen2_vl/1_vision": lambda n: not n.startswith("language."),
    "qwen2_vl/2_everything": lambda n: True,
    "qwen2_vl/3_chat": lambda n: not n.startswith("vision."),
    "deepseek_vl/1_adapter": lambda n: n.startswith("adapter."),
    "deepseek_vl/2_joint": lambda n: not n.startswith("vision."),
    "deepseek_vl/3_chat": lambda n: not n.startswith(("vision.high.", "vision.unused.")),
    "clip/1_contrast": lambda n: True,
    "siglip/1_contrast": lambda n: True,
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_papers_say_learns(name: str) -> None:
    run = tiny(name)
    every = [n for n, _ in outline(run).network.named_parameters()]
    assert learned(run) == sorted(filter(RULES[name], every))


@pytest.mark.parametrize(
    ("name", "steps", "batch", "rate", "last", "warmup"),
    [
        ("qwen_vl/1_align", 50_000, 30_720, 2e-4, 1e-6, 500),
        ("qwen_vl/2_multitask", 19_000, 4096, 5e-5, 1e-5, 400),
        ("qwen_vl/3_chat", 8000, 128, 1e-5, 1e-6, 3000),
        ("deepseek_vl/1_adapter", 15_000, 256, 1e-3, 0.0, 128),
        ("deepseek_vl/2_joint", 42_000, 2304, 4.2e-5, 4.2e-5 * 0.316**2, 2000),
        ("deepseek_vl/2_joint released=1.3b", 96_000, 1024, 3e-5, 3e-5 * 0.316**2, 2000),
        ("deepseek_vl/3_chat", 10_000, 256, 2e-5, 0.0, 256),
    ],
)
def test_published_values(
    name: str, steps: int, batch: int, rate: float, last: float, warmup: int, monkeypatch: Any
) -> None:
    stage = full(name, monkeypatch)
    assert (stage.steps, stage.batch, stage.warmup) == (steps, batch, warmup)
    assert stage.rate == rate
    assert stage.rate * stage.factor(steps - 1) == pytest.approx(last, rel=1e-3, abs=1e-9)
    assert stage.dtype == "bf16" and stage.clip == 1.0


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("qwen_vl/1_align", "base"),
        ("qwen_vl/2_multitask", "base"),
        ("qwen_vl/3_chat", "base"),
        ("qwen2_vl/1_vision", "2b"),
        ("qwen2_vl/2_everything", "2b"),
        ("qwen2_vl/3_chat", "2b"),
        ("deepseek_vl/1_adapter", "1.3b"),
        ("deepseek_vl/1_adapter", "7b"),
        ("deepseek_vl/2_joint released=1.3b", "1.3b"),
        ("deepseek_vl/2_joint", "7b"),
        ("deepseek_vl/3_chat released=1.3b", "1.3b"),
        ("deepseek_vl/3_chat", "7b"),
    ],
)
def test_rules_fit_the_released_sizes(name: str, released: str, monkeypatch: Any) -> None:
    """Every rule finds parameters and every parameter a rule, which says the same there as in the tiny size."""
    family = families()[name.partition("/")[0]]
    with torch.device("meta"):
        network = family.build(family.size(released))
    every = dict(network.named_parameters())
    learned = [n for n, _, _ in full(name, monkeypatch).rates(every.items())]
    assert sorted(learned) == sorted(filter(RULES[name.partition(" ")[0]], every))


def test_sizes_of_pictures_and_decay_of_qwen_vl() -> None:
    first, second, third = (tiny(f"qwen_vl/{n}").stages[0] for n in ("1_align", "2_multitask", "3_chat"))
    assert [s.pixels.side_px for s in (first, second, third) if s.pixels] == [224, 448, 448]
    assert [s.tower_decay for s in (first, second, third)] == [0.95, 0.95, 1.0]
    run = tiny("qwen_vl/1_align")
    rates = {n: r for n, _, r in run.stages[0].rates(outline(run).network.named_parameters())}
    top = run.stages[0].rate
    assert rates["adapter.query"] == top
    assert rates["vision.blocks.1.norm1.weight"] == pytest.approx(0.95 * top)
    assert rates["vision.blocks.0.mlp.up.weight"] == pytest.approx(0.95**2 * top)
    assert rates["vision.patch.weight"] == rates["vision.positions"] == pytest.approx(0.95**3 * top)


def test_missing_data_and_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set sise: unknown; did you mean .size"):
        load_recipe(ROOT / "qwen_vl/1_align.py", ("sise=tiny",))
    with pytest.raises(ConfigError, match="--set data=FOLDER"):
        load_recipe(ROOT / "qwen_vl/1_align.py", ("model=x",))
    with pytest.raises(ConfigError, match="has no set 'caption'"):
        load_recipe(ROOT / "qwen_vl/1_align.py", ("model=x", f"data={tmp_path}"))
    with pytest.raises(ConfigError, match="run the stage before"):
        load_recipe(ROOT / "qwen_vl/2_multitask.py", ("size=tiny", f"folder={tmp_path}"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_plan_reads_samples(name: str) -> None:
    (found,) = plan(tiny(name))
    assert found.unread is None and found.tokens[0] > 0 and found.memory_bytes > 0


@pytest.mark.slow
def test_the_stages_of_qwen_vl_follow_each_other(tmp_path: Path) -> None:
    """At 224 px, then at 448 px: tables of positions are resized, and every stage begins with what the last learned."""
    size = ("size=tiny", f"folder={tmp_path}", "workers=0", "train.steps=2", "train.batch=4", "train.warmup=1")
    before: dict[str, torch.Tensor] | None = None
    for recipe, name in (("1_align", "align"), ("2_multitask", "multitask"), ("3_chat", "chat")):
        run = load_recipe(ROOT / f"qwen_vl/{recipe}.py", size)
        assert isinstance(run.model, Fresh) == (name == "align")
        start = dict(run.load().network.named_parameters())
        if before is not None:
            assert all(torch.equal(start[n], p) for n, p in before.items())
        loaded = train(run)
        config = json.loads((tmp_path / name / "model" / "config.json").read_text())
        assert config["visual"]["image_size"] == (224 if name == "align" else 448)
        before = {n: p.detach().clone() for n, p in loaded.network.named_parameters()}
