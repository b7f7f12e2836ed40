"""A command that is killed before any change of the disk: the same command finishes, with the same result."""

import json
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.parametrize(
    ("job", "step", "kills"), [("predict", 1, 13), ("evaluate", 1, 12), ("fit", 1, 16), ("run", 7, 6)]
)
def test_killed_at_any_change_of_the_disk(job, step, kills, tmp_path):
    command = [sys.executable, "-m", "tests.support.kill_points", job, tmp_path, str(step)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = [json.loads(line)[1:] for line in done.stdout.splitlines()]
    assert len(results) > kills, done.stderr
    assert isinstance(results[-1][0], dict | list), results[-1]  # The last run was not killed.
    for number, result in enumerate(results):
        assert result == results[-1], (number, result)
    names = {"predict": {"p.parquet", "p.errors.parquet"}, "fit": {"model"}, "evaluate": {"report"}}
    assert {name for name in results[-1][1] if "/" not in name} == names.get(
        job, {"features", "model", "scores", "predictions.parquet", "predictions.errors.parquet"}
    )
