"""`tlray demo`: a whole job on real images."""

from __future__ import annotations

from typing import Annotated

from tlray.cli.arguments import option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.tables import table
from tlray.core.settings import OUTPUT


@command
def demo(
    run: OnRay,
    out: Annotated[str, option("--out FOLDER", OUTPUT, "Local folder to write everything to.")] = "demo",
) -> Result:
    """Try a whole job on 1,797 images of handwritten digits, which come with scikit-learn.

    The demo extracts features, trains a head, evaluates the model and predicts; on 2 cores it takes a minute.

    Examples:
        tlray demo
    """
    from tlray.recipes.demo import demo

    result = demo(out, address=run.address)
    values = {**vars(result), "accuracy": f"{result.accuracy:.3f}", "seconds": f"{result.seconds:.0f}"}
    return Result(result, table([*values.items()]))
