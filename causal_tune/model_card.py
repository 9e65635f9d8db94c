"""The model card of a detector: what it is for, what it was measured to do, and where it fails, as Markdown."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from causal_tune.calibration import images_needed
from causal_tune.detector import model_id
from causal_tune.guard import Guard
from causal_tune.heads import reads
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.selection import Roles
from causal_tune.study.verdicts import FEW
from causal_tune.wording import inline_markdown, markdown_cell

__all__ = ["calibration_findings", "failures", "model_card"]


def model_card(description: Mapping[str, Any]) -> str:
    """README.md of a detector, from its `detector.json` alone."""
    provenance, encoder = description["provenance"], description["encoder"]
    threshold, unsure = description["threshold"], description["unsure"]
    name = description["name"]
    config = provenance["config"]
    settings = "\n".join(f"- `{key}`: {value}" for key, value in config.items() if reads(config["head"], key))
    return f"""# {markdown_cell(name)}: a detector of generated images

The `{provenance["config"]["head"]}` head on the frozen features of `{encoder["name"]}` (layer `{description["layer"]}`,
weights {encoder["weights_sha256"][:12]}, preprocessing `{description["preprocessing"]}`). Model id:
`{model_id(description)}`, which every list of scores and every answer of a server carries.

    causal-tune predict {shlex.quote(name)} PATH... -o scores.csv

It says of an image a *score* (the head's own, from 0 to 1), a *probability* that the image is generated (the score
after calibration), and a verdict:

| verdict | from score | from probability | |
|---|---|---|---|
| real | 0 | 0 | |
| unsure | {unsure["low"]["score"]:.4g} | {unsure["low"]["probability"]:.4g} | both classes, or neither, lie here |
| generated | {unsure["high"]["score"]:.4g} | {unsure["high"]["probability"]:.4g} | |

{_warnings(description)}
## Intended use

Sorting and triage of many images, and studies of detectors, by people who look at what it finds. It is not made to
accuse a person, to decide without appeal, or to prove where a single picture comes from. {_share(description)}

## Measured on held-out images

{_table(description)}

Percent, with 95 % intervals over the images. By the verdicts: *false alarms*, real images called generated; *found*,
generated images called generated; *unsure*, of all images. By the scores: *AP*, average precision; *TPR*, true-positive
rate at a false-positive rate of 5 % on that set; *accuracy* at score 0.5. *Chosen by*: generators whose AP chose this
trial among the study's and on which it was calibrated, so their figures are optimistic. {_perturbed(description)}

## Where it fails

{_bullets([f"**{markdown_cell(name)}**: {what}" for name, what in failures(description)])}

## What the audit of the images found

{_audit(description["audit"])}

## Limits

- Trained on {markdown_cell(", ".join(provenance["train_generators"]))} only. On other generators it can fail, in both
  directions; what is promised of the verdicts holds for images like the validation data, and for nothing else.
- Frozen features see style and content as well as traces of generation: photographs unlike the training's
  can score high, and generated images in a photographic style low.
- The features are of a crop of 224 x 224 pixels: what lies outside it, such as a small edited part, is not seen.
- Recompressed, resized or cropped images were {"measured as above" if _degraded(description) else "not measured"}.
{_guard(description)}{_dtype(encoder)}
## Calibration and threshold

{_calibration(description)}

The threshold is at score {threshold["score"]:.4g}, {markdown_cell(threshold["provenance"])}. The band:
{markdown_cell(unsure["provenance"])}.

## Where it comes from

Study `{provenance["study"]}`, trial `{provenance["trial"]}`, criterion `{provenance["criterion"]}` =
{_percent(provenance["criterion_value"])}{_how_sure(provenance)}; store `{provenance["store_fingerprint"]}`, index
`{provenance["index_sha256"][:12]}`; causal-tune {provenance["versions"]["causal-tune"]}.

{settings}

Made by `{provenance["command"]}`.
"""


def _dtype(encoder: Mapping[str, Any]) -> str:
    if encoder["dtype"] != "bfloat16":
        return ""
    return (
        "- The features were computed in bfloat16. A machine without it computes in float32, and so does "
        "`images.onnx` where it was exported: scores near a threshold can fall to its other side.\n"
    )


def _percent(value: float | None) -> str:
    return "undefined (one class)" if value is None else f"{100 * value:.1f}"


def _with_interval(metrics: Mapping[str, Any], name: str) -> str:
    value, ends = metrics[name], metrics["intervals"].get(name)
    if value is None or ends is None:
        return "-" if value is None else _percent(value)
    return f"{_percent(value)} [{_percent(ends[0])}, {_percent(ends[1])}]"


def _table(description: Mapping[str, Any]) -> str:
    trained_on, chosen_by = (
        tuple(description["provenance"][f"{part}_generators"]) for part in ("train", "val")
    )
    roles = Roles(train_generators=trained_on, val_generators=chosen_by)
    lines = [
        "| generator | role | false alarms | found | unsure | AP | TPR | accuracy | n real | n generated |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    sets = [("validation split", "validation", description["metrics"]["validation"])]
    sets += [(name, roles.role_of(name), one) for name, one in description["metrics"]["generators"].items()]
    for name, role, one in sets:
        figures = [_verdicts(one, "real_as", "false_positives"), _verdicts(one, "generated_as", "found")]
        figures += [_percent(_unsure(one))]
        figures += [_with_interval(one, figure) for figure in ("ap", "tpr_at_5_fpr", "accuracy")]
        figures += [f"{one['num_real']}", f"{one['num_generated']}"]
        lines.append(f"| {markdown_cell(name)} | {role} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _verdicts(metrics: Mapping[str, Any], side: str, interval: str) -> str:
    if metrics[side] is None:
        return "-"
    low, high = metrics["intervals"][interval]
    return f"{_percent(metrics[side]['generated'])} [{_percent(low)}, {_percent(high)}]"


def _unsure(metrics: Mapping[str, Any]) -> float:
    counts = {"real_as": metrics["num_real"], "generated_as": metrics["num_generated"]}
    total = sum(counts[side] * metrics[side]["unsure"] for side in counts if metrics[side])
    return float(total / sum(counts.values()))


def calibration_findings(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the calibration images could not give: promised rates, better probabilities. (subject, sentence) each."""
    found = []
    calibration, threshold = description["calibration"], description["threshold"]
    wished = threshold["wished_fpr"]
    for side, verdict, bound, num in (
        ("real", "generated", threshold["promised_fpr"], calibration["num_real"]),
        ("generated", "real", description["unsure"]["promised_miss_rate"], calibration["num_generated"]),
    ):
        if bound > wished:
            found.append(
                (
                    "threshold",
                    f"a rate of {100 * wished:g} % of {side} images called {verdict} was asked for, and {num} "
                    f"{side} images can promise no less than {100 * bound:.3g} %. {images_needed(wished)} are needed.",
                )
            )
    if threshold["tpr"] < FEW:
        found.append(
            (
                "threshold",
                f"{_percent(threshold['tpr'])} % of the {calibration['num_generated']} generated images that set it "
                "reach it, so hardly anything is called generated. Allow more false alarms with --fpr, or train on "
                "more images.",
            )
        )
    before, after = (round(100 * calibration[f"ece_{when}"], 1) for when in ("before", "after"))
    if after > before:
        found.append(
            (
                "calibration",
                f"it does not help here. The expected calibration error is {before:.1f} points before and {after:.1f} "
                "after, on images that the fit has not seen: take probabilities as rough.",
            )
        )
    return found


def failures(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the detector does not do what it does on the validation data, and `calibration_findings`.

    (subject, sentence) each; the subject is a generator, or a part of the detector.
    """
    found = calibration_findings(description)
    wished = description["threshold"]["wished_fpr"]
    for name, one in description["metrics"]["generators"].items():
        real, generated = one["real_as"], one["generated_as"]
        if real and wished and one["intervals"]["false_positives"][0] > wished:
            mistaken = f"{_percent(real['generated'])} % of its real images are called generated"
            found.append((name, f"{mistaken} (target: {_percent(wished)} %)."))
        if generated and generated["real"] > 0.2:
            found.append((name, f"{_percent(generated['real'])} % of its generated images are called real."))
        if one["intervals"].get("auc", [1.0])[0] <= 0.5:
            found.append((name, f"an AUC of {_percent(one['auc'])} cannot be told from guessing."))
        if _unsure(one) > 0.5:
            found.append((name, f"{_percent(_unsure(one))} % of its images are called unsure."))
    return found


def _guard(description: Mapping[str, Any]) -> str:
    if "guard" not in description:
        return ""
    side = Guard(**description["guard"]).smallest_side(
        Preprocessing.parse(description["preprocessing"]).crop_size
    )
    small = "" if side is None else f", and a shorter side of fewer than {side} pixels"
    return (
        "- Pictures that cannot be judged are *unsure* whatever their score, with the reason as a note: one colour, "
        f"noise, text and drawings{small}. Other kinds of pictures that it was not trained on are not recognised: "
        "paintings, scans and medical images get a verdict like any photograph.\n"
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or (
        "On none of the generators above, by more than the figures show. Generators that are not above were not tried."
    )


def _audit(audit: Sequence[Mapping[str, Any]] | None) -> str:
    if audit is None:
        return "The images were not audited: their index was not at hand. Export again with `--index INDEX`."
    lines = [
        f"**{one['kind']}** {markdown_cell(one['subject'])}".rstrip() + f": {inline_markdown(one['what'])}"
        for one in audit
    ]
    return "\n".join(f"- {line}" for line in lines) or "Nothing that makes these figures wrong."


def _degraded(description: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = description["metrics"]["perturbed"]
    return found


def _perturbed(description: Mapping[str, Any]) -> str:
    found = _degraded(description)
    if not found:
        return ""
    views = ", ".join(f"{view} {_percent(one['ap'])}" for view, one in found.items())
    return f"AP of the validation split in degraded views: {views}."


def _share(description: Mapping[str, Any]) -> str:
    calibration = description["calibration"]
    share = calibration["num_generated"] / (calibration["num_real"] + calibration["num_generated"])
    return (
        f"Its probabilities are those of a mixture with {_percent(share)} % generated images: where fewer are "
        "generated, an image with the same probability is more often real than it says."
    )


def _calibration(description: Mapping[str, Any]) -> str:
    one = description["calibration"]
    return (
        f"Platt's: probability = sigmoid({one['slope']:.4g} x logit + {one['offset']:.4f}), fitted on "
        f"{markdown_cell(one['provenance'])} ({one['num_real']} real and {one['num_generated']} generated images). "
        f"Expected calibration error in 15 bins: {_percent(one['ece_before'])} before, {_percent(one['ece_after'])} "
        "after (cross-fitted: no image is judged by a fit that it was part of)."
    )


def _warnings(description: Mapping[str, Any]) -> str:
    provenance = description["provenance"]
    lines = []
    if provenance["uses_test_domain"]:
        lines.append(
            "**Chosen by the test generators** (criterion `oracle`): its test figures are optimistic."
        )
    if provenance["collapsed"]:
        lines.append(
            f"**Its mask has collapsed** (all {provenance['collapsed']}): it is no causal head. It was exported by "
            "force."
        )
    if description["calibration"]["slope"] == 0:
        lines.append("**It does not rank the validation images**: every image gets the same probability.")
    return "".join(f"> {line}\n\n" for line in lines)


def _how_sure(provenance: Mapping[str, Any]) -> str:
    if not provenance["finalists"]:
        ahead = provenance.get("passed_over")  # not in detectors of earlier releases
        without = f" without a collapsed mask (passed over: {', '.join(ahead)})" if ahead else ""
        return f", the best of a search{without} and so optimistic"
    return ". " + markdown_cell(str(provenance["finalists"]["reason"])).rstrip(".")
