"""`import tlray`: what it offers, and that it imports nothing heavy before it is used."""

import ast
import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path

import pytest

import tlray
from tlray.core.record import Record

JOBS = ("extract", "verify", "plan", "fit", "finetune", "evaluate", "predict", "run")
CLASSES = (
    "FeatureSet",
    "Model",
    "Backbone",
    "Head",
    "WeightsProvider",
    "KnownWeights",
    "UserError",
    "JobError",
)
CONFIGS = ("ExtractConfig", "FitConfig", "FinetuneConfig", "EvaluateConfig", "PredictConfig")


def test_the_names():
    assert sorted(tlray.__all__) == sorted([*JOBS, *CLASSES, *CONFIGS])
    assert set(tlray.__all__) <= set(dir(tlray))
    for name in JOBS:
        assert inspect.isfunction(getattr(tlray, name))
    for name in (*CLASSES, *CONFIGS):
        assert inspect.isclass(getattr(tlray, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tlray.nothing


def test_static_checkers_see_the_same_names():
    tree = ast.parse(Path(inspect.getfile(tlray)).read_text())
    imported = {
        (alias.name, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tlray.")
        for alias in node.names
    }
    assert {name for name, _ in imported} == set(tlray.__all__)
    for name, module in imported:
        assert getattr(tlray, name).__module__ == module


@pytest.mark.parametrize("name", ["Backbone", "Head", "WeightsProvider", "UserError", "FitConfig"])
def test_what_authors_and_settings_need_is_light(name):
    code = f"import sys, tlray; tlray.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "pyarrow", "ray", "keras", "tensorflow", "PIL", "typer", "rich"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("name", ["extract", "plan", "fit", "finetune", "evaluate", "predict"])
def test_settings_are_keywords_and_an_unknown_one_is_answered_with_the_nearest(name):
    job = partial(getattr(tlray, name), *["nowhere", "nothing"][: 1 if name == "plan" else 2])
    with pytest.raises(tlray.UserError, match=r"^unknown setting 'batch_siez': did you mean batch_size"):
        job(batch_siez=3)
    with pytest.raises(tlray.UserError, match=r"^--batch-size '8': expected a whole number$"):
        job(batch_size="8")
    with pytest.raises(tlray.UserError, match=r"^--batch-size 0: expected more than 0 and less than"):
        job(batch_size=0)
    with pytest.raises(tlray.UserError, match=r"^config is \{\}: expected a \w+Config$"):
        job(config={})


@pytest.mark.parametrize("name", JOBS)
def test_every_result_is_documented(name):
    """A frozen dataclass whose fields have a sentence each, or a name that needs none."""
    module = inspect.getmodule(getattr(tlray, name))
    hints = str(inspect.signature(getattr(tlray, name)).return_annotation)
    for kind in (getattr(module, part.strip()) for part in hints.split("|")):
        assert is_dataclass(kind)
        assert issubclass(kind, Record)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert kind.__doc__
        assert "(" not in kind.__doc__.splitlines()[0]  # One that dataclass makes is a signature.
        assert {field.name for field in fields(kind)}
