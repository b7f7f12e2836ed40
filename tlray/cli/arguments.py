"""The arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Images = Annotated[
    str,
    typer.Argument(
        help="a folder with one folder per class; or with train/, validation/, test/ above those; "
        "a flat folder; a .tar or .parquet of images, also inside a folder; a .parquet or .csv table with "
        "`path` and optional `label`, `split`; or one image. Local or a URI."
    ),
]
Features = Annotated[str, typer.Argument(help="a feature set, made by `tlray extract`")]
Model = Annotated[str, typer.Argument(help="a model, made by `tlray fit` or `tlray finetune`")]
Dashboard = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="of the cluster's dashboard, as in http://HEAD:8265; without it RAY_API_SERVER_ADDRESS or "
        "RAY_ADDRESS, or a Ray on this machine",
    ),
]
