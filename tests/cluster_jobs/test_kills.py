"""Commands and workers that are killed: run again, each goes on where it was, and nothing is left behind."""

import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.bad_files import encode, photo
from tests.support.numpy_network import grey_pixels
from tests.support.outputs import assert_same_head, read
from tests.support.processes import family, of_session, title, tlray, wait_for
from tlray.cluster import session
from tlray.core.config import ExtractConfig, FinetuneConfig
from tlray.core.errors import UserError
from tlray.features.extract import extract
from tlray.images import decoder
from tlray.training.finetune import finetune

# An extraction


@pytest.fixture
def many(tmp_path) -> tuple[Path, list[bytes]]:
    """8,000 images, 62 shards, and the 16 pictures that they are in turn."""
    folder = tmp_path / "many"
    folder.mkdir()
    pictures = [encode(photo(size=(20, 20 + number)), "PNG") for number in range(16)]
    for number in range(8000):
        path = folder / f"{number:04d}.png"
        if number < len(pictures):
            path.write_bytes(pictures[number])
        else:
            os.link(folder / f"{number % len(pictures):04d}.png", path)
    return folder, pictures


def test_an_extraction_is_killed_then_interrupted_and_then_finished(many, tmp_path):
    home, out = tmp_path / "home", tmp_path / "set"
    home.mkdir()
    # A short one: Ray's sockets lie below it, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as temporary:
        environment = {**os.environ, "HOME": str(home), "TMPDIR": temporary}
        words = ("extract", many[0], "--out", out, "--backbone", "grey-pixels", "--image-size", 8, "--json")
        commands = []

        def start():
            commands.append(tlray(*words, env=environment, start_new_session=True))
            return commands[-1]

        for how in (signal.SIGKILL, signal.SIGINT):
            before, command = len(list(out.glob("part-*"))), start()
            wait_for(lambda: len(list(out.glob("part-*"))) > before or command.poll() is not None)  # noqa: B023
            command.send_signal(how)
            _, errors = command.communicate(timeout=60)
            assert command.returncode == (130 if how == signal.SIGINT else -how), errors
            assert not (out / "manifest.json").exists()
        assert errors.strip().splitlines()[-1] == "tlray: stopped; run the same command again to continue"
        assert "Traceback" not in errors
        output, errors = (last := start()).communicate(timeout=240)
        assert last.returncode == 0, errors
        assert json.loads(output)["rows"] == 8000

        def gone() -> bool:
            # Two of Ray's agents take up to a minute to notice a SIGKILL.
            killed, *others = (of_session(command.pid) for command in commands)
            return not any(others) and all("Agent" in title(process) for process in killed)

        sessions = [command.pid for command in commands]
        wait_for(gone, lambda: str(of_session(*sessions)), seconds=10)
        assert [str(path) for path in home.rglob("*")] == []
        assert {path.name for path in Path(temporary).iterdir()} <= {"ray"}
    rows = read(out)
    assert len(rows) == 8000
    expected = grey_pixels(np.stack([decoder.decode(data, 8) for data in many[1]]))
    for path, value in rows.items():
        np.testing.assert_allclose(value, expected[int(path[:4]) % 16], atol=1e-6)
    assert not list(out.glob(".*"))


# A fine-tuning

TUNE = FinetuneConfig(from_="input", head="dense-512", epochs=3, batch_size=2, precision="float32", workers=2)
"""With batch normalisation and dropout; an epoch takes about a second."""


@pytest.fixture(scope="module")
def ray():
    """One local Ray for the trainings of this file."""
    with session.connect(None, cpus=4) as connected:
        connected()
        yield


@pytest.fixture(scope="module")
def pixels(ray, tmp_path_factory) -> Path:
    """What goes into small-vggnet: 151 pictures of two classes."""
    folder = tmp_path_factory.mktemp("pixels")
    for number in range(151):
        path = folder / "images" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(size=(20 + 20 * (number % 2), 20 + number)), "PNG"))
    config = ExtractConfig(backbone="small-vggnet", image_size=16, cut="input", precision="float32")
    extract(folder / "images", folder / "set", config)
    return folder / "set"


@pytest.fixture(scope="module")
def undisturbed(pixels, ray, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    finetune(pixels, out, TUNE)
    return out


def same(model: Path, expected: Path) -> None:
    """To the last bit."""
    assert_same_head(model, expected)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (model, expected)]
    assert manifests[0]["history"] == manifests[1]["history"]


def test_a_killed_worker_changes_nothing(pixels, undisturbed, ray, tmp_path):
    """SIGKILL to one of two in the middle of an epoch."""
    killed, epochs = [], []

    def report(metrics: dict[str, float]) -> None:
        epochs.append(metrics["epoch"])
        if metrics["epoch"] == 1 and not killed:

            def kill() -> None:
                time.sleep(0.3)
                worker, _ = (process for process in family(os.getpid()) if "RayTrainWorker" in title(process))
                worker.kill()
                killed.append(worker)

            threading.Thread(target=kill).start()

    finetune(pixels, tmp_path / "model", TUNE, report=report)
    assert killed
    assert epochs.count(1) == 1  # It went on, and did not begin again.
    same(tmp_path / "model", undisturbed)


def test_a_killed_command_goes_on_where_it_was(pixels, undisturbed, tmp_path):
    out = tmp_path / "out"
    command = ["finetune", pixels, "--out", out, "--from", "input", "--head", "dense-512", "--epochs", 3]
    command += ["--batch-size", 2, "--precision", "float32", "--workers", 2]
    first = tlray(*command, start_new_session=True)
    wait_for(lambda: list((out / ".training" / "checkpoints").glob("checkpoint_*/state.npz")))
    first.kill()
    first.communicate(timeout=60)
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="holds another job, which is not finished"):
        finetune(pixels, out, TUNE, epochs=9)
    output, errors = (again := tlray(*command, "--json")).communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads(output)["epochs"] == 3
    assert "epoch   1/3" not in errors
    assert "epoch   3/3" in errors
    same(out, undisturbed)
    assert sorted(path.name for path in out.iterdir()) == ["history.csv", "manifest.json", "model.keras"]
