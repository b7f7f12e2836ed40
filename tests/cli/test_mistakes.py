"""What is wrong is said in one message: what was given, what is expected, and with which status it ends."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from zipfile import ZipFile

import pytest

from tests.support.command_line import invoke, mistake, script
from tests.support.feature_sets import write_set
from tests.support.manifests import model_json
from tlray.cluster import session
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.core.text import escaped

SMALL = '''
from pathlib import Path
import numpy as np
from tlray.models.interfaces import Backbone, KnownWeights
from tlray.models.weights import WeightsProvider, digest

ARRAYS = [np.ones(3, np.float32)]

class Small(Backbone):
    """Small."""
    name, image_size, cuts = "small", 8, ("end",)
    weights = {"known": KnownWeights(sha256=digest(ARRAYS))}
    def build(self, image_size): raise AssertionError
    def preprocess(self, pixels): raise AssertionError

class Store(WeightsProvider):
    """Its weights."""
    name, offers = "store", (("small", "known"),)
    def provide(self, backbone, weights, folder):
        np.savez(folder / "w.npz", *ARRAYS)
        return folder / "w.npz"
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bit of everything, and the current one. Nothing in it may change."""
    here = tmp_path / "here"
    for name in ("empty", "text", "features/index", "unfinished/index", "model"):
        (here / name).mkdir(parents=True)
    (here / "text" / "notes.txt").write_text("no image")
    write_set(Folder.open(here / "features"))
    (here / "unfinished" / "index" / "part-00000.parquet").write_bytes(b"")
    (here / "model" / "manifest.json").write_text(json.dumps(model_json()))
    (here / "model" / "model.keras").write_bytes(b"")
    monkeypatch.chdir(here)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    # What is wrong is known before Ray is there.
    monkeypatch.setattr(session, "import_ahead", lambda address: None)
    monkeypatch.setattr(session, "connect", lambda *given, **options: nullcontext(pytest.fail))
    return here


@pytest.fixture
def unchanged(place: Path) -> Any:
    def files() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*"))

    before = files()
    yield
    assert files() == before


SMALL_OPTIONS = "--backbone small --weights known --precision float32"
"""Options for a network whose weights are here, and need no TensorFlow."""


@pytest.fixture(autouse=True)
def small(package) -> None:
    package("small-plugins", SMALL, backbones={"small": "Small"}, weights={"store": "Store"})


BAD = [
    ("extract text --out out --split 2", "2", "--split"),
    ("extract text --out out --split nan", "nan", "--split"),
    ("extract text --out out --batch-size 0", "0", "--batch-size"),
    ("extract text --out out --image-size -1", "-1", "--image-size"),
    ("extract text --out out --max-bad-fraction 1.5", "1.5", "--max-bad-fraction"),
    ("plan text --cluster", "--cluster", "--address"),
    ("fit features --out out --epochs 0", "0", "--epochs"),
    ("fit features --out out --batch-size -3", "-3", "--batch-size"),
    ("fit features --out out --workers 0", "0", "--workers"),
    ("fit features --out out --min-workers 0", "--min-workers 0", "more than 0"),
    ("fit features --out out --workers 2 --min-workers 3", "--min-workers 3", "which is 2"),
    ("finetune text --out out --head linear --augment flip --workers 2 --min-workers 1", "1", "--views"),
    ("fit features --out out --learning-rate 0", "0", "--learning-rate"),
    ("fit features --out out --learning-rate nan", "nan", "--learning-rate"),
    ("fit features --out out --early-stopping 0", "0", "--early-stopping"),
    ("fit features --out out --validation 1.01", "1.01", "--validation"),
    ("fit features --out out --decay often", "often", "cosine"),
    ("fit features --out out --decay -1", "-1", "cosine"),
    ("finetune text --out out", "--model", "--head"),
    ("finetune text --out out --head linear --views 2", "--views 2", "--augment"),
    ("finetune text --out out --head linear --views 0 --augment flip", "0", "--views"),
    ("finetune text --out out --head linear --augment strogn", "strogn", "strong"),
    ("finetune features --out out --head linear --augment flip", "--augment flip", "feature set"),
    ("finetune features --out out --head linear --split 0.5", "--split 0.5", "feature set"),
    ("fit features --out out --head dense-265", "dense-265", "dense-256"),
    ("fit features --out out --optimizer adamm", "adamm", "adam"),
    ("evaluate model text --batch-size 0", "0", "--batch-size"),
    ("predict model text --out p.csv --top 0", "0", "--top"),
    ("predict model text --out p.txt", "p.txt", ".parquet"),
    ("predict model text", "", "--out"),
    ("extract text --out out --backbone vgg61", "vgg61", "vgg16"),
    ("extract text --out out --weights nope.h5", "nope.h5", ".h5"),
    ("extract nosuch://bucket/x --out out", "nosuch://bucket/x", "nosuch"),
    # Values that cannot be parsed.
    ("extract text --out out --preprocess caffe", "caffe", "imagenet"),
    ("extract text --out out --precision float64", "float64", "bfloat16"),
    ("extract text --out out --store float64", "float64", "float16"),
    ("extract text --out out --batch-size many", "", "--batch-size"),
    ("extract text --out out --split half", "", "--split"),
    ("extract text", "", "--out"),
    ("extract --out out", "", "IMAGES"),
    ("extract text --out out --no-such-option", "", "--no-such-option"),
    ("verify features --images text --sample 0", "", "--sample"),
    ("nosuchcommand", "", "nosuchcommand"),
    # Places that have something else than is expected.
    (f"extract missing --out out {SMALL_OPTIONS}", "missing", "folder"),
    (f"extract empty --out out {SMALL_OPTIONS}", "empty", "image"),
    (f"extract text --out out {SMALL_OPTIONS}", "text", "image"),
    (f"extract text/notes.txt --out out {SMALL_OPTIONS}", "notes.txt", "image"),
    (f"plan missing {SMALL_OPTIONS}", "missing", "folder"),
    (f"plan empty {SMALL_OPTIONS}", "empty", "image"),
    ("fit missing --out out", "missing", "feature set"),
    ("fit empty --out out", "empty", "feature set"),
    ("fit text/notes.txt --out out", "notes.txt", "feature set"),
    ("fit unfinished --out out", "unfinished", "not finished"),
    ("fit model --out out", "model", "expected a feature set (did you swap"),
    ("finetune missing --out out --head linear", "missing", "folder"),
    ("finetune empty --model missing --out out", "missing", "model"),
    ("finetune text --model features --out out", "features", "expected a model (did you swap"),
    ("finetune unfinished --out out --head linear", "unfinished", "not finished"),
    ("evaluate missing text", "missing", "model"),
    ("evaluate empty text", "empty", "model"),
    ("evaluate features text", "features", "expected a model (did you swap"),
    ("evaluate model missing", "missing", "folder"),
    ("evaluate model empty", "empty", "image"),
    ("evaluate model unfinished", "unfinished", "not finished"),
    ("predict missing text --out p.csv", "missing", "model"),
    ("predict features text --out p.csv", "features", "expected a model (did you swap"),
    ("predict model missing --out p.csv", "missing", "folder"),
    ("predict model empty --out p.csv", "empty", "image"),
    ("predict model missing.png", "missing.png", "image"),
    ("verify missing --images text", "missing", "feature set"),
    ("verify empty --images text", "empty", "feature set"),
    ("verify model --images text", "model", "expected a feature set (did you swap"),
    ("verify features --images missing", "missing", "folder"),
    ("inspect missing", "missing", "feature set or a model"),
    ("inspect empty", "empty", "feature set"),
    ("inspect unfinished", "unfinished", "not finished"),
    ("demo --out text", "text", "--out"),
    ("plugins show vgg61", "vgg61", "vgg16"),
    ("plugins check small-vgnet", "small-vgnet", "did you mean small-vggnet"),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("line", "given", "expected"), BAD)
def test_what_is_given_is_not_what_is_expected(line, given, expected):
    message = mistake(*line.split())
    assert given in message
    assert expected in message


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("options", ["--out out --preprocess caffe", "--out out --batch-size many", ""])
def test_a_value_that_cannot_be_parsed_as_json(options):
    """In a process of its own, because `main` may have a hand in it."""
    done = script("extract", "text", *options.split(), "--json")
    assert done.returncode == 2
    values = json.loads(done.stdout)
    assert set(values) == {"error", "exit_status"}
    assert values["exit_status"] == 2


def test_a_folder_of_other_things_is_no_place_for_a_job(place):
    (place / "images").mkdir()
    (place / "images" / "1.png").write_bytes(b"")
    message = mistake("extract", "images", "--out", "text", *SMALL_OPTIONS.split())
    assert "text" in message
    assert "not empty" in message
    assert [path.name for path in (place / "text").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("line", "locked"),
    [
        ("extract pictures --out set --backbone grey-pixels --image-size 8", "set"),
        ("predict model pictures --out labels.csv", "labels.csv.parts"),
    ],
)
def test_two_commands_do_not_write_to_one_folder(line, locked, place):
    (place / "pictures").mkdir()
    (place / "pictures" / "one.png").write_bytes(b"")
    with Folder.open(locked).locked():
        assert f"another command is writing to {place / locked}: wait" in mistake(*line.split())


def write_network(model: Path) -> None:
    with ZipFile(model / "model.keras", "w") as file:
        file.writestr("config.json", "{}")


def test_inspect(place):
    assert "model.keras cannot be read: File is not a zip file" in mistake("inspect", "model", status=1)
    write_network(place / "model")
    result = invoke("inspect", "model")
    assert result.exit_code == 0
    assert "is a model" in result.stdout
    assert "weights_sha256" in result.stdout
    result = invoke("inspect", "features", "--json")
    assert json.loads(result.stdout)["format"] == "tlray-features/2"
    (place / "features" / "index" / "part-00000.parquet").write_bytes(b"")
    assert "index/part-00000.parquet cannot be read" in mistake("inspect", "features", status=1)


FAILURES = [
    (UserError("given x, expected y"), 2, "given x, expected y"),
    (JobError("it failed"), 1, "it failed"),
    (PermissionError(13, "Permission denied", "/root/x"), 1, "Permission denied: /root/x"),
    (OSError("without a number"), 1, "without a number"),
    (RuntimeError("a mistake of ours"), 1, "a mistake of ours"),
    (ValueError("first line\nsecond line\nand more"), 1, "first line"),
    (KeyError("name"), 1, "KeyError"),
    (KeyboardInterrupt(), 130, "run the same command again"),
]


@pytest.mark.parametrize(("error", "status", "words"), FAILURES)
def test_a_failure_is_a_message_and_a_status(monkeypatch, error, status, words):
    monkeypatch.setattr("tlray.training.fit.fit", Mock(side_effect=error))
    message = mistake("fit", "x", "--out", "y", status=status)
    assert words in message
    result = invoke("fit", "x", "--out", "y", "--json")
    assert result.exit_code == status
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {"error": message.removeprefix("tlray: "), "exit_status": status}
    assert "Traceback" not in result.stderr
    debug = invoke("fit", "x", "--out", "y", "--debug", "--json")
    assert (debug.exit_code, debug.stdout) == (status, result.stdout)
    assert "Traceback" in debug.stderr
    assert type(error).__name__ in debug.stderr
    assert "raise effect" in debug.stderr  # Of the mock: the line that failed is shown.


def test_the_script_exits_with_the_status(place):
    done = script("fit", "missing", "--out", "out", "--json", cwd=place)
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_status"] == 2
    assert done.stderr.count("\n") == 1


EVIL, SECRET = "a\x1b[2J\r\x9b\u202e", "hunter2-hunter2"


@pytest.mark.parametrize("options", [[], ["--json"], ["--debug"], ["--debug", "--json"]])
def test_a_message_neither_deceives_nor_shows_a_password(monkeypatch, options):
    error = UserError(f"cannot read s3://key:{SECRET}@bucket/{EVIL}")
    monkeypatch.setattr("tlray.training.fit.fit", Mock(side_effect=error))
    result = invoke("fit", "x", "--out", "y", *options)
    assert result.exit_code == 2
    assert f"tlray: cannot read s3://bucket/{escaped(EVIL)}\n" in result.stderr
    for text in (result.stdout, result.stderr):
        assert SECRET not in text
        assert text.replace("\n", "").isprintable()


def test_what_inspect_prints_of_a_manifest_does_not_deceive(place, monkeypatch):
    monkeypatch.setattr("tlray.models.model.Model.read", lambda self: None)
    manifest = model_json() | {"classes": [EVIL, "b\ntlray: done"], "images": f"/x/{EVIL}"}
    (place / "model" / "manifest.json").write_text(json.dumps(manifest))
    write_network(place / "model")
    for options in ([], ["--json"]):
        result = invoke("inspect", "model", *options)
        assert result.exit_code == 0
        assert result.stdout.replace("\n", "").isprintable()
        assert "\ntlray: done" not in result.stdout
    assert json.loads(result.stdout)["classes"][0] == EVIL


def test_a_mistyped_option_does_not_deceive():
    done = script("fit", "x", f"--{EVIL}")
    assert done.returncode == 2
    assert done.stderr.replace("\n", "").isprintable()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_command_whose_ray_has_ended_says_so_and_ends(options):
    """Although the thread that runs it never returns from a call of Ray."""
    code = (
        "import sys, threading, time\n"
        "import tlray.training.fit\n"
        "from tlray.cluster import session\n"
        "from tlray.core.errors import JobError\n"
        "def fit(*_, **__):\n"
        "    threading.Thread(target=lambda: session.on_loss(JobError('Ray has ended'))).start()\n"
        "    time.sleep(60)\n"
        "tlray.training.fit.fit = fit\n"
        "from tlray.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "fit", "x", "--out", "y", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (1, "tlray: Ray has ended\n")
    assert done.stdout == ('{"error": "Ray has ended", "exit_status": 1}\n' if options else "")
