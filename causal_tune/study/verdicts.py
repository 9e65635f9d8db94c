"""Whether a head gives both verdicts: an average precision tells order only, and hides a head that always says real."""

from causal_tune.ledger import TrialRecord

__all__ = ["one_verdict", "remedy"]

FEW = 0.1
"""Share of a class below which its verdict is as good as never given."""


def remedy(collapsed: str) -> str:
    """What to change in a search space whose masks collapse to all `ones` or `zeros`; docs/log.md has the figures.

    >>> remedy("zeros")
    'Lower lambda1'
    """
    return "Lower lambda1" if collapsed == "zeros" else "Raise lambda1 or lower lambda2"


def one_verdict(record: TrialRecord) -> str | None:
    """What a person has to know of a finished trial that recognises fewer than 10 % of a class; None if none.

    On the validation split, at probability 1/2: the images are of the kind that it was trained on.

    >>> record = TrialRecord(
    ...     number=0, id="00000-x", state="finished", config={}, seed=0,
    ...     validation={"accuracy_real": 1.0, "accuracy_generated": 0.0, "num_real": 14, "num_generated": 2},
    ... )
    >>> one_verdict(record).partition(". ")[0]
    'At score 0.5 it calls 0 of 2 generated validation images generated, and 14 of 14 real ones real'
    """
    right = {name: record.validation.get(f"accuracy_{name}") for name in ("real", "generated")}
    (missed, share), (other, others) = sorted(right.items(), key=lambda item: (item[1] is None, item[1] or 0))
    if share is None or others is None or share >= FEW:
        return None
    numbers = {name: record.validation[f"num_{name}"] for name in right}
    said = (
        f"At score 0.5 it calls {round(share * numbers[missed])} of {numbers[missed]} {missed} validation images "
        f"{missed}, and {round(others * numbers[other])} of {numbers[other]} {other} ones {other}. "
    )
    if numbers[missed] < numbers[other] and record.config.get("class_balance", "none") == "none":
        return (
            said
            + 'Set "class_balance": "balanced" in the DEFAULTS of its search space, under another --study name.'
        )
    return said + (
        "Its AP says how well its scores rank images; for verdicts take the thresholds that `causal-tune export` sets."
    )
