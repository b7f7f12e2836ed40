"""What README.md and the other pages name exists: commands and their options, targets of make, and files."""

import re
from pathlib import Path

import pytest
import typer

from tests import ROOT
from tests.support.command_line import COMMANDS, check_command
from tlray.cli import app

FOLDERS = [ROOT / name for name in ("deploy", "docs", "plugins", "tests", "tlray")]
FILES = [str(path) for place in FOLDERS for path in [place, *place.rglob("*")]] + [*map(str, ROOT.iterdir())]
PAGES = [str(Path(path).relative_to(ROOT)) for path in sorted(FILES) if path.endswith((".md", "/Makefile"))]
EXAMPLES = {"my.toml", "my-net/my_net.py", "my-net/tests/test_my_net.py", "deploy/data"}
"""Files and folders that a user makes."""


def check_mention(code: str) -> None:
    """Whether there is such a tlray command with such options; values and arguments may be left out."""
    for line in filter(None, re.split("^tlray | -- ", code.replace("COMMAND", "extract"))):
        command, words = typer.main.get_command(app), line.split()
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not words or not hasattr(command, "commands") or words[0].startswith("-"), code
        command.make_parser(typer.Context(command)).parse_args([*words, "value"])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_what_there_is(page):
    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in re.findall("^tlray .*", block.replace("\\\n", ""), re.M):
            check_command(line)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for code in re.findall(r"`(tlray\s[^`]+)`", prose):
        check_mention(" ".join(code.split()))
    options = {opt for command in COMMANDS.values() for param in command.params for opt in param.opts}
    if page.startswith(("README", "docs", "deploy", "plugins")):
        assert set(re.findall(r"`(--[\w-]+)", prose)) <= options
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    text = re.sub(r"-m (tests[\w.]+)", lambda found: f"{found[1].replace('.', '/')}.py", text)
    text = text.replace("deploy/rendered/", "deploy/")  # `make deploy` writes the files of deploy/ there.
    named = re.findall(r"(?<![\w/.-])(\w[\w/-]*\.(?:py|md|toml|yaml|lock))\b", text)
    named += re.findall(r"(?:`|install (?:\./)?)((?:deploy|docs|plugins|tests|tlray)/[\w/-]*)(?:`|\s)", text)
    for name in {*named} - EXAMPLES:
        assert any(f"{path}/".endswith(f"/{name.rstrip('/')}/") for path in FILES), name
