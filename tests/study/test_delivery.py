"""A study's trials on their way to its tracker."""

import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny

from causal_tune.errors import TrackingError, WorkFailed
from causal_tune.ledger import Ledger
from causal_tune.study.delivery import Delivery
from causal_tune.study.run import run_study
from causal_tune.study.spec import study_path

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


class Shelf:
    """A user's own tracker: a list."""

    def __init__(self, spec):
        self.spec, self.said, self.delivered = spec, [], []

    def connect(self):
        self.said.append("connect")

    def start(self):
        self.said.append("start")

    def sync(self, records):
        missing = [record for record in records if record.id not in self.delivered]
        self.delivered += [record.id for record in missing]
        return len(missing)

    def log_trial(self, record, roles):
        self.delivered.append(record.id)

    def watched(self):
        return nullcontext()

    def finish(self, best):
        self.said.append("finish")

    def stop(self):
        self.said.append("stop")


class SlowShelf(Shelf):
    """It has put nothing away before the study has recorded its last trial."""

    def __init__(self, spec, num_trials):
        super().__init__(spec)
        self.num_trials, self.num_events, self.all_recorded = num_trials, 0, threading.Event()

    def on_event(self, event):
        self.num_events += event.kind == "trial"
        if self.num_events == self.num_trials:
            self.all_recorded.set()

    def log_trial(self, record, roles):
        assert self.all_recorded.wait(timeout=120), "the study waits for its tracker"
        super().log_trial(record, roles)


def test_no_trial_waits_for_a_slow_tracker_and_each_is_delivered_once_in_the_order_of_their_ends(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    shelf = SlowShelf(spec, 3)
    result = run_study(spec, num_trials=3, workspace=tmp_path, tracker=shelf, on_event=shelf.on_event)
    assert shelf.delivered == [record.id for record in result.records]
    assert shelf.said == ["connect", "start", "finish"]


LATE = """
import sys, time
from pathlib import Path
import ray, test_delivery, tiny
from causal_tune.study.run import run_study

class Late(test_delivery.Shelf):
    def log_trial(self, record, roles):
        time.sleep(1.5)  # an idle Ray ends in less
        self.said.append(ray.is_initialized())
        super().log_trial(record, roles)

workspace = Path(sys.argv[1])
spec = tiny.make_tiny_spec(workspace, max_concurrent=1)
shelf = Late(spec)
run_study(spec, num_trials=2, workspace=workspace, tracker=shelf)
print(shelf.said, ray.is_initialized())
"""


def test_ray_is_there_until_the_last_trial_is_delivered(tmp_path):
    """Ray ends the process where another thread touches it while it is shut down."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", LATE, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['connect', 'start', True, True, 'finish'] False"


class Wrong(Shelf):
    def log_trial(self, record, roles):
        raise LookupError("a mistake in the tracker itself")


def test_a_mistake_in_a_tracker_costs_no_trial_and_is_told(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    warnings = []
    result = run_study(
        spec,
        num_trials=2,
        workspace=tmp_path,
        tracker=Wrong(spec),
        on_event=lambda event: warnings.append(event.message),
    )
    assert len(result.records) == 2
    assert any("LookupError: a mistake in the tracker itself" in message for message in warnings)
    assert result.undelivered is None  # `sync` delivered it in the end


class WrongAtTheEnd(Shelf):
    def finish(self, best):
        raise LookupError("a mistake in the tracker itself")


def test_what_a_tracker_lacks_in_the_end_is_in_the_result(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    result = run_study(spec, num_trials=1, workspace=tmp_path, tracker=WrongAtTheEnd(spec))
    assert len(Ledger(study_path(tmp_path, "tiny") / "trials").records()) == 1
    assert result.undelivered == "The tracker failed with LookupError: a mistake in the tracker itself."


class Unreachable(Shelf):
    def connect(self):
        raise TrackingError("No MLflow server answers.")


def test_a_study_that_can_be_shown_nowhere_is_not_made(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path)
    shelf = Unreachable(spec)
    with pytest.raises(TrackingError, match="No MLflow server answers"):
        run_study(spec, num_trials=1, workspace=tmp_path, tracker=shelf)
    assert shelf.said == []
    assert not (study_path(tmp_path, "tiny") / "study.json").exists()


def test_a_study_that_need_not_be_shown_goes_on_without(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    warnings = []
    result = run_study(
        spec,
        num_trials=1,
        workspace=tmp_path,
        tracker=Away(spec),
        tracker_required=False,
        on_event=lambda event: warnings.append(event.message),
    )
    assert len(result.records) == 1
    assert warnings.count("No MLflow server answers. The study goes on without it.") == 1
    assert result.undelivered == "No MLflow server answers."


class Away(Unreachable):
    def sync(self, records):
        self.connect()


def test_a_study_that_is_done_is_shown_whatever_its_tracker_does(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    run_study(spec, num_trials=1, workspace=tmp_path)
    result = run_study(spec, num_trials=1, workspace=tmp_path, tracker=Away(spec))
    assert len(result.records) == 1
    assert result.undelivered == "No MLflow server answers."


@pytest.mark.parametrize("ends_by", [KeyboardInterrupt, WorkFailed])
def test_an_interrupted_study_is_closed_in_its_tracker(tmp_path, ends_by):
    shelf = Shelf(tiny.make_tiny_spec(tmp_path))

    def interrupted():
        with Delivery(shelf, shelf.spec.roles) as delivery:
            delivery.start([])
            with delivery.ready():
                raise ends_by

    with pytest.raises(ends_by):
        interrupted()
    assert shelf.said == ["connect", "start", "stop"]
