import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from causal_tune.errors import InvalidConfig, UnknownName
from causal_tune.heads import HEADS
from causal_tune.study.space import SearchSpace, contains, load_space, space_paths
from causal_tune.study.suggestion import Suggester
from causal_tune.trial import TrialConfig

SIX = {"lambda1", "lambda2", "alpha", "beta", "tau", "p"}


def space(**changes):
    values = {
        "name": "mine",
        "question": "?",
        "expected": "soon",
        "distributions": {"tau": FloatDistribution(0.1, 2.0, log=True)},
        "defaults": {"tau": 0.5},
        "enqueued": ({"head": "linear"}, {}),
    }
    return SearchSpace(**{**values, **changes})


CAUSAL = sorted(space_paths().keys() - (HEADS.keys() - {"causal"}) - {"ablation", "heads"})


@pytest.mark.parametrize("name", CAUSAL)
def test_every_space_of_the_method_searches_its_six_weights_and_begins_with_its_baselines(name):
    loaded = load_space(name)
    assert loaded.distributions.keys() >= SIX
    assert [entry.get("head", "causal") for entry in loaded.enqueued] == ["linear", "causal"]
    assert loaded.enqueued[1] == {}


@pytest.mark.parametrize("name", ["sd14", "progan", "heads", "options"])
def test_no_corner_of_a_space_is_where_masks_were_seen_to_collapse(name):
    """docs/log.md: from lambda2 / lambda1 = 1.2e6 on, and not up to 1.5e5."""
    searched = load_space(name).distributions
    assert searched["lambda2"].high / searched["lambda1"].low < 5e5


@pytest.mark.parametrize("name", sorted(HEADS.keys() - {"causal"}))
def test_every_other_head_has_a_space_of_its_own_settings_that_begins_with_its_default(name):
    loaded = load_space(name)
    settings = {field.name for field in dataclasses.fields(HEADS[name].Settings)} - {"class_balance"}
    assert loaded.distributions.keys() == settings | {"normalisation"}
    assert loaded.defaults["head"] == name
    assert loaded.enqueued == ({},)


def test_the_space_of_all_heads_searches_with_each_head_what_that_head_reads():
    loaded = load_space("heads")
    assert set(loaded.distributions["head"].choices) == HEADS.keys()
    assert [entry.get("head", "linear") for entry in loaded.enqueued][:2] == ["linear", "causal"]
    for head, part in HEADS.items():
        active = {key for key in loaded.distributions if loaded.is_active(key, {"head": head})}
        own = load_space("sd14" if head == "causal" else head).distributions.keys()
        assert active - {"head", "normalisation", "learning_rate"} == own - {"normalisation", "learning_rate"}
        assert active - {"head", "normalisation"} <= {
            field.name for field in dataclasses.fields(part.Settings)
        }


CONDITIONAL = {
    "distributions": {
        "head": CategoricalDistribution(["causal", "linear"]),
        "mask_scope": CategoricalDistribution(["instance", "none"]),
        "tau": FloatDistribution(0.1, 2.0, log=True),
    },
    "defaults": {"head": "causal", "mask_scope": "instance", "tau": 0.5},
    "enqueued": (),
    "conditions": {"tau": {"mask_scope": ["instance"]}, "mask_scope": {"head": ["causal"]}},
}


def test_a_field_comes_after_those_that_its_conditions_read():
    made = space(**CONDITIONAL)
    assert made.order == ["head", "mask_scope", "tau"]
    assert SearchSpace.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made.sha256 != space(**{**CONDITIONAL, "conditions": {}}).sha256


@given(st.integers(0, 2**20))
def test_an_inactive_field_keeps_its_default_and_is_no_part_of_the_point(seed):
    made = space(**CONDITIONAL)
    suggester = Suggester(made, sampler="random", seed=seed, window=1)
    config = suggester.suggest(0, {}, {})
    point = made.searched(config)
    expected = {"head"} | ({"mask_scope"} if config["head"] == "causal" else set())
    if config["head"] == "causal" and config["mask_scope"] == "instance":
        expected |= {"tau"}
    assert point.keys() == expected
    for name in made.distributions.keys() - expected:
        assert config[name] == made.defaults[name]
    off = "linear" if config["head"] == "causal" else "causal"
    if off == "linear" and config["tau"] != 0.5:
        assert made.searched({**config, "head": "linear"}) is None  # no such point: tau is not searched there


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"tau": {"alpha": [0.1]}}, "names 'alpha', which SPACE does not search"),
        ({"p": {"head": ["causal"]}}, "names 'p'"),
        ({"tau": {"head": ["quadratic"]}}, "'quadratic', outside of"),
        ({"tau": {"mask_scope": ["none"]}, "mask_scope": {"tau": [0.5]}}, "mask_scope, tau depend on each"),
    ],
)
def test_a_condition_that_cannot_hold_is_named(conditions, said):
    with pytest.raises(InvalidConfig, match=said):
        space(**{**CONDITIONAL, "conditions": conditions})


def test_layers_are_searched_beside_the_rest_or_fixed():
    made = load_space("sd14")
    assert made.over_layers(["proj"]) is made
    assert made.over_layers(["cls@7"]).defaults["layer"] == "cls@7"
    several = made.over_layers(["cls@7", "cls@9"])
    assert several.distributions["layer"].choices == ("cls@7", "cls@9")
    assert several.defaults["layer"] == "cls@7"
    assert made.over_layers(["cls@7", "proj"]).defaults["layer"] == "proj"
    assert several.over_layers(["proj"]).distributions == made.distributions


@pytest.mark.parametrize("name", sorted(space_paths()))
def test_every_search_space_of_the_project_says_what_it_asks_and_expects(name):
    assert load_space(name).question
    assert load_space(name).expected


def test_the_project_brings_the_named_spaces():
    assert {"sd14", "progan", "demo"} <= space_paths().keys()
    with pytest.raises(UnknownName, match="sd14"):
        load_space("sd15")


def test_a_space_survives_its_json():
    original = load_space("sd14")
    again = SearchSpace.from_json(json.loads(json.dumps(original.to_json())))
    assert again == original
    assert again.sha256 == original.sha256


def test_the_hash_is_of_what_is_searched_not_of_the_prose():
    assert space(question="another", expected="later", name="yours").sha256 == space().sha256
    for changed in (
        {"defaults": {"tau": 0.6}},
        {"enqueued": ()},
        {"distributions": {"tau": FloatDistribution(0.1, 2.0)}},
    ):
        assert space(**changed).sha256 != space().sha256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distributions": {}}, "SPACE is empty"),
        ({"distributions": {"temperature": FloatDistribution(0, 1)}}, "temperature"),
        ({"distributions": {"tau": (0.1, 2)}}, "Optuna distribution"),
        ({"distributions": {"seed": IntDistribution(0, 9)}}, "SPACE names seed"),
        ({"defaults": {}}, "DEFAULTS has no value for tau"),
        ({"defaults": {"tau": 3.0}}, "outside of"),
        ({"defaults": {"tau": "0.5"}}, "outside of"),
        ({"defaults": {"tau": 0.5, "lamda1": 1}}, "lamda1"),
        ({"enqueued": ({"tau": 5.0},)}, r"ENQUEUED\[0\]\['tau'\] is 5.0"),
        ({"enqueued": ({"tau": 0},)}, "ENQUEUED.0. is no valid configuration"),
        ({"enqueued": ({"head": "quadratic"},)}, "quadratic"),
    ],
)
def test_a_wrong_entry_is_named(changes, said):
    with pytest.raises(InvalidConfig, match=said):
        space(**changes)


def test_a_term_can_be_enqueued_switched_off_although_the_range_is_logarithmic():
    made = space(
        distributions={"lambda1": FloatDistribution(1e-5, 1e-2, log=True)},
        defaults={"lambda1": 1e-3},
        enqueued=({"lambda1": 0.0},),
    )
    off = TrialConfig(lambda1=0.0).to_dict()
    assert made.searched(off) is None


def test_baselines_outside_of_the_space_are_no_points_of_it():
    assert space().searched(TrialConfig(tau=0.7, seed=9).to_dict()) == {"tau": 0.7}
    assert space().searched(TrialConfig(tau=0.7, head="linear").to_dict()) is None
    assert space().searched(TrialConfig(tau=0.7, alpha=0.3).to_dict()) is None
    assert space().searched(TrialConfig(tau=3.0).to_dict()) is None


def test_a_file_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from optuna.distributions import FloatDistribution\n"
        "QUESTION = EXPECTED = '?'\nSPACE = {'p': FloatDistribution(0.05, 0.5)}\n"
        "DEFAULTS = {'p': 0.2}\nENQUEUED = []\n"
    )
    assert load_space(path).name == "mine"
    assert load_space(str(path)).distributions.keys() == {"p"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("1/0", "ZeroDivisionError"), ("x = 1", "does not define QUESTION"), (None, "no search space file")],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, said):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidConfig, match=said):
        load_space(path)


def test_containment_follows_the_kind_of_distribution():
    assert contains(IntDistribution(1, 9, step=2), 3)
    assert not contains(IntDistribution(1, 9, step=2), 4)
    assert contains(CategoricalDistribution(["proj", "cls@7"]), "cls@7")
    assert not contains(CategoricalDistribution(["proj", "cls@7"]), "cls@8")
    assert not contains(FloatDistribution(0, 1), True)


def test_defaults_of_the_spaces_are_the_same_configuration_as_the_method_has():
    paper_like = {**load_space("sd14").defaults}
    assert dataclasses.replace(TrialConfig(), **paper_like) == TrialConfig()


def test_a_space_balances_the_classes_unless_it_says_otherwise():
    assert space().balancing().defaults["class_balance"] == "balanced"
    said = space(defaults={"tau": 0.5, "class_balance": "none"})
    assert said.balancing() == said


def test_a_space_without_balance_is_frozen_as_before_there_was_one():
    """So that a study of then continues with the same command, and repeats of its trials with theirs."""
    old = space(enqueued=({"head": "linear"}, {"class_balance": "balanced"}))
    same = space(
        defaults={"tau": 0.5, "class_balance": "none"},
        enqueued=({"head": "linear", "class_balance": "none"}, {"class_balance": "balanced"}),
    )
    assert same.sha256 == old.sha256 != old.balancing().sha256
    back = SearchSpace.from_json(json.loads(json.dumps(old.balancing().to_json())))
    assert back == old.balancing()
    choice = {"class_balance": CategoricalDistribution(["none", "balanced"])}
    searched = space(distributions=choice, defaults={"class_balance": "none"}, enqueued=())
    assert SearchSpace.from_json(searched.to_json()) == searched


PARTS = {
    "SPACE": "{'p': FloatDistribution(0.05, 0.5)}",
    "DEFAULTS": "{'p': 0.2}",
    "ENQUEUED": "[{'p': 0.1}]",
    "CONDITIONS": "{}",
}


OTHER_KINDS = """None|3|'p'|[]|[1]|[None]|{1: 2}|{'p': None}|{'p': 0.2, 'q': 0}|{'p': {}}|{'p': [[]]}|{'head': []}
[{'head': []}]|{'p': {'p': 3}}|{'p': {'p': [[]]}}|{'p': {1: []}}|{'p': float('nan')}|print|{'p': FloatDistribution}
{'seed': IntDistribution(0, 1)}"""
MEAN_THE_SAME_AS_NOTHING = {("ENQUEUED", "[]"), ("CONDITIONS", "{'p': {}}")}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", OTHER_KINDS.replace("\n", "|").split("|"))
def test_a_part_of_another_kind_is_named(tmp_path, part, value):
    parts = {**PARTS, part: value}
    path = tmp_path / "mine.py"
    path.write_text(
        "from optuna.distributions import FloatDistribution, IntDistribution\nQUESTION = EXPECTED = '?'\n"
        + "".join(f"{name} = {text}\n" for name, text in parts.items())
    )
    if (part, value) in MEAN_THE_SAME_AS_NOTHING:
        assert load_space(path).name == "mine"
        return
    with pytest.raises(InvalidConfig, match=rf"^The search space 'mine' cannot be used: .*{part}"):
        load_space(path)


def test_a_file_that_ends_python_ends_no_command(tmp_path):
    (tmp_path / "mine.py").write_text("exit()")
    with pytest.raises(InvalidConfig, match="cannot be run: SystemExit"):
        load_space(tmp_path / "mine.py")
