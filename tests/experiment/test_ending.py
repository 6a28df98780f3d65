import math

import pytest

from isjax.experiment._ending import check_skipped, hint
from isjax.experiment.config import default_config

NAN, INFINITY = math.nan, math.inf
GUESS = math.log(10)


@pytest.mark.parametrize(
    ("first", "last", "guess", "finding"),
    [
        (2.4, 2.3026, GUESS, "ended at 2.303, that of a guess is 2.303"),
        (2.4, 2.29, GUESS, "ended at 2.29, that of a guess is 2.303"),
        (2.4, 2.5, GUESS, "ended at 2.5, not below 2.4, where it began"),
        (2.4, 1e17, INFINITY, "ended at 1e+17, not below 2.4, where it began"),
        (2.4, NAN, INFINITY, "ended at nan, not below 2.4, where it began"),
        (NAN, NAN, INFINITY, "ended at nan, not below nan"),
        (None, 2.3, GUESS, "that of a guess"),  # resumed from an older checkpoint
        (9.0, 2.5, GUESS, "that of a guess"),
    ],
)
def test_a_run_that_learnt_nothing_gets_a_hint(first, last, guess, finding):
    text = hint(first, last, guess, clip_norm=0.0)
    assert text.startswith("the train loss ended at") and finding in text
    assert "config.clip_norm=1, above all in small batches" in text
    assert "lower config.learning_rate" in text and "scale inputs" in text
    assert "clip" not in hint(first, last, guess, clip_norm=1.0)


@pytest.mark.parametrize(
    ("first", "last", "guess"),
    [(2.4, 2.2, GUESS), (2.4, 0.1, GUESS), (2.4, 2.39, INFINITY), (None, 5.0, INFINITY)],
)
def test_a_run_that_learns_gets_none(first, last, guess):
    assert hint(first, last, guess, 0.0) == ""


@pytest.mark.parametrize(("share", "skipped"), [(0.1, 11), (0.0, 1), (0.5, 51)])
def test_too_many_skipped_steps_are_an_error(share, skipped):
    config = default_config()
    config.max_skipped = share
    check_skipped(config, {"skipped": skipped - 1, "step": 100})
    with pytest.raises(FloatingPointError, match=f"^{skipped} of 100 steps were skipped"):
        check_skipped(config, {"skipped": skipped, "step": 100})
