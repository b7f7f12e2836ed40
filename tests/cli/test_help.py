"""The help of the command line: instant, whole, and the same as what the commands take."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import tlray
from tests.support.command_line import COMMANDS, invoke, script
from tlray.cli import app
from tlray.core import config
from tlray.core.settings import option

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
GROUPS = ["", *dict.fromkeys(name.split()[0] for name in COMMANDS if " " in name)]
MAIN = """
import sys
from tlray.cli import main
sys.argv = ["tlray", *{words}]
try: main()
except SystemExit: pass
"""
"""Code that runs the command line with these words."""


def squeezed(text: str) -> str:
    """Without white space: help is wrapped."""
    return "".join(text.split())


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
    assert imported(MAIN.format(words=line.split()))[1] & HEAVY == set()


def test_the_list_of_plugins_imports_neither_keras_nor_ray():
    """A plugin author is told to import Keras only in methods; the list shows that we do."""
    text, modules = imported(MAIN.format(words=["plugins", "list"]))
    assert "vgg16" in text
    assert modules & {"ray", "tensorflow", "keras"} == set()


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
    assert not [opt for param in params.values() for opt in param.secondary_opts]  # Flags have no opposite.
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
    words = {"COMP_WORDS": "tlray extract --backbone vgg1", "COMP_CWORD": "3"}
    text, modules = imported(MAIN.format(words=[]), _TLRAY_COMPLETE="complete_bash", **words)
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
    for line in ("submit extract -h", "submit -- extract --help", "submit --name mine fit /x --json"):
        assert invoke(*line.split()).exit_code == 0
    assert sent == [["extract", "-h"], ["extract", "--help"], ["fit", "/x", "--json"]]
    assert invoke("submit", "-h").stdout.startswith("Usage: tlray submit ")
    assert len(sent) == 3
