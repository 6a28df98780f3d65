"""What sampling is for, on real data: CI runs this, `make test` does not."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "own_loop.py"


@pytest.mark.slow
def test_last_loss_halves_the_final_train_loss_of_reshuffled_epochs():
    done = subprocess.run([sys.executable, SCRIPT, "--seeds=3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ratios = json.loads(done.stdout.splitlines()[-1])["train_loss_ratios"]
    assert len(ratios) == 3 and max(ratios) <= 0.5, ratios
