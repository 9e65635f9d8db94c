import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from causal_tune.errors import IndexingError
from causal_tune.images.index import (
    INDEX_SCHEMA,
    INDEX_VERSION,
    GeneratorCounts,
    counts,
    generators,
    index_sha256,
    read_index,
    skipped_files,
    summarise,
    with_skipped,
    write_index,
)


def row(path="/d/a.png", label=0, generator="g", split="", sha256="ab", width=8, **other):
    facts = {"height": 8, "format": "PNG", "jpeg_quality": None, "mode": "RGB", "bytes": 9}
    return {
        "path": path, "label": label, "generator": generator, "split": split,
        "width": width, **facts, "sha256": sha256, **other,
    }  # fmt: skip


def index(*rows):
    return pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)


ROWS = [
    row("/d/a.png", 0, "adm", "train"),
    row("/d/b.png", 1, "adm", "train"),
    row("/d/c.png", 1, "adm", "train", width=None, sha256=None),
    row("/d/d.png", 0, "adm", "val"),
    row("/d/e.png", 1, "sd14", ""),
]


def refused(path):
    with pytest.raises(IndexingError) as caught:
        read_index(path)
    return str(caught.value)


def test_round_trip(tmp_path):
    table = with_skipped(index(*ROWS), {".txt": 3, "hidden": 1})
    path = tmp_path / "new folder" / "index.parquet"
    write_index(table, path)
    again = read_index(path)
    assert again.equals(table)
    assert again.schema.equals(INDEX_SCHEMA)
    assert skipped_files(again) == {".txt": 3, "hidden": 1}
    assert index_sha256(again) == index_sha256(table)
    assert [file.name for file in path.parent.iterdir()] == ["index.parquet"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_index(index(*ROWS), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "index.parquet"
    write_index(index(*ROWS), path)
    before = path.read_bytes()
    with pytest.raises(IndexingError, match="no column sha256"):
        write_index(index(*ROWS).drop_columns("sha256"), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_plain_parquet_readers_see_the_columns(tmp_path):
    write_index(index(*ROWS), tmp_path / "i.parquet")
    assert pq.read_table(tmp_path / "i.parquet")["generator"].to_pylist() == ["adm"] * 4 + ["sd14"]


def test_counts_and_generators_and_summary():
    table = index(*ROWS)
    assert generators(table) == ["adm", "sd14"]
    assert counts(table) == [
        GeneratorCounts(generator="adm", split="train", num_real=1, num_generated=2, num_unreadable=1),
        GeneratorCounts(generator="adm", split="val", num_real=1, num_generated=0, num_unreadable=0),
        GeneratorCounts(generator="sd14", split="", num_real=0, num_generated=1, num_unreadable=0),
    ]
    assert summarise(table) == "5 images of 2 generators: 2 real, 3 generated; 1 unreadable"
    assert summarise(with_skipped(table, {".txt": 1200})).endswith("; skipped 1,200 (1,200 .txt)")


def test_hash_sees_content_labels_and_order_but_not_paths():
    first = index_sha256(index(*ROWS))
    moved = [{**r, "path": r["path"].replace("/d/", "/elsewhere/")} for r in ROWS]
    assert index_sha256(index(*moved)) == first
    for column, value in (("sha256", "cd"), ("label", 1), ("generator", "other"), ("split", "test")):
        assert index_sha256(index({**ROWS[0], column: value}, *ROWS[1:])) != first
    assert index_sha256(index(*ROWS[::-1])) != first
    assert index_sha256(index(*ROWS[:-1])) != first


def test_hash_does_not_depend_on_chunks():
    table = index(*ROWS)
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert index_sha256(chunked) == index_sha256(table)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a0", "b"), ("a", "0b")),
        ((None, "b"), ("None", "b")),
        ((None, "b"), ("null", "b")),
        (("a", "\n"), ("a", "")),
    ],
)
def test_hash_keeps_neighbouring_values_and_nulls_apart(one, other):
    hashes = {
        index_sha256(index(row(sha256=sha256, generator=generator))) for sha256, generator in (one, other)
    }
    assert len(hashes) == 2


def test_missing_file_and_folder(tmp_path):
    assert "There is no index" in refused(tmp_path / "gone.parquet")
    assert "causal-tune index ROOT" in refused(tmp_path / "gone.parquet")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"path,label\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_no_parquet(tmp_path, data):
    (tmp_path / "i.parquet").write_bytes(data)
    assert "cannot be read as Parquet" in refused(tmp_path / "i.parquet")


def test_any_truncation_or_damage_is_one_error(tmp_path):
    write_index(index(*ROWS), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut").write_bytes(whole[:length])
        assert "cannot be read as Parquet" in refused(tmp_path / "cut")


def write_parquet(table, path):
    pq.write_table(table, path)
    return path


def test_other_parquet_missing_column_and_newer_version(tmp_path):
    table = index(*ROWS)
    path = tmp_path / "i.parquet"
    assert "not an image index" in refused(write_parquet(table.replace_schema_metadata(None), path))
    assert "no column split, mode" in refused(write_parquet(table.drop_columns(["split", "mode"]), path))
    newer = {**table.schema.metadata, b"causal_tune.index.version": str(INDEX_VERSION + 1).encode()}
    text = refused(write_parquet(table.replace_schema_metadata(newer), path))
    assert f"index format {INDEX_VERSION + 1}" in text
    assert "Upgrade causal-tune" in text


@pytest.mark.parametrize(
    ("column", "values", "part"),
    [
        ("label", pa.array([0, 1, 2, 0, 0], pa.int8()), "label 2"),
        ("label", pa.array(["real"] * 5), "does not have the columns"),
        ("label", pa.array([0, None, 1, 0, 0], pa.int8()), "does not have the columns"),
        ("split", pa.array(["dev"] * 5), "split 'dev'"),
        ("width", pa.array([2**40] * 5), "does not have the columns"),
    ],
)
def test_wrong_values(tmp_path, column, values, part):
    table = index(*ROWS)
    position = table.schema.get_field_index(column)
    table = table.set_column(position, column, values).replace_schema_metadata(table.schema.metadata)
    assert part in refused(write_parquet(table, tmp_path / "i.parquet"))


def test_extra_columns_and_large_strings_are_accepted(tmp_path):
    table = index(*ROWS).append_column("note", pa.array(["x"] * 5))
    table = table.set_column(0, "path", table["path"].cast(pa.large_string()))
    again = read_index(
        write_parquet(table.replace_schema_metadata(INDEX_SCHEMA.metadata), tmp_path / "i.parquet")
    )
    assert again.column_names == INDEX_SCHEMA.names
    assert again.equals(index(*ROWS))


def test_metadata_is_json_that_others_can_read(tmp_path):
    write_index(with_skipped(index(*ROWS), {"hidden": 2}), tmp_path / "i.parquet")
    metadata = pq.read_schema(io.BytesIO((tmp_path / "i.parquet").read_bytes())).metadata
    assert metadata[b"causal_tune.index.version"] == b"1"
    assert json.loads(metadata[b"causal_tune.index.skipped"]) == {"hidden": 2}


def test_the_hash_of_an_index_is_that_of_its_rows_as_json() -> None:
    rows = [("ab12", 1, 'sd "1.4" é', "train"), (None, 0, "big\\gan\n", ""), ("ff", 1, 'sd "1.4" é', "val")]
    columns = dict(
        zip(("sha256", "label", "generator", "split"), map(list, zip(*rows, strict=True)), strict=True)
    )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    expected = hashlib.sha256(b"causal-tune index 1\n" + lines.encode()).hexdigest()
    assert index_sha256(pa.table(columns)) == expected
