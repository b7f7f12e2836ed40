"""The arguments and options that several commands share, and the values that a shell completes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tlray.core.settings import CLUSTER, OUTPUT


def option(declaration: str, heading: str | None, help: str, **settings: Any) -> Any:
    """An option of a command.

    Args:
        declaration: the option and what its value is called, e.g. "--out FOLDER"; a flag has no value.
        heading: the heading under which `--help` shows it; None for "Options".
        help: its help text.
        settings: further arguments of `typer.Option`.
    """
    name, _, metavar = declaration.partition(" ")
    return typer.Option(name, metavar=metavar or None, help=help, rich_help_panel=heading, **settings)


def plugins(*kinds: str) -> list[str]:
    """The names of the installed plugins of these kinds, which are not imported."""
    from tlray.models import registry

    return sorted({plugin.name for kind in kinds for plugin in registry.installed(kind)})


def recipes() -> list[str]:
    """The names of the recipes that come with tlray."""
    from tlray.recipes import recipe

    return recipe.names()


COMPLETIONS = {"backbone": lambda: plugins("backbones"), "head": lambda: plugins("heads")}
"""The functions that list the values of a setting for completion, by the name of its field."""
METAVARS = {
    "actors": "N|MIN-MAX",
    "address": "ADDRESS",
    "annotate": "FOLDER",
    "augment": "VIEWS",
    "classes": "NAMES",
    "cut": "LAYER",
    "decay": "cosine|RATE",
    "from_": "LAYER",
    "split": "SPLIT",
    "validation": "FRACTION|SPLIT",
    "weights": "NAME|PATH",
}
"""What `--help` calls the value of a text setting, by the name of its field. All others are called NAME."""

Images = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="Folder with one folder of images for each class, which may lie in `train/`, `validation/` and "
        "`test/`; or a folder of images without labels; a .tar or .parquet file that contains images; a "
        ".parquet, .csv, .tsv or .jsonl table with a column `path` and optional columns `label` and `split`; "
        "or a single image. It is local, or a URI such as s3://bucket/photos.",
    ),
]
Features = Annotated[
    str, typer.Argument(metavar="FEATURES", help="Feature set to read, made by `tlray extract`.")
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model to use, made by `tlray fit` or `tlray finetune`.")
]
NewModel = Annotated[
    str,
    option(
        "--out FOLDER",
        OUTPUT,
        "Folder or URI to write the model to. It must be new, empty, or from an earlier run with the same "
        "options.",
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        autocompletion=recipes,
        help="Name of a recipe, as `tlray recipes list` prints it, or the path of a .toml file of your own.",
    ),
]
Dashboard = Annotated[
    str | None,
    option(
        "--address URL",
        CLUSTER,
        "Address of the cluster's dashboard, e.g. http://HEAD:8265. For Ray's own address, e.g. HEAD:6379, "
        "tlray tries port 8265 of the same host. Default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else a "
        "Ray that runs on this machine.",
    ),
]
