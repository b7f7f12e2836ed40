"""The command line: one file for each command; nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc
import json
import signal
import sys

import typer

from tlray.cli import (
    demo,
    evaluate,
    extract,
    finetune,
    fit,
    inspect,
    jobs,
    plan,
    plugins,
    predict,
    recipes,
    run,
    submit,
    verify,
)
from tlray.cli.help import Command, Group
from tlray.core import private

app = typer.Typer(
    name="tlray",
    help="""Image transfer learning on Ray: features once, a head in seconds, on one machine or a cluster.

    Every command prints its options and an example with `-h`.

    Examples:
        tlray extract photos/ --out features
        tlray fit features --out model
    """,
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich would take as long to import as all the rest, and draw boxes into logs.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    extract.extract,
    fit.fit,
    finetune.finetune,
    evaluate.evaluate,
    predict.predict,
    run.run,
    plan.plan,
    verify.verify,
    inspect.inspect,
    demo.demo,
):
    app.command(cls=Command)(command)
# Every word after the first that is no option of submit belongs to the submitted command, also without "--".
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
    """The console script."""
    # As Ctrl-C: stop in order, and say how to go on. Ray sets its own handler only in the main thread.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(standalone_mode=False)
        gc.freeze()  # Or Python, as it ends, looks for garbage in all of Ray: a fifth of a second.
        sys.exit(status)
    except typer.TyperException as error:
        private.show(error)
        if "--json" in sys.argv:
            print(json.dumps({"error": error.format_message(), "exit_status": error.exit_code}))
        sys.exit(error.exit_code)
