import shlex
import socket
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

import mlflow
import pytest

from causal_tune.cli import main
from causal_tune.errors import TrackingError
from causal_tune.tracking import Figures, Tracker, default_uri
from causal_tune.tracking.content import study_page
from causal_tune.tracking.place import database_path
from causal_tune.trial import TrialConfig
from tests.tracking.server import mlflow_server
from tests.tracking.studies import ROLES, make_record, make_spec

FIGURES = Figures(of="1", drawn={"history": ("In *their* order.", "<svg>1</svg>")})


def runs_of(tracker):
    """Every run of the experiment, by the id of its trial ("" for the parent)."""
    runs = tracker._client.search_runs([tracker.experiment_id], max_results=1000)
    ids = [run.data.tags.get("causal_tune.trial_id", "") for run in runs]
    assert len(ids) == len(set(ids)), "a trial has two runs"
    return dict(zip(ids, runs, strict=True))


def figures_of(tracker):
    """The texts of the figures on the parent run."""
    folder = Path(tracker._client.download_artifacts(tracker.parent_run_id, "figures"))
    return {path.name: path.read_text() for path in folder.iterdir()}


def page_of(tracker):
    return tracker._client.get_run(tracker.parent_run_id).data.tags["mlflow.note.content"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for the module: making its tables is what takes the time."""
    return default_uri(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def experiment(request):
    return request.node.name


@pytest.fixture
def tracker(database, experiment):
    tracker = Tracker(database, experiment, make_spec())
    tracker.start()
    return tracker


def test_a_trial_is_a_nested_run_with_params_curves_and_results(tracker):
    record = make_record(3)
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert run.data.tags["causal_tune.criterion"] == "val_generators"
    assert run.data.tags["causal_tune.store_fingerprint"] == "f00d"
    assert {"lambda1", "lambda2", "alpha", "beta", "tau", "p"} <= run.data.params.keys()
    assert run.data.params["lambda1"] == "0.0001"
    assert run.data.metrics["val_generators/cycle gan_x2b_/ap"] == 0.63
    assert run.data.metrics["test/progan/accuracy"] == 0.75
    assert run.data.metrics["best_validation/ap"] == 0.9
    assert run.data.metrics["criterion/val_generators"] == 0.63
    curve = tracker._client.get_metric_history(run.info.run_id, "Epochs/validation/ap")
    assert [(point.step, point.value) for point in curve] == [(1, 0.501), (2, 0.502), (3, 0.503)]
    curves = {name.rpartition("/")[0] for name in run.data.metrics if name.startswith("Epochs")}
    others = {name.rpartition("/")[0] for name in run.data.metrics if not name.startswith("Epochs")}
    assert curves == {"Epochs/validation", "Epochs/mask", "Epochs/loss", "Epochs/training"}
    assert max(curves) < min(
        others - {""}
    )  # the order in which MLflow shows them; those in no folder are last
    assert (run.info.start_time, run.info.end_time) == (1_700_000_001_000, 1_700_000_003_000)


def test_params_are_those_that_the_head_reads(tracker):
    causal, svm = (
        make_record(place, config=TrialConfig(head=head).to_dict())
        for place, head in enumerate(("causal", "svm"))
    )
    tracker.sync([causal, svm])
    params = {key: run.data.params for key, run in runs_of(tracker).items()}
    assert "svm_c" not in params[causal.id]
    assert "mlp_width" not in params[causal.id]
    assert "tau_end" not in params[causal.id]  # off
    assert params[svm.id]["svm_c"] == "1.0"
    assert not {"lambda1", "alpha", "mask_scope", "shots"} & params[svm.id].keys()
    assert len(params[svm.id]) < 15
    assert params[""]["study.val_generators"] == "cycle gan+"
    assert params[""]["study.degraded_views"] == ""


def test_a_failed_trial_is_a_failed_run_with_its_reason(tracker):
    record = make_record(0, state="failed", reason="the loss became nan", generators={}, validation={})
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert run.info.status == "FAILED"
    assert run.data.tags["causal_tune.reason"] == "the loss became nan"


def test_runs_name_the_store_the_commit_and_the_versions(tracker, database, experiment):
    record = make_record(4, versions={"python": "3.11", "commit": "c0ffee", "torch": "2"})
    tracker.log_trial(record, ROLES)
    Tracker(database, experiment, make_spec()).start()  # a study that is continued reads the store once more
    runs = runs_of(tracker)
    (read,) = runs[""].inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("store", "f00d")
    assert mlflow.data.get_source(read).uri == "/store"
    assert runs[record.id].data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert runs[record.id].data.tags["causal_tune.versions"] == "python 3.11, torch 2"
    assert runs[""].data.tags["causal_tune.versions"] == "python 3"
    assert not [key for key, value in runs[""].data.params.items() if "python" in key + value]  # told once
    assert "mlflow.source.git.commit" not in runs[""].data.tags


def test_delivering_again_changes_nothing(tracker, database, experiment):
    records = [make_record(number) for number in range(3)]
    assert tracker.sync(records) == 3
    before = {key: run.to_dictionary() for key, run in runs_of(tracker).items()}
    again = Tracker(database, experiment, make_spec())
    again.start()
    again.log_trial(records[1], ROLES)
    assert again.sync(records) == 0
    assert again.parent_run_id == tracker.parent_run_id
    assert {key: run.to_dictionary() for key, run in runs_of(again).items()} == before


def test_a_run_that_was_begun_and_not_ended_is_completed_once(tracker, database, experiment):
    record = make_record(5)
    tracker.log_trial(record, ROLES)
    run_id = runs_of(tracker)[record.id].info.run_id
    # as a driver leaves it that is killed between the batch and the end of the run
    tracker._client.update_run(run_id, status="RUNNING")
    again = Tracker(database, experiment, make_spec())
    again.start()
    assert again.sync([record]) == 1
    assert runs_of(again)[record.id].info.status == "FINISHED"
    assert len(again._client.get_metric_history(run_id, "Epochs/validation/ap")) == 3


def test_more_metrics_than_a_request_may_hold_all_arrive(tracker):
    record = make_record(6, num_epochs=700)
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert len(tracker._client.get_metric_history(run.info.run_id, "Epochs/loss/total")) == 700
    assert run.data.metrics["test/progan/ap"] == 0.4


def test_the_parent_ends_with_the_winner_on_it(tracker):
    records = [make_record(number) for number in range(2)]
    tracker.sync(records)
    tracker.finish(records[1])
    parent = runs_of(tracker)[""]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["causal_tune.best_trial"] == records[1].id
    assert parent.data.tags["best.tau"] == "0.5"


def points_of(tracker, name):
    history = tracker._client.get_metric_history(tracker.parent_run_id, name)
    return sorted((point.step, point.value) for point in history)


def test_the_parent_charts_the_best_so_far(tracker, database, experiment):
    better, worse, best = (
        make_record(
            number,
            generators={"cycle gan+": {"ap": ap}, "progan": {"ap": 1 - ap}},
            ended_at=1_700_000_000 - number,
        )
        for number, ap in ((2, 0.6), (1, 0.5), (0, 0.8))
    )
    for record in (better, worse, best):
        tracker.log_trial(record, ROLES)
    expected = [(1, 0.6), (2, 0.6), (3, 0.8)]
    assert points_of(tracker, "best_so_far/val_generators") == expected
    # the test AP of that trial, not the best test AP
    assert points_of(tracker, "best_so_far/test") == [(step, pytest.approx(1 - ap)) for step, ap in expected]
    again = Tracker(database, experiment, make_spec())
    again.deliver([best, worse, better])
    assert points_of(again, "best_so_far/val_generators") == expected


def test_a_study_that_was_delivered_without_the_best_so_far_gets_it(
    tracker, database, experiment, monkeypatch
):
    records = [make_record(number) for number in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "_advance", lambda self, record: [])  # as earlier releases
        tracker.sync(records)
    assert points_of(tracker, "best_so_far/val_generators") == []
    assert Tracker(database, experiment, make_spec()).deliver(records) == 0
    assert points_of(tracker, "best_so_far/val_generators") == [(1, 0.6), (2, 0.61), (3, 0.62)]


def test_a_study_without_a_winner_ends_too(tracker):
    tracker.finish(None)
    assert runs_of(tracker)[""].info.status == "FINISHED"


def test_two_studies_of_one_name_do_not_share_runs(tracker, database, experiment):
    other = Tracker(database, experiment, make_spec(uid="u2"))
    other.start()
    assert other.parent_run_id != tracker.parent_run_id


def test_the_experiment_opens_as_a_table_of_trainings(tracker):
    # the value is the one that mlflow's own pages compare with
    experiment = tracker._client.get_experiment(tracker.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert (database_path(tracker.uri).parent / "mlartifacts").as_uri() in experiment.artifact_location


def test_a_deleted_experiment_is_told_with_the_way_back(tracker, database, experiment):
    tracker._client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match=rf"`MLFLOW_TRACKING_URI={database} .*mlflow experiments restore"):
        Tracker(database, experiment, make_spec()).start()


HOSTILE = (
    *("glide@50", "glide_50", "../../up", "x" * 300, "x" * 299 + "y", "", "..", "a|b", "a\nb", "[/v2]"),
    *("génération", "nul\0", "not \udce9 UTF-8"),
)


def test_hostile_names_are_as_many_metrics_and_leave_no_run_open(database, experiment):
    values = {name: place / 100 for place, name in enumerate(HOSTILE)}
    record = make_record(
        0,
        generators={name: {"ap": value} for name, value in values.items()},
        perturbed={name: {"ap": value} for name, value in values.items()},
        epochs=[{"epoch": 1, **{f"generator_ap/{name}": value for name, value in values.items()}}],
    )
    failed = make_record(1, state="failed", reason="no \udce9\0", generators={}, validation={})
    tracker = Tracker(database, experiment, make_spec(val_generators=HOSTILE, test_generators=HOSTILE * 20))
    tracker.deliver([record, failed])
    runs = runs_of(tracker)
    assert {key: run.info.status for key, run in runs.items()} == {
        "": "FINISHED",
        record.id: "FINISHED",
        failed.id: "FAILED",
    }
    assert "causal_tune.incomplete" not in runs[failed.id].data.tags
    assert runs[""].data.params["study.val_generators"].startswith("glide@50, glide_50, ../../up, xxx")
    metrics = runs[record.id].data.metrics
    for start, end in (
        ("val_generators/", "/ap"),
        ("perturbed_validation/", "/ap"),
        ("Epochs/generator_ap/", ""),
    ):
        there = {
            name: value for name, value in metrics.items() if name.startswith(start) and name.endswith(end)
        }
        assert sorted(there.values()) == sorted(values.values())
        assert there[f"{start}glide_x40_50{end}"] == values["glide@50"]
        assert there[f"{start}glide_50{end}"] == values["glide_50"]


def test_a_trial_that_mlflow_does_not_take_is_closed_told_and_delivered_later(tracker, database, experiment):
    refused = make_record(0, epochs=[{"epoch": 10**30, "validation/ap": 0.5}])  # a step beyond 64 bits
    taken = make_record(1)
    assert tracker.sync([refused, taken]) == 1
    assert tracker.num_lacking([refused, taken]) == 1
    with pytest.raises(TrackingError, match="does not take trial 0"):
        tracker.finish(taken)
    runs = runs_of(tracker)
    assert {run.info.status for run in runs.values()} == {"FINISHED", "FAILED"}
    assert runs[refused.id].data.tags["causal_tune.incomplete"]
    assert runs[taken.id].data.metrics["criterion/val_generators"] == 0.61
    again = Tracker(database, experiment, make_spec())
    again.start()
    assert again.sync([make_record(0), taken]) == 1
    assert runs_of(again)[refused.id].info.status == "FINISHED"
    assert "causal_tune.incomplete" not in runs_of(again)[refused.id].data.tags


def test_a_study_that_is_interrupted_is_closed_and_goes_on_later(tracker, database, experiment):
    records = [make_record(number) for number in range(2)]
    tracker.sync(records)
    tracker.stop()
    assert runs_of(tracker)[""].info.status == "KILLED"
    assert f"trial {records[1].id}" in page_of(tracker)
    again = Tracker(database, experiment, make_spec())
    again.deliver(records)
    assert again.parent_run_id == tracker.parent_run_id
    assert runs_of(again)[""].info.status == "FINISHED"


def test_the_page_says_what_the_finalists_came_to(tracker, database, experiment):
    tracker.deliver([make_record(0)])
    assert "`causal-tune finalists tiny` says how sure" in page_of(tracker)
    Tracker(database, experiment, make_spec(), verdict=lambda: "It is a tie.").deliver([make_record(0)])
    assert page_of(tracker).startswith("**Finalists: It is a tie.**")
    assert "says how sure" not in page_of(tracker)


def test_the_command_for_the_ui_names_the_database(tracker, database):
    command, address = tracker.ui_command().split("  # ")
    assert command.endswith(f" ui --backend-store-uri {database}")
    shown = parse_qs(address.partition("?")[2])
    found = tracker._client.search_runs([tracker.experiment_id], shown["searchFilter"][0])
    assert list(found) == []
    tracker.sync([make_record(0), make_record(1, collapsed="ones")])
    found = tracker._client.search_runs(
        [tracker.experiment_id], shown["searchFilter"][0], order_by=[f"{shown['orderByKey'][0]} DESC"]
    )
    assert [run.info.run_name for run in found] == ["001 causal", "000 causal"]
    tracker.spec = make_spec(criterion="val_generators_uncollapsed")
    (condition,) = parse_qs(tracker.ui_path())["searchFilter"]
    found = tracker._client.search_runs([tracker.experiment_id], condition)
    assert [run.info.run_name for run in found] == ["000 causal"]


def test_the_address_of_a_server_is_that_of_its_pages_without_the_password():
    tracker = Tracker("https://me:pa55@host:5000/mlflow/", "x", make_spec())
    assert tracker.ui_command() == "https://host:5000/mlflow/#/experiments"


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(TrackingError, match="--tracking-uri"):
            Tracker(uri, "x", make_spec()).start()
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_server_that_never_answers_is_told_within_ten_seconds():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(TrackingError, match="No MLflow server answers"):
            Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "x", make_spec()).start()
    assert time.monotonic() - started < 10


@pytest.mark.journey
def test_a_real_server_takes_a_study_and_its_loss_is_told(tmp_path):
    with mlflow_server(tmp_path) as uri:
        tracker = Tracker(uri, "causal-tune", make_spec(), draw=lambda shown: FIGURES)
        tracker.start()
        records = [make_record(0), make_record(1, num_epochs=500)]
        assert tracker.sync(records) == 2
        assert len(runs_of(tracker)) == 3
        tracker.finish(records[1])
        assert figures_of(tracker) == {"history.svg": "<svg>1</svg>"}
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"did not take the study 'tiny': .* refused"):
        tracker.log_trial(make_record(2), ROLES)
    assert time.monotonic() - started < 30


def test_the_parent_run_says_what_the_study_is_and_how_it_is_made_again(database):
    tracker = Tracker(database, "described", make_spec(uid="described"))
    tracker.start()
    records = [make_record(number) for number in range(3)]
    assert tracker.sync(records) == 3
    tracker.finish(records[2])
    parent = tracker._client.get_run(tracker.parent_run_id)
    text = page_of(tracker)
    assert text.startswith("**Best of the search")  # the rest is folded
    assert tracker.spec.space["question"].strip() in text
    best_run = parent.data.tags["causal_tune.best_run"]
    assert (
        f"[trial {records[2].id}](#/experiments/{tracker.experiment_id}/runs/{best_run}?workflowType=machine_learning)"
        in text
    )
    assert "| chosen by | cycle gan+ |" in text
    assert "--val-generators 'cycle gan+'" in text
    passed_over = "Its mask has collapsed: reports and detectors take the best trial without"
    assert passed_over not in text
    assert passed_over in study_page(tracker.spec, make_record(2, collapsed="ones"))
    command = main.get_command(None, "tune")
    words = shlex.split(text[text.index("    causal-tune tune") :])[2:]
    assert {word for word in words if word.startswith("--")} <= {
        option for parameter in command.params for option in parameter.opts
    }
    names = {run.info.run_name for run in runs_of(tracker).values()}
    assert names == {"tiny", "000 causal", "001 causal", "002 causal"}


@pytest.mark.parametrize("part", ["probe", "finalists-6ffd91", "terms-6ffd91"])
def test_the_page_of_a_part_of_the_finalists_names_their_command(part):
    text = study_page(make_spec(name=f"real.{part}"), make_record(0))
    assert text.endswith("Again, or longer:\n\n    causal-tune finalists real")
    assert "says how sure" not in text
    assert "causal-tune tune" in study_page(make_spec(name="real.v2"), make_record(0))


def test_a_pruned_trial_is_no_failure(database):
    tracker = Tracker(database, "pruned", make_spec(uid="pruned"))
    tracker.start()
    record = make_record(0, state="pruned", reason="its score is below", generators={}, best_epoch=None)
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert run.info.status == "KILLED"
    assert run.data.tags["causal_tune.state"] == "pruned"


def test_the_figures_are_artifacts_and_on_the_page(database):
    tracker = Tracker(database, "figures", make_spec(uid="figures"), draw=lambda shown: FIGURES)
    tracker.deliver([make_record(0)])
    assert figures_of(tracker) == {"history.svg": "<svg>1</svg>"}
    address = f"(get-artifact?path=figures%2Fhistory.svg&run_uuid={tracker.parent_run_id})"
    assert f"In *their* order. `figures/history.svg`\n\n![figures/history.svg]{address}" in page_of(tracker)


def test_figures_are_drawn_again_only_where_they_are_others(database):
    asked = []

    def draw(shown):
        asked.append(shown)
        return None if shown == "1" else FIGURES

    def deliver(draw):
        tracker = Tracker(database, "drawn once", make_spec(uid="once"), draw=draw)
        tracker.deliver([make_record(0)])
        return page_of(tracker)

    first, second = deliver(draw), deliver(draw)
    assert asked == ["", "1"]
    assert first == second
    # an export, which draws nothing, leaves them where they are
    assert page_of_export(database) == first
    later = Figures(of="2", drawn={"history": ("Later.", "<svg>2</svg>")})
    assert "Later." in deliver(lambda shown: later)


def page_of_export(database):
    tracker = Tracker(database, "drawn once", make_spec(uid="once"))
    tracker.deliver([make_record(0)])
    return page_of(tracker)


def test_artifacts_that_cannot_be_stored_are_told_and_the_winner_is_there(database):
    # a library that is not installed: no error of MLflow's own
    mlflow.MlflowClient(database).create_experiment("gone", artifact_location="gs://nowhere/x")
    tracker = Tracker(database, "gone", make_spec(uid="gone"), draw=lambda shown: FIGURES)
    with pytest.raises(TrackingError, match="google"):
        tracker.deliver([make_record(0)])
    assert runs_of(tracker)[""].info.status == "FINISHED"
    assert page_of(tracker).startswith("**Best of the search")
    assert "Figures" not in page_of(tracker)


def test_a_study_without_a_winner_has_no_figures(database):
    def draw(shown):
        raise AssertionError("there is nothing to draw")

    tracker = Tracker(database, "no figures", make_spec(uid="none"), draw=draw)
    tracker.deliver([make_record(0, state="failed", reason="nan", generators={}, validation={})])
    assert "Figures" not in page_of(tracker)


def test_a_page_with_more_than_mlflow_takes_loses_its_last_figures(database):
    drawn = {f"figure-{number}": ("x" * 500, "<svg/>") for number in range(20)}
    tracker = Tracker(
        database, "long", make_spec(uid="long"), draw=lambda shown: Figures(of="1", drawn=drawn)
    )
    tracker.deliver([make_record(0)])
    assert len(figures_of(tracker)) == 20
    assert "figures/figure-5.svg" in page_of(tracker)
    assert len(page_of(tracker)) <= 8000


def test_the_parent_run_is_as_long_as_the_study_however_late_it_is_delivered(tracker, database, experiment):
    ended = time.time() + 60
    for _ in range(2):
        again = Tracker(database, experiment, make_spec())
        again.deliver([make_record(0), make_record(1, ended_at=ended)])
        assert runs_of(again)[""].info.end_time == int(1000 * ended)


def test_the_machine_is_sampled_while_trials_run_and_delivered_with_them(tracker, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    before = threading.active_count()
    with tracker.watched():
        time.sleep(1.5)
        tracker.log_trial(make_record(0), ROLES)
        early = tracker._client.get_run(tracker.parent_run_id).data.metrics
        time.sleep(0.5)
    assert threading.active_count() <= before
    tracker.finish(make_record(0))
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= early.keys()
    assert {"system/disk_usage_percentage", "system/network_receive_megabytes"} <= early.keys()
    points = tracker._client.get_metric_history(tracker.parent_run_id, "system/cpu_utilization_percentage")
    assert len(points) >= 3
    assert all(0 <= point.value <= 100 for point in points)
    run = runs_of(tracker)[""]
    assert all(0 <= point.timestamp - run.info.start_time < 60_000 for point in points)
    assert [point.step for point in points] == [
        (point.timestamp - run.info.start_time) // 1000 for point in points
    ]


def test_what_mlflow_refused_of_the_machine_is_delivered_later(tracker):
    with tracker.watched():
        pass
    tracker._client.delete_run(tracker.parent_run_id)  # a deleted run takes nothing
    with pytest.raises(TrackingError):
        tracker.log_trial(make_record(0), ROLES)
    tracker._client.restore_run(tracker.parent_run_id)
    tracker.finish(None)
    (point,) = tracker._client.get_metric_history(tracker.parent_run_id, "system/cpu_utilization_percentage")
    assert point.value >= 0
