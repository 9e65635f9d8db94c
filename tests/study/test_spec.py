import dataclasses
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from optuna.distributions import CategoricalDistribution
from safetensors.torch import load_file

from causal_tune.cli import main
from causal_tune.errors import CausalTuneError, InvalidConfig, StudyError
from causal_tune.heads import load_head
from causal_tune.ledger import Ledger
from causal_tune.selection import best
from causal_tune.study.space import load_space
from causal_tune.study.spec import (
    _commit,
    freeze,
    library_versions,
    make_spec,
    read_spec,
    study_path,
    study_space,
)
from causal_tune.study.suggestion import Suggester
from causal_tune.study.worker import run_trial, train_on_store

GROUPS = {"gans": ["cyclegan"], "diffusion": ["glide"]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    path = tmp_path_factory.mktemp("workspace")
    tiny.make_store(path / "store")
    return path


def spec_of(workspace, **changes):
    return tiny.make_tiny_spec(workspace, **changes)


def test_what_is_not_named_gets_the_best_default(workspace):
    spec = spec_of(workspace)
    assert spec.test_generators == ("glide", "progan")
    assert spec.criterion == "val_generators"
    assert spec_of(workspace, val_generators=[]).criterion == "train_domain"
    several = spec_of(workspace, val_generators=[], train_generators=["latent", "glide"])
    assert several.criterion == "leave_one_generator_out"
    assert spec.window == 2 * spec.max_concurrent


def test_a_frozen_spec_reads_back(workspace):
    spec = spec_of(workspace, name="readback")
    assert freeze(spec, workspace) == spec
    assert read_spec(study_path(workspace, "readback")) == spec
    assert spec.search_space() == tiny.small_space().balancing()


def test_the_same_spec_continues_and_keeps_its_identity(workspace, tmp_path):
    first = freeze(spec_of(workspace, name="again"), workspace)
    moved = tiny.make_store(tmp_path / "moved")
    second = freeze(spec_of(workspace, name="again", store_path=moved.path), workspace)
    assert second == dataclasses.replace(first, store_path=str(moved.path))
    assert spec_of(workspace, name="again", max_concurrent=None).max_concurrent == first.max_concurrent


def test_a_study_from_before_balanced_classes_continues_without_them(workspace):
    """By the same command; trials of before and after are the same trials, and a new study is balanced."""
    spec = spec_of(workspace, name="older", criterion="train_domain")
    old = tiny.small_space()
    path = study_path(workspace, "older") / "study.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**spec.to_json(), "space": old.to_json(), "space_sha256": old.sha256}))
    again = freeze(spec_of(workspace, name="older"), workspace)
    assert again.search_space() == old
    assert again.criterion == "train_domain"
    suggester = Suggester(again.search_space(), sampler="random", seed=0, window=1)
    assert suggester.suggest(0, {}, {})["class_balance"] == "none"
    assert spec.space["defaults"]["class_balance"] == "balanced"


def test_a_new_study_trains_with_balanced_classes(workspace):
    spec = spec_of(workspace, name="balanced")
    config = Suggester(spec.search_space(), sampler="random", seed=0, window=1).suggest(0, {}, {})
    record, _ = run_trial(spec, 0, config, train_on_store)
    assert record.head_config["class_balance"] == record.config["class_balance"] == "balanced"


def test_a_study_goes_on_with_the_space_that_it_has(workspace):
    """Without a space named, whatever the default of a new study or the file of that name has become."""
    own = tiny.small_space(patience=7).over_layers(["proj"])
    freeze(spec_of(workspace, name="kept", space=own), workspace)
    kept = study_space(workspace, "kept", "sd14")
    assert kept == own.balancing()
    assert freeze(spec_of(workspace, name="kept", space=kept), workspace).space == kept.to_json()
    assert study_space(workspace, "new", "sd14") == load_space("sd14")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "seed is 0, now asked: 7"),
        ({"val_generators": ["glide"]}, "val_generators is cyclegan, now asked: glide"),
        ({"criterion": "worst_generator"}, "criterion is 'val_generators', now asked: 'worst_generator'"),
        ({"sampler": "random"}, "sampler is 'tpe', now asked: 'random'"),
        ({"pruner": "asha"}, "pruner is 'none', now asked: 'asha'"),
        ({"space": tiny.small_space(patience=3)}, "with other defaults of patience"),
    ],
)
def test_a_differing_field_is_named_with_both_values_and_the_next_step(workspace, changes, said):
    freeze(spec_of(workspace, name="frozen"), workspace)
    before = (study_path(workspace, "frozen") / "study.json").read_text()
    with pytest.raises(StudyError, match=said) as error:
        freeze(spec_of(workspace, name="frozen", **changes), workspace)
    assert "another --study name" in str(error.value)
    assert (study_path(workspace, "frozen") / "study.json").read_text() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_generators": ["sd3"]}, "'sd3'.*cyclegan, glide, latent, progan"),
        ({"val_generators": ["cyclgan"]}, "--val-generators names 'cyclgan'.*It has: cyclegan"),
        ({"test_generators": ["cyclegan"]}, "'cyclegan' is named by --val-generators and by --test-gen"),
        ({"val_generators": ["latent"]}, "'latent' is named by --train-generator and by --val-generators"),
        ({"train_generators": []}, "No --train-generator"),
        ({"criterion": "oracle"}, "reads the test generators"),
        ({"criterion": "val_generators", "val_generators": []}, "--val-generators"),
        ({"criterion": "best"}, "train_domain"),
        ({"name": "../etc"}, "cannot be the name"),
        ({"max_concurrent": 0}, "at least 1"),
        ({"seed": -1}, "from 0"),
        ({"space": tiny.small_space(layer="cls@7")}, "layers cls@7.*it has proj"),
        ({"layers": ["proj", "cls@7"]}, "layers cls@7.*it has proj"),
        ({"sampler": "bayes"}, "cmaes, gp, qmc, random, tpe"),
        ({"pruner": "median"}, "asha, hyperband, none"),
        ({"pruner": "asha", "grace_steps": 0}, "grace period is 0"),
        ({"criterion": "leave_one_generator_out"}, "the study has 1"),
        (
            {
                "train_generators": ["latent", "glide"],
                "criterion": "leave_one_generator_out",
                "pruner": "asha",
            },
            "at the end of a trial only",
        ),
        ({"objectives": {"gans": ["cyclegan"]}}, "two or more"),
        ({"objectives": {"gans": ["cyclegan"], "other": ["glide"]}}, "'glide', which is no validation gen"),
        (
            {"objectives": GROUPS, "val_generators": ["cyclegan", "glide"], "sampler": "cmaes"},
            "one objective",
        ),
        ({"objectives": GROUPS, "val_generators": ["cyclegan", "glide"], "pruner": "asha"}, "hopeless early"),
    ],
)
def test_what_cannot_be_studied_is_refused_with_what_there_is(workspace, changes, said):
    with pytest.raises(CausalTuneError, match=said):
        spec_of(workspace, **changes)


def test_more_at_a_time_than_the_window_would_only_wait(workspace):
    freeze(spec_of(workspace, name="wider"), workspace)
    later = freeze(spec_of(workspace, name="wider", max_concurrent=9), workspace)
    assert (later.max_concurrent, later.window) == (4, 4)
    assert freeze(spec_of(workspace, name="wider", max_concurrent=1), workspace).window == 4


def test_an_image_on_both_sides_is_refused_and_named(tmp_path):
    tiny.make_store(tmp_path / "store", copied=("/glide/1/3.png", "/latent/0/5.png"))
    with pytest.raises(StudyError, match=r"1 of the 48 images that judge 'glide'.*/glide/1/3\.png") as error:
        spec_of(tmp_path)
    assert "causal-tune audit" in str(error.value)
    assert spec_of(tmp_path, test_generators=["progan"]).test_generators == ("progan",)


def test_a_study_of_the_first_format_opens(tmp_path):
    stored = Path(__file__).parents[1] / "stored" / "study-format-1"
    spec = read_spec(stored)
    assert (spec.sampler, spec.pruner, spec.objectives, spec.window) == ("tpe", "none", {}, 4)
    records = Ledger(stored / "trials").records()
    assert [record.state for record in records] == ["finished"] * 3
    assert best(records, spec.criterion, spec.roles).number in (0, 1, 2)
    for record in records:
        state = load_file(stored / "checkpoints" / record.checkpoint)
        assert load_head(record.head_config, state).logits(torch.zeros(2, tiny.WIDTH)).shape == (2,)
    # and is continued
    shutil.copytree(stored, tmp_path / "studies" / "tiny")
    assert freeze(spec_of(tmp_path), tmp_path).uid == spec.uid


def test_a_searched_layer_has_to_be_in_the_store(workspace):
    space = tiny.small_space(layer="proj")
    layers = {**space.distributions, "layer": CategoricalDistribution(["proj", "cls@7"])}
    with pytest.raises(InvalidConfig, match=r"--layers cls@7,proj"):
        spec_of(workspace, space=dataclasses.replace(space, distributions=layers))


def test_a_train_generator_with_one_class_is_refused(tmp_path):
    tiny.make_store(tmp_path / "store", one_class={"latent": 1, "cyclegan": 0})
    for roles, said in (
        ({"train_generators": ["latent"], "val_generators": []}, "no real image"),
        ({"train_generators": ["glide"], "val_generators": ["cyclegan"]}, "'cyclegan' are all real"),
    ):
        with pytest.raises(CausalTuneError, match=said):
            make_spec(
                workspace=tmp_path, name="x", store_path=tmp_path / "store", space=tiny.small_space(), **roles
            )


@pytest.mark.parametrize("content", ["{", '{"format": 9}', '{"format": 1, "seed": 0}', "[]"])
def test_a_damaged_study_file_is_named(tmp_path, content):
    path = study_path(tmp_path, "damaged")
    path.mkdir(parents=True)
    (path / "study.json").write_text(content)
    with pytest.raises(StudyError, match=r"study\.json"):
        read_spec(path)


def test_a_study_that_is_not_there_lists_those_that_are(workspace):
    freeze(spec_of(workspace, name="present"), workspace)
    with pytest.raises(StudyError, match=r"There are: .*present"):
        read_spec(study_path(workspace, "absent"))


def test_a_spec_is_plain_json(workspace):
    spec = spec_of(workspace)
    assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_command_of_a_study_makes_the_same_study(tmp_path):
    spec = spec_of(
        tmp_path,
        val_generators=["cyclegan", "glide"],
        objectives={"gans": ["cyclegan"], "diffusion": ["glide"]},
        sampler="random",
        seed=3,
        threads_per_trial=2,
    )
    words = shlex.split(spec.command(spec.store_path, 7))[2:]
    command = main.get_command(None, "tune")
    given = command.make_context("tune", words).params
    assert given["trials"] == 7
    again = make_spec(
        workspace=tmp_path,
        name=given["study"],
        store_path=given["store"],
        space=spec.search_space(),
        layers=given["layers"] or None,
        **{key: given[key] for key in _ASKED},
    )
    assert dataclasses.replace(again, uid=spec.uid) == spec


def test_versions_tell_the_commit_of_a_checkout_and_whether_it_was_edited(tmp_path):
    def git(*words):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *settings, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit():
        _commit.cache_clear()
        return _commit(tmp_path)

    assert commit() == ""
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "one")
    git("tag", "v1")
    assert commit() == git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("2")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"
    (tmp_path / "inside").mkdir()
    assert _commit(tmp_path / "inside") == ""  # as a virtual environment inside of somebody's repository
    assert library_versions()["python"].startswith("3.")


_ASKED = (
    "train_generators",
    "val_generators",
    "test_generators",
    "criterion",
    "seed",
    "max_concurrent",
    "sampler",
)
_ASKED += ("objectives", "pruner", "grace_steps", "threads_per_trial", "gpus_per_trial")
