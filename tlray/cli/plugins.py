"""`tlray plugins`: lists, shows, creates and checks networks, heads and weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from tlray.cli.arguments import option, plugins
from tlray.cli.options import OnRay, Result, group
from tlray.cli.progress import say
from tlray.cli.summaries import amount
from tlray.cli.tables import table
from tlray.core.settings import OUTPUT

_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=lambda: plugins("backbones", "heads", "weights"),
        help="Name of the plugin, as `tlray plugins list` prints it.",
    ),
]


def _list(
    parameters: Annotated[
        bool,
        option(
            "--parameters", OUTPUT, "Also build each network and count its parameters, which takes longer."
        ),
    ] = False,
) -> Result:
    """List the plugins that are installed; a broken one is listed with the reason.

    Examples:
        tlray plugins list
    """
    rows = [_describe(plugin, parameters) for plugin in _installed()]
    columns = ("kind", "name", "package", "version")
    cells = [(*(row[column] for column in columns), _summary(row)) for row in rows]
    return Result({"plugins": rows}, table(cells))


def _show(name: _Name) -> Result:
    """Show everything about one plugin; a network is built to count its parameters.

    Examples:
        tlray plugins show vgg16
    """
    rows = [_describe(plugin, parameters=True) for plugin in _named(name)]
    blocks = [table([(key, _text(value)) for key, value in row.items()]) for row in rows]
    return Result({"plugins": rows}, "\n\n".join(blocks))


def _new(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name for the plugin and its package, of small letters, digits and `-`."
        ),
    ],
    kind: Annotated[
        Literal["backbone", "head", "weights"],
        option("--kind", None, "Kind of plugin; `backbone` means a network."),
    ],
) -> Result:
    """Create a Python package with a new plugin, in a folder named NAME.

    The package works as it is. Replace what it does by your own network, head or weights.

    Examples:
        tlray plugins new my-net --kind backbone
    """
    from tlray.plugins import new_package

    files = [str(path) for path in new_package.create(name, kind)]
    now = f"pip install -e {name} && tlray plugins check {name}"
    return Result({"name": name, "kind": kind, "files": files}, "\n".join(files), now)


def _check(name: _Name, run: OnRay) -> Result:
    """Check that a plugin does what tlray expects of it, and print one line for each check.

    The exit status is 1 if a check fails.

    Examples:
        tlray plugins check my-net
    """
    import logging
    import traceback

    from tlray.models import registry
    from tlray.plugins import contract
    from tlray.plugins.contract.check import FreshProcess

    debug = logging.getLogger("tlray").isEnabledFor(logging.DEBUG)
    rows: list[dict[str, Any]] = []
    with FreshProcess(run.address) as process:
        for plugin in _named(name):
            kind = registry.NOUNS[plugin.kind]
            for outcome in contract.run(plugin.kind, name, process):
                say(str(outcome))
                if debug and outcome.error is not None:
                    traceback.print_exception(outcome.error)
                rows.append({"kind": kind, **outcome.to_json()})
    count = {state: sum(row["state"] == state for row in rows) for state in ("ok", "failed", "skipped")}
    text = f"{name}: " + ", ".join(f"{number} {state}" for state, number in count.items())
    return Result({"name": name, **count, "checks": rows}, text, status=1 if count["failed"] else 0)


def _installed() -> list[Any]:
    """All installed plugins."""
    from tlray.models import registry

    return [plugin for kind in registry.KINDS for plugin in registry.installed(kind)]


def _named(name: str) -> list[Any]:
    """The installed plugins of that name, at most one of each kind; if two clash, the first."""
    from tlray.core.errors import unknown

    by_kind = {plugin.kind: plugin for plugin in reversed(_installed()) if plugin.name == name}
    if not by_kind:
        raise unknown("plugin", name, {plugin.name for plugin in _installed()})
    return list(by_kind.values())


def _describe(plugin: Any, parameters: bool) -> dict[str, Any]:
    """The object that --json prints for a plugin; with `parameters` a network is built."""
    from tlray.core.errors import UserError
    from tlray.models import registry, weights

    about = {"kind": registry.NOUNS[plugin.kind], "name": plugin.name}
    about |= {"package": plugin.package, "version": plugin.version}
    try:
        loaded = registry.find(plugin.kind, plugin.name).load()
    except UserError as error:
        return {**about, "broken": str(error)}
    about["about"] = (type(loaded).__doc__ or "").strip().partition("\n")[0]
    if plugin.kind == "weights":
        return {**about, "offers": [f"{backbone}/{name}" for backbone, name in loaded.offers]}
    if plugin.kind == "heads":
        optimizer = f"{loaded.optimizer}, learning rate {loaded.learning_rate:g}"
        return {**about, "loss": loaded.loss or "chosen by the number of classes", "optimizer": optimizer}
    about |= {"image_size": loaded.image_size, "minimum_size": loaded.minimum_size, "cuts": list(loaded.cuts)}
    about |= {"weights": list(loaded.weights), "weights_here": weights.weights_here(loaded)}
    return {**about, **_built(loaded)} if parameters else about


def _built(backbone: Any) -> dict[str, Any]:
    """The number of parameters and the shape of the features, which need the network itself."""
    from tlray.core.runtime import prepare_keras
    from tlray.plugins.contract.check import summary

    prepare_keras(gpu=False)
    try:
        network = backbone.build(backbone.image_size)
    except Exception as error:
        return {"broken": f"build({backbone.image_size}) failed: {type(error).__name__}: {summary(error)}"}
    return {"parameters": network.count_params(), "features": list(network.output_shape[1:])}


def _summary(row: dict[str, Any]) -> str:
    """The last column of the list."""
    if "broken" in row:
        return f"BROKEN: {row['broken']}"
    if row["kind"] == "weights":
        return f"for {', '.join(row['offers'])}"
    if row["kind"] == "head":
        return str(row["about"])
    cuts = row["cuts"]
    weights = [name + " (available offline)" * (name in row["weights_here"]) for name in row["weights"]]
    parts = [f"{row['image_size']} px"]
    parts += [amount(len(cuts), "cut") + (f", {cuts[0]} to {cuts[-1]}" if len(cuts) > 1 else f", {cuts[0]}")]
    parts += [amount(row["parameters"], "parameter")] if "parameters" in row else []
    return ", ".join([*parts, f"weights {', '.join(weights) or 'none'}"])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


app = group(
    "plugins",
    "List, show, create and check plugins, which are networks, heads and weights.",
    *(_list, _show, _new, _check),
)
