"""Every format is found by its content and read into the same form; what is wrong is a named error."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.box import Box, Space
from foveal.core.errors import InputError
from foveal.data.formats import FORMATS, found_format, open_source
from foveal.data.reading import Reading, Settings
from foveal.data.rows import DataError, Row, open_rows
from foveal.data.sample import Sample, normal

R1000 = Space.RELATIVE_1000


def image(name: str) -> dict:
    return {"type": "image", "image": name}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def box(label: str, *corners: float, space: Space = R1000, image: int = 0, points: tuple = ()) -> dict:
    return {"type": "box", "box": Box(label=label, corners=corners, space=space, image=image, points=points)}


LLAVA = {
    "id": "1",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
    ],
}
SHAREGPT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image><image>Which is larger?\n"},
        {"role": "assistant", "content": "The second."},
    ],
    "images": ["a.png", "b.jpg"],
}
QWEN = {
    "id": "identity_0",
    "conversations": [
        {"from": "user", "value": "Picture 1: <img>a.png</img>\nWhere is the <ref>red car</ref>?"},
        {"from": "assistant", "value": "<ref>red car</ref><box>(10,20),(300,400)</box><box>(1,2),(3,4)</box> here"},
        {"from": "user", "value": "Picture 2: <img>b.jpg</img>\n"},
        {"from": "assistant", "value": "<ref>STOP</ref><quad>(0,0),(9,1),(10,8),(1,7)</quad>"},
    ],
}
FINETUNE = {
    "image": ["a.png", "b.jpg"],
    "box_space": "processed_px",
    "conversations": [
        {"from": "human", "value": "<image><image>\nFind the dog."},
        {"from": "gpt", "value": '```json\n[\n\t{"bbox_2d": [3, 4.5, 30, 40], "label": "dog"}\n]\n```'},
    ],
}
SWIFT = {
    "messages": [
        {"role": "user", "content": "<image><image>Find the <ref-object>"},
        {"role": "assistant", "content": "<ref-object><bbox> and <bbox>"},
    ],
    "images": ["a.png", "b.jpg"],
    "objects": {"ref": ["sheep", "sheep"], "bbox": [[1, 2, 30, 40], [5.5, 6, 7, 8]], "image_id": [0, 1]},
}
GROUNDING = {"image": "a.png", "sent": "left dog", "bbox": [10, 20, 5, 6], "bbox_format": "xywh", "height": 40}
CAPTION = {"file_name": "a.png", "caption": "A dog on grass."}
PARTS = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": [{"type": "box", "box": {"corners": [1, 2, 3, 4], "space": "original_px"}}]},
    ]
}
DOG = [[image("a.png"), text("What is it?")], [text("A dog.")]]
CASES = {
    "llava": (LLAVA, DOG),
    "sharegpt": (
        SHAREGPT,
        [[text("Be brief.")], [image("a.png"), image("b.jpg"), text("Which is larger?\n")], [text("The second.")]],
    ),
    "qwen-vl": (
        QWEN,
        [
            [image("a.png"), text("Where is the "), {"type": "ref", "ref": "red car"}, text("?")],
            [box("red car", 10, 20, 300, 400), box("red car", 1, 2, 3, 4), text(" here")],
            [image("b.jpg")],
            [box("STOP", 0, 0, 10, 8, image=1, points=(0, 0, 9, 1, 10, 8, 1, 7))],
        ],
    ),
    "qwen-finetune": (
        FINETUNE,
        [
            [image("a.png"), image("b.jpg"), text("Find the dog.")],
            [box("dog", 3, 4.5, 30, 40, space=Space.PROCESSED_PX, image=1)],
        ],
    ),
    "swift": (
        SWIFT,
        [
            [image("a.png"), image("b.jpg"), text("Find the "), {"type": "ref", "ref": "sheep"}],
            [
                box("sheep", 1, 2, 30, 40, space=Space.ORIGINAL_PX),
                text(" and "),
                box("", 5.5, 6, 7, 8, space=Space.ORIGINAL_PX, image=1),
            ],
        ],
    ),
    "grounding": (
        GROUNDING,
        [
            [image("a.png"), {"type": "ref", "ref": "left dog"}],
            [box("left dog", 10, 20, 15, 26, space=Space.ORIGINAL_PX)],
        ],
    ),
    "caption": (CAPTION, [[image("a.png")], [text("A dog on grass.")]]),
    "messages": (PARTS, [[image("a.png"), text("?")], [box("", 1, 2, 3, 4, space=Space.ORIGINAL_PX)]]),
}


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    return path


def contents(sample: Sample, root: Path) -> list[list[dict]]:
    """Contents of all messages with paths from `root`."""

    def short(part: dict) -> dict:
        return {**part, "image": part["image"].removeprefix(f"{root}/")} if part["type"] == "image" else part

    return [[short(p) for p in m["content"]] for m in sample.messages]


def test_there_is_a_case_for_every_format() -> None:
    assert set(CASES) == {f.name for f in FORMATS}


@pytest.mark.parametrize("name", CASES)
def test_formats_are_found_by_content_and_read(name: str, tmp_path: Path) -> None:
    record, expected = CASES[name]
    path = write(tmp_path / "set.of_some_kind", record)
    assert found_format(open_rows(path)).name == name
    source = open_source(path)
    assert len(source) == 1 and source.name == "set"
    sample = source[0]
    assert contents(sample, tmp_path) == expected
    assert sample.id == str(record.get("id", 0)) and sample.where == "set.of_some_kind:1"


def test_tokens_of_qwen2_vl_are_boxes_in_any_conversation(tmp_path: Path) -> None:
    answer = "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(221,423),(569,886)<|box_end|> plays"
    record = {**LLAVA, "conversations": [LLAVA["conversations"][0], {"from": "gpt", "value": answer}]}
    sample = open_source(write(tmp_path / "x", record))[0]
    assert contents(sample, tmp_path)[1] == [box("a dog", 221, 423, 569, 886), text(" plays")]


def test_json_boxes_stay_words_until_their_space_is_stated(tmp_path: Path) -> None:
    record = {k: v for k, v in FINETUNE.items() if k != "box_space"}
    path = write(tmp_path / "x", record)
    assert not open_source(path)[0].boxes
    (found,) = open_source(path, space="relative_1000")[0].boxes
    assert (found.corners, found.space, found.image) == ((3, 4.5, 30, 40), R1000, 1)


def test_text_only_rows_and_packed_lists(tmp_path: Path) -> None:
    plain = {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}
    path = write(tmp_path / "x", [{**LLAVA, "id": "p"}, plain], plain, [plain])
    source = open_source(path)
    assert [source[i].where for i in range(4)] == ["x:1[0]", "x:1[1]", "x:2", "x:3[0]"]
    assert contents(source[1], tmp_path) == [[text("2 + 2?")], [text("4")]]


def test_parts_that_show_one_of_the_images(tmp_path: Path) -> None:
    shown = [{"type": "image", "index": 1, "text": None}, {"type": "image", "index": 0}, {"type": "text", "text": "?"}]
    record = {"messages": [{"role": "user", "content": shown}], "images": ["a.png", "b.jpg"]}
    source = open_source(
        write(tmp_path / "x", record, {**record, "images": ["a.png"]}, {**record, "images": ["c"] * 3})
    )
    assert contents(source[0], tmp_path) == [[image("b.jpg"), image("a.png"), text("?")]]
    with pytest.raises(DataError, match="a part shows image 1 of 1"):
        source[1]
    with pytest.raises(DataError, match="3 images but 2 parts that show one"):
        source[2]


def test_sources_go_to_other_processes(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x", LLAVA, LLAVA))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 (what multiprocessing does)
    assert [s.messages for s in again] == [s.messages for s in source]


def turn(value: str, speaker: str = "human") -> dict:
    return {"from": speaker, "value": value}


@pytest.mark.parametrize(
    ("record", "words", "kind"),
    [
        ({**LLAVA, "imgae": "b"}, "unknown key 'imgae'; did you mean 'image'", "unknown key"),
        ({**LLAVA, "image": ["a.png", "b.jpg"]}, "2 images but 1 placeholders <image>; add or drop", "placeholders"),
        ({**LLAVA, "conversations": [turn("hi")]}, "1 images but no <image> in the text", "placeholders"),
        ({**LLAVA, "conversations": [turn("hi", "gtp")]}, "turn 0 is said by 'gtp'; did you mean 'gpt'", "role"),
        ({**LLAVA, "conversations": [{"from": "gpt", "val": ""}]}, "turn 0 has the keys 'from', 'val'", "unknown key"),
        ({**LLAVA, "conversations": [turn("<image><|box_start|>(1,2)<|box_end|>")]}, "is no box; expected 2", "box"),
        ({**LLAVA, "conversations": []}, "no turns", "broken record"),
        ({**SWIFT, "objects": {"ref": ["a"], "bbox": []}}, "more <ref-object> in the text", "placeholders"),
        ({**SWIFT, "objects": {**SWIFT["objects"], "ref": ["a"] * 3}}, "objects.ref has more entries", "placeholders"),
        ({**SWIFT, "objects": {**SWIFT["objects"], "norm": 1}}, "unknown key 'norm' in 'objects'", "unknown key"),
        ({**SWIFT, "objects": {**SWIFT["objects"], "bbox_type": "norm"}}, "bbox_type is 'norm'; expected", "box"),
        ({**SWIFT, "objects": {**SWIFT["objects"], "bbox": [[1, 2], [3, 4]]}}, "has a point", "box"),
        ({**GROUNDING, "bbox": [30, 20, 10, 40], "bbox_format": "xyxy"}, "left > right", "box inverted"),
        ({**GROUNDING, "bbox": [30, 20, 10]}, "expected 4 numbers", "box"),
        ({**GROUNDING, "expression": "two of them"}, "say the same thing", "unknown key"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_named_error(record: dict, words: str, kind: str, tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "set.jsonl", GROUNDING if "sent" in record else LLAVA, record),
                         format=None if "objects" not in record else "swift")  # fmt: skip
    with pytest.raises(DataError) as caught:
        source[1]
    assert words in str(caught.value) and caught.value.kind == kind
    assert str(caught.value).startswith(f"set.jsonl:2 (id '{record.get('id', 1)}'): ")


def test_further_keys_are_carried_along_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {**LLAVA, "score": 3, "source": "web"})
    with pytest.raises(DataError, match="keep="):
        open_source(path)[0]
    for keep in (["score"], "*"):
        assert open_source(path, keep=keep)[0].extra == {"score": 3, "source": "web"}


def test_folders_and_errors_of_opening(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    with pytest.raises(DataError, match="no file that ends in"):
        open_source(folder)
    write(folder / "1.jsonl", LLAVA, LLAVA)
    write(folder / "0.json", [LLAVA])
    assert [s.where for s in open_source(folder)] == ["0.json[0]", "1.jsonl:1", "1.jsonl:2"]
    with pytest.raises(DataError, match="cannot be opened"):
        open_source(tmp_path / "none")
    with pytest.raises(InputError, match="did you mean 'llava'"):
        open_source(folder / "0.json", format="lava")
    with pytest.raises(InputError, match="unknown space 'pixels'"):
        open_source(folder / "0.json", space="pixels")
    with pytest.raises(DataError, match=r"x:1 has the keys 'foo', which is no known format"):
        open_source(write(tmp_path / "x", {"foo": 1}))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.sampled_from(["<image>", "<bbox>", "<ref-object>", "<box>(1,2)</box>", "gpt", [[1, 2, 3, 4]], {"bytes": 3}]),
)  # fmt: skip


def changed(draw: st.DrawFn, value: object) -> object:
    """The value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 3)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], *([] if not draw(st.integers(0, 5)) else [changed(draw, value[at])]), *value[at + 1 :]]
    return draw(ODD)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(sorted(CASES)), st.booleans())
def test_odd_records_are_samples_or_named_errors(data: st.DataObject, name: str, mend: bool) -> None:
    record = data.draw(st.composite(lambda draw: changed(draw, CASES[name][0]))())
    if not isinstance(record, dict):
        return
    form = next(f for f in FORMATS if f.name == name)
    for other in FORMATS:
        assert other.fits(record) in (True, False)
    how = Settings(root="/r", space=Space.RELATIVE_1000, mend=mend)
    try:
        sample = form.read(Reading(row=Row(record=record, where="x:1"), number=0, set="x", settings=how))
    except DataError as error:
        assert str(error).startswith("x:1 (id ")
    else:
        assert sample.messages == normal(sample.messages)
