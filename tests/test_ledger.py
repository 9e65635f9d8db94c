import json

import pytest

from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger, TrialRecord, non_finite, trial_id


def record(number: int = 3, **changes: object) -> TrialRecord:
    config = {"head": "causal", "tau": 0.1 + 0.2, "seed": 11}
    values: dict = {
        "number": number,
        "id": trial_id(number, config),
        "state": "finished",
        "config": config,
        "seed": 11,
        "epochs": [{"val_ap": 1 / 3}],
        "best_epoch": 0,
        "validation": {"ap": 1 / 3, "num_real": 4},
        "generators": {"cyclegan": {"ap": None}},
    }
    return TrialRecord(**{**values, **changes})


def test_a_record_reads_back_equal_to_the_last_bit(tmp_path):
    ledger = Ledger(tmp_path / "trials")
    ledger.add(record())
    assert ledger.records() == [record()]


def test_records_come_by_number_and_a_missing_folder_is_empty(tmp_path):
    ledger = Ledger(tmp_path / "trials")
    assert ledger.records() == []
    for number in (12, 2, 100_000):
        ledger.add(record(number))
    assert [item.number for item in ledger.records()] == [2, 12, 100_000]


def test_a_trial_is_recorded_once_whatever_its_configuration(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(record())
    with pytest.raises(StudyError, match="recorded once"):
        ledger.add(record(id="00003-ffffffff"))


def test_a_half_written_file_of_a_killed_writer_is_not_a_record(tmp_path):
    (tmp_path / ".00001-aa.json.1234.tmp").write_text('{"format": 1')
    assert Ledger(tmp_path).records() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be used"),
        ("[]", "not a trial record"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "number": 1}', "config"),
        (json.dumps({**record().to_json(), "surprise": 1}), "surprise"),
        (json.dumps({**record().to_json(), "state": "running"}), "'running'"),
        (json.dumps(record().to_json()), "holds trial"),
    ],
)
def test_a_foreign_file_is_named_with_the_next_step(tmp_path, content, said):
    (tmp_path / "00001-aaaaaaaa.json").write_text(content)
    with pytest.raises(StudyError, match=said) as error:
        Ledger(tmp_path).records()
    assert "00001-aaaaaaaa.json" in str(error.value)
    assert "runs this trial again" in str(error.value)


def test_two_files_of_one_trial_are_an_error(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(record())
    twin = record(id="00003-ffffffff")
    (tmp_path / "00003-ffffffff.json").write_text(json.dumps(twin.to_json()))
    with pytest.raises(StudyError, match="also in"):
        ledger.records()


def test_non_finite_numbers_are_found_where_they_are():
    assert non_finite({"a": [1.0, {"b": float("inf")}]}) == "a/1/b"
    assert non_finite({"a": [1.0, None, "nan"]}) is None
