import pytest

from causal_tune.ledger import TrialRecord
from causal_tune.study.verdicts import one_verdict


def record(
    real: float | None, generated: float | None, *, num_generated: int = 20, **config: object
) -> TrialRecord:
    validation = {
        "accuracy_real": real,
        "accuracy_generated": generated,
        "num_real": 20,
        "num_generated": num_generated,
    }
    return TrialRecord(number=0, id="00000-x", state="finished", config=config, seed=0, validation=validation)


@pytest.mark.parametrize(
    ("real", "generated"), [(1.0, 0.1), (0.8, 0.7), (None, 0.0), (0.0, None), (None, None)]
)
def test_a_head_that_gives_both_verdicts_or_saw_one_class_only_is_no_matter(real, generated):
    assert one_verdict(record(real, generated)) is None


def test_the_class_that_is_missed_is_named_with_its_numbers():
    said = one_verdict(record(1.0, 0.05))
    assert said.startswith(
        "At score 0.5 it calls 1 of 20 generated validation images generated, and 20 of 20 real ones real. "
    )
    assert one_verdict(record(0.05, 0.95)).startswith(
        "At score 0.5 it calls 1 of 20 real validation images real, and 19 of 20 generated ones generated. "
    )


def test_balance_is_the_remedy_where_the_missed_class_is_rare_and_was_not_balanced():
    assert "class_balance" in one_verdict(record(1.0, 0.0, num_generated=2))
    assert "class_balance" in one_verdict(record(1.0, 0.0, num_generated=2, class_balance="none"))
    for other in (record(1.0, 0.0), record(1.0, 0.0, num_generated=2, class_balance="balanced")):
        said = one_verdict(other)
        assert "class_balance" not in said
        assert "`causal-tune export`" in said
