"""The command on images of its own making: what it prints, writes, and ends with."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from causal_tune.audit.findings import AUDIT_VERSION, audit_summary
from causal_tune.audit.run import audit_index
from causal_tune.cli.audit import show_findings
from causal_tune.features import FeatureStore, StoreSpec, finish_store, shard_path, shard_ranges, write_shard
from causal_tune.images.index import index_sha256, read_index, with_skipped, write_index
from tests.audit.rows import fair_rows, index_of, row
from tests.conftest import draw, run_cli

HOSTILE = "0<img src=x onerror=alert(1)>&\"'.png"


@pytest.fixture(scope="module")
def genimage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree as GenImage unpacks, with its JPEG against PNG, and with planted mistakes."""
    root = tmp_path_factory.mktemp("data") / "GenImage"
    rng = np.random.default_rng(0)
    for generator, size in (("BigGAN", 128), ("stable_diffusion_v_1_4", 240)):
        for split, number in (("train", 22), ("val", 12)):
            for kind in ("ai", "nature"):
                folder = root / generator / split / kind
                folder.mkdir(parents=True)
                for place in range(number):
                    picture = draw(
                        int(rng.integers(2**31)), kind == "ai", size if kind == "ai" else 230 + place
                    )
                    name = f"{place}.png" if kind == "ai" else f"ILSVRC2012_val_{place:08d}.JPEG"
                    picture.save(folder / name, **({} if kind == "ai" else {"quality": 96}))
    sd14, judged = root / "stable_diffusion_v_1_4", root / "BigGAN" / "val"
    shutil.copy(sd14 / "train/nature/ILSVRC2012_val_00000000.JPEG", judged / "nature/copy.JPEG")
    shutil.copy(sd14 / "train/ai/5.png", sd14 / "train/nature/wrong.png")
    with Image.open(sd14 / "train/nature/ILSVRC2012_val_00000001.JPEG") as photograph:
        photograph.save(judged / "nature/again.JPEG", quality=60)
    (judged / "ai/0.png").rename(judged / "ai" / HOSTILE)
    cut = sd14 / "val/ai" / HOSTILE
    cut.write_bytes((sd14 / "val/ai/1.png").read_bytes()[:2000])
    Path(os.fsdecode(bytes(sd14 / "val/ai") + b"/caf\xe9.png")).write_bytes(b"x")
    return root


@pytest.fixture(scope="module")
def written(genimage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("audit") / "out"
    result = run_cli(
        "audit", genimage, "--layout", "genimage", "--train-generator", "sd14", "--decode", "-o", output
    )
    assert result.exit_code == 0
    return output


def test_every_planted_mistake_is_found_and_named(written: Path) -> None:
    document = json.loads((written / "audit.json").read_text())
    assert document["version"] == AUDIT_VERSION
    found = {item["kind"]: item for item in document["findings"] if item["severity"] == "finding"}
    assert sorted(found) == ["bias", "both_labels", "leak", "near_leak", "unreadable"]
    assert "sd14/train and biggan/val (1)" in found["leak"]["what"]
    assert "sd14/train and biggan/val (1)" in found["near_leak"]["what"]
    assert {Path(image["path"]).name for image in found["near_leak"]["examples"][0]} == {
        "again.JPEG",
        "ILSVRC2012_val_00000001.JPEG",
    }
    assert {image["label"] for image in found["both_labels"]["examples"][0]} == {0, 1}
    assert document["unreadable"] == {"truncated PNG: the image data ends early": 1}
    assert document["skipped"] == {"name is not UTF-8": 1}
    assert sum(item["num_images"] for item in document["counts"]) == document["num_images"]


def test_the_jpeg_against_png_trap_is_told_in_words(written: Path) -> None:
    document = json.loads((written / "audit.json").read_text())
    told = {item["subject"]: item for item in document["findings"] if item["kind"] == "bias"}
    assert sorted(told) == ["biggan", "sd14"]
    for item in told.values():
        assert re.search(
            r"(all|9\d% of) 3\d real images are JPEG, all 3\d generated ones are PNG", item["what"]
        )
        assert "by the file format" in item["what"]
        assert "causal-tune extract ... --recompress 90" in item["next_step"]
    assert "no real image, all 34 generated images" in told["biggan"]["what"]
    assert "No window of sizes mends the resizing" in told["biggan"]["next_step"]
    assert "resized" not in told["sd14"]["what"]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_self_contained_and_escapes_names(written: Path) -> None:
    text = (written / "audit.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert HOSTILE in page.words
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    sources = [
        attributes[name]
        for _, attributes in page.tags
        for name in attributes
        if name in ("src", "href", "onerror")
    ]
    assert len(sources) == len(pictures) > 0
    named = {
        image["path"]
        for item in json.loads((written / "audit.json").read_text())["findings"]
        for group in item["examples"]
        for image in group
    }
    assert {one["alt"] for one in pictures} <= named
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert max(picture.size) <= 160
    assert "http" not in text
    for item in json.loads((written / "audit.json").read_text())["findings"]:
        assert item["what"].replace("`", "") in page.words


def test_strict_exits_with_1_on_findings_and_0_without(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.parquet", tmp_path / "good.parquet"
    write_index(index_of(fair_rows(0, 30)), good)
    write_index(index_of([*fair_rows(0, 30), row("x", 0, split="train"), row("x", 1, split="test")]), bad)
    assert run_cli("audit", bad).exit_code == 0
    result = run_cli("audit", bad, "--strict")
    assert result.exit_code == 1
    assert "The audit has 1 finding; --strict allows none" in " ".join(result.output.split())
    assert run_cli("audit", good, "--strict").exit_code == 0


def test_json_is_one_document_and_the_terminal_begins_with_findings(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    write_index(index_of([*fair_rows(0, 30), row("x", 0, split="train"), row("x", 1, split="test")]), path)
    document = json.loads(run_cli("audit", path, "--json").stdout)
    assert (document["version"], document["source"]) == (AUDIT_VERSION, str(path))
    assert [item["severity"] for item in document["findings"]] == ["finding", "note"]
    shown = run_cli("audit", path).stdout
    assert shown.index("Finding:") < shown.index("Note:") < shown.index("Images")
    assert shown.count("Next: ") == 2


def test_files_left_out_by_choice_are_told_from_those_that_are_no_images() -> None:
    index = with_skipped(index_of(fair_rows(0, 20)), {"beyond the limit of 20": 1, ".txt": 2, "excluded": 3})
    found = [item for item in audit_index(index).findings if item.kind == "skipped"]
    assert [item.what for item in found] == [
        "2 files under the roots are no image of the index: .txt (2).",
        "4 images were left out by the options of the index: beyond the limit of 20 (1), excluded (3).",
    ]
    assert ["Rename" in item.next_step for item in found] == [True, False]


def test_mistakes_say_what_to_type(tmp_path: Path) -> None:
    index, table = tmp_path / "index.parquet", tmp_path / "images.csv"
    write_index(index_of(fair_rows(0, 20)), index)
    table.write_text("path,label,generator\nx.png,real,g\n")
    pq.write_table(pa.table({"path": ["x.png"]}), tmp_path / "list.parquet")
    for words, expected in (
        ((table,), "None of the 1 files"),
        ((tmp_path / "nothing",), "nothing"),
        ((index, "--layout", "csv"), "is an index already"),
        ((tmp_path / "none.parquet",), "There is no index"),
        ((tmp_path / "list.parquet",), "has no column label, generator"),
        ((index, "--store", tmp_path / "none"), "There is no feature store"),
        ((index, "--train-generator", "sd9"), "No generator is called 'sd9' in this index. There are: g."),
    ):
        result = run_cli("audit", *words)
        assert result.exit_code == 2, result.output
        assert expected in " ".join(result.output.split())


def test_names_that_are_not_utf8_can_be_printed_and_written(tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"
    write_index(index_of([*fair_rows(0, 20), row("x", 0), row("x", 1)]), index)
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(index, folder / "index.parquet")
    result = run_cli("audit", folder / "index.parquet", "-o", folder / "out")
    assert result.exit_code == 0
    assert r"caf\udce9" in result.stdout
    assert r"caf\udce9" in (folder / "out" / "audit.html").read_text(encoding="utf-8")
    result = run_cli("audit", folder, "--layout", "folders")
    assert result.exit_code == 2
    assert "is not UTF-8" in result.output


# --- with the features of a store ------------------------------------------------------------------------


def rows_with_copies() -> list[dict[str, object]]:
    """40 images that train and 40 that judge; image 41 nearly has the features of image 1, image 79 is broken."""
    rows = fair_rows(0, 40)
    for place, item in enumerate(rows):
        item["split"] = "train" if place < 40 else "test"
    return rows


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    index = index_of(rows_with_copies())
    write_index(index, tmp_path / "index.parquet")
    features = np.random.default_rng(0).normal(size=(80, 16)).astype(np.float32)
    features[41] = 3 * features[1] + 0.01
    path = tmp_path / "store"
    spec = StoreSpec(encoder={}, preprocessing="p", index_sha256=index_sha256(index), num_indexed=80)
    reason = "truncated JPEG: 1,234 bytes, the image data ends early"
    for shard, members in enumerate(shard_ranges(80)):
        kept = [number for number in members if number != 79]
        rows = index.take(pa.array(kept)).append_column("row", pa.array(kept, pa.int64()))
        bad = [{"path": index["path"][79].as_py(), "reason": reason}] if 79 in members else []
        write_shard(shard_path(path, shard), rows, {"proj": features[kept]}, bad)
    return finish_store(path, spec)


def test_a_store_gives_near_copies_and_the_reasons_of_its_quarantine(
    store: FeatureStore, tmp_path: Path
) -> None:
    result = run_cli("audit", tmp_path / "index.parquet", "--store", store.path, "--json")
    document = json.loads(result.stdout)
    found = [item for item in document["findings"] if item["severity"] == "finding"]
    assert [item["kind"] for item in found] == ["near_leak", "unreadable"]
    index = read_index(tmp_path / "index.parquet")
    paths = {index["path"][place].as_py() for place in (1, 41)}
    assert {image["path"] for image in found[0]["examples"][0]} == paths
    assert document["unreadable"] == {"truncated JPEG: the image data ends early": 1}
    (cosine,) = (item for item in document["matches"] if item["method"] == "cosine")
    assert (cosine["num_compared"], cosine["num_groups"], cosine["threshold"]) == (79, 1, 0.999)


def test_more_images_than_are_compared_is_said(store: FeatureStore, tmp_path: Path) -> None:
    words = ("audit", tmp_path / "index.parquet", "--store", store.path, "--max-compared", 78)
    assert "Features were not compared: 79 distinct images" in run_cli(*words).stdout
    assert [item["method"] for item in json.loads(run_cli(*words, "--json").stdout)["matches"]] == ["sha256"]


def test_a_store_of_other_images_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    write_index(index_of(fair_rows(5, 40)), other)
    result = run_cli("audit", other, "--store", store.path)
    assert result.exit_code == 2
    assert "was made from other images than this index" in " ".join(result.output.split())


# --- in a job --------------------------------------------------------------------------------------------


def test_a_job_tells_findings_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"{name}{place}", 1, name) for name in "abcdef" for place in range(3)]
    audit = audit_index(index_of(rows))
    show_findings(audit, "causal-tune audit INDEX", most=4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("Audit: a has 3 generated images and no real one")
    assert lines[-1] == "  2 more findings, and what to do about them: causal-tune audit INDEX"
    summary = audit_summary(audit, most=2)
    assert (summary["num_images"], summary["num_findings"], len(summary["findings"])) == (18, 6, 6)
    assert summary["markdown"].endswith("- and 4 more.")
    show_findings(audit_index(index_of([row("a", 0), row("b", 1)])), "x")
    assert capsys.readouterr().err == ""
