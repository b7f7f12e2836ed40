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
from unittest.mock import Mock

import pytest

from tests.support import command_line
from tests.support.command_line import invoke
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


CALLS: list[tuple[str, dict[str, Any]]] = []
"""What Ray and the jobs were called with in a test, in order."""


@pytest.fixture(autouse=True)
def replaced_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the jobs, and Ray."""
    CALLS.clear()

    @contextmanager
    def connect(address: str | None, *, cpus: int) -> Any:
        CALLS.append(("connect", {"address": address, "cpus": cpus}))
        yield
        CALLS.append(("disconnect", {}))

    def job(name: str) -> Any:
        def run(**given: Any) -> Any:
            inspect.signature(jobs[name]).bind(**given)
            CALLS.append((name, given))
            if isinstance(RESULTS[name], JobError):
                raise RESULTS[name]
            given.get("progress", Mock())(6, 6)
            given.get("report", Mock())({"epoch": 1, "loss": 0.5})
            if name == "predict":
                Path(given["out"]).parent.mkdir(exist_ok=True)
                Path(given["out"]).write_text("predictions")
            return Made(values=RESULTS[name])

        return run

    # All are imported before the first is replaced: they import one another.
    jobs = {name: getattr(import_module(COMMANDS[name].module), name) for name in RESULTS}
    for name in jobs:
        monkeypatch.setitem(sys.modules, COMMANDS[name].module, SimpleNamespace(**{name: job(name)}))
    monkeypatch.setattr("tlray.cluster.session.connect", connect)


@dataclass(frozen=True, kw_only=True)
class Made(Record):
    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.values


COUNTS = {"images": 6, "rows": 6, "errors": 0}
METRICS = {"loss": 0.25, "val_loss": 0.3, "val_accuracy": 0.75}
TRAINED = {"rows": 2, "epochs": 3, "kept_epoch": 2, "metrics": METRICS}
SCORES = {"images": 2, "rows": 2, "errors": 0, "accuracy": 0.5, "loss": 0.7}


RESULTS = {"extract": COUNTS, "fit": TRAINED, "finetune": TRAINED, "evaluate": SCORES, "predict": COUNTS}


def mistake(*arguments: str) -> str:
    """Run into an error before anything was written or started; the message."""
    before = sorted(Path.cwd().rglob("*")), [*CALLS]
    message = command_line.mistake(*arguments)
    assert (sorted(Path.cwd().rglob("*")), CALLS) == before
    return message


def run(*sets: str, name: str = "mine.toml", images: str = "images", out: str = "out") -> recipe.RecipeResult:
    return recipe.run(name, images, out, sets)


def refusal(*sets: str, name: str = "mine.toml", images: str = "images") -> str:
    """The same on the command line, into an error."""
    options = [word for change in sets for word in ("--set", change)]
    return mistake("run", name, images, "--out", "out", *options)


# The recipes that come with tlray


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_keeps_the_published_settings(name):
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
    for stage in recipe.read(name).stages:
        line, _, only_here = stage.line("IMAGES", "DIR").partition("  # and ")
        words = line.split()
        assert words[:2] == ["tlray", stage.command]
        params = command_line.COMMANDS[stage.command].make_context(stage.command, words[2:]).params
        assert params["out"] == stage.output("DIR")
        expected = vars(stage.config).copy()
        monitor = expected.pop("monitor", "val_loss")
        assert only_here == ("" if monitor == "val_loss" else f"monitor = {monitor}, which has no option")
        assert {field: params[field] for field in expected} == expected


def test_a_line_names_places_and_is_quoted():
    stages = recipe.read("mine.toml").stages
    extract, _, finetune, *_ = (stage.line("my images", "s3://b/out/") for stage in stages)
    assert extract == "tlray extract 'my images' --out s3://b/out/features --image-size 64"
    assert finetune == (
        "tlray finetune 'my images' --model s3://b/out/model --out s3://b/out/tuned "
        "--from block5_conv1 --augment flip --workers 2"
    )


def test_a_flag_that_is_off_is_not_in_the_line():
    on, off = (recipe.read("mine.toml", [f"model.tensorboard={word}"]) for word in ("true", "false"))
    assert on.stages[1].line().endswith(" --tensorboard")
    assert "tensorboard" not in off.stages[1].line()


# Mistakes in a recipe

FEATURES, SIZE = 'features = "features"', "image-size = 64"
MISTAKES = [
    ("epochs = 3", "epoch = 3", ["stage model", "unknown key 'epoch': did you mean epochs"]),
    ("title =", "titel =", ["unknown key 'titel': did you mean title"]),
    ("title =", "published = 3\ntitle =", ["published = 3", "expected text"]),
    ('title = "mine"', "", ["title is missing"]),
    ('command = "tlray run mine.toml IMAGES --out DIR"', "", ["command is missing"]),
    ('command = "fit"', "", ["stage model", "command is missing", "extract, fit, finetune"]),
    ('command = "fit"', 'command = ["fit"]', ["stage model", "['fit']", "extract, fit, finetune"]),
    (FEATURES, "", ["stage model", "features is missing", "(features)"]),
    (FEATURES, 'features = "tuned"', ['"tuned" is not an earlier stage', "(features)"]),
    (FEATURES, 'features = "IMAGES"', ['"IMAGES" is not an earlier stage']),
    ('model = "model"', 'model = "features"', ["stage tuned", '"features" is the output of extract']),
    ('model = "model"', 'images = "model"', ['"model" is the output of fit', "(features) or IMAGES"]),
    (SIZE, 'image-size = "64"', ["stage features", "image-size = '64'", "a whole number"]),
    (SIZE, "image-size = 0", ["stage features", "--image-size 0", "more than 0"]),
    (SIZE, 'images = "x"', ["unknown key 'images'", "image-size"]),
    ("[stages.model]", "[stages.'../model']", ["'../model'", "letters, digits"]),
    ("[stages.model]", "[stages.IMAGES]", ["'IMAGES'", "letters, digits"]),
    ("epochs = 3", "epochs = ", ["not valid TOML", "line 13"]),
    ('model = "model"', "", ['stage tuned: give model = "STAGE" to start from, or a new head']),
    (SIZE, f"image-size = {2**62}", ["stage features", f"--image-size {2**62}", "at most 16384"]),
    (SIZE, f"image-size = {'9' * 400}", ["stage features", f"--image-size {'9' * 77}...: expected"]),
    (SIZE, f"image-size = {'9' * 5000}", ["not valid TOML", "4300 digits"]),
    (SIZE, f"image-size = 0x{'f' * 5000}", ["stage features", "too long to show"]),
    (SIZE, f"max-bad-fraction = {'9' * 400}", ["stage features", "expected a number"]),
    (SIZE, f"backbone = 0x{'f' * 5000}", ["stage features", "backbone = a int that is too long", "text"]),
    (SIZE, "image-size = inf", ["stage features: image-size = inf: expected a whole number"]),
    (SIZE, "max-bad-fraction = nan", ["stage features", "--max-bad-fraction nan: expected a fraction"]),
    (SIZE, f"batch-size = {2**31}", ["stage features", f"--batch-size {2**31}: expected", "less than"]),
    (SIZE, f"max-pixels = {2**63 - 1}", ["stage features", "--max-pixels"]),
    (SIZE, f"seed = {-(2**64)}", ["stage features", "--seed"]),
    (SIZE, "split = -inf", ["stage features", "--split -inf"]),
    ("epochs = 3", f"epochs = {10**18}", ["stage model", f"--epochs {10**18}"]),
    ("epochs = 3", "learning-rate = inf", ["stage model", "--learning-rate inf: expected more than 0"]),
    ("decay = 0.001", "decay = inf", ["stage model", "--decay inf: expected cosine"]),
    (SIZE, f"image-size = {'[' * 100_000}", ["not valid TOML", "recursion"]),
    (SIZE, f"image-size.{'a.' * 3000}b = 1", ["stage features: image-size = a dict that is too long"]),
    (MINE, 'title = "x"\ncommand = "y"', ["no stages", "[stages.features]"]),
    (MINE, 'title = "x"\ncommand = "y"\nstages = 3', ["no stages"]),
    (MINE, 'title = "x"\ncommand = "y"\nstages.fit = 3', ["stages.fit = 3", "[stages.fit]"]),
]


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES)
def test_a_mistake_in_a_recipe(here, old, new, words):
    assert old in MINE
    (here / "mine.toml").write_text(MINE.replace(old, new, 1))
    message = refusal()
    for word in ["mine.toml", *words]:
        assert word in message
    assert mistake("recipes", "show", "mine.toml") == message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run vgg16-feature images --out out", "did you mean vgg16-features"),
        ("run other.toml images --out out", "'other.toml' does not exist"),
        ("recipes show latin.toml", "'latin.toml' cannot be read"),
        ("recipes show images", "'images' cannot be read"),
        ("run mine.toml missing --out out", "'missing' does not exist"),
        ("run mine.toml images --out images/out", "lies among the images"),
    ],
)
def test_a_recipe_or_a_folder_that_cannot_be_used(here, line, words):
    (here / "latin.toml").write_bytes(b"title = '\xe9'")
    assert words in mistake(*line.split())


@pytest.mark.parametrize(
    "mine", ["features/a.txt", "model", "report/index.html", "predictions.errors.parquet"]
)
def test_files_in_the_place_of_an_output_are_found_before_the_first_stage(here, mine):
    path = here / "out" / mine
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    place = mine.partition("/")[0]
    stage = place.partition(".")[0]
    assert f"out/{place} is no output of stage {stage}: choose another --out, or remove it" in refusal()
    assert (CALLS, path.read_bytes()) == ([], b"mine")


def test_an_evaluation_that_was_killed_as_it_wrote_its_first_file_goes_on(here):
    path = here / "out" / "report" / ".report.json.0123abcd.tmp"
    path.parent.mkdir(parents=True)
    path.touch()
    run()
    assert "evaluate" in called()


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
    tuned = ('tuned.classes="1,2"', "tuned.from=block4_conv1")
    configs = settings("model.epochs=9", "features.preprocess=raw", *tuned)
    assert (configs["model"].epochs, configs["tuned"].epochs) == (9, FinetuneConfig.epochs)
    assert configs["features"].preprocess == "raw"
    assert (configs["tuned"].classes, configs["tuned"].from_) == ("1,2", "block4_conv1")


def test_set_a_key_of_every_stage_that_says_it():
    """A new head in the stage that goes on with a trained one would throw that away."""
    configs = settings("epochs=9", "head=dense-256", of="vgg16-finetune")
    stages = [configs[name] for name in ("head", "frozen", "finetuned")]
    assert [config.epochs for config in stages] == [9, 9, 9]
    assert [config.head for config in stages] == ["dense-256", "dense-256", None]
    assert settings("precision=auto", of="vgg16-finetune")["report"].precision == "auto"


def test_set_a_key_that_no_stage_says_for_all_that_could():
    configs = settings("max-bad-fraction=0.5", "learning-rate=1", "tensorboard=true", "classes=b,a")
    changed = {name for name, config in configs.items() if getattr(config, "max_bad_fraction", 0) == 0.5}
    assert changed == {"features", "tuned", "report", "predictions"}
    for config in (configs["model"], configs["tuned"]):
        assert (repr(config.learning_rate), config.tensorboard, config.classes) == ("1.0", True, "b,a")


def test_set_takes_a_key_out():
    configs = settings("features.split=", of="simple-nn")
    assert (configs["features"].split, configs["report"].split) == (None, "test")
    assert settings("epochs=")["model"].epochs == FitConfig.epochs
    assert settings("image-size=", "image-size=8")["features"].image_size == 8


@pytest.mark.parametrize(
    ("text", "value"), [("0.2", "0.2"), ("held", "held"), ('"0.3"', "0.3"), ("1\nx = 2", "1\nx = 2")]
)
def test_set_a_text(text, value):
    assert settings(f"validation={text}")["model"].validation == value


BAD_SETS = [
    (f"image-size={'[' * 100_000}", ["image-size = '[[[", "a whole number"]),
    (f"image-size={'9' * 5000}", ["image-size = '999", "a whole number"]),
    ("epoch=3", ["--set epoch=3", "did you mean epochs"]),
    ("features.epochs=3", ["--set features.epochs=3", "unknown key 'epochs'"]),
    ("modell.epochs=3", ["--set modell.epochs=3", "no stage 'modell'", "features, model, tuned"]),
    ("epochs", ["--set epochs", "STAGE.KEY=VALUE"]),
    ("=3", ["--set =3", "STAGE.KEY=VALUE"]),
    ("model.command=fit", ["unknown key 'command'"]),
    ("epochs=many", ["epochs = 'many'", "a whole number"]),
    ("model.features=", ["stage model", "features is missing"]),
    # What a late stage would fail on.
    ("model.head=liner", ["unknown head 'liner': did you mean linear"]),
    ("features.backbone=small-vgnet", ["unknown backbone 'small-vgnet': did you mean small-vggnet"]),
    ("tuned.augment=rotate=3", ["did you mean rotation"]),
    ("tuned.optimizer=adamm", ["did you mean adam"]),
    ("tuned.images=features", ['stage tuned has augment, but images = "features" is a feature set']),
    ("model.classes=one,two", ["--classes one,two: expected each class of images once"]),
    ("features.split=0.8", ["images already has splits (test):\n", "--set features.split="]),
]


@pytest.mark.parametrize(("change", "words"), BAD_SETS)
def test_a_bad_set(change, words):
    message = refusal(change)
    for word in words:
        assert word in message


def test_a_split_of_a_stage_that_reads_features():
    message = refusal("tuned.split=0.5", "tuned.images=features", "tuned.augment=")
    assert 'stage tuned has split, but images = "features" is a feature set' in message


def test_stages_that_read_different_columns():
    message = refusal("features.label-column=breed")
    assert "the stages features and predictions read different columns of the images: give them" in message


def test_columns_of_a_stage_that_reads_features():
    message = refusal("label-column=breed", "report.data=features")
    assert 'stage report has label-column, but data = "features" is a feature set' in message
    assert "remove it with --set report.label-column=, or" in message
    Path("list.csv").write_text("path,breed,split\nimages/test/a/1.png,a,test\nimages/test/b/1.png,b,train\n")
    kept = ("label-column=breed", "report.label-column=", "report.data=features")
    run(*kept, images="list.csv")
    columns = {name: given["config"].label_column for name, given in CALLS if name in ("extract", "evaluate")}
    assert columns == {"extract": "breed", "evaluate": None}


OUTSIDE = ("/etc", "../x", "a/../../x", "s3://bucket/x", "link", "link/x", ".", "a/b")
STAGES = ("features", "model/x", "predictions.parquet.parts")


@pytest.mark.parametrize("path", [*OUTSIDE, *STAGES])
def test_a_recipe_writes_only_below_its_results_and_not_into_those_of_a_stage(here, path):
    (here / "out").mkdir()
    (here / "out" / "link").symlink_to(here / "images")
    message = refusal(f"predictions.annotate={path}")
    assert f"stage predictions: annotate = {path!r}: expected letters, digits, - and _" in message


def test_a_folder_of_copies_is_below_the_results(here):
    run("predictions.annotate=copies")
    assert dict(CALLS)["predict"]["config"].annotate == "out/copies"
    (*_, stage) = recipe.read("mine.toml", ["annotate=copies"]).stages
    assert stage.line().endswith(" --annotate DIR/copies")


def test_a_set_that_means_two_things():
    """To `extract` a split is a fraction, to `evaluate` a name."""
    with pytest.raises(UserError, match=r"--set features\.split=0\.8 or --set report\.split=0\.8"):
        recipe.read("simple-nn", ["split=0.8"])
    assert settings("split=validation", of="vgg16-features")["report"].split == "validation"


# Running


def called() -> list[str]:
    return [name for name, _ in CALLS]


def test_run_goes_through_the_stages():
    lines, epochs = [], []
    result = recipe.run(
        *("mine.toml", "images", "out"),
        address="here:1",
        say=lines.append,
        report=lambda stage, metrics: epochs.append((stage.name, stage.config.epochs, metrics)),
    )
    assert called() == [*("connect", "extract", "fit", "finetune", "evaluate", "predict", "disconnect")]
    connect, *stages, _ = (given for _, given in CALLS)
    assert connect == {"address": "here:1", "cpus": checks.cpus(TrainConfig(workers=2), True)}
    assert all(given["address"] == "here:1" for given in stages)
    places = [{key: given[key] for key in given if isinstance(given[key], str)} for given in stages]
    assert [{key: place[key] for key in place if key != "address"} for place in places] == [
        {"images": "images", "out": "out/features"},
        {"features": "out/features", "out": "out/model"},
        {"images": "images", "model": "out/model", "out": "out/tuned"},
        {"model": "out/tuned", "data": "images", "out": "out/report"},
        {"model": "out/tuned", "images": "images", "out": "out/predictions.parquet"},
    ]
    configs = [stage.config for stage in recipe.read("mine.toml").stages]
    assert [given["config"] for given in stages] == configs
    assert lines[0] == "stage 1 of 5: tlray extract images --out out/features --image-size 64"
    assert len(lines) == 5
    assert epochs == [("model", 3, {"epoch": 1, "loss": 0.5}), ("tuned", 30, {"epoch": 1, "loss": 0.5})]
    values = result.to_json()
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
def test_every_recipe_runs(name):
    stages = run(name=name, images="images/train" if name in SPLITTING else "images").stages
    assert called()[1:-1] == [stage.command for stage in recipe.read(name).stages]
    assert len(stages) == len(CALLS) - 2


@pytest.mark.parametrize(
    ("sets", "needed"),
    [
        (["tuned.views=3"], (2, False)),
        (["tuned.augment=", "model.workers=5"], (5, False)),
        (["tuned.workers=3", "model.workers=20"], (20, False)),
    ],
)
def test_a_local_ray_has_a_place_for_all(sets, needed):
    workers, streaming = needed
    cpus = checks.cpus(TrainConfig(workers=workers), streaming)
    run(*sets)
    assert CALLS[0] == ("connect", {"address": None, "cpus": cpus})


def test_a_ray_without_training_has_two_places(here):
    (here / "short.toml").write_text(MINE.partition("[stages.model]")[0])
    run(name="short.toml")
    assert CALLS[0] == ("connect", {"address": None, "cpus": 2})


def test_run_again(here):
    """Every job knows its own finished output, but predictions, which are left as they are."""
    run()
    (here / "out" / "tuned").mkdir()
    (here / "out" / "tuned" / "manifest.json").touch()
    first = called()
    CALLS.clear()
    result = run()
    assert first.count("predict") == 1
    assert called() == [name for name in first if name != "predict"]
    assert (result.stages[-1].out, result.stages[-1].result) == ("out/predictions.parquet", None)
    # A job that was killed in the middle of its second life goes on.
    (here / "out" / "predictions.parquet.parts.json").touch()
    run()
    assert called()[-2:] == ["predict", "disconnect"]


def test_predictions_of_a_model_that_is_gone():
    run()
    message = "out/predictions.parquet exists, but out/tuned, the model that made it, does not"
    assert message in refusal()


def test_a_stage_that_fails_ends_the_run(monkeypatch):
    monkeypatch.setitem(RESULTS, "fit", JobError("it failed"))
    result = invoke("run", "mine.toml", "images", "--out", "out", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"error": "it failed", "exit_status": 1}
    assert called() == ["connect", "extract", "fit"]


# What is checked before Ray starts


@pytest.mark.parametrize("name", [name for name in EVERY if name not in SPLITTING])
def test_a_split_that_is_missing(name):
    needed = recipe.read(name).stages[-1].config.split
    shutil.rmtree(f"images/{needed}")
    message = refusal(name=name)
    for words in (f"images has no split '{needed}', which stage ", f"images/{needed}/CLASS/", "train"):
        assert words in message


def test_the_splits_that_are_there_are_named():
    shutil.rmtree("images/test")
    assert "its splits: train, validation\n" in refusal()
    assert "its splits: none\n" in refusal(images="images/train")
    run("report.split=validation")
    run("report.split=", images="images/train", out="other")
    assert called().count("evaluate") == 2


@pytest.mark.parametrize("key", ["model.validation", "predictions.split", "tuned.validation", "report.split"])
def test_every_stage_may_need_a_split(key):
    shutil.rmtree("images/test")
    needed = f"no split 'test', which stage {key.partition('.')[0]} needs"
    assert needed in refusal("report.split=", f"{key}=test")


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ([], False),
        (["model.early-stopping=2"], True),
        (["model.keep=best"], True),
        (["model.early-stopping=2", "model.keep=last"], True),
        (["model.early-stopping=2", "model.monitor=loss"], False),
        (["model.early-stopping=2", "model.validation=0.2"], False),
    ],
)
def test_stopping_early_needs_validation_images(changes, needed):
    shutil.rmtree("images/validation")
    if needed:
        assert "no split 'validation', which stage model needs" in refusal(*changes)
    else:
        run(*changes)
    assert ("fit" in called()) is not needed


def test_a_split_made_by_a_stage_is_known_to_what_comes_after():
    """Also through a model: `report` evaluates on the images what was trained on their features."""
    sets = ["features.split=0.8", "model.validation=test", "report.model=model", "tuned.validation=0.1"]
    changes = [
        [],
        # What is trained further, and predictions of it, know of it too.
        ["tuned.validation=test"],
        ["predictions.split=test"],
        ["report.model=tuned"],
        ["tuned.images=features", "tuned.augment=", "tuned.validation=test"],
    ]
    for number, change in enumerate(changes):
        run(*sets, *change, images="images/train", out=f"out-{number}")
    assert called().count("predict") == len(changes)
    for change, message in (
        (
            ["tuned.model=", "tuned.head=linear", "tuned.validation=test"],
            "no split 'test'",
        ),  # A training of its own.
        (["model.validation=", "model.early-stopping=1"], "stage model needs the split 'validation', but"),
        (["report.split=held"], "stage report needs the split 'held', but stage features has"),
    ):
        assert message in refusal(*sets, *change, images="images/train")


def test_no_more_images_are_listed_than_needed(monkeypatch):
    listed = []

    def images(self):
        for split in ("test", "test", "train"):
            listed.append(split)
            yield SimpleNamespace(split=split, label="a")

    monkeypatch.setattr(preflight.Images, "__iter__", images)
    run()
    assert listed == ["test"]


# The command line


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
    result = invoke(*line, "--json")
    assert set(json.loads(result.stdout)) == {"recipe", "out", "seconds", "stages"}
    assert result.stdout.count("\n") == 1
    assert "remove out/predictions.parquet" in invoke(*line).stdout


def test_list():
    text = invoke("recipes", "list").stdout
    for name in EVERY:
        assert f"{name}\n    {recipe.read(name).header['title']}\n" in text
    listed = json.loads(invoke("recipes", "list", "--json").stdout)["recipes"]
    assert [row["name"] for row in listed] == sorted(EVERY)


@pytest.mark.parametrize("name", [*EVERY, "mine.toml"])
def test_show_prints_a_recipe_and_its_commands(here, name):
    result = invoke("recipes", "show", name)
    assert result.exit_code == 0
    (here / "again.toml").write_text(result.stdout)
    again, shown = recipe.read("again.toml"), recipe.read(name)
    assert (again.header, again.stages) == (shown.header, shown.stages)
    assert all(f"# {stage.line()}\n" in result.stdout for stage in shown.stages)
    stages = json.loads(invoke("recipes", "show", name, "--json").stdout)["stages"]
    assert [stage["line"] for stage in stages] == [stage.line() for stage in shown.stages]


def test_the_script(here):
    """In a process of its own: nothing is patched, and an error comes before anything heavy."""
    (here / "mine.toml").write_text(MINE.replace("epochs", "epoch"))
    lines = {"recipes show small-vggnet": 0, "run mine.toml images --out out --json": 2}
    for line, status in lines.items():
        command = [sys.executable, "-m", "tlray", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == (status > 0)
    assert json.loads(done.stdout)["exit_status"] == 2
    assert not (here / "out").exists()


def test_a_split_without_labels_is_missing_too():
    for path in Path("images/test").glob("*/*"):
        path.rename(path.parent.parent / f"{path.parent.name}-{path.name}")
    for path in Path("images/test").iterdir():
        if path.is_dir():
            path.rmdir()
    assert "images has no split 'test', which stage report needs; its splits: train, validation" in refusal()
