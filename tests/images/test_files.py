"""Images behind URIs, on a real S3 server: the same index, the same bytes, the same short reasons."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tune.errors import IndexingError, UnreadableImage
from causal_tune.images import files
from causal_tune.images.choice import Choice
from causal_tune.images.decode import decode_crop
from causal_tune.images.files import below, join, located, parent, read_image_bytes, relative_to
from causal_tune.images.index import index_sha256, origin, read_index, skipped_files
from causal_tune.images.isolated import isolated
from causal_tune.images.layouts import build_index
from causal_tune.images.pieces import decode_piece
from causal_tune.prediction import image_paths, predict
from tests.conftest import draw, run_cli
from tests.images.tasks import clean_task
from tests.images.trees import PNG, found, make, make_forensynths_test, make_genimage, make_univfd, refused
from tests.s3 import Server, serving


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("s3")
    with serving(root) as server, pytest.MonkeyPatch.context() as environment:
        (root / "bucket").mkdir()
        for key, value in server.environment.items():
            environment.setenv(key, value)
        yield server


@pytest.mark.parametrize("make_tree", [make_genimage, make_forensynths_test, make_univfd])
def test_the_index_of_a_bucket_is_the_index_of_its_files(s3, make_tree, request):
    name = f"bucket/{make_tree.__name__}"
    make_tree(s3.root / name, True) if make_tree is make_genimage else make_tree(s3.root / name)
    make(s3.root / name, "notes.txt", ".hidden/x.png")
    local, remote = build_index([s3.root / name]), build_index([s3.uri(name)])
    assert found(remote) == found(local)
    assert index_sha256(remote) == index_sha256(local)
    assert skipped_files(remote) == skipped_files(local)
    assert origin(remote)["notes"] == origin(local)["notes"]
    assert remote["width"].null_count == 0
    sample = Choice(limit=1)
    one, other = (build_index([root], choice=sample) for root in (s3.root / name, s3.uri(name)))
    assert index_sha256(one) == index_sha256(other)
    for row in remote.slice(0, 3).to_pylist():
        assert row["path"].startswith(f"s3://{name}/")
        assert row["path"].endswith(s3.query)
        decode_crop(read_image_bytes(row["path"]))


def test_odd_names(s3):
    names = ["a b.png", "100%.png", "a#b?c&d.png", "ünï 猫.png", "x+y.PNG", "%41.png"]
    make(s3.root / "bucket/odd", *(f"my gan/real/{name}" for name in names), "my gan/fake/f.png")
    table = build_index([s3.uri("bucket/odd")])
    assert found(table) == {("my gan", "", 0): len(names), ("my gan", "", 1): 1}
    assert table["width"].null_count == 0
    assert found(build_index([s3.uri("bucket/odd/my gan")])) == found(table)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_lists_in_a_bucket(s3, suffix, tmp_path):
    make(s3.root / "bucket/l", "images/r 1.png", "images/f.png")
    make(tmp_path, "local.png")
    rows = [
        ("../images/r 1.png", "real"),
        (s3.uri("bucket/l/images/f.png"), "g"),
        (str(tmp_path / "local.png"), "g"),
    ]
    make(s3.root / "bucket/l/lists", f"list.{suffix}")
    path = s3.root / f"bucket/l/lists/list.{suffix}"
    if suffix == "csv":
        path.write_text("filename,typ\n" + "".join(f"{name},{typ}\n" for name, typ in rows))
    else:
        pq.write_table(pa.table({"filename": [r[0] for r in rows], "typ": [r[1] for r in rows]}), path)
    table = build_index([s3.uri(f"bucket/l/lists/list.{suffix}")])
    assert found(table) == {("g", "", 0): 1, ("g", "", 1): 2}
    assert table["width"].null_count == 0


def test_reasons_are_those_of_local_files(s3, monkeypatch):
    make(s3.root / "bucket/r", "a.png", "folder/b.png")

    def reason(uri: str) -> str:
        with pytest.raises(UnreadableImage) as caught:
            read_image_bytes(uri)
        return str(caught.value)

    assert read_image_bytes(s3.uri("bucket/r/a.png")) == PNG
    assert reason(s3.uri("bucket/r/gone.png")) == "no such file"
    assert reason(s3.uri("bucket/r/folder")) == "a folder, not a file"
    assert reason(s3.uri("nowhere/a.png")) == "no such file"
    assert reason("s3://bucket/a.png?colour=red").startswith("cannot be read: Unexpected query parameter")
    assert len(reason("http://host/a.png")) < 400
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    assert reason(s3.uri("bucket/r/a.png")) == f"{len(PNG):,} bytes exceed the limit of 10"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    elsewhere = s3.query.replace("us-east-1", "eu-west-1")  # a connection is kept for each query
    assert reason(f"s3://bucket/r/a.png?{elsewhere}") == "permission denied"
    text = refused([f"s3://bucket/r?{elsewhere}"], "auto")
    assert "cannot be read" in text
    assert "credentials in the environment" in text


def test_roots_that_cannot_be_listed(s3):
    make(s3.root / "bucket/e", "notes.txt", "g/real/a.png")
    assert "There is no folder" in refused([s3.uri("bucket/gone")], "folders")
    assert "There is no folder" in refused([s3.uri("nowhere")], "auto")
    assert "is a file" in refused([s3.uri("bucket/e/notes.txt")], "auto")
    assert "There is no CSV file" in refused([s3.uri("bucket/gone.csv")], "csv")
    assert "is a folder" in refused([s3.uri("bucket/e")], "csv")
    assert "All 1 images found are real" in refused([s3.uri("bucket/e")], "folders")
    assert "Unexpected query parameter" in refused(["s3://bucket/e?colour=red"], "auto")
    assert "credentials in the environment" in refused(["s3://bucket/e?colour=red"], "auto")


@pytest.mark.parametrize("root", ["http://host/data", "c://data", "s3x://bucket"])
def test_other_schemes(root):
    assert "neither a local path nor a URI" in refused([root], "auto")


def test_a_password_never_enters_an_index():
    text = refused(["s3://name:verysecret@bucket/data?region=x"], "auto")
    assert "holds a password" in text
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert "verysecret" not in text


def test_file_uris_are_local_paths(tmp_path):
    make(tmp_path, "a b/g/real/a.png", "a b/g/fake/a.png")
    table = build_index([f"file://{tmp_path}/a%20b"])
    assert table.equals(build_index([tmp_path / "a b"]))
    assert read_image_bytes(f"file://{tmp_path}/a%20b/g/real/a.png") == PNG


def test_the_command_line_indexes_a_bucket_and_extraction_reads_it(s3, tmp_path):
    make_univfd(s3.root / "bucket/cli")
    output = tmp_path / "i.parquet"
    result = run_cli("index", s3.uri("bucket/cli"), "-o", output, "--json", "--limit", 1)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["num_images"] == 16
    assert document["roots"] == [s3.uri("bucket/cli")]
    with ThreadPoolExecutor(
        1
    ) as fresh:  # whose child process starts now, with the credentials in its environment
        result = fresh.submit(decode_piece, clean_task(read_index(output))).result()
    assert result["crops"].shape == (16, 224, 224, 3)
    assert json.loads(result["views"])[0]["quarantine"] == []


# --- names


@settings(deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1
    ),
    root=st.sampled_from(["/d", "s3://bucket/a%20b?region=x", "gs://bucket"]),
)
def test_names_below_a_root_come_back(names, root):
    if any(name in (".", "..") for name in names):
        return
    name = join(root, *names)
    assert relative_to(name, root) == "/".join(names)
    assert relative_to(parent(name), root) == ("/".join(names[:-1]) or ".")
    assert below(root, "./" + "/".join(names)) == name or "://" in "/".join(names)
    if "://" in root:
        assert located(name) == name


def test_a_password_is_not_repeated_in_an_error():
    with pytest.raises(IndexingError, match="s3://, gs://") as caught:
        located("ftp://name:hidden@host/x")
    assert "hidden" not in str(caught.value)


def test_a_bucket_is_scored_as_its_files_are(s3, tmp_path):
    detector = Path(__file__).parents[1] / "stored" / "detector-format-1"
    folder = s3.root / "bucket" / "photos" / "a b"
    folder.mkdir(parents=True)
    for seed in range(3):
        draw(seed, generated=bool(seed % 2), size=240).save(folder / f"{seed}.png")
    (folder / "notes.txt").write_text("left out")
    (folder / "d41d8cd9").write_bytes((folder / "1.png").read_bytes())  # as stores of uploads name them
    names, skipped = image_paths([s3.uri("bucket/photos")])
    assert skipped == {".txt": 1}
    assert names == [
        s3.uri(f"bucket/photos/a%20b/{name}") for name in ("0.png", "1.png", "2.png", "d41d8cd9")
    ]
    names.append(s3.uri("bucket/photos/none.png"))
    remote = predict(detector, names, tmp_path / "scores.jsonl", num_first=5).first
    local = predict(detector, image_paths([str(folder)])[0], num_first=4).first
    assert [one.reason for one in remote] == [None, None, None, None, "no such file"]
    assert [one.score for one in remote[:4]] == pytest.approx([one.score for one in local], abs=1e-6)


def test_credentials_that_change_are_the_ones_that_are_used(s3, monkeypatch):
    (s3.root / "bucket" / "secret.png").write_bytes(PNG)
    call = (s3.uri("bucket/secret.png"),)
    for _ in range(2):  # both the child that reads and its connection are there already
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
        assert [str(answer) for answer in isolated(read_image_bytes, [call])] == ["permission denied"]
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert list(isolated(read_image_bytes, [call])) == [PNG]
        assert read_image_bytes(*call) == PNG
