import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_tune.errors import StudyError, UnknownName
from causal_tune.ledger import TrialRecord
from causal_tune.selection import (
    CRITERIA,
    Roles,
    best,
    check_objective,
    default_criterion,
    epoch_score,
    oracle_gap,
    pareto_front,
    rank,
    saturated,
    score,
    undefined_note,
    undefined_tests,
)

ROLES = Roles(
    train_generators=("sd14", "sd15"),
    val_generators=("cyclegan", "stylegan"),
    test_generators=("progan", "glide"),
    degraded_views=("jpeg-50", "blur-2"),
)


def record(number, val, cyclegan, stylegan, progan=0.5, glide=0.5, head="causal", state="finished", n=100):
    def metrics(ap):
        return {"ap": ap, "accuracy": 0.5, "num_real": n, "num_generated": n}

    names = {"cyclegan": cyclegan, "stylegan": stylegan, "progan": progan, "glide": glide}
    return TrialRecord(
        number=number,
        id=f"{number:05d}-x",
        state=state,
        reason=None if state == "finished" else "not finite",
        config={"head": head},
        seed=0,
        validation=metrics(val),
        generators={name: metrics(ap) for name, ap in names.items()},
        perturbed={"jpeg-50": metrics(cyclegan), "blur-2": metrics(stylegan)},
        left_out={"sd14": metrics(cyclegan), "sd15": metrics(stylegan)},
    )


# By hand: means over the two validation generators are .60 .65 .55, minima .50 .40 .54.
RECORDS = [
    record(0, 0.90, 0.50, 0.70, progan=0.60, glide=0.60),
    record(1, 0.80, 0.40, 0.90, progan=0.50, glide=0.50),
    record(2, 0.70, 0.56, 0.54, progan=0.90, glide=0.70),
    record(3, 1.00, 1.00, 1.00, progan=1.00, glide=1.00, state="failed"),
]
WINNERS = {
    "train_domain": 0,
    "val_generators": 1,
    "leave_one_generator_out": 1,
    "worst_generator": 2,
    "perturbed_val": 2,
    "oracle": 2,
}
WINNERS |= {f"{name}_uncollapsed": winner for name, winner in WINNERS.items() if name != "oracle"}


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_the_known_winner_is_chosen_in_any_order_of_the_records(criterion):
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    assert best(RECORDS, criterion, ROLES).number == WINNERS[criterion]
    assert best(shuffled, criterion, ROLES).number == WINNERS[criterion]


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_only_a_criterion_that_says_so_reads_the_test_generators(criterion):
    def scrambled(seed):
        rng = random.Random(seed)
        return [
            record(
                item.number,
                item.validation["ap"],
                item.generators["cyclegan"]["ap"],
                item.generators["stylegan"]["ap"],
                progan=rng.random(),
                glide=rng.random(),
                state=item.state,
            )
            for item in RECORDS
        ]

    orders = {tuple(r.number for r, _ in rank(scrambled(seed), criterion, ROLES)) for seed in range(20)}
    assert (len(orders) > 1) is CRITERIA[criterion].uses_test_domain


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_no_record_and_only_failures_are_told_apart(criterion):
    with pytest.raises(StudyError, match="no finished trial yet"):
        best([], criterion, ROLES)
    with pytest.raises(StudyError, match="1 x not finite"):
        best(RECORDS[3:], criterion, ROLES)


def test_ties_go_to_the_simpler_head_then_to_the_lower_number():
    tied = [record(n, 0.9, 0.5, 0.5, head=head) for n, head in [(4, "causal"), (2, "causal"), (7, "linear")]]
    assert [item.number for item, _ in rank(tied, "train_domain", ROLES)] == [7, 2, 4]


@pytest.mark.parametrize("name", ["train_domain", "val_generators", "worst_generator", "perturbed_val"])
def test_a_criterion_can_leave_out_collapsed_masks(name):
    first, *others = rank(RECORDS, name, ROLES)
    collapsed = [
        replace(item, collapsed="ones") if item.number == first[0].number else item for item in RECORDS
    ]
    assert best(collapsed, name, ROLES).number == first[0].number
    assert [item.number for item, _ in rank(collapsed, f"{name}_uncollapsed", ROLES)] == [
        item.number for item, _ in others
    ]
    with pytest.raises(StudyError, match="collapsed"):
        best([replace(item, collapsed="zeros") for item in RECORDS], f"{name}_uncollapsed", ROLES)


def test_a_set_without_a_class_gives_no_score():
    lacking = record(0, 0.9, None, 0.9)
    assert score(lacking, "val_generators", ROLES) is None
    assert score(lacking, "train_domain", ROLES) == 0.9
    with pytest.raises(StudyError, match="a class is missing"):
        best([lacking], "val_generators", ROLES)


def test_a_test_generator_of_one_class_is_left_out_of_the_mean_and_named():
    lacking = [record(n, 0.9, 0.5 + n / 10, 0.5, progan=None, glide=0.6 + n / 10) for n in range(4)]
    assert score(lacking[1], "oracle", ROLES) == pytest.approx(0.7)  # glide's alone
    assert undefined_tests(lacking[0], ROLES) == ["progan"]
    note = undefined_note(lacking[0], ROLES)
    assert "over 1 of 2 test generators: AP is undefined for progan" in note
    trial, value, gap = oracle_gap(lacking, "val_generators", ROLES)
    assert (trial.number, value, gap) == (3, pytest.approx(0.9), 0)
    assert saturated(lacking, "oracle", ROLES) is None or "progan" not in saturated(lacking, "oracle", ROLES)
    assert undefined_note(RECORDS[0], ROLES) == ""
    nothing = record(0, 0.9, 0.5, 0.5, progan=None, glide=None)
    assert score(nothing, "oracle", ROLES) is None
    assert oracle_gap([nothing], "val_generators", ROLES) is None


def test_the_oracle_is_never_an_objective():
    with pytest.raises(StudyError, match="reads the test generators"):
        check_objective("oracle", ROLES)


def test_a_criterion_whose_generators_are_missing_is_refused():
    roles = Roles(train_generators=("sd14",))
    assert default_criterion(roles) == "train_domain"
    assert default_criterion(replace(roles, degraded_views=("jpeg-50",))) == "perturbed_val"
    assert default_criterion(replace(roles, train_generators=("sd14", "progan"))) == "leave_one_generator_out"
    with pytest.raises(StudyError, match="the study has 1"):
        check_objective("leave_one_generator_out", roles)
    with pytest.raises(StudyError, match="--degrade figure4"):
        check_objective("perturbed_val", roles)
    with pytest.raises(StudyError, match="--val-generators"):
        check_objective("worst_generator", roles)
    with pytest.raises(StudyError, match="--test-generators"):
        best(RECORDS, "oracle", roles)
    with pytest.raises(UnknownName, match="train_domain"):
        check_objective("test_domain", roles)


def test_the_oracle_gap_is_what_the_test_generators_would_have_won():
    trial, value, gap = oracle_gap(RECORDS, "val_generators", ROLES)
    assert (trial.number, value) == (2, pytest.approx(0.8))
    assert gap == pytest.approx(0.8 - 0.5)  # trial 1 is chosen, and has 0.5 on the test
    assert oracle_gap(RECORDS, "oracle", ROLES) is None
    assert oracle_gap(RECORDS, "train_domain", replace(ROLES, test_generators=())) is None
    assert oracle_gap(RECORDS[3:], "val_generators", ROLES) is None


def test_an_epoch_is_judged_as_a_trial_that_ended_there():
    whole = record(0, 0.9, 0.6, 0.7)
    epoch = {"validation/ap": 0.9, "generator_ap/cyclegan": 0.6, "generator_ap/stylegan": 0.7, "steps": 25}
    for name, criterion in CRITERIA.items():
        told = epoch_score(epoch, name, ROLES)
        if criterion.every_epoch and not criterion.uses_test_domain:
            assert told == score(whole, name, ROLES)
        else:
            assert told is None
    assert epoch_score({**epoch, "generator_ap/cyclegan": None}, "val_generators", ROLES) is None


FRONTS = {"gans": ["cyclegan"], "diffusion": ["progan", "glide"]}


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=8))
def test_the_front_is_what_nothing_betters(points):
    records = [record(n, 0, gan, 0, progan=ap, glide=ap) for n, (gan, ap) in enumerate(points)]
    front = {item.number for item in pareto_front(records, FRONTS)}
    for number, mine in enumerate(points):
        bettered = any(a >= mine[0] and b >= mine[1] and (a, b) != mine for a, b in points)
        assert (number in front) is not bettered


def test_a_trial_without_one_of_the_objectives_is_in_no_front():
    assert pareto_front([record(0, 0.9, None, 0.9)], FRONTS) == []
    assert pareto_front([record(0, 0.9, 0.9, 0.9, state="failed")], FRONTS) == []


def test_saturation_is_told_by_noise_not_by_height():
    close = [record(n, 0.98 + n / 10_000, 0.5 + n / 20, 0.5 + n / 20) for n in range(8)]
    assert "saturated" in (saturated(close, "train_domain", ROLES) or "")
    assert saturated(close, "val_generators", ROLES) is None
    many = [record(n, 0.98 + n / 1_000, 0.5, 0.5, n=1_000_000) for n in range(8)]
    assert saturated(many, "train_domain", ROLES) is None


def test_three_images_without_a_mistake_are_not_without_noise():
    few = [record(n, 1.0 - n / 100, 0.5, 0.5, n=3) for n in range(8)]
    # (3 + 2) / (3 + 4) of 7 images: sqrt(5/7 x 2/7 / 7) = 17.07 points
    assert "within 4.00 points of the best (100.00 %), and its own noise is about 17.07 points" in (
        saturated(few, "train_domain", ROLES) or ""
    )
    many = [record(n, 1.0 - n / 100, 0.5, 0.5, n=10_000) for n in range(8)]
    assert saturated(many, "train_domain", ROLES) is None


def test_a_saturated_oracle_is_told_without_advice_to_use_it():
    same = [record(n, 0.9, 0.5, 0.5, progan=0.9 + n / 10_000, glide=0.9) for n in range(8)]
    assert "name (more) validation generators" not in (saturated(same, "oracle", ROLES) or "name")
