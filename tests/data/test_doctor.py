"""A sound set is sound; every illness is found, told, and mended where that can be done."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.core.box import Box, Space
from foveal.core.errors import InputError
from foveal.core.media import MediaBudget
from foveal.data.boxes import turned_box
from foveal.data.checks import KINDS, Settings
from foveal.data.doctor import Examination, Report
from foveal.data.formats import open_source
from foveal.data.repair import repair
from foveal.families.describe import describe, folder_of
from foveal.processing.media import image_size, open_image


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Coarse noise, so that prints differ between seeds and last through compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def record(image: str | None, answer: str = "A dog.", **more: object) -> dict:
    place = "<image>\n" if image else ""
    turns = [{"from": "human", "value": f"{place}What is it?"}, {"from": "gpt", "value": answer}]
    return {**({"image": image} if image else {}), "conversations": turns, **more}


def swift(image: str, *boxes: list[float], **objects: object) -> dict:
    said = "<ref-object><bbox>" * len(boxes)
    messages = [{"role": "user", "content": "<image>Find it."}, {"role": "assistant", "content": said}]
    return {
        "messages": messages, "images": [image], "objects": {"ref": ["it"] * len(boxes), "bbox": list(boxes), **objects}
    }  # fmt: skip


def written(folder: Path, records: list, name: str = "set.jsonl") -> Path:
    (folder / name).write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return folder / name


def examined(path: Path, other: Path | None = None, **settings: object) -> Report:
    against = None if other is None else open_source(other)
    examination = Examination(open_source(path), Settings(workers=2, **settings), against)
    list(examination.each())
    return examination.report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(6):
        picture(seed).save(tmp_path / f"{seed}.png")
    return tmp_path


def test_a_sound_set(folder: Path) -> None:
    # One picture may be asked about in several ways.
    rows = [record(f"{i}.png") for i in range(4)] + [record("0.png", "A cat."), record(None, "4")]
    report = examined(written(folder, rows))
    assert not report.findings
    assert (report.samples, report.media, report.boxes, report.errors) == (6, 5, 0, 0)


def ill(folder: Path) -> list[tuple[dict | str, str]]:
    """Records with what is wrong with each; "" for those that are sound."""
    (folder / "text.png").write_text("no picture")
    whole = (folder / "1.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return [
        (record("0.png"), ""),
        ("{", "broken record"),
        (record("1.png", "Yes.", score=1), "unknown key"),
        (record("1.png", id=0), "id"),
        ({**record("2.png"), "image": ["2.png", "3.png"]}, "placeholders"),
        ({**record(None, "None."), "image": "2.png"}, "placeholders"),
        (record("3.png", "  "), "no answer"),
        (record("none.png"), "missing medium"),
        (record("https://x.org/a.png"), "missing medium"),
        (record("text.png"), "damaged medium"),
        (record("cut.png"), "damaged medium"),
        (record("4.png", "<|box_start|>(1,2)<|box_end|>"), "box"),
        (record("4.png", "<|box_start|>(9,2),(3,4)<|box_end|>"), "box inverted"),
        (record("4.png", "<|box_start|>(900,900),(1001,999)<|box_end|>"), "box past the edge"),
        (record("4.png", "<|box_start|>(1100,900),(1200,999)<|box_end|>"), "box past the edge"),
        (record("4.png", "<|box_start|>(9,9),(9,99)<|box_end|>"), "box without area"),
        (record("5.png", "Say <|im_end|>"), "marks of a chat format"),
        (record("0.png"), "duplicate"),
        (record(None, "Hi."), ""),
        (record(None, "Hi!"), "duplicate"),
    ]


def test_every_illness_is_found_and_mended(folder: Path) -> None:
    rows = ill(folder)
    path = written(folder, [r for r, _ in rows])
    before = path.read_bytes()
    examination = Examination(open_source(path), Settings(workers=2))
    fixed = repair(examination, folder / "out" / "clean.jsonl")
    report = examination.report
    found = {(f.kind, f.where.rpartition(":")[2]) for f in report.findings if f.kind != "broken record"}
    expected = {(kind, str(i)) for i, (_, kind) in enumerate(rows, start=1) if kind and kind != "broken record"}
    assert found == expected
    assert report.counts["broken record"] == 1 and report.samples == len(rows)
    assert report.errors == sum(KINDS[kind][0] == "error" for _, kind in rows if kind)
    assert path.read_bytes() == before
    # What is left is sound, and what was dropped is told.
    clean = examined(fixed.written.target)
    assert set(clean.counts) == {"box without area", "marks of a chat format"}
    assert clean.samples == fixed.written.samples == len(rows) - len(fixed.dropped)
    kinds = sorted(why.partition(":")[0] for _, why in fixed.dropped)
    assert kinds == [
        "box", "box past the edge", "broken record", "damaged medium", "damaged medium", "duplicate", "duplicate",
        "missing medium", "missing medium", "no answer", "placeholders",
    ]  # fmt: skip
    boxes = [b.corners for s in open_source(fixed.written.target) for b in s.boxes]
    assert boxes == [(3, 2, 9, 4), (900, 900, 1000, 999), (9, 9, 9, 99)]
    assert (folder / "out" / "clean.media").is_dir()
    with pytest.raises(InputError, match="nothing is written over"):
        repair(Examination(open_source(path), Settings()), path)


def exif(path: Path, image: Image.Image, turn: int) -> None:
    info = Image.Exif()
    info[0x0112] = turn
    image.save(path, "PNG", exif=info)


@pytest.mark.parametrize("turn", range(2, 9))
def test_boxes_turn_with_their_pictures(turn: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:12, 20:50] = 255
    file = io.BytesIO()
    exif(file, Image.fromarray(pixels), turn)
    box = Box(label="x", corners=(20, 5, 50, 12), space=Space.ORIGINAL_PX)
    upright = np.asarray(open_image(file.getvalue(), budget=MediaBudget()))
    rows, columns = np.nonzero(upright[..., 0])
    assert turned_box(box, turn, (60, 40)).corners == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_pictures_that_exif_turns(folder: Path) -> None:
    exif(folder / "turned.png", picture(7), 6)  # stored 64 x 48, seen 48 x 64
    path = written(folder, [swift("turned.png", [50, 10, 60, 20]), swift("turned.png", [10, 50, 20, 60])])
    examination = Examination(open_source(path), Settings(workers=1))
    fixed = repair(examination, folder / "clean.jsonl")
    assert examination.report.counts == {"turned by EXIF": 2, "box of the unturned picture": 1}
    clean = open_source(fixed.written.target)
    assert [b.corners for s in clean for b in s.boxes] == [(28, 50, 38, 60), (10, 50, 20, 60)]
    stored = [image_size(s.media[0]["image"], budget=MediaBudget()) for s in clean]
    assert stored == [((48, 64), 1)] * 2
    assert not examined(fixed.written.target).findings


def test_suspicious_spaces(folder: Path) -> None:
    def kinds(*rows: dict) -> dict[str, int]:
        return examined(written(folder, list(rows))).counts

    Image.new("RGB", (1500, 1400), "red").save(folder / "large.png")
    random = np.random.default_rng(3)

    def rows(name: str, high: float, **objects: object) -> list[dict]:
        made = [sorted(v) for v in random.uniform(high / 3, high, (6, 2)).tolist()]
        return [swift(name, [a, a, b, b], **objects) for a, b in made]

    assert kinds(*rows("0.png", 48)) == {}
    assert kinds(*rows("0.png", 1)) == {"wrong space suspected": 1}
    assert kinds(*rows("large.png", 1000)) == {"wrong space suspected": 1}
    assert kinds(*rows("large.png", 1000), swift("large.png", [9, 9, 1300, 1300])) == {}
    small = kinds(*[swift("0.png", [9, 9, 700, 900 + i]) for i in range(6)])
    assert small == {"box past the edge": 6, "wrong space suspected": 1}
    assert kinds(*[swift("0.png", [1, 1, 40, 45 + i / 9], bbox_type="norm1") for i in range(6)]) == {
        "box past the edge": 6, "wrong space suspected": 1,
    }  # fmt: skip
    words = '[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]'
    assert kinds(record("0.png", words), record("1.png", words)) == {"boxes are words": 1}


def test_near_duplicates_and_leaks(folder: Path) -> None:
    for seed in (0, 1):
        picture(seed).resize((50, 38)).save(folder / f"{seed}.jpg", quality=75)
    rows = [record("0.png"), record("0.jpg"), record("0.jpg", "Something else."), record("2.png")]
    report = examined(written(folder, rows))
    assert [(f.kind, f.sample) for f in report.findings] == [("near duplicate", "1")]
    assert "'0' (set.jsonl:1)" in report.findings[0].message
    test = written(folder, [record("1.jpg"), record("0.png", "?"), record(None, "Hello.")], "test.jsonl")
    rows = [record("1.png"), record("0.png"), record("2.png"), record(None, "hello"), record(None, "Good bye.")]
    report = examined(written(folder, rows), test)
    assert [(f.kind, f.sample) for f in report.findings] == [("leak", "0"), ("leak", "1"), ("leak", "3")]
    assert report.findings[0].message == "a picture is nearly that of '0' of 'test' (test.jsonl:1)."
    assert report.findings[1].message == "a picture is that of '1' of 'test' (test.jsonl:2)."


def test_tokens_are_counted_by_the_family(folder: Path) -> None:
    processor = describe(folder_of(None, weights=False)).processor
    rows = [record("0.png"), record("1.png", "A dog. " * 20), record("2.png", "dog " * 3000)]
    path = written(folder, rows)
    report = examined(path, processor=processor)
    assert [(f.kind, f.sample) for f in report.findings] == [("too long", "2")]
    exact = [len(processor.process(list(s.messages), generate=False).tokens) for s in list(open_source(path))[:2]]
    assert report.longest_tokens == max(exact)
    report = examined(path, processor=processor, max_tokens=max(exact) - 1)
    assert [f.sample for f in report.findings] == ["1", "2"]
    assert report.findings[0].message == f"it has {max(exact)} tokens, {max(exact) - 1} are allowed."


def test_every_format_is_taken_by_a_model(folder: Path) -> None:
    processor = describe(folder_of(None, weights=False)).processor
    grounding = {"image": "0.png", "expression": "the dog", "boxes": [[1, 2, 30, 40], [5, 6, 7, 8]]}
    tags = [
        {"from": "user", "value": "Picture 1: <img>1.png</img>\nIs the <ref>dog</ref> there?"},
        {"from": "assistant", "value": "<ref>dog</ref><box>(10,20),(300,400)</box>"},
    ]
    fine = [{"from": "human", "value": "<image>\nFind it."}, {"from": "gpt", "value": '{"bbox_2d": [1, 2, 20, 30]}'}]
    for row in (
        grounding,
        {"conversations": tags},
        swift("2.png", [1, 2, 3, 4]),
        {"image": "3.png", "conversations": fine, "box_space": "processed_px"},
        {"image": "4.png", "caption": "A dog."},
    ):
        report = examined(written(folder, [row]), processor=processor)
        assert not report.findings and report.longest_tokens
