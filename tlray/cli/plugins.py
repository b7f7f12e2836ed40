"""`tlray plugins`: which networks, heads and weights there are."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer

from tlray.cli.options import Result, command

app = typer.Typer(
    name="plugins", help="Networks, heads and weights that are installed.", no_args_is_help=True
)


def _list() -> Result:
    """List all plugins; a broken one with its reason."""
    from tlray import plugins

    found = [_describe(plugin) for kind in plugins.KINDS for plugin in plugins.installed(kind)]
    widths = [max(len(row[column]) for row in found) for column in ("kind", "name", "package")]
    lines = [
        "  ".join(
            [
                *(
                    row[column].ljust(width)
                    for column, width in zip(("kind", "name", "package"), widths, strict=True)
                ),
                row["what"],
            ]
        )
        for row in found
    ]
    return Result({"plugins": found}, "\n".join(lines))


def _show(
    name: Annotated[str, typer.Argument(help="of a plugin, as `tlray plugins list` prints it")],
) -> Result:
    """Show all there is to know of a plugin."""
    from tlray import plugins
    from tlray.errors import unknown

    everything = [plugin for kind in plugins.KINDS for plugin in plugins.installed(kind)]
    found = [_describe(plugin) for plugin in everything if plugin.name == name]
    if not found:
        raise unknown("plugin", name, {plugin.name for plugin in everything})
    blocks = [
        "\n".join(
            f"{key:<12} {(', '.join(value) or 'none') if isinstance(value, list) else value}"
            for key, value in row.items()
            if key != "what"
        )
        for row in found
    ]
    return Result({"plugins": found}, "\n\n".join(blocks))


def _describe(plugin: Any) -> dict[str, Any]:
    from tlray import plugins, weights
    from tlray.errors import UserError

    kind = plugin.kind.removesuffix("s") if plugin.kind != "weights" else "weights"
    about = {"kind": kind, "name": plugin.name, "package": f"{plugin.package} {plugin.version}"}
    try:
        if clash := plugins.clashes(plugins.installed(plugin.kind)).get(plugin.name):
            raise UserError(clash)
        loaded = plugin.load()
    except UserError as error:
        return {**about, "broken": str(error), "what": f"BROKEN: {error}"}
    about["about"] = (type(loaded).__doc__ or "").strip().partition("\n")[0]
    if plugin.kind == "backbones":
        offered: set[tuple[str, str]] = set()
        with suppress(UserError):  # A clash has lines of its own.
            offered = {pair for provider in plugins.weights_providers() for pair in provider.offers}
        here = [
            name
            for name, known in loaded.weights.items()
            if (known.url and weights.keras_cache(known.url).is_file()) or (loaded.name, name) in offered
        ]
        return {
            **about,
            "image_size": str(loaded.image_size),
            "cuts": list(loaded.cuts),
            "weights": list(loaded.weights),
            "weights_here": here,
            "what": f"{loaded.image_size} px, cut at {loaded.cuts[-1]}, "
            f"weights {', '.join(loaded.weights) or 'none'}{' (here)' if here else ''}",
        }
    if plugin.kind == "heads":
        return {
            **about,
            "loss": loaded.loss or "by the number of classes",
            "optimizer": f"{loaded.optimizer}, learning rate {loaded.learning_rate:g}",
            "what": about["about"],
        }
    offers = [f"{backbone}/{name}" for backbone, name in loaded.offers]
    return {**about, "offers": offers, "what": f"for {', '.join(offers)}"}


app.command("list")(command(_list))
app.command("show")(command(_show))
