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

app = typer.Typer(
    name="tlray",
    help="Image transfer learning on Ray: features once, a head in seconds, on one machine or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
    app.command()(command)
# What comes after the words of the command that is submitted belongs to it, also without "--".
app.command(context_settings={"allow_interspersed_args": False})(submit.submit)
app.add_typer(jobs.app)
app.add_typer(plugins.app)
app.add_typer(recipes.app)


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="print the version")) -> None:
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
        error.show()  # type: ignore[attr-defined]
        if "--json" in sys.argv:
            print(json.dumps({"error": error.format_message(), "exit_status": error.exit_code}))
        sys.exit(error.exit_code)
