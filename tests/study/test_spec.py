import dataclasses
import json

import pytest
import tiny
from optuna.distributions import CategoricalDistribution

from causal_tune.errors import CausalTuneError, InvalidConfig, StudyError
from causal_tune.study.spec import freeze, make_spec, read_spec, study_path


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
    assert spec.window == 2 * spec.max_concurrent


def test_a_frozen_spec_reads_back(workspace):
    spec = spec_of(workspace, name="readback")
    assert freeze(spec, workspace) == spec
    assert read_spec(study_path(workspace, "readback")) == spec
    assert spec.search_space() == tiny.small_space()


def test_the_same_spec_continues_and_keeps_its_identity(workspace, tmp_path):
    first = freeze(spec_of(workspace, name="again"), workspace)
    moved = tiny.make_store(tmp_path / "moved")
    second = freeze(spec_of(workspace, name="again", store_path=moved.path), workspace)
    assert second == dataclasses.replace(first, store_path=str(moved.path))
    assert spec_of(workspace, name="again", max_concurrent=None).max_concurrent == first.max_concurrent


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "seed is 0, now asked: 7"),
        ({"val_generators": ["glide"]}, "val_generators is cyclegan, now asked: glide"),
        ({"criterion": "worst_generator"}, "criterion is 'val_generators', now asked: 'worst_generator'"),
        ({"max_concurrent": 3}, "max_concurrent is 2, now asked: 3"),
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
    ],
)
def test_what_cannot_be_studied_is_refused_with_what_there_is(workspace, changes, said):
    with pytest.raises(CausalTuneError, match=said):
        spec_of(workspace, **changes)


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
