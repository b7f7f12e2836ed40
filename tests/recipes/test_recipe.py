"""Recipes: the published settings to the letter, clear about mistakes, and run in order."""

import inspect
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tlray.cli import app
from tlray.core.config import FinetuneConfig, FitConfig, TrainConfig
from tlray.core.errors import JobError, UserError
from tlray.core.record import Record
from tlray.recipes import preflight, recipe
from tlray.recipes.stage import COMMANDS
from tlray.training import checks

PUBLISHED = {
    "vgg16-features-tensorboard": ["0.90", "30 epochs"],
    "vgg16-features": ["0.2609", "0.888"],
    "vgg16-frozen-224": ["0.9736", "14 epochs"],
    "vgg16-finetune": ["0.90", "0.96", "0.97"],
    "simple-nn": ["0.61", "3 classes"],
    "small-vggnet": ["0.77", "3 classes"],
    "mlp-early-stopping": ["epoch 10 of 25", "0.9793", "epoch 8"],
}
SPLITTING = ("simple-nn", "small-vggnet")
"""They take images without splits, and make two."""
PLUS = [f"{name}-plus" for name in list(PUBLISHED)[:4]]
EVERY = [*PUBLISHED, *PLUS]

_VGG16 = "tlray extract IMAGES --out DIR/features --backbone vgg16 --weights imagenet"
_RESCALED = f"{_VGG16} --image-size 150 --preprocess rescale --precision float32 --batch-size 20"
_HEAD = "--head dense-256 --optimizer rmsprop --learning-rate 2e-05 --epochs 30 --batch-size 20"
_VIEWS = "--augment rotation=40,shift=0.2,shear=0.2,zoom=0.2,flip --optimizer rmsprop"
_EVALUATE = "tlray evaluate DIR/model DIR/features --out DIR/report --split"
_EVALUATE_IMAGES = "IMAGES --out DIR/report --split test --precision float32"
LINES = {
    "vgg16-features-tensorboard": [
        _RESCALED,
        f"tlray fit DIR/features --out DIR/model {_HEAD} --tensorboard",
        f"{_EVALUATE} validation",
    ],
    "vgg16-features": [_RESCALED, f"tlray fit DIR/features --out DIR/model {_HEAD}", f"{_EVALUATE} test"],
    "vgg16-frozen-224": [
        f"{_VGG16} --image-size 224 --preprocess raw --precision float32 --batch-size 32",
        "tlray fit DIR/features --out DIR/model --head dense-1024 --optimizer adam --learning-rate 1e-05 "
        "--epochs 100 --batch-size 32 --early-stopping 2 --keep last",
        f"{_EVALUATE} test",
        "tlray predict DIR/model IMAGES --out DIR/predictions.parquet --precision float32 --split test",
    ],
    "vgg16-finetune": [
        _RESCALED,
        f"tlray fit DIR/features --out DIR/head {_HEAD}",
        f"tlray finetune IMAGES --model DIR/head --out DIR/frozen --head dense-256-no-dropout {_VIEWS} "
        "--learning-rate 2e-05 --epochs 30 --batch-size 20 --precision float32",
        f"tlray finetune IMAGES --model DIR/frozen --out DIR/finetuned --from block5_conv1 {_VIEWS} "
        "--learning-rate 1e-05 --epochs 100 --batch-size 20 --precision float32",
        f"tlray evaluate DIR/finetuned {_EVALUATE_IMAGES}",
    ],
    "simple-nn": [
        "tlray extract IMAGES --out DIR/features --backbone pixels --image-size 32 --preprocess rescale "
        "--precision float32 --split 0.75 --seed 42",
        "tlray fit DIR/features --out DIR/model --head simple-nn --optimizer sgd --learning-rate 0.01 "
        "--epochs 75 --batch-size 32 --validation test --seed 42",
        f"{_EVALUATE} test",
    ],
    "small-vggnet": [
        "tlray finetune IMAGES --out DIR/model --backbone small-vggnet --image-size 64 --preprocess rescale "
        "--from input --head dense-512 --augment rotation=30,shift=0.1,shear=0.2,zoom=0.2,flip "
        f"--optimizer sgd --learning-rate 0.01 --decay {0.01 / 75} --epochs 75 --batch-size 32 "
        "--precision float32 --split 0.75 --validation test --seed 42",
        f"tlray evaluate DIR/model {_EVALUATE_IMAGES}",
    ],
    "mlp-early-stopping": [
        "tlray extract IMAGES --out DIR/features --backbone grey-pixels --image-size 28 "
        "--preprocess rescale --precision float32",
        "tlray fit DIR/features --out DIR/model --head dense-800 --optimizer adam --learning-rate 0.001 "
        "--epochs 25 --batch-size 200 --validation 0.2 --early-stopping 2 --keep last  "
        "# and monitor = val_accuracy, which has no option",
        f"{_EVALUATE} test",
    ],
}

MINE = """
title = "mine"
command = "tlray run mine.toml IMAGES --out DIR"

[stages.features]
command = "extract"
image-size = 64

[stages.model]
command = "fit"
features = "features"
head = "linear"
epochs = 3
decay = 0.001

[stages.tuned]
command = "finetune"
model = "model"
from = "block5_conv1"
augment = "flip"
workers = 2

[stages.report]
command = "evaluate"
model = "tuned"
split = "test"

[stages.predictions]
command = "predict"
model = "tuned"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe and a few images, which nothing reads."""
    for split in ("train", "validation", "test"):
        for label in ("a", "b"):
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            (place / "1.png").touch()
    (tmp_path / "mine.toml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Replaces the jobs, and Ray; what they were called with, in order."""
    found: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def connect(address: str | None, *, cpus: int) -> Any:
        found.append(("connect", {"address": address, "cpus": cpus}))
        yield
        found.append(("disconnect", {}))

    def job(name: str) -> Any:
        def run(**given: Any) -> Any:
            signatures[name].bind(**given)
            found.append((name, given))
            return RESULTS[name](given)

        return run

    # All are imported before the first is replaced: they import one another.
    modules = {name: COMMANDS[name].module for name in RESULTS}
    jobs = {name: getattr(import_module(module), name) for name, module in modules.items()}
    signatures = {name: inspect.signature(function) for name, function in jobs.items()}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: job(name)}))
    monkeypatch.setattr("tlray.cluster.session.connect", connect)
    return found


@dataclass(frozen=True, kw_only=True)
class Made(Record):
    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.values


COUNTS = {"images": 6, "rows": 6, "errors": 0}
METRICS = {"loss": 0.25, "val_loss": 0.3, "val_accuracy": 0.75}
TRAINED = {"rows": 2, "epochs": 3, "kept_epoch": 2, "metrics": METRICS}
SCORES = {"images": 2, "rows": 2, "errors": 0, "accuracy": 0.5, "loss": 0.7}


def _extract(given: dict[str, Any]) -> Made:
    given["progress"](6, 6)
    return Made(values=COUNTS)


def _train(given: dict[str, Any]) -> Made:
    given["report"]({"epoch": 1, "loss": 0.5})
    return Made(values=TRAINED)


def _evaluate(given: dict[str, Any]) -> Made:
    return Made(values=SCORES)


def _predict(given: dict[str, Any]) -> Made:
    Path(given["out"]).parent.mkdir(exist_ok=True)
    Path(given["out"]).write_text("predictions")
    return Made(values=COUNTS)


RESULTS = {"extract": _extract, "fit": _train, "finetune": _train, "evaluate": _evaluate, "predict": _predict}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def mistake(*arguments: str) -> str:
    """Run into an error before anything was written; the message."""
    before = sorted(Path.cwd().rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert 1 <= len(result.stderr.splitlines()) <= 2, result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(Path.cwd().rglob("*")) == before
    return str(result.stderr)


# The recipes that come with tlray


def test_the_recipes():
    assert sorted(EVERY) == recipe.names()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_keeps_the_published_settings(name):
    """What its commands say; `test_a_stage_stands_for_a_command_line` shows that this is what they do."""
    assert [stage.line("IMAGES", "DIR") for stage in recipe.read(name).stages] == LINES[name]


@pytest.mark.parametrize("name", EVERY)
def test_the_header_says_what_is_reproduced(name):
    header = recipe.read(name).header
    assert {"title", "reproduces", "source", "published"} < set(header)
    assert header["command"] == f"tlray run {name} IMAGES --out DIR"
    assert "\n" not in "".join(header.values())
    for figure in PUBLISHED.get(name, []):
        assert figure in header["published"]


@pytest.mark.parametrize("name", PLUS)
def test_a_plus_recipe_is_the_same_job_with_better_choices(name):
    plus, published = recipe.read(name), recipe.read(name.removesuffix("-plus"))
    (first, *_), (old, *_) = plus.stages, published.stages
    assert (first.config.preprocess, first.config.precision) == ("imagenet", "auto")
    assert 0 <= first.config.image_size - old.config.image_size <= 10
    last, old = plus.stages[-1], published.stages[-1]
    assert (last.name, last.command, last.config.split) == (old.name, old.command, old.config.split)
    trained = [stage.config for stage in plus.stages if stage.command in ("fit", "finetune")]
    assert all(config.keeps_best and config.class_weights for config in trained)
    assert "differs" in plus.header


@pytest.mark.parametrize("name", EVERY)
def test_a_stage_stands_for_a_command_line(name):
    """It is one that tlray takes, with the same settings."""
    group = typer.main.get_command(app)
    for stage in recipe.read(name).stages:
        line, _, only_here = stage.line("IMAGES", "DIR").partition("  # and ")
        words = line.split()
        assert words[:2] == ["tlray", stage.command]
        if stage.command in group.commands:
            context = group.commands[stage.command].make_context(stage.command, words[2:])
            assert context.params["out"] == stage.output("DIR")
            expected = vars(stage.config).copy()
            if hasattr(stage.config, "monitor"):
                monitor = expected.pop("monitor")
                said = "" if monitor == "val_loss" else f"monitor = {monitor}, which has no option"
                assert only_here == said
            assert {field: context.params[field] for field in expected} == expected


def test_a_line_names_places_and_is_quoted():
    lines = [stage.line("my images", "s3://b/out/") for stage in recipe.read("mine.toml").stages]
    assert lines == [
        "tlray extract 'my images' --out s3://b/out/features --image-size 64",
        "tlray fit s3://b/out/features --out s3://b/out/model --head linear --epochs 3 --decay 0.001",
        "tlray finetune 'my images' --model s3://b/out/model --out s3://b/out/tuned "
        "--from block5_conv1 --augment flip --workers 2",
        "tlray evaluate s3://b/out/tuned 'my images' --out s3://b/out/report --split test",
        "tlray predict s3://b/out/tuned 'my images' --out s3://b/out/predictions.parquet",
    ]


def test_a_flag_that_is_off_is_not_in_the_line():
    on, off = (recipe.read("mine.toml", [f"model.tensorboard={word}"]) for word in ("true", "false"))
    assert on.stages[1].line().endswith(" --tensorboard")
    assert "tensorboard" not in off.stages[1].line()


# Mistakes in a recipe

MISTAKES = [
    (
        "epochs = 3",
        "epoch = 3",
        ["stage model", "'epoch'", "did you mean epochs?", "allowed: features, epochs"],
    ),
    ("title =", "titel =", ["'titel'", "did you mean title?", "published", "stages"]),
    ("title =", "published = 3\ntitle =", ["published = 3", "expected text"]),
    ('title = "mine"', "", ["title is missing"]),
    ('command = "tlray run mine.toml IMAGES --out DIR"', "", ["command is missing"]),
    ('command = "fit"', "", ["stage model", "command is missing", "extract, fit, finetune"]),
    ('command = "fit"', 'command = "fitt"', ["stage model", "'fitt'", "extract, fit, finetune"]),
    ('command = "fit"', 'command = ["fit"]', ["stage model", "['fit']", "extract, fit, finetune"]),
    ('features = "features"', "", ["stage model", "features is missing", "(features)"]),
    ('features = "features"', 'features = "tuned"', ['"tuned" is not an earlier stage', "(features)"]),
    ('features = "features"', 'features = "IMAGES"', ['"IMAGES" is not an earlier stage']),
    ('features = "features"', "features = 1", ['"1" is not an earlier stage']),
    (
        'model = "model"',
        'model = "features"',
        ["stage tuned", '"features" is the output of extract', "(model)"],
    ),
    ('model = "model"', 'images = "model"', ['"model" is the output of fit', "(features) or IMAGES"]),
    ('[stages.model]\ncommand = "fit"', '[stages.model]\nimages = "x"\ncommand = "fit"', ["'images'"]),
    ("image-size = 64", 'image-size = "64"', ["stage features", "image-size = '64'", "a whole number"]),
    ("image-size = 64", "image-size = 64.5", ["image-size = 64.5", "a whole number"]),
    ("image-size = 64", "image-size = true", ["image-size = True", "a whole number"]),
    ("image-size = 64", "image-size = 0", ["stage features", "--image-size 0", "more than 0"]),
    ("image-size = 64", "image_size = 64", ["'image_size'", "did you mean image-size?"]),
    ("image-size = 64", 'images = "x"', ["'images'", "allowed"]),
    ("image-size = 64", 'preprocess = "caffe"', ["'caffe'", "imagenet, rescale or raw"]),
    ("image-size = 64", "preprocess = 1", ["preprocess = 1", "imagenet, rescale or raw"]),
    ("epochs = 3", 'class-weights = "yes"', ["class-weights = 'yes'", "true or false"]),
    ("epochs = 3", 'learning-rate = "fast"', ["learning-rate = 'fast'", "a number"]),
    ("epochs = 3", "classes = ['a', 'b']", ["classes = ['a', 'b']", "expected text"]),
    ("decay = 0.001", "decay = -1", ["stage model", "--decay -1", "rate of 0 or more"]),
    ("[stages.model]", "[stages.'../model']", ["'../model'", "letters, digits"]),
    ("[stages.model]", "[stages.IMAGES]", ["'IMAGES'", "letters, digits"]),
    ("[stages.model]", "[stages.features]", ["not valid TOML", "line"]),
    ("epochs = 3", "epochs = ", ["not valid TOML", "line 13"]),
    (MINE, "", ["title is missing"]),
    (MINE, 'title = "x"\ncommand = "y"', ["no stages", "[stages.features]"]),
    (MINE, 'title = "x"\ncommand = "y"\nstages = 3', ["no stages"]),
    (MINE, 'title = "x"\ncommand = "y"\nstages.fit = 3', ["stages.fit = 3", "[stages.fit]"]),
]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(("old", "new", "words"), MISTAKES)
def test_a_mistake_in_a_recipe(here, old, new, words):
    assert old in MINE
    (here / "mine.toml").write_text(MINE.replace(old, new, 1))
    message = mistake("run", "mine.toml", "images", "--out", "out")
    for word in ["mine.toml", *words]:
        assert word in message
    assert mistake("recipes", "show", "mine.toml") == message


def test_an_unknown_recipe():
    assert "did you mean vgg16-features" in mistake("run", "vgg16-feature", "images", "--out", "out")
    assert "'other.toml' does not exist" in mistake("run", "other.toml", "images", "--out", "out")
    assert "did you mean simple-nn" in mistake("recipes", "show", "simple-n")


def test_a_file_that_cannot_be_read(here):
    (here / "latin.toml").write_bytes(b"title = '\xe9'")
    assert "'latin.toml' cannot be read" in mistake("recipes", "show", "latin.toml")
    assert "'images' cannot be read" in mistake("recipes", "show", "images")


def test_a_recipe_may_have_any_path(here):
    (here / "mine").write_text(MINE)
    assert recipe.read("mine").header == recipe.read(str(here / "mine.toml")).header
    (here / "simple-nn").write_text(MINE)
    assert recipe.read("simple-nn").header["title"] != "mine"
    assert recipe.read("./simple-nn").header["title"] == "mine"


# --set


def settings(*sets: str, of: str = "mine.toml") -> dict[str, Any]:
    return {stage.name: stage.config for stage in recipe.read(of, sets).stages}


def test_set_one_key_of_a_stage():
    found = settings(
        "model.epochs=9", "features.preprocess=raw", 'tuned.classes="1,2"', "tuned.from=block4_conv1"
    )
    assert (found["model"].epochs, found["tuned"].epochs) == (9, FinetuneConfig.epochs)
    assert found["features"].preprocess == "raw"
    assert found["tuned"].classes == "1,2"
    assert found["tuned"].from_ == "block4_conv1"


def test_set_a_key_of_every_stage_that_says_it():
    """A new head in the stage that goes on with a trained one would throw that away."""
    found = settings("epochs=9", "head=dense-256", of="vgg16-finetune")
    assert [found[name].epochs for name in ("head", "frozen", "finetuned")] == [9, 9, 9]
    assert [found[name].head for name in ("head", "frozen", "finetuned")] == ["dense-256", "dense-256", None]
    assert settings("precision=auto", of="vgg16-finetune")["report"].precision == "auto"


def test_set_a_key_that_no_stage_says_for_all_that_could():
    found = settings("max-bad-fraction=0.5", "learning-rate=1", "tensorboard=true", "classes=b,a")
    assert {name for name, config in found.items() if getattr(config, "max_bad_fraction", 0) == 0.5} == {
        *("features", "tuned", "report", "predictions")
    }
    for name in ("model", "tuned"):
        assert found[name].learning_rate == 1.0
        assert isinstance(found[name].learning_rate, float)
        assert (found[name].tensorboard, found[name].classes) == (True, "b,a")


def test_set_takes_a_key_out():
    found = settings("features.split=", of="simple-nn")
    assert (found["features"].split, found["report"].split) == (None, "test")
    assert settings("epochs=")["model"].epochs == FitConfig.epochs
    assert settings("image-size=", "image-size=8")["features"].image_size == 8


def test_set_an_input():
    (*_, tuned, report, _) = recipe.read("mine.toml", ["report.data=features"]).stages
    assert tuned.inputs["images"] == "IMAGES"
    assert report.inputs["data"] == "features"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.2", "0.2"),
        ("held", "held"),
        ('"0.3"', "0.3"),
        ("a # b", "a # b"),
        ("1e-3", "0.001"),
        ("1\nx = 2", "1\nx = 2"),
    ],
)
def test_set_a_text(text, value):
    assert settings(f"validation={text}")["model"].validation == value


BAD_SETS = [
    ("epoch=3", ["--set epoch=3", "did you mean epochs?", "image-size", "annotate"]),
    ("features.epochs=3", ["--set features.epochs=3", "unknown key 'epochs'", "image-size"]),
    ("modell.epochs=3", ["--set modell.epochs=3", "no stage 'modell'", "features, model, tuned"]),
    ("epochs", ["--set epochs", "STAGE.KEY=VALUE"]),
    ("=3", ["--set =3", "STAGE.KEY=VALUE"]),
    ("model.=3", ["--set model.=3", "STAGE.KEY=VALUE"]),
    ("model.command=fit", ["unknown key 'command'"]),
    ("epochs=many", ["epochs = 'many'", "a whole number"]),
    ("epochs=0", ["--epochs 0", "more than 0"]),
    ("features.precision=half", ["'half'", "auto, float32, bfloat16 or float16"]),
    ("model.features=", ["stage model", "features is missing"]),
    ("model.features=x", ["is not an earlier stage"]),
]


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(("change", "words"), BAD_SETS)
def test_a_bad_set(change, words):
    message = mistake("run", "mine.toml", "images", "--out", "out", "--set", change)
    for word in words:
        assert word in message


def test_a_set_that_means_two_things():
    """To `extract` a split is a fraction, to `evaluate` a name."""
    with pytest.raises(UserError, match=r"--set features\.split=0\.8 or --set report\.split=0\.8"):
        recipe.read("simple-nn", ["split=0.8"])
    assert settings("split=validation", of="vgg16-features")["report"].split == "validation"
    assert settings("head=linear")["model"].head == "linear"


# Running


def names(calls: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in calls]


def test_run_goes_through_the_stages(calls):
    said, epochs = [], []
    found = recipe.run(
        *("mine.toml", "images", "out"),
        address="here:1",
        say=said.append,
        report=lambda stage, metrics: epochs.append((stage.name, stage.config.epochs, metrics)),
    )
    assert names(calls) == [*("connect", "extract", "fit", "finetune", "evaluate", "predict", "disconnect")]
    connect, *stages, _ = (given for _, given in calls)
    assert connect == {"address": "here:1", "cpus": checks.cpus(TrainConfig(workers=2), True)}
    assert all(given["address"] == "here:1" for given in stages)
    places = [{key: given[key] for key in given if isinstance(given[key], str)} for given in stages]
    assert [{**place, "address": None} for place in places] == [
        {"images": "images", "out": "out/features", "address": None},
        {"features": "out/features", "out": "out/model", "address": None},
        {"images": "images", "model": "out/model", "out": "out/tuned", "address": None},
        {"model": "out/tuned", "data": "images", "out": "out/report", "address": None},
        {"model": "out/tuned", "images": "images", "out": "out/predictions.parquet", "address": None},
    ]
    configs = [stage.config for stage in recipe.read("mine.toml").stages]
    assert [given["config"] for given in stages] == configs
    assert said[0] == "stage 1 of 5: tlray extract images --out out/features --image-size 64"
    assert len(said) == 5
    assert epochs == [("model", 3, {"epoch": 1, "loss": 0.5}), ("tuned", 30, {"epoch": 1, "loss": 0.5})]
    values = found.to_json()
    assert (values["recipe"], values["out"]) == ("mine.toml", "out")
    assert all(stage.pop("seconds") >= 0 for stage in [values, *values["stages"]])
    assert values["stages"] == [
        {"stage": "features", "command": "extract", "out": "out/features", "result": COUNTS},
        {"stage": "model", "command": "fit", "out": "out/model", "result": TRAINED},
        {"stage": "tuned", "command": "finetune", "out": "out/tuned", "result": TRAINED},
        {"stage": "report", "command": "evaluate", "out": "out/report", "result": SCORES},
        {"stage": "predictions", "command": "predict", "out": "out/predictions.parquet", "result": COUNTS},
    ]


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_runs(calls, name):
    images = "images/train" if name in SPLITTING else "images"
    found = recipe.run(name, images, "out")
    assert names(calls)[1:-1] == [stage.command for stage in recipe.read(name).stages]
    assert len(found.stages) == len(calls) - 2


@pytest.mark.parametrize(
    ("sets", "needed"),
    [
        ([], (2, True)),
        (["tuned.workers="], (1, True)),
        (["tuned.views=3"], (2, False)),
        (["tuned.augment=", "model.workers=5"], (5, False)),
        (["tuned.workers=3", "model.workers=20"], (20, False)),
    ],
)
def test_a_local_ray_has_a_place_for_all(calls, sets, needed):
    workers, streaming = needed
    cpus = checks.cpus(TrainConfig(workers=workers), streaming)
    recipe.run("mine.toml", "images", "out", sets)
    assert calls[0] == ("connect", {"address": None, "cpus": cpus})


def test_a_ray_without_training_has_two_places(here, calls):
    (here / "short.toml").write_text(MINE.partition("[stages.model]")[0])
    recipe.run("short.toml", "images", "out")
    assert calls[0] == ("connect", {"address": None, "cpus": 2})


def test_run_again(here, calls):
    """Every job knows its own finished output, but predictions, which are left as they are."""
    recipe.run("mine.toml", "images", "out")
    (here / "out" / "tuned").mkdir()
    (here / "out" / "tuned" / "manifest.json").touch()
    first, calls[:] = names(calls), []
    found = recipe.run("mine.toml", "images", "out")
    assert first.count("predict") == 1
    assert names(calls) == [name for name in first if name != "predict"]
    assert (found.stages[-1].out, found.stages[-1].result) == ("out/predictions.parquet", None)
    # A job that was killed in the middle of its second life goes on.
    (here / "out" / "predictions.parquet.parts").mkdir()
    recipe.run("mine.toml", "images", "out")
    assert names(calls)[-2:] == ["predict", "disconnect"]


def test_predictions_of_a_model_that_is_gone(here, calls):
    recipe.run("mine.toml", "images", "out")
    calls.clear()
    with pytest.raises(
        UserError, match=r"out/predictions\.parquet exists, but out/tuned, the model that made it, does not"
    ):
        recipe.run("mine.toml", "images", "out")
    assert calls == []


def test_a_stage_that_fails_ends_the_run(calls, monkeypatch):
    def fail(given: dict[str, Any]) -> None:
        raise JobError("it failed")

    monkeypatch.setitem(RESULTS, "fit", fail)
    result = invoke("run", "mine.toml", "images", "--out", "out", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"error": "it failed", "exit_status": 1}
    assert names(calls) == ["connect", "extract", "fit"]


# What is checked before Ray starts


def lose(split: str) -> None:
    shutil.rmtree(Path("images", split))


@pytest.mark.parametrize("name", [name for name in EVERY if name not in SPLITTING])
def test_a_split_that_is_missing(calls, name):
    needed = recipe.read(name).stages[-1].config.split
    lose(needed)
    message = mistake("run", name, "images", "--out", "out")
    for words in (f"images has no split '{needed}', which stage ", f"images/{needed}/CLASS/", "train"):
        assert words in message
    assert calls == []


def test_the_splits_that_are_there_are_named(calls):
    lose("test")
    assert "its splits: train, validation\n" in mistake("run", "mine.toml", "images", "--out", "out")
    assert "its splits: none\n" in mistake("run", "mine.toml", "images/train", "--out", "out")
    recipe.run("mine.toml", "images", "out", ["report.split=validation"])
    assert "evaluate" in names(calls)


def test_images_without_splits_will_do_if_no_split_is_named(calls):
    recipe.run("mine.toml", "images/train", "out", ["report.split="])
    assert "evaluate" in names(calls)


@pytest.mark.parametrize(
    "change",
    ["model.validation=test", "predictions.split=test", "tuned.validation=test", "report.split=test"],
)
def test_every_stage_may_need_a_split(calls, change):
    lose("test")
    message = mistake("run", "mine.toml", "images", "--out", "out", "--set", "report.split=", "--set", change)
    assert f"no split 'test', which stage {change.partition('.')[0]} needs" in message
    assert calls == []


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ([], False),
        (["model.early-stopping=2"], True),
        (["model.keep=best"], True),
        (["model.early-stopping=2", "model.keep=last"], True),
        (["model.early-stopping=2", "model.monitor=loss"], False),
        (["model.early-stopping=2", "model.validation=0.2"], False),
        (["model.keep=last"], False),
    ],
)
def test_stopping_early_needs_validation_images(calls, changes, needed):
    lose("validation")
    if needed:
        with pytest.raises(UserError, match=r"no split 'validation', which stage model needs"):
            recipe.run("mine.toml", "images", "out", changes)
    else:
        recipe.run("mine.toml", "images", "out", changes)
        assert "fit" in names(calls)


def test_a_split_made_by_a_stage_is_known_to_what_comes_after(calls):
    """Also through a model: `report` evaluates on the images what was trained on their features."""
    sets = ["features.split=0.8", "model.validation=test", "report.model=model", "tuned.validation=0.1"]
    recipe.run("mine.toml", "images/train", "out", sets)
    assert "predict" in names(calls)
    # What is trained further, and predictions of it, know of it too; a training of its own does not.
    for number, change in enumerate(
        ("tuned.validation=test", "predictions.split=test", "report.model=tuned")
    ):
        recipe.run("mine.toml", "images/train", f"out-{number}", [*sets, change])
    with pytest.raises(UserError, match="no split 'test'"):
        recipe.run("mine.toml", "images/train", "new", [*sets, "tuned.model=", "tuned.validation=test"])
    on_features = ["tuned.images=features", "tuned.augment=", "tuned.validation=test"]
    recipe.run("mine.toml", "images/train", "other", [*sets, *on_features])
    with pytest.raises(UserError, match=r"stage model needs the split 'validation', but stage features has"):
        recipe.run("mine.toml", "images/train", "out", [*sets, "model.validation=", "model.early-stopping=1"])
    with pytest.raises(UserError, match=r"stage report needs the split 'held', but stage features has"):
        recipe.run("mine.toml", "images/train", "out", [*sets, "report.split=held"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tuned.images=features", r"stage tuned has augment, but images = .features. is a feature set"),
        ("model.classes=one,two", r"--classes one,two: expected each class of images once"),
    ],
)
def test_what_would_fail_a_late_stage_is_told_at_once(calls, change, message):
    with pytest.raises(UserError, match=message):
        recipe.run("mine.toml", "images", "out", [change])
    assert calls == []


def test_the_results_do_not_go_among_the_images(calls):
    with pytest.raises(UserError, match="lies among the images"):
        recipe.run("mine.toml", "images", "images/out")
    assert calls == []


def test_a_split_of_images_that_are_split(calls):
    with pytest.raises(UserError, match=r"images already has splits \(test\):\n.*--set features\.split="):
        recipe.run("mine.toml", "images", "out", ["features.split=0.8"])
    assert calls == []


def test_no_more_images_are_listed_than_needed(calls, monkeypatch):
    listed = []

    def images(self):
        for split in ("test", "test", "train"):
            listed.append(split)
            yield SimpleNamespace(split=split)

    monkeypatch.setattr(preflight.Images, "__iter__", images)
    recipe.run("mine.toml", "images", "out")
    assert listed == ["test"]


def test_images_that_are_not_there(calls):
    assert "'missing' does not exist" in mistake("run", "mine.toml", "missing", "--out", "out")
    assert calls == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.head=liner", "unknown head 'liner': did you mean linear"),
        ("tuned.head=liner", "unknown head 'liner'"),
        ("features.backbone=small-vgnet", "unknown backbone 'small-vgnet': did you mean small-vggnet"),
        ("tuned.augment=rotate=3", "did you mean rotation"),
        ("model.optimizer=adamm", "did you mean adam"),
        ("tuned.optimizer=adamm", "did you mean adam"),
    ],
)
def test_what_a_late_stage_would_fail_on(calls, change, words):
    assert words in mistake("run", "mine.toml", "images", "--out", "out", "--set", change)
    assert calls == []


# The command line


@pytest.mark.usefixtures("calls")
def test_the_result_as_text_and_as_json(here):
    (here / "mine.toml").write_text(MINE.replace("title", "published = 'accuracy 0.99'\ntitle", 1))
    line = ["run", "mine.toml", "images", "--out", "out"]
    result = invoke(*line)
    assert result.exit_code == 0
    features, model, tuned, report, predictions, published, place = result.stdout.splitlines()
    assert features.split() == ["features", "extract", "0.0", "s", "6", "images"]
    assert model.endswith("s  3 epochs, kept 2, val_accuracy 0.7500, val_loss 0.3000")
    assert tuned.startswith("tuned        finetune  ")
    assert report.endswith("s  2 images, accuracy 0.5000, loss 0.7000")
    assert predictions.startswith("predictions  predict ")
    assert (published, place) == ("published: accuracy 0.99", "out: out")
    progress = result.stderr.splitlines()
    assert progress[0] == "stage 1 of 5: tlray extract images --out out/features --image-size 64"
    assert progress[1].startswith("features: 6 of 6 images")
    assert "epoch   1/3  loss 0.5000" in progress
    assert "epoch   1/30  loss 0.5000" in progress
    (here / "out" / "tuned").mkdir()
    (here / "out" / "tuned" / "manifest.json").touch()
    result = invoke(*line, "--set", "model.epochs=7", "--set", "tuned.epochs=8", "--json")
    found = json.loads(result.stdout)
    assert set(found) == {"recipe", "out", "seconds", "stages"}
    assert result.stdout.count("\n") == 1
    assert "epoch   1/7  " in result.stderr
    assert "epoch   1/8  " in result.stderr
    assert "remove out/predictions.parquet" in invoke(*line).stdout


def test_list():
    result = invoke("recipes", "list")
    assert result.exit_code == 0
    for name in EVERY:
        assert f"{name}\n    {recipe.read(name).header['title']}\n" in result.stdout
    found = json.loads(invoke("recipes", "list", "--json").stdout)["recipes"]
    assert [one["name"] for one in found] == sorted(EVERY)


@pytest.mark.parametrize("name", [*EVERY, "mine.toml"])
def test_show_prints_a_recipe_and_its_commands(here, name):
    result = invoke("recipes", "show", name)
    assert result.exit_code == 0
    (here / "again.toml").write_text(result.stdout)
    again, found = recipe.read("again.toml"), recipe.read(name)
    assert (again.header, again.stages) == (found.header, found.stages)
    assert all(f"# {stage.line()}\n" in result.stdout for stage in found.stages)
    values = json.loads(invoke("recipes", "show", name, "--json").stdout)
    assert values["name"] == name
    assert [stage["line"] for stage in values["stages"]] == [stage.line() for stage in found.stages]


def test_the_script(here):
    """In a process of its own: nothing is patched, and an error comes before anything heavy."""
    (here / "mine.toml").write_text(MINE.replace("epochs", "epoch"))
    lines = {
        "recipes show small-vggnet": 0,
        "recipes show mine.toml": 2,
        "run mine.toml images --out out --json": 2,
    }
    for line, status in lines.items():
        command = [sys.executable, "-m", "tlray", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == status
    assert json.loads(done.stdout)["exit_status"] == 2
    assert not (here / "out").exists()
