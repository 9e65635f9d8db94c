import re

from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from causal_tune.tracking.names import MAX_LENGTH, part

# what escapes are made of, so that names look like escapes of others
NAMES = st.one_of(
    st.text(max_size=400), st.text(alphabet="_x045f@./ -a", max_size=12), st.text("_x4", max_size=8)
)


def original(escaped: str) -> str:
    """The name that a part was made of, unless it was too long."""
    return re.sub(
        r"_x([0-9a-f]+)_", lambda found: chr(int(found[1], 16)), "" if escaped == "_x_" else escaped
    )


@given(NAMES)
@example("_x4@")
@example("_x_")
@example("..")
@example("a\n")
@example("\udce9")
def test_every_name_is_a_part_that_mlflow_takes_and_that_reads_back(name):
    written = part(name)
    _validate_metric_name(f"best/val_generators/{written}/accuracy_val_threshold")
    assert "/" not in written
    assert len(f"best/val_generators/{written}/accuracy_val_threshold") <= 250
    if len(written) < MAX_LENGTH:
        assert original(written) == name


@given(NAMES, NAMES)
@example("glide@50", "glide_50")
@example("x" * 300, "x" * 299 + "y")
@example("x" * 300, part("x" * 300))
@example("_x_", "")
def test_two_names_are_two_parts(one, other):
    assert (part(one) == part(other)) == (one == other)


@given(st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9 .-]{0,60}(_[a-w][a-z0-9]{0,20})?", fullmatch=True))
@example("glide_50_27")
@example("stable_diffusion_v_1_4")
@example("génération")
def test_a_plain_name_stays_as_it_is(name):
    assert part(name) == name
