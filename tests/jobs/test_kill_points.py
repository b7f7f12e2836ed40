"""A command that is killed before any change of the disk: the same command finishes, with the same result."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from tests import ROOT
from tests.support import kill_points
from tlray.cluster import session
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.evaluation.predict import predict
from tlray.features import inference


@pytest.mark.parametrize(
    ("job", "step", "kills"), [("predict", 1, 13), ("evaluate", 2, 6), ("fit", 2, 7), ("run", 17, 2)]
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


@pytest.mark.parametrize("job", ["predict", "evaluate"])
def test_a_stopped_job_whose_images_changed_is_refused(job, tmp_path, monkeypatch):
    """It says what changed; when the folder that it names is removed, all images count."""
    kill_points.prepare(tmp_path, monkeypatch.setattr)
    run = kill_points.jobs(tmp_path)[job]
    monkeypatch.setattr(inference, "reconcile", Mock(side_effect=JobError("stopped")))
    with pytest.raises(JobError, match="stopped"):
        run()
    monkeypatch.undo()
    kill_points.prepare(tmp_path, monkeypatch.setattr)
    (tmp_path / "images" / "b" / "3.png").write_bytes(b"mended")
    (tmp_path / "images" / "b" / "new.png").write_bytes(b"new")
    with pytest.raises(UserError, match=r"1 added, 1 replaced, e.g. b/3.png, 0 removed") as caught:
        run()
    work = re.search(r"remove (\S+),", str(caught.value))
    assert work is not None
    shutil.rmtree(work[1])
    result = run()
    assert (result["images"], result["rows"], result["errors"]) == (7, 7, 0)


def test_an_image_that_is_added_while_an_evaluation_begins_is_noticed(tmp_path, monkeypatch):
    kill_points.prepare(tmp_path, monkeypatch.setattr)

    @contextmanager
    def connect(address: str | None) -> Iterator[Callable[[], None]]:
        new = tmp_path / "images" / "b" / "new.png"
        if not new.exists():
            new.write_bytes(b"new")
        yield lambda: None

    monkeypatch.setattr(session, "connect", connect)
    run = kill_points.jobs(tmp_path)["evaluate"]
    with pytest.raises(JobError, match=f"images of {tmp_path}/images were added or removed just now"):
        run()
    assert run()["images"] == 7


def test_a_killed_prediction_without_copies_is_not_taken_for_one_with_them(tmp_path, monkeypatch):
    kill_points.prepare(tmp_path, monkeypatch.setattr)
    monkeypatch.setattr(inference, "remove", Mock(side_effect=JobError("stopped")))
    with pytest.raises(JobError, match="stopped"):
        kill_points.jobs(tmp_path)["predict"]()
    out, copies = tmp_path / "out" / "p.parquet", str(tmp_path / "copies")
    with pytest.raises(UserError, match=r"p\.parquet already exists"):
        predict(tmp_path / "given", tmp_path / "images", out, max_bad_fraction=1, annotate=copies)


def test_two_evaluations_do_not_write_to_one_folder(tmp_path, monkeypatch):
    kill_points.prepare(tmp_path, monkeypatch.setattr)
    report = Folder.open(tmp_path / "out" / "report")
    with report.locked(), pytest.raises(UserError, match=f"another command is writing to {report.uri}: wait"):
        kill_points.jobs(tmp_path)["evaluate"]()


def test_files_of_the_user_are_never_taken_for_those_of_a_prediction(tmp_path, monkeypatch):
    kill_points.prepare(tmp_path, monkeypatch.setattr)
    out, run = tmp_path / "out", kill_points.jobs(tmp_path)["predict"]
    for name in (
        "p.errors.parquet/mine.txt",
        "p.parquet",
        "p.parquet.parts.json",
        "p.parquet.parts/mine.txt",
    ):
        mine = out / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_bytes(b"{}")
        with pytest.raises(UserError, match=r"already exists|is not empty"):
            run()
        assert mine.read_bytes() == b"{}"
        shutil.rmtree(out)
    out.mkdir()
    (out / "p.errors.parquet").symlink_to("nowhere")
    with pytest.raises(UserError, match="already exists"):
        run()
    (out / "p.errors.parquet").unlink()
    # A file that appears while the job runs.
    infer = inference.run

    def infer_late(*given: object) -> list[object]:
        (out / "p.errors.parquet").write_bytes(b"mine")
        return infer(*given)

    monkeypatch.setattr(inference, "run", infer_late)
    with pytest.raises(UserError, match=r"p.errors.parquet already exists"):
        run()
    assert (out / "p.errors.parquet").read_bytes() == b"mine"
    assert not (out / "p.parquet").exists()
