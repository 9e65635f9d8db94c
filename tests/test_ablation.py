"""The ablation job: what its arms are, on which seeds, what is averaged, and the whole of it once."""

import csv
import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from causal_tune.cli.ablation import MAX_SEEDS, ablation_space, check_generators, settings_of
from causal_tune.cli.finalists import show_finalists
from causal_tune.errors import InvalidConfig, StudyError
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.report.ablation import (
    ARMS,
    PAPER,
    ablation,
    ablation_tables,
    arm_of,
    averages,
    is_ablation,
    summarise,
)
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import StudySpec
from causal_tune.study.suggestion import Suggester
from causal_tune.trial import TrialConfig
from tests.conftest import run_cli, write_images

ROOT = Path(__file__).parents[1]


def configs(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    suggester = Suggester(space, sampler="tpe", seed=0, window=count)
    made: dict[int, dict[str, Any]] = {}
    for number in range(count):
        made[number] = suggester.suggest(number, made, {})
    return list(made.values())


def spec(**changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": "mine",
        "uid": "u",
        "store_path": "",
        "store_fingerprint": "",
        "space_name": "ablation",
        "space_sha256": "",
        "space": load_space("ablation").to_json(),
        "train_generators": ("sd14",),
        "val_generators": ("glide",),
        "test_generators": ("progan", "StyleGAN-2", "deepfake", "adm"),
        "criterion": "val_generators",
        "seed": 0,
        "max_concurrent": 1,
        "window": 1,
        "versions": {},
    }
    return StudySpec(**{**values, **changes})


AP = {"sd14": 0.9, "glide": 0.1, "progan": 0.5, "StyleGAN-2": 0.7, "deepfake": 0.6, "adm": 0.8}


def record(number: int, arm: int, seed: int, gain: float = 0.0, **changes: Any) -> TrialRecord:
    config = {**configs(load_space("ablation"), 4)[arm], "seed": seed}
    generators = {
        name: {"ap": ap + gain, "accuracy": ap / 2, "num_real": 5, "num_generated": 5}
        for name, ap in AP.items()
    }
    values: dict[str, Any] = {
        "state": "finished",
        "generators": generators,
        "validation": {"ap": 0.9 + gain},
    }
    return TrialRecord(number=number, id=f"{number:05d}-x", config=config, seed=seed, **{**values, **changes})


# --- the arms --------------------------------------------------------------------------------------------


def test_the_arms_are_what_they_say() -> None:
    first = configs(ablation_space(load_space("ablation"), settings={}, seed=0), 4)
    neither, factorisation, masking, both = first
    assert [arm_of(config) for config in first] == list(ARMS)
    probe = load_space("sd14").enqueued[0]
    assert (neither["head"], neither["learning_rate"]) == (probe["head"], probe["learning_rate"])
    assert [config["head"] for config in first[1:]] == ["causal"] * 3
    assert (factorisation["beta"], factorisation["mask_scope"]) == (0, "instance")
    for name in ("alpha", "lambda1", "lambda2"):
        assert factorisation[name] > 0
    assert masking["mask_scope"] == "none"
    assert masking["beta"] > 0
    assert masking["p"] > 0
    assert masking["learning_rate"] == neither["learning_rate"]
    assert both == TrialConfig(seed=both["seed"]).to_dict()
    changed = {key for key in both if both[key] != factorisation[key]}
    assert changed == {"beta"}


def test_every_arm_has_the_same_seeds_and_the_list_is_the_seeds() -> None:
    space = ablation_space(load_space("ablation"), settings={}, seed=3)
    assert len(space.enqueued) == len(ARMS) * MAX_SEEDS
    seeds: dict[str, list[int]] = {}
    for config in configs(space, 12):
        seeds.setdefault(arm_of(config), []).append(config["seed"])
    assert list(seeds) == list(ARMS)
    assert len({tuple(mine) for mine in seeds.values()}) == 1
    assert len(set(seeds["both"])) == 3
    assert ablation_space(load_space("ablation"), settings={}, seed=3) == space
    assert ablation_space(load_space("ablation"), settings={}, seed=4).enqueued != space.enqueued


def test_settings_may_lie_outside_of_the_ranges_of_the_space() -> None:
    settings = {"lambda1": 0.5, "hsic": "normalised", "learning_rate": 3e-3, "layer": "cls@7"}
    first = configs(ablation_space(load_space("ablation"), settings=settings, seed=0), 4)
    assert {config["layer"] for config in first} == {"cls@7"}
    assert {config["hsic"] for config in first} == {"normalised"}
    assert first[3]["lambda1"] == 0.5
    assert [config["learning_rate"] for config in first] == [1e-3, 3e-3, 1e-3, 3e-3]
    space = ablation_space(load_space("ablation"), settings=settings, seed=0)
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))).sha256 == space.sha256


def test_a_space_without_the_four_arms_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="each of neither, factorisation, masking, both"):
        ablation_space(load_space("sd14"), settings={}, seed=0)


def test_only_an_enqueued_entry_may_name_a_seed() -> None:
    space = load_space("ablation")
    values = {
        "name": "mine",
        "question": "?",
        "expected": "?",
        "distributions": space.distributions,
        "defaults": space.defaults,
    }
    fixed = SearchSpace(**values, enqueued=({"seed": 7}, {}))
    first, second = configs(fixed, 2)
    assert first["seed"] == 7
    assert second["seed"] == configs(space, 2)[1]["seed"]
    assert fixed.searched(first) == space.searched(configs(space, 2)[1])
    with pytest.raises(InvalidConfig, match="DEFAULTS names seed"):
        SearchSpace(**{**values, "defaults": {**space.defaults, "seed": 7}})
    with pytest.raises(InvalidConfig, match="seed is -1"):
        SearchSpace(**values, enqueued=({"seed": -1},))


# --- what is averaged ------------------------------------------------------------------------------------


def test_which_generators_each_average_runs_over() -> None:
    over = averages(spec(), [record(0, 0, 1)])
    assert over.op == ("sd14", "progan", "StyleGAN-2", "deepfake", "adm")
    assert over.gp == ("progan", "StyleGAN-2")
    assert over.gp_computed == ("progan", "StyleGAN-2", "deepfake")
    assert over.chosen_by == ("glide",)
    assert averages(spec(), [record(0, 0, 1)], ["adm"]).gp == ("adm",)
    one = record(0, 0, 1)
    one.generators["adm"]["ap"] = None
    assert averages(spec(), [one]).one_class == ("adm",)
    assert averages(spec(), []).op == ()


def test_means_intervals_and_paired_differences() -> None:
    # both gains exactly 0.05 on each seed, whatever the seed itself is worth
    records = [
        record(0, 0, 1),
        record(1, 0, 2, gain=0.1),
        record(2, 1, 1, gain=0.05),
        record(3, 1, 2, gain=0.15),
    ]
    records.append(record(4, 2, 1, state="failed", reason="not finite", generators={}))
    records.append(record(5, 3, 2, collapsed="ones"))
    summary = summarise(records, averages(spec(), records))
    neither, both = summary["neither"], summary["both"]
    assert neither["metrics"]["op_ap"].mean == pytest.approx(sum([0.9, 0.5, 0.7, 0.6, 0.8]) / 5 + 0.05)
    assert neither["metrics"]["gp_ap"].mean == pytest.approx(0.6 + 0.05)
    assert neither["metrics"]["gp_computed_ap"].mean == pytest.approx(0.6 + 0.05)
    assert neither["metrics"]["gp_accuracy"].mean == pytest.approx(0.3)
    assert neither["metrics"]["op_ap"].half_width == pytest.approx(12.706 * 0.05, abs=1e-3)
    assert both["differences"]["op_ap"].mean == pytest.approx(0.05)
    assert both["differences"]["op_ap"].half_width == pytest.approx(0, abs=1e-9)
    assert set(neither["differences"].values()) == {None}
    assert (summary["factorisation"]["num_failed"], summary["factorisation"]["metrics"]["op_ap"]) == (1, None)
    assert (summary["masking"]["num_collapsed"], summary["masking"]["num_pairs"]) == (1, 1)
    assert neither["generators"]["glide"]["ap"].mean == pytest.approx(0.15)


def test_the_table_has_the_papers_numbers_and_a_dash_where_no_gan_judges() -> None:
    lone = spec(test_generators=("adm",))
    records = [record(number, number % 4, number // 4) for number in range(8)]
    for item in records:
        for name in ("progan", "StyleGAN-2", "deepfake"):
            del item.generators[name]
    over = averages(lone, records)
    summary = summarise(records, over)
    ((columns, rows),) = ablation_tables(summary, over, width=160)
    assert len(rows) == 7
    assert all(len(row) == len(columns) for row in rows)
    by_arm = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert by_arm["neither"]["GP ACC"] == "-"
    assert by_arm["neither"]["OP AP"] == "85.00 ± 0.00"
    assert "GP* ACC" not in columns
    assert by_arm["both"]["paper's OP ACC"] == "90.45"
    assert rows[-1][columns.index("paper's OP AP")] == f"{96.92 - 75.31:+.2f}"
    ours, papers = ablation_tables(summary, over, width=100)
    assert [row + other[1:] for row, other in zip(ours[1], papers[1], strict=True)] == rows
    assert PAPER.keys() == ARMS.keys()


# --- mistakes --------------------------------------------------------------------------------------------

KNOWN = ["adm", "glide", "progan", "sd14"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": ["sd15"]}, "--train-generator names 'sd15'"),
        ({"val": ["glid"]}, "--val-generators names 'glid'"),
        ({"test": ["a"]}, "adm, glide, progan, sd14"),
        ({"gans": ["biggan"]}, "--gan-generators names biggan"),
        ({"gans": ["glide"]}, "judge nothing here"),
        ({"like": spec(val_generators=("adm",))}, "chosen on adm"),
        ({"like": spec(train_generators=("progan",))}, "chosen on progan"),
    ],
)
def test_mistakes_with_generators(changes: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {"train": ["sd14"], "val": ["glide"], "test": [], "gans": [], "like": spec()}
    check_generators(KNOWN, **values)
    with pytest.raises(StudyError, match=said):
        check_generators(KNOWN, **{**values, **changes})


def write_study(path: Path, records: list[TrialRecord]) -> None:
    path.mkdir(parents=True)
    (path / "study.json").write_text(json.dumps(spec(name=path.name).to_json()))
    for item in records:
        Ledger(path / "trials").add(item)


def test_settings_are_those_of_the_best_trial_with_both_modules(tmp_path: Path) -> None:
    tuned = record(2, 1, 5, gain=0.1)
    tuned.config.update(lambda1=0.3, layer="cls@7", hsic="normalised")
    write_study(tmp_path / "first", [record(0, 0, 1), record(1, 1, 2), tuned])
    settings, _, note = settings_of(tmp_path / "first")
    assert (settings["lambda1"], settings["layer"], settings["hsic"]) == (0.3, "cls@7", "normalised")
    assert not {"seed", "head"} & settings.keys()
    assert "winner 00002-x" in note

    write_study(tmp_path / "probe_wins", [record(0, 0, 1, gain=0.2), record(1, 1, 2)])
    _, _, note = settings_of(tmp_path / "probe_wins")
    assert "00001-x" in note
    assert "winner 00000-x lacks one" in note

    write_study(tmp_path / "probe_only", [record(0, 0, 1)])
    with pytest.raises(StudyError, match="leave --like out"):
        settings_of(tmp_path / "probe_only")
    with pytest.raises(StudyError, match="There is no study"):
        settings_of(tmp_path / "nothing")


def run_job(*words: object) -> Result:
    command = runpy.run_path(str(ROOT / "jobs" / "ablation_sd14.py"))["main"]
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seeds 1", "an interval needs 2 seeds"),
        ("--seeds 101", "100 at most"),
        ("--like nothing", "There is no study 'nothing'"),
        ("--space sd14", "needs each of"),
        ("--study ../a", "name of a study"),
        ("--train-generator nothing", "names 'nothing'"),
        ("--gan-generators nothing", "names nothing"),
    ],
)
def test_mistakes_are_told_before_anything_is_encoded(tmp_path: Path, words: str, said: str) -> None:
    images = write_images(tmp_path / "images", {"alpha": 4, "progan": 4})
    options = [
        "--images",
        images,
        "--layout",
        "csv",
        "--encoder",
        "tiny-random",
        "--workspace",
        tmp_path / "w",
    ]
    options += ["--train-generator", "alpha", "--study", "a"]
    result = run_job(*options, *words.split())
    assert result.exit_code == 2, result.output
    message = " ".join(result.output.split())
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "w" / "stores").exists()


def test_the_help_names_its_own_options_and_not_those_that_it_has_no_use_for() -> None:
    text = run_job("--help").output
    assert all(word in text for word in ("--seeds", "--like", "--layer ", "--gan-generators"))
    assert "--trials" not in text
    assert "--criterion" not in text


# --- in the report ---------------------------------------------------------------------------------------


def test_only_the_arms_on_shared_seeds_are_an_ablation() -> None:
    space = ablation_space(load_space("ablation"), settings={}, seed=0)
    assert is_ablation(spec(space=space.to_json()))
    assert not is_ablation(spec(space=load_space("ablation").to_json()))
    assert not is_ablation(spec(space=load_space("sd14").to_json()))
    short = replace(space, enqueued=space.enqueued[1:])
    assert not is_ablation(spec(space=short.to_json()))


def test_the_report_of_an_ablation_has_the_arms_with_their_intervals() -> None:
    own = spec(space=ablation_space(load_space("ablation"), settings={}, seed=0).to_json())
    gains = {0: (0.0, 0.02), 1: (0.1, 0.16)}  # of neither and of both, by seed
    records = [
        record(2 * arm + place, arm, seed, gain)
        for arm, values in gains.items()
        for place, (seed, gain) in enumerate(zip((5, 6), values, strict=True))
    ]
    (section,) = ablation(own, records, None)
    tables = {table.name: table for table in section.tables}
    rows = {row[0]: dict(zip(tables["ablation"].titles, row, strict=True)) for row in tables["ablation"].rows}
    op = 100 * sum(AP[name] for name in ("sd14", "progan", "StyleGAN-2", "deepfake", "adm")) / 5
    assert rows["neither"]["OP AP"].startswith(f"{op + 1:.2f} ± ")
    # differences of 0.10 and 0.14 by seed: Student's t with one degree of freedom, 12.706 x 0.02
    assert rows["both - neither"]["OP AP"] == "+12.00 ± 25.41"
    assert tables["ablation_paper"].rows[-1][1] == "+25.08"
    assert {row[0]: row[2] for row in tables["ablation_arms"].rows}["both"] == "2"
    assert "glide" in section.text


def test_terms_that_were_switched_off_are_told_with_their_intervals() -> None:
    document = {
        "seeds": [1, 2],
        "terms_of": "00003-x",
        "paired": [{"a": "00003-x", "b": "probe", "difference": 0.024, "interval": [0.001, 0.05]}],
        "terms": [
            {
                "term": "hsic",
                "off": {"lambda2": 0.0},
                "difference": 0.012,
                "interval": [-0.01, 0.03],
                "p": 0.25,
                "covers": "seeds and images",
                "share": 0.5,
                "mean": 0.88,
                "scores": [0.87, 0.89],
                "test_difference": {"mean": 0.02, "low": -0.01, "high": 0.05, "num": 2},
            },
            {"term": "mask", "off": {"mask_scope": "none"}, "failed": ["no more memory"]},
        ],
    }
    (section,) = ablation(spec(space=load_space("sd14").to_json()), [], document)
    (table,) = section.tables
    assert [dict(zip(table.titles, row, strict=True)) for row in table.rows] == [
        {
            "term": "hsic",
            "switched off": "lambda2 0.0",
            "without it": "88.00",
            "gain": "+1.20 [-1.00, +3.00]",
            "p": "0.250",
            "covers": "seeds and images",
            "of the gain over the probe": "50 %",
            "in mean test AP": "+2.00 ± 3.00",
        },
        {
            **dict.fromkeys(table.titles, "-"),
            "term": "mask",
            "switched off": "mask_scope none",
            "without it": "failed",
        },
    ]
    assert ablation(spec(space=load_space("sd14").to_json()), [], {**document, "terms": []}) == []


@pytest.mark.parametrize(
    "pair",
    [
        {"a": "00003-x", "b": "probe", "difference": 0.001, "interval": [-0.02, 0.02]},
        {"a": "probe", "b": "00003-x", "difference": 0.03, "interval": [0.01, 0.05]},
        {"a": "00003-x", "b": "probe", "difference": 0.02, "interval": None},
    ],
)
def test_a_gain_that_may_be_nothing_has_no_shares(
    pair: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    term = {
        "term": "hsic",
        "off": {"lambda2": 0.0},
        "difference": 0.0205,
        "interval": [-0.01, 0.03],
        "p": 0.25,
        "covers": "seeds and images",
        "share": 20.47,  # as earlier releases wrote it
        "mean": 0.88,
        "test_difference": None,
    }
    row = {"name": "00003-x", "config": {"head": "causal", "layer": "proj"}, "search_score": 0.9, "mean": 0.9}
    row |= {"interval": None, "over_seeds": {"low": None}, "num_collapsed": 0}
    document = {
        "study": "a",
        "criterion": "val_generators",
        "seeds": [1, 2],
        "terms_of": "00003-x",
        "terms": [term],
    }
    document |= {"finalists": [row], "probe": {**row, "name": "probe"}, "failed": []}
    document |= {"paired": [{**pair, "p": 0.9, "level": 0.95, "covers": "seeds"}]}
    document["verdict"] = {"winner": None, "reason": "A tie."}
    (section,) = ablation(spec(space=load_space("sd14").to_json()), [], document)
    assert "not distinguishable from nothing" in section.text
    assert not any("%" in cell for row in section.tables[0].rows for cell in row)
    for name, mean in (("glide", {"mean": 0.8}), ("ldm", None)):
        for one in (document["finalists"][0], document["probe"]):
            one.setdefault("test", {})[name] = {"ap": [0.8], "mean": mean}
            one["test_mean"] = {"mean": 0.8, "high": None}
    show_finalists(document, ["glide", "ldm"])
    shown = capsys.readouterr().out
    assert "2047" not in shown
    assert "Mean test AP leaves out ldm:" in shown
    assert "not distinguishable from nothing" in " ".join(shown.split())


# --- the whole -------------------------------------------------------------------------------------------


@pytest.mark.journey
@pytest.mark.ray
@pytest.mark.timeout(900)  # four runs of the job
def test_the_ablation_from_images_to_the_table(
    tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(
        tmp_path / "images", {"alpha": 40, "beta": 8, "progan": 8, "biggan": 8, "san": 8, "adm": 8}
    )
    with images.open(newline="") as file:
        rows = list(csv.DictReader(file))
    space = tmp_path / "short.py"
    text = (ROOT / "search_spaces" / "ablation.py").read_text()
    space.write_text(text + '\nDEFAULTS |= {"max_epochs": 2, "min_epoch_steps": 2, "batch_size": 16}\n')
    workspace = tmp_path / "runs"
    options = ["--images", images, "--layout", "csv", "--encoder", "tiny-random", "--workspace", workspace]
    options += [
        "--space",
        space,
        "--train-generator",
        "alpha",
        "--val-generators",
        "beta",
        "--max-concurrent",  # a second worker takes longer to start than these trials
        1,
        "--study",
        "small",
    ]

    result = run_job(*options, "--seeds", 2, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["num_indexed"] == len(rows)
    assert (document["num_trials"], document["num_new"], document["num_failed"]) == (8, 8, 0)
    assert document["generators"] == {
        "op": ["adm", "biggan", "progan", "san"],
        "gp": ["biggan", "progan"],
        "gp_computed": ["biggan", "progan", "san"],
        "validation": ["beta"],
        "one_class": [],
    }
    records = Ledger(workspace / "studies" / "small" / "trials").records()
    for arm in ARMS:
        mine = [item for item in records if arm_of(item.config) == arm]
        assert [item.seed for item in mine] == document["seeds"] == document["arms"][arm]["seeds"]
        assert {item.head_config["head"] for item in mine} == {"linear" if arm == "neither" else "causal"}
        assert all((item.mask is None) == (arm in ("neither", "masking")) for item in mine)
        aps = [sum(item.generators[name]["ap"] for name in ("biggan", "progan")) / 2 for item in mine]
        assert document["arms"][arm]["metrics"]["gp_ap"]["mean"] == pytest.approx(sum(aps) / 2)
        assert document["arms"][arm]["paper"] == PAPER[arm]
        assert ("invariance" in " ".join(mine[0].epochs[0])) == (arm in ("masking", "both"))
    assert "--train-generator alpha" in document["repeat"]
    assert "--seeds 2" in document["repeat"]

    files = sorted(path.name for path in (workspace / "studies" / "small" / "trials").iterdir())
    again = run_job(*options, "--seeds", 2)
    assert again.exit_code == 0, again.output
    assert sorted(path.name for path in (workspace / "studies" / "small" / "trials").iterdir()) == files
    assert "all were stored before" in again.output
    shown = " ".join(again.output.split())
    assert "GP* as the paper's numbers are computed" in shown
    assert "In no average, since they may choose: beta." in shown
    assert document["repeat"] in again.output

    written = run_cli("report", "small", "--workspace", workspace, "-o", tmp_path / "report")
    assert written.exit_code == 0, written.output
    with (tmp_path / "report" / "tables" / "ablation.csv").open() as file:
        told = {row["arm"]: row for row in csv.DictReader(file)}
    for arm in ARMS:
        mean = document["arms"][arm]["metrics"]["gp_ap"]["mean"]
        assert float(told[arm]["GP AP"].split(" ")[0]) == pytest.approx(100 * mean, abs=0.006)

    more = run_job(*options, "--seeds", 3, "--json")
    extended = json.loads(more.stdout)
    assert (extended["num_trials"], extended["num_new"]) == (12, 4)
    assert extended["seeds"][:2] == document["seeds"]

    # like a study that exists: the small one has trials with both modules
    other = [*options[:-1], "liked", "--like", "small"]
    liked = json.loads(run_job(*other, "--seeds", 2, "--json").stdout)
    assert liked["like"] == "small"
    assert "study 'small'" in liked["settings_from"]
    assert liked["settings"]["max_epochs"] == 2

    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero")

    for part, failed in (
        ("causal_tune.cli.ablation.averages", "The table of the arms was not made: ZeroDivisionError"),
        ("causal_tune.cli.ablation.generator_rows", "The table of the arms was not made: ZeroDivisionError"),
        ("causal_tune.tracking.tracker.Tracker.finish", "The tracker failed with ZeroDivisionError"),
    ):
        with monkeypatch.context() as planted:
            planted.setattr(part, fail)
            broken = run_job(*other, "--seeds", 2)
        text = " ".join(broken.output.split())
        assert broken.exit_code == 1, text
        assert failed in text
        table = "Leaderboard by" if part.endswith("averages") else "Ablation liked"
        assert table in text
        assert f"causal-tune leaderboard {workspace / 'studies' / 'liked'}" in text
