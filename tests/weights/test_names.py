"""Name maps: every published name has exactly one of ours and comes back from it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.errors import ConfigError
from foveal.weights.names import NameMap, Place

ROOT = Path(__file__).parents[2]
QWEN2_VL = NameMap.load(ROOT / "src/foveal/families/maps/qwen2_vl.map")
SEVEN_B = (ROOT / "tests/data_files/qwen2_vl_7b_tensor_names.txt").read_text().split()


def test_published_names_of_qwen2_vl_7b_go_there_and_back():
    ours = [QWEN2_VL.ours(name) for name in SEVEN_B]
    assert len(SEVEN_B) == 730
    assert None not in ours
    assert len(set(ours)) == 730
    assert [QWEN2_VL.published(name) for name in ours] == SEVEN_B
    roots = {name.split(".")[0] for name in ours}
    assert roots == {"vision", "adapter", "language"}


def test_both_spellings_are_read_and_the_official_one_is_written():
    newer = {
        "model.visual.blocks.3.attn.qkv.bias": "vision.blocks.3.attention.qkv.bias",
        "model.language_model.layers.11.mlp.gate_proj.weight": "language.layers.11.mlp.gate.weight",
        "model.language_model.embed_tokens.weight": "language.embed.weight",
        "lm_head.weight": "language.head.weight",
    }
    for published, ours in newer.items():
        assert QWEN2_VL.ours(published) == ours
    assert QWEN2_VL.published("vision.blocks.3.attention.qkv.bias") == "visual.blocks.3.attn.qkv.bias"
    assert QWEN2_VL.published("language.layers.11.mlp.gate.weight") == "model.layers.11.mlp.gate_proj.weight"


def test_a_tie_is_given_in_our_names():
    assert QWEN2_VL.ties == {"language.head.weight": "language.embed.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "visual.blocks.01.norm1.bias",
        "visual.blocks..norm1.bias",
        "visual.blocks.1.norm1.bias.",
        " visual.blocks.1.norm1.bias",
        "visual.blocks.x.norm1.bias",
        "visual.blocks.١.norm1.bias",
        "visual.merger.mlp.1.weight",
        "model.layers.0.self_attn.o_proj.bias",
        "model.visual.model.visual.patch_embed.proj.weight",
    ],
)
def test_other_names_match_nothing(name: str):
    assert QWEN2_VL.ours(name) is None


WORD = st.text("abcxyz_", min_size=1, max_size=4)
PART = st.one_of(WORD, st.integers(0, 3).map(str), st.just("{i}"), st.just("{j}"))


def _once(parts: list[str]) -> list[str]:
    """The parts without a second use of a placeholder."""
    return [p for n, p in enumerate(parts) if not p.startswith("{") or p not in parts[:n]]


@st.composite
def rules(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Rules whose two sides use the same placeholders; overlaps may occur."""
    found = []
    for number in range(draw(st.integers(1, 5))):
        left = _once(draw(st.lists(PART, min_size=1, max_size=4)))
        right = [p for p in draw(st.permutations(left)) if p.startswith("{")]
        found.append((".".join(left), ".".join([f"ours{'abcde'[number]}", *right])))
    return found


@settings(max_examples=300, deadline=None)
@given(rules(), st.lists(st.integers(0, 12), min_size=2, max_size=2), st.data())
def test_a_map_that_is_accepted_is_one_to_one(made: list[tuple[str, str]], numbers: list[int], data: st.DataObject):
    text = "\n".join(f"{left} -> {right}" for left, right in made)
    names = [left.replace("{i}", str(numbers[0])).replace("{j}", str(numbers[1])) for left, _ in made]
    try:
        mapping = NameMap.parse(text)
    except ConfigError as error:
        assert "match the same names" in str(error)
        return
    assert len(set(names)) == len(names)
    for name, (_, right) in zip(names, made, strict=True):
        ours = mapping.ours(name)
        assert ours == right.replace("{i}", str(numbers[0])).replace("{j}", str(numbers[1]))
        assert mapping.published(ours) == name


@settings(max_examples=200, deadline=None)
@given(rules())
def test_an_overlap_that_is_refused_is_a_real_one(made: list[tuple[str, str]]):
    """Where the map is refused, trying small numbers finds a name that two rules match."""
    try:
        NameMap.parse("\n".join(f"{left} -> {right}" for left, right in made))
    except ConfigError:
        seen: list[set[str]] = []
        for left, _ in made:
            seen.append({left.replace("{i}", str(a)).replace("{j}", str(b)) for a in range(4) for b in range(4)})
        assert any(a & b for n, a in enumerate(seen) for b in seen[:n])


@st.composite
def joined_rules(draw: st.DrawFn) -> list[tuple[list[tuple[str, bool]], str]]:
    """Rules of one to three published names, some transposed; overlaps may occur."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        used = draw(st.sets(st.sampled_from(["{i}", "{j}"])))
        terms = []
        for _ in range(draw(st.integers(1, 3))):
            words = draw(st.lists(st.one_of(WORD, st.integers(0, 3).map(str)), max_size=2))
            terms.append((".".join(draw(st.permutations([*words, *sorted(used)])) or ["w"]), draw(st.booleans())))
        found.append((terms, ".".join([f"ours{number}", *draw(st.permutations(sorted(used)))])))
    return found


def _line(terms: list[tuple[str, bool]], right: str) -> str:
    return " + ".join(f"{name} ^T" if turned else name for name, turned in terms) + f" -> {right}"


@settings(max_examples=300, deadline=None)
@given(joined_rules(), st.lists(st.integers(0, 12), min_size=2, max_size=2))
def test_joined_and_transposed_names_come_back_in_order(
    made: list[tuple[list[tuple[str, bool]], str]], numbers: list[int]
):
    def filled(name: str) -> str:
        return name.replace("{i}", str(numbers[0])).replace("{j}", str(numbers[1]))

    try:
        mapping = NameMap.parse("\n".join(_line(*rule) for rule in made))
    except ConfigError as error:
        assert "match the same names" in str(error) or "touches another number" in str(error)
        return
    for terms, right in made:
        expected = {
            filled(name): Place(ours=filled(right), share=share, shares=len(terms), transposed=turned)
            for share, (name, turned) in enumerate(terms)
        }
        sources = mapping.sources(filled(right))
        assert list(sources) == [filled(name) for name, _ in terms]
        assert sources == expected == {name: mapping.place(name) for name in sources}
        assert mapping.published(filled(right)) == " + ".join(sources)


def test_choices_of_joined_names_go_together():
    mapping = NameMap.parse("a.{i}.q.{weight,bias} + a.{i}.k.{weight,bias} -> b.{i}.qk.{weight,bias}\np ^T -> head")
    assert mapping.place("a.3.k.bias") == Place(ours="b.3.qk.bias", share=1, shares=2)
    assert list(mapping.sources("b.3.qk.weight")) == ["a.3.q.weight", "a.3.k.weight"]
    assert mapping.place("p") == Place(ours="head", transposed=True)
    assert mapping.published("head") == "p"


def test_skipped_names_have_no_place():
    mapping = NameMap.parse("read m. as a.\nskip a.{ids,size}\nskip bn{i}.tracked\na.b -> c")
    assert [n for n in ("a.ids", "m.size", "bn12.tracked", "a.b", "x", "bn.tracked") if mapping.skips(n)] == [
        "a.ids",
        "m.size",
        "bn12.tracked",
    ]
    assert mapping.place("a.ids") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no rule"),
        ("# only a comment", "holds no rule"),
        ("a.b c.d", "is no rule"),
        ("a.b -> c.d\na.b -> e.f", "match the same names"),
        ("a.b -> c.d\ne.f -> c.d", "match the same names"),
        ("a.{i} -> c.{i}\na.0 -> d", "match the same names"),
        ("a.{i} -> c", "same on both sides"),
        ("a.{i}.{i} -> c.{i}.d.{i}", "uses a placeholder twice"),
        ("a.{i}{j} -> c.{i}.{j}", "touches another number"),
        ("a.1{i} -> c.{i}", "touches another number"),
        ("a.{x,y} -> c.{x,y,z}", "2 names on the left but 3 on the right"),
        ("a.{x,} -> c.{x,y}", "empty choice"),
        ("a.{x,y}.{x,y} -> c.d", "2 lists of choices"),
        ("a.{0} -> c.{0}", "is no placeholder"),
        ("a b -> c", "is no tensor name"),
        (" -> c", "is no tensor name"),
        ("read m.a. as a.\nm.a.x -> y", "drop one of the two"),
        ("tied q to a\na -> b", "no rule"),
        ("a.q + a.q -> b", "match the same names"),
        ("a.{i} + a.0 -> b.{i}", "same on both sides"),
        ("a.{i} + b.{i} -> c.{i}\na.3 -> d", "match the same names"),
        ("a + -> b", "is no tensor name"),
        ("a + b.{x,y} -> c.{x,y}", "1 names on the left but 2 on the right"),
        ("a ^T^T -> b", "is no tensor name"),
        ("a -> b ^T", "is no tensor name"),
        ("tied x to a\na + b -> c\nx -> d", "joined or transposed"),
        ("tied x to a\na ^T -> c\nx -> d", "joined or transposed"),
        ("tied x to a\na ^1 -> c\nx -> d", "marked"),
        ("a ^2 -> b", "is no tensor name"),
        ("skip a\na -> b", "match the same names"),
        ("read a. as b.\nskip a.c\nd -> e", "drop one of the two"),
    ],
)
def test_broken_maps_say_what_is_wrong(text: str, says: str):
    with pytest.raises(ConfigError, match=says):
        NameMap.parse(text, where="x.map")


def test_an_error_names_file_and_line(tmp_path: Path):
    path = tmp_path / "broken.map"
    path.write_text("a -> b\n\nc d\n")
    with pytest.raises(ConfigError, match=r"broken\.map:3"):
        NameMap.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        NameMap.load(tmp_path / "absent.map")


def test_placeholders_inside_a_word_and_choices():
    mapping = NameMap.parse("layer{i}.{j}.conv{a,b} -> stages.{j}.{i}.{one,two}")
    assert mapping.ours("layer3.12.convb") == "stages.12.3.two"
    assert mapping.published("stages.12.3.two") == "layer3.12.convb"


def test_dimensions_of_one_in_front():
    mapping = NameMap.parse("cls ^11 -> c\nblock.{i}.positions ^1 -> p.{i}")
    assert mapping.place("cls") == Place(ours="c", ones=2)
    assert mapping.sources("p.3") == {"block.3.positions": Place(ours="p.3", ones=1)}
