"""The command line: one file for each command; nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc
import json
import signal
import sys
from importlib import import_module

import typer

from tlray.cli import jobs, plugins, recipes, submit
from tlray.cli.help import Command, Group
from tlray.core import private
from tlray.core.text import printable

_COMMANDS = ("extract", "fit", "finetune", "evaluate", "predict", "run", "plan", "verify", "inspect", "demo")
"""The commands in the order of `--help`; each is a function in the module of its name."""

app = typer.Typer(
    name="tlray",
    help="""Image transfer learning on Ray, on one machine or a cluster.

    A pretrained network computes the features of all images once; a small classifier, the head, is then
    trained on them in seconds.

    Every command prints its options and an example with `-h`.

    Examples:
        tlray extract photos/ --out features
        tlray fit features --out model
    """,
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich takes as long to import as all the rest, and draws boxes into logs.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for name in _COMMANDS:
    app.command(cls=Command)(getattr(import_module(f"tlray.cli.{name}"), name))
# Options that follow the submitted command belong to it, even without "--".
app.command(cls=Command, context_settings={"allow_interspersed_args": False})(submit.submit)
app.add_typer(jobs.app)
app.add_typer(plugins.app)
app.add_typer(recipes.app)


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from tlray import __version__

        typer.echo(f"tlray {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    # SIGTERM has the effect of Ctrl-C. Ray would replace the handler, but tlray starts it in another thread.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
        gc.freeze()  # Otherwise Python searches all of Ray for garbage at exit, for a fifth of a second.
        sys.exit(status)
    except typer.TyperException as error:
        error.message = printable(error.message)
        private.show(error)
        if "--json" in sys.argv:
            print(json.dumps({"error": error.format_message(), "exit_status": error.exit_code}))
        sys.exit(error.exit_code)
