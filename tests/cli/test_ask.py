"""`foveal ask`: answers, conversations, JSON, and one clear line for whatever a user gets wrong."""

import io
import json
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from foveal.cli.main import main


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "street.png"
    Image.new("RGB", (320, 240), "teal").save(path)
    return str(path)


BICYCLE = [
    "<|object_ref_start|>",
    "bicycle",
    "<|object_ref_end|>",
    "<|box_start|>",
    "(250,250),(750,500)",
    "<|box_end|>",
]


def test_one_question(folder, picture, capsys, talking, tmp_path):
    talking(["A ", *BICYCLE])
    drawn = tmp_path / "found.png"
    assert main(["ask", "-m", str(folder), "-i", picture, "Find every bicycle.", "--draw", str(drawn)]) == 0
    out, err = capsys.readouterr()
    assert out == "A bicycle\n  bicycle: (80, 60) to (240, 120) px\n"
    assert err == ""
    assert (np.asarray(Image.open(drawn)) != np.asarray(Image.open(picture))).any()


def test_json_for_programs(folder, picture, capsys, talking):
    talking(BICYCLE)
    assert main(["ask", "-m", str(folder), "-i", picture, "-i", picture, "Where?", "--json", "--max-tokens", "50"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == "bicycle"
    assert told["boxes"][0] == {
        "label": "bicycle",
        "box_px": [80.0, 60.0, 240.0, 120.0],
        "image": 1,
        "processed_size": [308, 252],
        "flags": [],
    }
    assert [m["original_size"] for m in told["media"]] == [[320, 240]] * 2
    assert told["sampling"]["max_tokens"] == 50


def test_a_conversation(folder, picture, capsys, monkeypatch, talking):
    talking(["one"])
    monkeypatch.setattr("sys.stdin", io.StringIO("What is in this picture?\nAnd on the left?\n\nnever read\n"))
    assert main(["ask", "-m", str(folder), "-i", picture, "--system", "You are a helpful assistant."]) == 0
    assert capsys.readouterr().out == "one\n\n"


def test_video(folder, tmp_path, capsys, talking):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    talking(["two"])
    assert main(["ask", "-m", str(folder), "--video", str(path), "--fps", "5", "How many?", "--json"]) == 0
    (medium,) = json.loads(capsys.readouterr().out)["media"]
    assert medium["kind"] == "video"
    assert len(medium["times_s"]) == 10


def bad_files(tmp_path):
    good = io.BytesIO()
    Image.effect_noise((200, 200), 50).convert("RGB").save(good, "JPEG")
    ihdr = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        bomb += len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    contents = {
        "text.jpg": b"This is no picture at all.",
        "empty.jpg": b"",
        "cut.jpg": good.getvalue()[: len(good.getvalue()) // 2],
        "bomb.png": bomb,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGB", (3000, 3)).save(tmp_path / "thin.png")
    (tmp_path / "folder.png").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jpg", "missing.jpg"),
        ("text.jpg", "text.jpg"),
        ("empty.jpg", "empty"),
        ("cut.jpg", "cut.jpg"),
        ("bomb.png", "60000 x 60000"),
        ("thin.png", "200"),
        ("folder.png", "folder.png"),
        ("https://example.com/a.jpg", "remote"),
    ],
)
def test_bad_pictures(folder, tmp_path, capsys, name, message):
    bad_files(tmp_path)
    source = name if "://" in name else str(tmp_path / name)
    fails(capsys, ["ask", "-m", str(folder), "-i", source, "What?", "--draw", str(tmp_path / "out.png")], message)
    assert not (tmp_path / "out.png").exists()
    assert not list(tmp_path.glob("*.part"))


def test_one_pixel_is_a_picture(folder, tmp_path, capsys, talking):
    talking(["one"])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert main(["ask", "-m", str(folder), "-i", str(tmp_path / "dot.png"), "What?"]) == 0


def test_bad_videos(folder, tmp_path, capsys):
    (tmp_path / "text.mp4").write_bytes(b"no video")
    fails(capsys, ["ask", "-m", str(folder), "--video", str(tmp_path / "text.mp4"), "What?"], "text.mp4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "--imgae", "x.png", "What?"], "unknown option --imgae; did you mean '--image'"),
        (["aks"], "unknown command 'aks'; did you mean 'ask'"),
        (["ask", "--temperature", "hot", "What?"], "--temperature"),
        (["ask", "--temperature", "-1", "What?"], "temperature is -1.0; expected 0 or more"),
        (["ask", "--max-tokens", "999999", "What?"], "pass the context of 4096"),
        (["ask", ""], "the question is empty"),
        (["ask", "--draw", "out.xyz", "-i", "PICTURE", "What?"], "unknown ending"),
        (["ask", "--draw", "out.png"], "--draw needs a question"),
        (["ask", "--dtype", "int3", "What?"], "dtype 'int3'"),
        (["ask", "word " * 6000], "the model's context is 4096"),
    ],
)
def test_bad_options(folder, picture, capsys, words, message):
    words = [picture if w == "PICTURE" else w for w in words]
    if len(words) > 1:
        words += ["-m", str(folder)]
    fails(capsys, words, message)


@pytest.fixture
def broken(folder, tmp_path):
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    return copy


def test_truncated_weights(broken, capsys):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    fails(capsys, ["ask", "-m", str(broken), "What?"], "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing (model.norm.weight)"),
        (lambda t: t.update(surplus=t["model.norm.weight"].clone()), "surplus"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:-1].clone()}),
            "has shape [47], expected [48]",
        ),
        (lambda t: t.update({"model.norm.weight": t["model.norm.weight"].long()}), "stored as I64"),
    ],
)
def test_wrong_tensors(broken, capsys, change, message):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    change(tensors)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    fails(capsys, ["ask", "-m", str(broken), "What?"], message)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "gpt9"}, "unknown model_type 'gpt9'"), ({"text_config": 3}, "an object is expected")],
)
def test_wrong_configuration(broken, capsys, change, message):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change))
    fails(capsys, ["ask", "-m", str(broken), "What?"], message)


def fails(capsys, words, message):
    """One line on stderr that says `message`, nothing on stdout, exit status 2."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("foveal: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
