"""Rows by number, from whatever kind of file."""

import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.core.errors import MissingExtraError
from foveal.data.rows import DataError, open_rows

LEAF = st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"', "\\", '\\"', "}{", "[]", "]\n["])
VALUES = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8)
RECORDS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=5)


@given(RECORDS, st.sampled_from([None, 0, 3]), st.booleans(), st.booleans())
def test_json_rows(tmp_path_factory, records, indent, ascii_only, bom) -> None:
    folder = tmp_path_factory.getbasetemp()
    encoding = "utf-8-sig" if bom else "utf-8"

    def dumps(value, indent=None):
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace").decode()

    listed, lines = folder / "list", folder / "lines"
    listed.write_text(dumps(records, indent), encoding=encoding)
    lines.write_text("\n\n".join(map(dumps, records)) + "\n", encoding=encoding)
    wanted = [json.loads(dumps(r)) for r in records]
    for path, kind in ((listed, "json"), (lines, "jsonl")):
        rows = open_rows(path)
        assert rows.container == kind
        assert [rows[i].record for i in range(len(rows))] == wanted
    assert open_rows(lines)[len(records) - 1].where == f"lines:{2 * len(records) - 1}"


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_tar_rows(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "shard",
        {"x/000.jpg": b"J", "x/000.json": b'{"a": 1}', "x/001.seg.png": b"P", "x/001.txt": b" A dog.\n"},
    )
    rows = open_rows(path)
    assert (rows.container, len(rows)) == ("webdataset", 2)
    assert rows[0].record == {"a": 1, "id": "x/000"} and rows[0].files == {"jpg": b"J"}
    assert rows[1].record == {"caption": "A dog.", "id": "x/001"} and rows[1].files == {"seg.png": b"P"}
    assert rows[1].where == "shard:x/001"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "is neither JSON"),
        (gzip.compress(b"[]"), r"is compressed \(gzip\)"),
        (b'[{"a": 1}, {"b": ', "ends in the middle of its list, after 1 samples"),
        (b'[{"a": 1}] [{"a": 2}]', "more after the end of its list"),
    ],
)
def test_files_that_cannot_be_read(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_rows(tmp_path / "x")


def test_broken_rows_say_where(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"a": 1}\n{"a": \n{"a": "\xff"}\n')
    rows = open_rows(tmp_path / "x")
    assert rows[0].record == {"a": 1}
    with pytest.raises(DataError, match="x:2 is no JSON"):
        rows[1]
    with pytest.raises(DataError, match="x:3 is no UTF-8"):
        rows[2]
    (tmp_path / "y").write_bytes(b'{"a": 1}\n7\n')
    with pytest.raises(DataError, match="y:2 holds a JSON int"):
        open_rows(tmp_path / "y")[1]


def test_broken_shards_say_where(tmp_path: Path) -> None:
    twice = tar(tmp_path / "twice", {"0.jpg": b"1", "0.JPG": b"2"})
    with pytest.raises(DataError, match="two members of kind 'jpg'"):
        open_rows(twice)[0]
    whole = tar(tmp_path / "cut", {"0.json": b"{}", "0.bin": b"x" * 5000}).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:3000])
    with pytest.raises(DataError, match="cut"):
        open_rows(tmp_path / "cut")[0]


def test_parquet_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match="parquet files need pyarrow"):
        open_rows(tmp_path / "x")


def test_parquet_rows(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": i, "image": {"bytes": b"J%d" % i, "path": None}, "note": None if i % 2 else "n"} for i in range(10)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x", row_group_size=3)
    found = open_rows(tmp_path / "x")
    assert (found.container, len(found)) == ("parquet", 10)
    wanted = [{"id": i, "image": {"bytes": b"J%d" % i}} | ({} if i % 2 else {"note": "n"}) for i in range(10)]
    assert [found[i].record for i in reversed(range(10))] == wanted[::-1]
    (tmp_path / "cut").write_bytes(b"PAR1" + b"x" * 50)
    with pytest.raises(DataError, match="cut is a damaged parquet file"):
        open_rows(tmp_path / "cut")
