"""Conversions lose nothing, or say what they would lose."""

import base64
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.box import Box, Space
from foveal.core.errors import InputError
from foveal.data import sinks
from foveal.data.convert import TARGETS, convert
from foveal.data.formats import open_source
from foveal.data.rows import DataError, arrow
from foveal.data.sample import Sample, normal
from foveal.data.source import Listed

CARRIERS = ("messages", "swift", "qwen-finetune", "sharegpt", "llava", "parquet", "webdataset", "qwen-vl")
pytest.importorskip("pyarrow")

WORDS = st.text(st.characters(blacklist_characters="<>|`", blacklist_categories=("Cs",)), max_size=12)
LABELS = WORDS.filter(str.strip)
WHOLE = st.integers(0, 500).map(float)


@st.composite
def samples(draw: st.DrawFn, folder: Path) -> tuple[list, dict]:
    """What every format of `CARRIERS` has: one speaker after the other, and whole thousandths in the last picture."""
    messages, seen = [], 0
    for turn in range(draw(st.integers(1, 2))):
        asked: list = []
        for _ in range(draw(st.integers(0 if turn else 1, 2))):
            asked.append({"type": "image", "image": str(folder / draw(st.sampled_from(["a.png", "b.jpg", "c.webp"])))})
            seen += 1
            asked.append(draw(WORDS))
        if draw(st.booleans()):
            asked += [{"type": "ref", "ref": draw(LABELS)}, "?"]
        said: list = []
        for _ in range(draw(st.integers(0, 3))):
            x, y, w, h = (draw(WHOLE) for _ in range(4))
            box = Box(label=draw(LABELS), corners=(x, y, x + w, y + h), space=Space.RELATIVE_1000, image=seen - 1)
            said += [draw(WORDS), box]
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": [*said, draw(WORDS)]}]
    extra = draw(st.sampled_from([{}, {"source": "web"}, {"score": [1, {"a": None}], "width": 3}]))
    return messages, extra


def content(source, root: Path) -> list:
    """What has to come back: pictures as their bytes."""

    def part(p: dict) -> dict:
        if p["type"] != "image":
            return p
        return {
            "type": "image",
            "image": p["image"] if isinstance(p["image"], bytes) else Path(p["image"]).read_bytes(),
        }

    return [
        (s.id, [(m["role"], [part(p) for p in m["content"]]) for m in s.messages], dict(s.extra))
        for s in (source[i] for i in range(len(source)))
    ]


@settings(max_examples=60)
@given(st.data(), st.sampled_from(CARRIERS), st.sampled_from(CARRIERS))
def test_there_and_back(pictures: Path, data: st.DataObject, one: str, other: str) -> None:
    drawn = data.draw(st.lists(samples(pictures), min_size=1, max_size=3))
    first = Listed(
        "set",
        [Sample(id=f"s{i}", messages=normal(m), set="set", extra=extra) for i, (m, extra) in enumerate(drawn)],
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = first
        for step, to in enumerate((one, other, one)):
            # `ref` and boxes are seen in what is read, but a file without either looks like a plainer format.
            done = convert(source, folder / f"{step}", to=to)
            source = open_source(done.target, format=done.format)
            assert content(source, folder) == content(first, folder), (step, to)
            assert done.samples == len(first)


def test_formats_are_told_apart_after_writing(pictures: Path, tmp_path: Path) -> None:
    asked = [{"type": "image", "image": str(pictures / "a.png")}, "Where?"]
    box = Box(label="dog", corners=(10, 20, 30, 40), space=Space.RELATIVE_1000)
    made = [{"role": "user", "content": asked}, {"role": "assistant", "content": box}]
    source = Listed("set", [Sample(id="1", messages=normal(made), set="set")])
    for to in CARRIERS:
        done = convert(source, tmp_path / f"{to}.out", to=to)
        found = open_source(done.target)
        assert content(found, tmp_path) == content(source, tmp_path), to
    kinds = {to: open_source(tmp_path / f"{to}.out").rows.container for to in CARRIERS}
    assert kinds["parquet"] == "parquet" and kinds["webdataset"] == "webdataset" and kinds["llava"] == "json"


def test_messages_in_a_shard_and_parquet_without_boxes(pictures: Path, tmp_path: Path) -> None:
    asked = ["See ", {"type": "image", "image": str(pictures / "a.png"), "max_pixels": 999}]
    source = Listed("set", [Sample(id="1", messages=normal([{"role": "user", "content": asked}]), set="set")])
    done = convert(source, tmp_path / "x", to="messages", container="webdataset")
    (_, said, _), *_ = content(open_source(done.target), tmp_path)
    assert open_source(done.target)[0].media[0]["max_pixels"] == 999 and said[0][1][0] == {
        "type": "text",
        "text": "See ",
    }


def test_grounding_and_captions_there_and_back(pictures: Path, tmp_path: Path) -> None:
    box = Box(label="left dog", corners=(1.5, 2, 30, 40), space=Space.ORIGINAL_PX)
    image = {"type": "image", "image": str(pictures / "a.png")}
    asked = [{"role": "user", "content": [image, {"ref": "left dog"}]}, {"role": "assistant", "content": [box]}]
    told = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "A dog."}]
    for messages, form in ((asked, "grounding"), (told, "caption")):
        source = Listed("set", [Sample(id="1", messages=normal(messages), set="set")])
        for other in ("messages", "swift", "webdataset"):
            there = convert(source, tmp_path / f"{form}-{other}", to=other)
            back = convert(open_source(there.target), tmp_path / f"{form}-{other}-back", to=form)
            assert content(open_source(back.target), tmp_path) == content(source, tmp_path)


IMAGE = {"type": "image", "image": "a.png"}
PX = Box(label="dog", corners=(10, 10, 31, 20), space=Space.ORIGINAL_PX)
REFUSED = [
    ("llava", ["what is <image>?"], "its words hold '<image>'"),
    ("swift", [IMAGE, "see <bbox>"], "its words hold '<bbox>'"),
    ("llava", [IMAGE, PX], "not in whole thousandths (allow rounding: --round)"),
    ("llava", [{**IMAGE, "max_pixels": 99}], "its image has the setting 'max_pixels'"),
    ("qwen-vl", [{"type": "video", "video": "v.mp4"}], "it has a video"),
    ("caption", [IMAGE, "Say."], "not one picture and its caption"),
    ("grounding", ["Say."], "not one picture, one name of a region"),
    ("swift", [IMAGE, replace(PX, space=Space.PROCESSED_PX)], "pixels of the resized picture"),
    ("qwen-finetune", [IMAGE, PX], "boxes outside the answers"),
    ("llava", [IMAGE, IMAGE, replace(PX, space=Space.RELATIVE_1000)], "which is not the last before it"),
    ("sharegpt", [IMAGE, replace(PX, space=Space.RELATIVE_1000), replace(PX, label="", space=Space.RELATIVE_1000)],
     "a box without a name right after"),
]  # fmt: skip


@pytest.mark.parametrize(("to", "parts", "words"), REFUSED)
def test_what_a_format_cannot_carry_is_an_error(to: str, parts: list, words: str, pictures: Path, tmp_path: Path):
    parts = [{**p, "image": str(pictures / "a.png")} if isinstance(p, dict) and "image" in p else p for p in parts]
    (tmp_path / "v.mp4").write_bytes(b"v")
    made = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]
    sample = Sample(id="7", messages=normal(made), set="set", where="set.jsonl:7")
    with pytest.raises(DataError) as caught:
        convert(Listed("set", [sample]), tmp_path / "out", to=to)
    assert words in str(caught.value) and f"the format {to}" in str(caught.value)
    assert str(caught.value).startswith("sample '7' of set 'set' (set.jsonl:7): ")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_pixels_become_thousandths_with_rounding(pictures: Path, tmp_path: Path) -> None:
    made = [{"role": "user", "content": [{"image": str(pictures / "a.png")}, PX]}]  # 60 x 40
    source = Listed("set", [Sample(id="7", messages=normal(made), set="set")])
    done = convert(source, tmp_path / "out.json", to="qwen-vl", rounding=True)
    (box,) = open_source(done.target)[0].boxes
    assert box.corners == (167, 250, 517, 500)
    text = json.loads(done.target.read_text())[0]["conversations"][0]["value"]
    assert text == "Picture 1: <img>" + text[16 : text.index("</img>")] + (
        "</img>\n<ref>dog</ref><box>(167,250),(517,500)</box>"
    )


def test_targets_and_media(pictures: Path, tmp_path: Path) -> None:
    made = [{"role": "user", "content": [{"image": str(pictures / "a.png")}, "?"]}]
    source = Listed("set", [Sample(id="7", messages=normal(made), set="set")])
    convert(source, tmp_path / "x.json", to="llava", copy=True)
    assert (tmp_path / "x.media" / "00000000.png").read_bytes() == (pictures / "a.png").read_bytes()
    assert json.loads((tmp_path / "x.json").read_text())[0]["image"] == "x.media/00000000.png"
    with pytest.raises(InputError, match="exists; name another target"):
        convert(source, tmp_path / "x.json", to="llava")
    with pytest.raises(InputError, match="did you mean 'sharegpt'"):
        convert(source, tmp_path / "y", to="shargpt")
    gone = normal([{"role": "user", "content": [{"image": str(tmp_path / "none.png")}, "?"]}])
    for to in ("llava", "parquet", "webdataset"):
        with pytest.raises(DataError, match=r"sample '8' of set 'set': .*none.png' does not exist"):
            convert(Listed("set", [Sample(id="8", messages=gone, set="set")]), tmp_path / to, to=to)
    twice = Listed("set", [source[0], source[0]])  # published sets repeat ids; that is the doctor's matter
    assert convert(twice, tmp_path / "z", to="messages").samples == 2
    assert "messages" in TARGETS


def test_videos_frames_and_data_urls(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "v.MP4").write_bytes(b"\0\0\0\x20ftypisom")
    inline = "data:image/png;base64," + base64.b64encode((pictures / "a.png").read_bytes()).decode()
    frames = [str(pictures / "a.png"), str(pictures / "b.jpg")]
    asked = [{"video": str(tmp_path / "v.MP4")}, {"image": inline}, "What?"]
    source = Listed("set", [Sample(id="1", messages=normal([{"role": "user", "content": asked}]), set="set")])
    for to in ("qwen-finetune", "swift", "messages"):
        found = open_source(convert(source, tmp_path / to, to=to).target)[0]
        assert [m[m["type"]] for m in found.media] == [str(tmp_path / "v.MP4"), inline]
    done = convert(source, tmp_path / "copied.jsonl", to="swift", copy=True)
    assert sorted(p.name for p in (tmp_path / "copied.media").iterdir()) == ["00000000.mp4"]
    shard = open_source(convert(source, tmp_path / "shard", to="webdataset").target)
    assert [m[m["type"]] for m in shard[0].media] == [b"\0\0\0\x20ftypisom", (pictures / "a.png").read_bytes()]
    assert done.media == 2
    listed = normal([{"role": "user", "content": [{"video": frames, "sample_fps": 2.0}, "What?"]}])
    source = Listed("set", [Sample(id="1", messages=listed, set="set")])
    again = open_source(convert(source, tmp_path / "frames", to="messages").target)[0]
    assert again.messages == listed
    with pytest.raises(DataError, match="its video has the setting 'sample_fps'"):
        convert(source, tmp_path / "no", to="swift")


def test_row_groups_are_small(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_BYTES", 3 * (pictures / "a.png").stat().st_size)
    made = normal([{"role": "user", "content": [{"image": str(pictures / "a.png")}, "?"]}])
    source = Listed("set", [Sample(id=str(i), messages=made, set="set") for i in range(10)])
    target = convert(source, tmp_path / "x", to="parquet").target
    metadata = arrow("pyarrow.parquet").read_metadata(target)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 2]
    assert content(open_source(target), tmp_path) == content(source, tmp_path)
