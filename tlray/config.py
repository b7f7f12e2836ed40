"""What the user can ask of each job: the one place where its settings, their defaults and help stand.

The command line is made from these classes (`tlray.cli.options`), so they import nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from tlray.errors import UserError


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected more than 0")


def _seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected a whole number from 0 to 4294967295")


def _fraction(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a fraction from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The frozen part of the network, and how it sees the images."""

    backbone: Annotated[str, Doc("the pretrained network; see `tlray plugins list`")] = "vgg16"
    weights: Annotated[str, Doc("a name the backbone knows, `none` (random) or a weights file")] = "imagenet"
    cut: Annotated[str | None, Doc("the layer whose output is kept; the network's end if not given")] = None
    image_size: Annotated[int | None, Doc("side of the square input in pixels; or the backbone's own")] = None
    preprocess: Annotated[
        Literal["imagenet", "rescale", "raw"],
        Doc("what the weights were trained with, pixels times 1/255, or pixels as they are"),
    ] = "imagenet"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc("what the network computes in; auto: bfloat16 where the hardware has it, else float32"),
    ] = "auto"
    store: Annotated[Literal["float32", "float16"], Doc("what the features are kept in")] = "float32"
    batch_size: Annotated[int, Doc("images that go through the network at once")] = 32

    def __post_init__(self) -> None:
        _positive(image_size=self.image_size, batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(NetworkConfig):
    """`tlray extract`."""

    split: Annotated[
        float | None, Doc("assign this fraction of the images to `train` and the rest to `test`, by path")
    ] = None
    seed: Annotated[int, Doc("of the split")] = 0
    max_bad_fraction: Annotated[
        float, Doc("the job fails when more than this fraction of the images cannot be decoded")
    ] = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(split=self.split, max_bad_fraction=self.max_bad_fraction)
        _seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """`tlray fit`."""

    head: Annotated[str, Doc("the network that is trained; see `tlray plugins list`")] = "dense-256"
    epochs: Annotated[int, Doc("how often the training rows are seen")] = 30
    batch_size: Annotated[int, Doc("rows of one step, over all workers together")] = 32
    optimizer: Annotated[str | None, Doc("a Keras optimizer, e.g. adam; or the head's own")] = None
    learning_rate: Annotated[float | None, Doc("step size; or the head's own")] = None
    early_stopping: Annotated[
        int | None,
        Doc("stop when the validation loss has not improved for so many epochs, and keep the best weights"),
    ] = None
    validation: Annotated[
        float | None, Doc("hold this fraction of the training rows out for validation, by path")
    ] = None
    workers: Annotated[int, Doc("training processes; any number gives the same weights")] = 1
    tensorboard: Annotated[bool, Doc("also write TensorBoard logs, into the model folder")] = False
    seed: Annotated[int, Doc("of the initial weights, the order of the rows and the dropout")] = 0

    def __post_init__(self) -> None:
        _positive(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            early_stopping=self.early_stopping,
            workers=self.workers,
        )
        _fraction(validation=self.validation)
        _seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a trained model is run over images."""

    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Doc("what the backbone computes in")
    ] = "auto"
    batch_size: Annotated[int, Doc("images that go through the network at once")] = 32
    max_bad_fraction: Annotated[
        float, Doc("the job fails when more than this fraction of the images cannot be decoded")
    ] = 0.05

    def __post_init__(self) -> None:
        _positive(batch_size=self.batch_size)
        _fraction(max_bad_fraction=self.max_bad_fraction)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """`tlray evaluate`."""

    split: Annotated[
        str | None,
        Doc("evaluate this split; if not given: test, else validation"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """`tlray predict`."""

    annotate: Annotated[
        str | None, Doc("a folder to write copies of the pictures to, with class and percent on them")
    ] = None
    top: Annotated[int | None, Doc("keep the K most probable classes of each image instead of all")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(top=self.top)
