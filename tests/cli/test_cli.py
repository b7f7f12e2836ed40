"""The command line: instant, documented, and clear about mistakes."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import tlray
from tests.support.manifests import feature_set_json, model_json
from tlray.cli import app, summaries
from tlray.cli.tables import table
from tlray.core import config
from tlray.core.errors import JobError, UserError
from tlray.core.results import ImageError, InferenceCounts, TrainingTime
from tlray.core.settings import option
from tlray.core.storage import Folder
from tlray.images.diff import Changes
from tlray.training.model_folder import TrainResult

CONFIGS = {
    "extract": config.ExtractConfig,
    "fit": config.FitConfig,
    "finetune": config.FinetuneConfig,
    "evaluate": config.EvaluateConfig,
    "predict": config.PredictConfig,
    "plan": config.ExtractConfig,
}
ON_RAY = {"extract", "fit", "finetune", "evaluate", "predict", "run", "demo", "plugins check"}
ON_A_CLUSTER = {"submit", "jobs list", "jobs logs", "jobs stop"}
WITHOUT_RAY = {
    *("plan", "verify", "inspect", "recipes list", "recipes show"),
    *("plugins list", "plugins show", "plugins new"),
}
HEAVY = {"ray", "tensorflow", "keras", "numpy", "pyarrow", "pandas", "PIL", "h5py", "sklearn", "rich"}

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


def commands(group: Any, above: str = "") -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{above}{name} ")
        else:
            found[f"{above}{name}"] = command
    return found


COMMANDS = commands(typer.main.get_command(app))


GROUPS = ["", *dict.fromkeys(name.split()[0] for name in COMMANDS if " " in name)]


def squeezed(text: str) -> str:
    """Without white space: help is wrapped."""
    return "".join(text.split())


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def script(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as the user runs it."""
    command = [str(Path(sys.executable).with_name("tlray")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def mistake(*arguments: str, status: int = 2) -> str:
    """Run into an error; the message."""
    result = invoke(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = without_usage(result.stderr)
    assert 1 <= len(message.splitlines()) <= 2, message
    return message


def without_usage(stderr: str) -> str:
    lines = stderr.splitlines()
    return "\n".join(line for line in lines if line and not line.startswith(("Usage: ", "Try ")))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bit of everything, and the current one. Nothing in it may change."""
    here = tmp_path / "here"
    for name in ("empty", "text", "features/index", "unfinished/index", "model"):
        (here / name).mkdir(parents=True)
    (here / "text" / "notes.txt").write_text("no image")
    for name in ("features", "unfinished"):
        (here / name / "index" / "part-00000.parquet").write_bytes(b"")
    for name, manifest in (("features", feature_set_json()), ("model", model_json())):
        (here / name / "manifest.json").write_text(json.dumps(manifest))
    (here / "model" / "model.keras").write_bytes(b"")
    monkeypatch.chdir(here)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return here


@pytest.fixture
def unchanged(place: Path) -> Any:
    def files() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*"))

    before = files()
    yield
    assert files() == before


@pytest.fixture
def small(package) -> list[str]:
    """Options for a network whose weights are here, and need no TensorFlow."""
    package("small-plugins", SMALL, backbones={"small": "Small"}, weights={"store": "Store"})
    return ["--backbone", "small", "--weights", "known", "--precision", "float32"]


# Help


def imported(code: str, **environment: str) -> tuple[str, set[str]]:
    """Run code in a process of its own, whose output is no terminal; what it prints and imports."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint('modules:', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    text, _, modules = done.stdout.rpartition("modules:")
    return text, {name.partition(".")[0] for name in modules.split()}


@functools.cache
def helps(columns: int) -> tuple[dict[str, str], set[str]]:
    """What `-h` prints in a window so wide, for every command and group; and what was imported."""
    code = (
        "import io, json, sys\nfrom contextlib import redirect_stdout\nfrom tlray.cli import app\n"
        "helps = {}\n"
        f"for name in {[*COMMANDS, *GROUPS]}:\n"
        "    with redirect_stdout(io.StringIO()) as text:\n"
        "        app([*name.split(), '-h'], prog_name='tlray', standalone_mode=False)\n"
        "    helps[name] = text.getvalue()\n"
        "print(json.dumps(helps))"
    )
    text, modules = imported(code, COLUMNS=str(columns), FORCE_COLOR="1", RAY_ADDRESS="head:6379")
    return json.loads(text), modules


def test_help_imports_nothing_heavy():
    texts, modules = helps(80)
    assert "--install-completion" in texts[""]
    assert set(texts) == {*COMMANDS, *GROUPS}
    assert "tlray" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize("line", ["extract x --out y --seed z", "predict x", "--version"])
def test_a_mistake_imports_nothing_heavy(line):
    code = (
        f"import sys\nsys.argv = ['tlray', *{line.split()}]\nfrom tlray.cli import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    assert imported(code)[1] & HEAVY == set()


def test_version():
    done = script("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tlray {tlray.__version__}\n", "")


def test_the_commands():
    assert set(COMMANDS) == ON_RAY | ON_A_CLUSTER | WITHOUT_RAY
    text = invoke("--help").stdout
    assert all(name.split()[0] in text for name in COMMANDS)


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPS])
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_help_fits_and_is_not_cut_off(name, columns):
    text = helps(columns)[0][name]
    usage, *lines = text.splitlines()
    assert usage.startswith(f"Usage: tlray {name}".strip())
    assert max(map(len, lines)) <= min(columns, 100)
    assert max(len(line) - len(line.lstrip()) for line in lines) < 32  # The rest is for the texts.
    assert not [line for line in lines if line.endswith(("...", "…")) or "\x1b" in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(name):
    result = invoke(*name.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout == invoke(*name.split(), "-h").stdout
    *group, _ = name.split()
    summary = squeezed(COMMANDS[name].help.partition("\n\n")[0])
    assert summary in squeezed(helps(80)[0][" ".join(group)])  # In the list of commands, in full.
    for parameter in COMMANDS[name].params:
        written = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        assert written in result.stdout
        assert squeezed(parameter.help) in squeezed(result.stdout)
        assert not parameter.required or written in result.stdout.partition("\n\n")[0]  # The usage.
    assert "{" not in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_headings_in_one_order(name):
    sections: dict[str, list[str]] = {}
    for line in helps(80)[0][name].splitlines():
        if re.fullmatch(r"[A-Z][a-z ]+:", line):
            sections[line] = []
        elif sections and (word := re.match(r"  (-h|--[a-z-]+|[A-Z|]+)\b", line)):
            sections[[*sections][-1]].append(word[1])
    order = [
        *("Arguments:", "Options:", "Images and labels:", "Network:", "Training:"),
        *("Output:", "Cluster:", "Examples:"),
    ]
    assert list(sections) == [heading for heading in order if heading in sections]
    assert sections["Output:"][-3:] == ["--json", "--debug", "-h"]
    assert all(heading == "Output:" for heading, words in sections.items() if "--out" in words)
    assert all(heading == "Cluster:" for heading, words in sections.items() if "--address" in words)


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_the_examples_are_commands(name):
    lines = helps(80)[0][name].partition("\nExamples:\n")[2].splitlines()
    assert len(lines) in (1, 2)
    for line in lines:
        program, *words = shlex.split(line)
        command = next(known for known in COMMANDS if words[: len(known.split())] == known.split())
        assert (program, command) == ("tlray", name or command)
        given = COMMANDS[command].make_context(command, words[len(command.split()) :]).params
        if (kind := CONFIGS.get(command)) is not None:
            kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_is_said_once(name):
    for param in COMMANDS[name].params:
        if param.required or getattr(param, "is_flag", False) or param.multiple:
            continue
        shown = "[default: " in param.get_help_record(typer.Context(COMMANDS[name]))[1]
        assert shown != ("Default: " in param.help), param.opts[0]
    assert "head:6379" not in helps(80)[0][name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_once_and_is_documented(name):
    params = {param.name: param for param in COMMANDS[name].params}
    options = [opt for param in params.values() for opt in param.opts]
    assert len(options) == len(set(options))
    assert all(param.help for param in params.values())
    assert {"json", "debug"} <= set(params)
    assert ("address" in params) == (name in ON_RAY | ON_A_CLUSTER | {"plan"})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_is_an_option(name):
    params = {param.name: param for param in COMMANDS[name].params}
    for field in fields(CONFIGS[name]):
        if field.name == "monitor":  # Recipes and Python callers have it.
            continue
        param = params.pop(field.name)
        assert param.opts == [option(field.name)]
        assert param.default == field.default
    # What is left are the command's own, and what all commands have.
    own = {"images", "features", "model", "data", "out", "sample", "extend", "cluster"}
    assert set(params) <= own | {"json", "debug", "address", "help"}


def test_flags_have_no_opposite():
    for command in COMMANDS.values():
        assert not [opt for param in command.params for opt in param.secondary_opts]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tlray extract --backbone sm", {"small-vggnet"}),
        ("tlray extract --preprocess r", {"rescale", "raw"}),
        ("tlray fit features --head dense-2", {"dense-256", "dense-256-no-dropout"}),
        ("tlray run vgg16-finetune", {"vgg16-finetune", "vgg16-finetune-plus"}),
        ("tlray recipes show simple", {"simple-nn"}),
        ("tlray plugins check bro", {"broken"}),
        ("tlray ex", {"extract"}),
        ("tlray extract --im", {"--image-size"}),
    ],
)
def test_a_shell_completes(line, expected, package):
    """Names of plugins come from their entry points: the one that cannot be imported is there."""
    package("broken", "raise AssertionError('imported')", backbones={"broken": "X"})
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    result = CliRunner().invoke(app, env={"_TLRAY_COMPLETE": "complete_bash", **words})
    assert set(result.stdout.split()) == expected


def test_completion_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['tlray']\nfrom tlray.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    words = {"COMP_WORDS": "tlray extract --backbone vgg1", "COMP_CWORD": "3"}
    text, modules = imported(code, _TLRAY_COMPLETE="complete_bash", **words)
    assert {"vgg16"} <= set(text.split())
    assert modules & HEAVY == set()


@pytest.mark.parametrize("line", ["tlray ", "tlray extract --", "tlray run --"])
def test_a_completion_is_one_line(line):
    words = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    result = CliRunner().invoke(app, env={"_TLRAY_COMPLETE": "complete_fish", **words})
    assert len(result.stdout.splitlines()) > 4
    assert all("\t" in completion for completion in result.stdout.splitlines())


def test_options_after_a_submitted_command_are_its_own(monkeypatch):
    sent: list[list[str]] = []

    def submit(words: list[str], **_: Any) -> dict[str, Any]:
        sent.append(list(words))
        return {"job": "j", "status": "succeeded", "seconds": 1.0}

    monkeypatch.setattr("tlray.cluster.submit.submit", submit)
    for line in ("submit extract -h", "submit -- extract --help", "submit --name mine fit x --json"):
        assert invoke(*line.split()).exit_code == 0
    assert sent == [["extract", "-h"], ["extract", "--help"], ["fit", "x", "--json"]]
    assert invoke("submit", "-h").stdout.startswith("Usage: tlray submit ")
    assert len(sent) == 3


def test_a_table():
    rows = [("model", "fit", "1.0 s", "8 epochs"), ("m", "evaluate", "12.5 s", "")]
    assert table(rows, right={2}) == (
        "model  fit        1.0 s  8 epochs\nm      evaluate  12.5 s"  # No space at the end.
    )
    assert table([]) == ""


def test_the_plugins_are_a_table():
    lines = invoke("plugins", "list").stdout.splitlines()
    assert len({re.match(r"\S+ +\S+ +(?=\S)", line).end() for line in lines}) == 1


# Bad values

BAD = [
    ("extract text --out out --split 2", "--split", "2"),
    ("extract text --out out --split -0.5", "--split", "-0.5"),
    ("extract text --out out --split nan", "--split", "nan"),
    ("extract text --out out --batch-size 0", "--batch-size", "0"),
    ("extract text --out out --image-size -1", "--image-size", "-1"),
    ("extract text --out out --max-bad-fraction 1.5", "--max-bad-fraction", "1.5"),
    ("plan text --split 2", "--split", "2"),
    ("plan text --cluster", "--address", "--cluster"),
    ("fit features --out out --epochs 0", "--epochs", "0"),
    ("fit features --out out --batch-size -3", "--batch-size", "-3"),
    ("fit features --out out --workers 0", "--workers", "0"),
    ("fit features --out out --min-workers 0", "more than 0", "--min-workers 0"),
    ("fit features --out out --workers 2 --min-workers 3", "which is 2", "--min-workers 3"),
    ("finetune text --out out --head linear --augment flip --workers 2 --min-workers 1", "--views", "1"),
    ("fit features --out out --learning-rate 0", "--learning-rate", "0"),
    ("fit features --out out --learning-rate nan", "--learning-rate", "nan"),
    ("fit features --out out --early-stopping 0", "--early-stopping", "0"),
    ("fit features --out out --validation 1.01", "--validation", "1.01"),
    ("fit features --out out --decay often", "cosine", "often"),
    ("fit features --out out --decay -1", "cosine", "-1"),
    ("finetune text --out out", "--head", "--model"),
    ("finetune text --out out --head linear --views 2", "--augment", "--views 2"),
    ("finetune text --out out --head linear --views 0 --augment flip", "--views", "0"),
    ("finetune text --out out --head linear --augment strogn", "strong", "strogn"),
    ("finetune text --out out --head linear --augment zoom=big", "zoom", "big"),
    ("finetune features --out out --head linear --augment flip", "feature set", "--augment flip"),
    ("finetune features --out out --head linear --split 0.5", "feature set", "--split 0.5"),
    ("fit features --out out --head dense-265", "dense-256", "dense-265"),
    ("fit features --out out --optimizer adamm", "adam", "adamm"),
    ("evaluate model text --batch-size 0", "--batch-size", "0"),
    ("predict model text --out p.csv --top 0", "--top", "0"),
    ("predict model text --out p.txt", ".parquet", "p.txt"),
    ("predict model text", "--out", ""),
    ("extract text --out out --backbone vgg61", "vgg16", "vgg61"),
    ("extract text --out out --weights nope.h5", ".h5", "nope.h5"),
    ("extract nosuch://bucket/x --out out", "nosuch", "nosuch://bucket/x"),
]
UNPARSED = [
    ("extract text --out out --preprocess caffe", "imagenet", "caffe"),
    ("extract text --out out --precision float64", "bfloat16", "float64"),
    ("extract text --out out --store float64", "float16", "float64"),
    ("extract text --out out --batch-size many", "--batch-size", ""),
    ("extract text --out out --split half", "--split", ""),
    ("extract text", "--out", ""),
    ("extract --out out", "IMAGES", ""),
    ("extract text --out out --no-such-option", "--no-such-option", ""),
    ("verify features --images text --sample 0", "--sample", ""),
    ("nosuchcommand", "nosuchcommand", ""),
]


@pytest.mark.usefixtures("unchanged", "small")
@pytest.mark.parametrize(("line", "expected", "given"), BAD)
def test_a_bad_value(line, expected, given):
    message = mistake(*line.split())
    assert expected in message
    assert given in message


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("line", "expected", "given"), UNPARSED)
def test_a_value_that_cannot_be_parsed(line, expected, given):
    message = mistake(*line.split())
    assert expected in message
    assert given in message


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("options", ["--out out --preprocess caffe", "--out out --batch-size many", ""])
def test_a_value_that_cannot_be_parsed_as_json(options):
    """In a process of its own, because `main` may have a hand in it."""
    done = script("extract", "text", *options.split(), "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert set(found) == {"error", "exit_status"}
    assert found["exit_status"] == 2


# Things that are not there, or are something else

MISSING = [
    ("extract missing --out out", "missing", "folder"),
    ("extract empty --out out", "empty", "image"),
    ("extract text --out out", "text", "image"),
    ("extract text/notes.txt --out out", "notes.txt", "image"),
    ("plan missing", "missing", "folder"),
    ("plan empty", "empty", "image"),
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
    ("inspect text/notes.txt", "notes.txt", "feature set"),
    ("inspect unfinished", "unfinished", "not finished"),
    ("demo --out text", "text", "--out"),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("line", "given", "expected"), MISSING)
def test_what_is_given_is_not_what_is_expected(line, given, expected, small):
    options = small if line.startswith(("extract", "plan")) else []
    message = mistake(*line.split(), *options)
    assert given in message
    assert expected in message


@pytest.mark.usefixtures("unchanged")
def test_a_folder_of_other_things_is_no_place_for_a_job(place, small):
    (place / "images").mkdir()
    (place / "images" / "1.png").write_bytes(b"")
    try:
        message = mistake("extract", "images", "--out", "text", *small)
        assert "text" in message
        assert "not empty" in message
    finally:
        (place / "images" / "1.png").unlink()
        (place / "images").rmdir()


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


def test_inspect(place):
    result = invoke("inspect", "model")
    assert result.exit_code == 0
    assert "is a model" in result.stdout
    assert "weights_sha256" in result.stdout
    result = invoke("inspect", "features", "--json")
    assert json.loads(result.stdout)["format"] == "tlray-features/1"


# Every kind of failure ends the command with one message and a status


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("tlray.training.fit.fit", fit)


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
    fail(monkeypatch, error)
    message = mistake("fit", "x", "--out", "y", status=status)
    assert words in message
    result = invoke("fit", "x", "--out", "y", "--json")
    assert result.exit_code == status
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {"error": message.removeprefix("tlray: "), "exit_status": status}
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("error", "status", "words"), FAILURES)
def test_debug_shows_where_it_comes_from(monkeypatch, error, status, words):
    fail(monkeypatch, error)
    result = invoke("fit", "x", "--out", "y", "--debug", "--json")
    assert result.exit_code == status
    assert "Traceback" in result.stderr
    assert type(error).__name__ in result.stderr
    assert "raise error" in result.stderr
    assert json.loads(result.stdout)["exit_status"] == status


def test_a_result_as_text_and_as_json(monkeypatch):
    trained = TrainResult(
        rows=1200,
        validation_rows=0,
        epochs=2,
        seconds=1.5,
        kept_epoch=1,
        stopped_epoch=1,
        errors=4,
        trainable_tensors=4,
        tensors=30,
        metrics={"loss": 0.25, "val_loss": None},
        history=[],
        limited_by="training",
        time=TrainingTime(training=1.25, waited=0.0),
        out="/y",
        was_complete=False,
        first_errors=[ImageError(path="a/1.png", stage="read", error="EmptyFile", message="it has no bytes")],
        errors_uri="/y/errors",
    )

    def fit(features: str, out: str, given: config.FitConfig, *, address: Any, report: Any) -> TrainResult:
        assert (features, out, address) == ("x", "my y", "here:1")
        assert given == config.FitConfig(epochs=2, learning_rate=0.5, head="linear")
        report({"epoch": 1, "loss": 0.25})
        return trained

    monkeypatch.setattr("tlray.training.fit.fit", fit)
    options = ["--epochs", "2", "--learning-rate", "0.5", "--head", "linear", "--address", "here:1"]
    result = invoke("fit", "x", "--out", "my y", *options)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "1,200 rows, 4 of 30 tensors trained, 2 epochs in 1.5 s",
        "stopped early after epoch 2 (1 as Keras counts)",
        "training-bound: training 1.2 s, 0.0 of it waiting; to speed up, add --workers, on GPUs or nodes",
        "kept epoch 1: loss 0.2500, val_loss not finite",
        "4 images could not be used; all of them are in /y/errors",
        "  a/1.png: it has no bytes (EmptyFile)",
        "model: /y",
        "now: tlray evaluate 'my y' IMAGES",
    ]
    assert "loss 0.2500" in result.stderr
    result = invoke("fit", "x", "--out", "my y", *options, "--json")
    assert json.loads(result.stdout) == trained.to_json()
    assert result.stdout.count("\n") == 1


def test_the_script_exits_with_the_status(place):
    done = script("fit", "missing", "--out", "out", "--json", cwd=place)
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_status"] == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("counts", "lines"),
    [
        ((0, 0, 0), []),
        ((1200, 0, 0), ["images since they were listed: 1,200 new"]),
        (
            (0, 1, 2),
            [
                "images since they were listed: 1 of another size or time (a), 2 removed; "
                "the features that are there are kept"
            ],
        ),
        (
            (0, 4, 0),
            [
                "images since they were listed: 4 of another size or time (a, b, c, ...); "
                "the features that are there are kept"
            ],
        ),
    ],
)
def test_what_has_changed_among_the_images(counts, lines):
    added, replaced, removed = counts
    paths = ["a", "b", "c"][:replaced]
    changes = Changes(added=added, replaced=replaced, removed=removed, replaced_paths=paths)
    assert summaries.changes(changes) == lines
    assert summaries.changes(None) == []


def test_a_set_that_was_complete_is_said_to_be():
    counts = InferenceCounts(
        images=1200, rows=1199, errors=1, seconds=0.5, images_per_second=0.0, limited_by="nothing", time=None
    )
    (line,) = summaries.counts(counts, was_complete=True)
    assert line == "complete already, so there was nothing to do: 1,200 images: 1,199 rows, 1 errors"
    (line,) = summaries.counts(counts)
    assert line.endswith("1 errors in 0.5 s (0.0 images/s)")
