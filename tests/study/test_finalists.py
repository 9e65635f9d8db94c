import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from mlflow import MlflowClient

from causal_tune.cli import main
from causal_tune.detector import load_detector
from causal_tune.errors import StudyError
from causal_tune.export import export_detector
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.metrics import average_precision
from causal_tune.selection import Roles
from causal_tune.study.finalists import (
    FINALISTS,
    TERMS,
    Candidate,
    Trained,
    ahead_collapsed,
    candidates_of,
    choose,
    difference,
    probe_space,
    read_finalists,
    repeat_space,
    representative,
    terms_of,
    train_results,
)
from causal_tune.study.scores import VALIDATION, trial_scores
from causal_tune.study.space import load_space
from causal_tune.study.spec import read_spec
from causal_tune.study.suggestion import same_trial
from causal_tune.tracking import EXPERIMENT, default_uri
from causal_tune.trial import TrialConfig
from causal_tune.wording import inline_markdown

PAGE = "mlflow.note.content"
CAUSAL = TrialConfig(head="causal").to_dict()
LINEAR = TrialConfig(head="linear").to_dict()


def trained(name, mean, *, config=CAUSAL, spread=0.01, image_spread=0.01, num_seeds=5, seed=0):
    rng = np.random.default_rng([seed, sum(map(ord, name))])
    values = mean + spread * rng.normal(size=num_seeds)
    values += mean - values.mean()
    images = image_spread * np.random.default_rng(7).normal(size=(1, 2000))  # what all see alike
    draws = values[:, None] + images
    return Trained(Candidate(name, config), dict(enumerate(values.tolist())), {}, draws)


def test_a_clear_winner_is_named_and_a_tie_takes_the_simplest():
    verdict = choose([trained("a", 0.9), trained("b", 0.7), trained("probe", 0.6, config=LINEAR)])
    assert (verdict["winner"], verdict["chosen"], verdict["tie"]) == ("a", "a", [])
    verdict = choose([trained("a", 0.9), trained("b", 0.7), trained("probe", 0.897, config=LINEAR)])
    assert (verdict["winner"], verdict["chosen"]) == (None, "probe")
    assert verdict["tie"] == ["a", "probe"]
    assert "tie" in verdict["reason"]
    plain = {**CAUSAL, "mask_scope": "none"}
    verdict = choose([trained("a", 0.9), trained("b", 0.899, config=plain)])
    assert verdict["chosen"] == "b"


def test_the_spread_over_seeds_decides():
    close = [trained("a", 0.80, spread=0.001), trained("b", 0.79, spread=0.001)]
    assert choose(close)["winner"] == "a"
    noisy = [trained("a", 0.80, spread=0.05), trained("b", 0.79, spread=0.05)]
    assert choose(noisy)["winner"] is None


def test_what_all_images_do_alike_cancels_and_what_they_do_apart_counts():
    shared = difference(trained("a", 0.8, image_spread=0.2), trained("b", 0.7, image_spread=0.2))
    assert shared["interval"][0] > 0.05
    other = trained("b", 0.7)
    apart = dataclasses.replace(
        other, draws=other.draws + 0.2 * np.random.default_rng(3).normal(size=(1, 2000))
    )
    assert difference(trained("a", 0.8), apart)["interval"][0] < 0


def test_without_scores_of_images_the_interval_says_that_it_is_of_seeds():
    pair = [dataclasses.replace(trained(name, mean), draws=None) for name, mean in (("a", 0.9), ("b", 0.7))]
    found = difference(*pair)
    assert found["covers"] == "seeds"
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    single = [dataclasses.replace(one, values={0: one.values[0]}) for one in pair]
    assert choose(single)["winner"] is None  # one seed and no images: nothing is known


def test_a_candidate_that_is_no_better_rarely_wins():
    wins = 0
    for seed in range(100):
        # five draws of one distribution each: the true difference is 0
        rng = np.random.default_rng(seed)
        both = []
        for name in ("a", "b"):
            values = 0.8 + 0.02 * rng.normal(size=5)
            both.append(
                Trained(Candidate(name, CAUSAL), dict(enumerate(values)), {}, values[:, None].repeat(2000, 1))
            )
        wins += choose(both)["winner"] is not None
    assert wins <= 20  # the bootstrap over five seeds is known to be short; a plain one has more


def test_each_term_is_switched_off_alone():
    winner = Candidate("x", {**CAUSAL, "layer": "cls@7", "seed": 3})
    found = {one.name: one.config for one in terms_of(winner, "proj")}
    assert found.keys() == TERMS.keys()
    for name, config in found.items():
        changed = {key for key in config if config[key] != winner.config[key]}
        assert (
            changed
            == {
                "mask": {"mask_scope"},
                "adversary": {"alpha"},
                "hsic": {"lambda2"},
                "l1": {"lambda1"},
                "consistency": {"beta"},
                "layer": {"layer"},
            }[name]
        )
    assert not terms_of(Candidate("x", LINEAR), "proj")
    without = {one.name for one in terms_of(Candidate("x", {**CAUSAL, "beta": 0.0}), "proj")}
    assert without == {"mask", "adversary", "hsic", "l1"}


def record_of(number, config, seed, ap, test_ap, state="finished"):
    return TrialRecord(
        number=number,
        id=f"{number:05d}-x",
        state=state,
        reason=None if state == "finished" else "it failed",
        config={**config, "seed": seed},
        seed=seed,
        validation={"ap": 0.9},
        generators={"val": {"ap": ap}, "test": {"ap": test_ap}},
    )


def spec_of(**changes):
    @dataclasses.dataclass
    class Spec:  # what the functions read of a spec
        name: str = "s"
        criterion: str = "val_generators"
        seed: int = 0
        roles: Roles = dataclasses.field(
            default_factory=lambda: Roles(
                train_generators=("train",), val_generators=("val",), test_generators=("test",)
            )
        )

    return Spec(**changes)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, finished):
    """The finalists of a small study, through the command line."""
    workspace = tmp_path_factory.mktemp("finalists") / "runs"
    shutil.copytree(finished.workspace, workspace)
    result = run(workspace, *FINALISTS_COMMAND)
    assert result.exit_code == 0, result.output
    return workspace, result.output


FINALISTS_COMMAND = ("finalists", "small", "--top", 2, "--seeds", 2, "--max-concurrent", 1)


def run(workspace, *words):
    return CliRunner().invoke(main, [*map(str, words), "--workspace", str(workspace)])


def page_of(workspace, study):
    """The text on the study's page in MLflow."""
    client = MlflowClient(default_uri(workspace))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id], f"tags.causal_tune.study = '{study}'")
    (page,) = (run.data.tags[PAGE] for run in runs if PAGE in run.data.tags)
    return page


@pytest.mark.journey
@pytest.mark.ray
def test_the_command_ends_in_a_verdict_and_again_in_the_same_bytes(searched):
    workspace, output = searched
    path = workspace / "studies" / "small"
    before = (path / FINALISTS).read_bytes()
    document = json.loads(before)
    assert document["verdict"]["reason"] in " ".join(output.split())
    assert page_of(workspace, "small").startswith(
        f"**Finalists: {inline_markdown(document['verdict']['reason'])}**"
    )
    assert len(document["finalists"]) == 2
    assert len(document["seeds"]) == 2
    assert document["budget"] == {"study": "small.probe", "trials": 3, "search_trials": 3}
    search_seeds = {record.seed for record in Ledger(path / "trials").records()}
    assert not search_seeds & set(document["seeds"])
    for row in [*document["finalists"], document["probe"]]:
        assert row["mean"] == pytest.approx(np.mean(row["scores"]))
        assert row["interval"][0] <= row["interval"][1]
        assert row["test"].keys() == {"gamma"}
    assert {row["term"] for row in document["terms"]} >= {"mask", "adversary", "hsic", "l1"} or (
        document.get("terms_of") is None
    )
    assert run(workspace, "report", "small").exit_code == 0
    terms = path / "report" / "tables" / "terms.csv"
    assert terms.exists() == bool(document["terms"])
    if document["terms"]:
        told = [line.split(",")[0] for line in terms.read_text().splitlines()[1:]]
        assert told == [row["term"] for row in document["terms"]]
    trials = sorted((workspace / "studies").glob("*/trials/0*.json"))
    again = run(workspace, *FINALISTS_COMMAND)
    assert again.exit_code == 0, again.output
    assert (path / FINALISTS).read_bytes() == before
    assert sorted((workspace / "studies").glob("*/trials/0*.json")) == trials


@pytest.mark.journey
@pytest.mark.ray
def test_scores_are_those_of_the_record_and_the_export_is_the_chosen(searched, tmp_path):
    workspace, _ = searched
    path = workspace / "studies" / "small"
    document = read_finalists(path, 3)
    again = path.parent / document["study_of_finalists"]
    spec = read_spec(again)
    records = Ledger(again / "trials").records()
    scores = trial_scores(again, spec, records[0])
    assert scores.keys() == {VALIDATION, "beta", "gamma"}
    for name in ("beta", "gamma"):
        expected = records[0].generators[name]["ap"]
        assert average_precision(scores[name].logits, scores[name].labels) == pytest.approx(
            expected, abs=1e-6
        )
    export_detector(path, tmp_path / "detector")
    provenance = load_detector(tmp_path / "detector").description["provenance"]
    assert provenance["study"] == spec.name
    assert provenance["finalists"] == document["verdict"]
    rows = {row["name"]: row for row in [*document["finalists"], document["probe"]]}
    assert same_trial(provenance["config"]) == same_trial(rows[document["verdict"]["chosen"]]["config"])
    export_detector(path, tmp_path / "search", criterion="val_generators")
    assert load_detector(tmp_path / "search").description["provenance"]["study"] == "small"
    assert read_finalists(path, 4) is None  # the search has gone on since


@pytest.mark.journey
@pytest.mark.ray
def test_the_test_generators_never_enter_the_verdict(searched):
    workspace, _ = searched
    path = workspace / "studies" / "small"
    document = read_finalists(path, 3)
    again = path.parent / document["study_of_finalists"]
    spec = read_spec(again)
    records = Ledger(again / "trials").records()
    rows = [*document["finalists"], document["probe"]]
    candidates = [Candidate(row["name"], row["config"], row["search_score"]) for row in rows]
    scrambled = [
        dataclasses.replace(
            record,
            generators={
                name: {**metrics, "ap": 0.123} if name in spec.test_generators else metrics
                for name, metrics in record.generators.items()
            },
        )
        for record in records
    ]

    def only_val(record):
        return {name: one for name, one in trial_scores(again, spec, record).items() if name == "beta"}

    verdict = choose(train_results(candidates, scrambled, spec, only_val), seed=spec.seed)
    verdict.pop("paired")
    assert verdict == document["verdict"]


def test_the_best_configurations_are_taken_once_each():
    records = [
        record_of(0, LINEAR, 1, 0.7, 0.1),
        record_of(1, CAUSAL, 2, 0.9, 0.1),
        record_of(2, CAUSAL, 3, 0.8, 0.1),
        record_of(3, {**CAUSAL, "tau": 0.3}, 4, 0.99, 0.1, state="failed"),
    ]
    found = candidates_of(spec_of(), records, 3)
    assert [one.name for one in found] == ["00001-x", "00000-x"]
    assert [one.search_score for one in found] == [0.9, 0.7]
    with pytest.raises(StudyError, match="no finalists"):
        candidates_of(spec_of(), records[3:], 3)


def test_a_collapsed_trial_is_no_finalist_and_is_named():
    other = {**CAUSAL, "tau": 0.3}
    records = [
        dataclasses.replace(record_of(0, CAUSAL, 1, 0.95, 0.1), collapsed="ones"),
        dataclasses.replace(record_of(1, other, 2, 0.9, 0.1), collapsed="zeros"),
        record_of(2, other, 3, 0.8, 0.1),  # the same configuration, sound with this seed
        record_of(3, LINEAR, 4, 0.7, 0.1),
        dataclasses.replace(record_of(4, CAUSAL, 5, 0.6, 0.1), collapsed="ones"),
    ]
    found = candidates_of(spec_of(), records, 2)
    assert [one.name for one in found] == ["00002-x", "00003-x"]
    assert ahead_collapsed(spec_of(), records, found) == ["00000-x", "00001-x"]
    with pytest.raises(StudyError, match="has a collapsed mask, so it has no finalists"):
        candidates_of(spec_of(), records[:2], 2)


def test_what_collapses_on_every_seed_is_not_chosen():
    def collapsing(name, mean, collapsed):
        records = {
            seed: dataclasses.replace(record_of(seed, CAUSAL, seed, mean, 0.1), collapsed=how)
            for seed, how in enumerate(collapsed)
        }
        return dataclasses.replace(trained(name, mean), records=records)

    always = collapsing("always", 0.95, ["ones"] * 5)
    once = collapsing("once", 0.9, ["ones", *[None] * 4])
    verdict = choose([always, once, trained("probe", 0.5, config=LINEAR)])
    assert verdict["winner"] == "once"
    assert "always is left out: the mask collapsed on every seed" in verdict["reason"]
    assert choose([always])["chosen"] == "always"

    document = {"study": "a", "verdict": {"chosen": "once"}, "probe": None}
    document["finalists"] = [{"name": "once", "trials": [one.id for one in once.records.values()]}]
    assert representative(document, list(once.records.values()), spec_of(), "once").id == "00001-x"


def test_seeds_are_fresh_paired_and_the_same_every_time():
    both = [Candidate("a", CAUSAL), Candidate("probe", LINEAR)]
    space = repeat_space("finalists", both, 0)
    assert space == repeat_space("finalists", both, 0)
    assert space != repeat_space("finalists", both, 1)
    first, second = space.enqueued[:2]
    assert first["seed"] == second["seed"]
    assert [first["head"], second["head"]] == ["causal", "linear"]
    assert len({entry["seed"] for entry in space.enqueued}) == len(space.enqueued) // 2


@pytest.mark.parametrize(("layer", "expected"), [(["proj", "cls@7"], {"proj", "cls@7"}), (None, None)])
def test_the_probe_searches_the_layers_of_the_search(layer, expected):
    space = tiny.small_space()
    if layer:
        space = space.over_layers(layer)

    class Spec:
        def search_space(self):
            return space

    found = probe_space(Spec()).distributions.get("layer")
    assert (found and set(found.choices)) == expected


def test_repeats_of_a_trial_from_before_balanced_classes_are_the_same_trial():
    """Its configuration lacks the field, those of its repeats have it, and the probe is balanced as it was."""
    old = {key: value for key, value in CAUSAL.items() if key != "class_balance"}
    (one,) = candidates_of(spec_of(), [record_of(0, old, 1, 0.7, 0.1)], 1)
    space = repeat_space("finalists", [one], 0).balancing()
    repeat = TrialConfig.from_dict({**space.defaults, **space.enqueued[0]}).to_dict()
    assert repeat["class_balance"] == "none"
    assert same_trial(repeat) == same_trial(old) == one.key

    class Spec:
        def search_space(self):
            return tiny.small_space()

    assert probe_space(Spec()).balancing().sha256 == load_space("linear").sha256


def test_a_damaged_file_is_told(tmp_path):
    assert read_finalists(tmp_path, 3) is None
    (tmp_path / FINALISTS).write_text("{}")
    with pytest.raises(StudyError, match="damaged"):
        read_finalists(tmp_path, 3)
    (tmp_path / FINALISTS).write_text('{"format": 9}')
    with pytest.raises(StudyError, match="format 9"):
        read_finalists(tmp_path, 3)
