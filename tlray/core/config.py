"""What the user can ask of each job: the one place where its settings, their defaults and help stand.

The command line is made from these classes (`tlray.cli.options`), and recipes are read into them
(`tlray.recipes.recipe`), so they import nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_doc import Doc

from tlray.core.errors import UserError

MAX_PIXELS = 100_000_000
"""Width times height above which an image is refused unread, unless the user says otherwise."""
_POSITIVE = (
    *("image_size", "max_pixels", "batch_size", "top", "views"),
    *("epochs", "learning_rate", "early_stopping", "workers", "min_workers"),
)
_FRACTIONS = ("split", "max_bad_fraction")


def option(field: str) -> str:
    """How a setting is written on the command line."""
    return f"--{field.rstrip('_').replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Checks the numbers, whichever of them a class has."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if field.name in _POSITIVE and not value > 0:
                raise UserError(f"{option(field.name)} {value}: expected more than 0")
            if field.name in _FRACTIONS and not 0 <= value <= 1:
                raise UserError(f"{option(field.name)} {value}: expected a fraction from 0 to 1")
            if field.name == "seed" and not 0 <= value < 2**32:
                raise UserError(f"--seed {value}: expected a whole number from 0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class _Backbone(_Checked):
    """The whole network without its head, and how it sees the images."""

    backbone: Annotated[str | None, Doc("the network; see `tlray plugins list`; vgg16 if not given")] = None
    weights: Annotated[
        str | None,
        Doc("a name the backbone knows, `none` (random), a weights file or a model; or the backbone's own"),
    ] = None
    image_size: Annotated[int | None, Doc("side of the square input in pixels; or the backbone's own")] = None
    preprocess: Annotated[
        Literal["imagenet", "rescale", "raw"] | None,
        Doc("what the weights were trained with (imagenet, the default), pixels times 1/255, or as they are"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _Frozen(_Checked):
    """How the frozen part of a network is run, and what is kept of it."""

    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc("what the frozen network computes in; auto: bfloat16 where hardware and network are good for it"),
    ] = "auto"
    store: Annotated[Literal["float32", "float16"], Doc("what the features are kept in")] = "float32"


@dataclass(frozen=True, kw_only=True)
class _Pass(_Checked):
    """How a network goes through images: on which processes, and what becomes of bad images."""

    actors: Annotated[
        str | None,
        Doc(
            "processes that hold the network: N, or MIN-MAX to follow a cluster that grows; "
            "if not given, one for each GPU, or for each node where there is none"
        ),
    ] = None
    gpus_per_actor: Annotated[float, Doc("share of a GPU for each of them, e.g. 0.5: two on a GPU")] = 1.0

    max_pixels: Annotated[
        int, Doc("an image of more pixels (width times height) is bad: it could fill the memory")
    ] = MAX_PIXELS
    max_bad_fraction: Annotated[
        float, Doc("the job fails when more than this fraction of the images cannot be decoded")
    ] = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actors is not None and self.actor_range is None:
            raise UserError(f"--actors {self.actors}: expected a number, e.g. 4, or two, e.g. 1-8")
        if not 0 < self.gpus_per_actor <= 1:
            raise UserError(f"--gpus-per-actor {self.gpus_per_actor:g}: expected more than 0 and at most 1")

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """The least and the most actors, if they are given and make sense."""
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", self.actors or "")
        if not found:
            return None
        least, most = int(found[1]), int(found[2] or found[1])
        return (least, most) if 1 <= least <= most else None


@dataclass(frozen=True, kw_only=True)
class _Source(_Pass):
    """How images are taken in."""

    split: Annotated[
        float | None, Doc("assign this fraction of the images to `train` and the rest to `test`, by path")
    ] = None


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(_Backbone, _Frozen):
    """The frozen part of a network."""

    cut: Annotated[
        str | None, Doc("the layer whose output is kept, or `input`; the network's end if not given")
    ] = None
    batch_size: Annotated[int, Doc("images that go through the network at once")] = 32


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(NetworkConfig, _Source):
    """`tlray extract`."""

    seed: Annotated[int, Doc("of the split")] = 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Checked):
    """How the trained part is trained."""

    epochs: Annotated[int, Doc("how often the training rows are seen, at most")] = 30
    batch_size: Annotated[int, Doc("rows of one step, over all workers together")] = 32
    optimizer: Annotated[str | None, Doc("a Keras optimizer, e.g. adam; or the head's own")] = None
    learning_rate: Annotated[
        float | None, Doc("step size; or the head's own, and 1e-5 for the layers of a trained network")
    ] = None
    decay: Annotated[
        str | None,
        Doc("`cosine` (the step size falls to 0), or a rate R: it is divided by 1 + R times the steps taken"),
    ] = None
    early_stopping: Annotated[int | None, Doc("stop when --monitor has not improved for so many epochs")] = (
        None
    )
    monitor: Annotated[
        Literal["val_loss", "val_accuracy", "loss", "accuracy"],
        Doc("what tells the best epoch, for --early-stopping and --keep"),
    ] = "val_loss"
    keep: Annotated[
        Literal["best", "last"] | None,
        Doc("whose epoch's weights are kept; best with --early-stopping, else last, if not given"),
    ] = None
    validation: Annotated[
        str | None,
        Doc("hold this fraction of the training rows out for validation, by path; or the name of a split"),
    ] = None
    classes: Annotated[
        str | None, Doc("all classes in the order of the model's output, e.g. cats,dogs; sorted if not given")
    ] = None
    class_weights: Annotated[bool, Doc("let every class count the same in the loss, however rare")] = False
    workers: Annotated[int, Doc("training processes; any number gives the same weights")] = 1
    min_workers: Annotated[
        int | None,
        Doc("begin, and go on when nodes are lost, with as few of them; new ones join in; all if not given"),
    ] = None
    tensorboard: Annotated[bool, Doc("also write TensorBoard logs, into the model folder")] = False
    seed: Annotated[
        int, Doc("of the initial weights, the order of the rows, the dropout, and splits and views if any")
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in (None, "cosine") and not _number(self.decay) >= 0:
            raise UserError(f"--decay {self.decay}: expected cosine, or a rate of 0 or more")
        held_out = _number(self.validation)
        if self.validation is not None and held_out == held_out and not 0 < held_out < 1:
            raise UserError(
                f"--validation {self.validation}: expected a fraction between 0 and 1, or the name of a split"
            )
        if self.least_workers > self.workers:
            raise UserError(
                f"--min-workers {self.min_workers}: expected at most --workers, which is {self.workers}"
            )

    @property
    def decay_rate(self) -> float | None:
        """The rate in `decay`, if it is one."""
        return None if self.decay in (None, "cosine") else _number(self.decay)

    @property
    def validation_fraction(self) -> float | None:
        """The fraction in `validation`; None if it is none or the name of a split."""
        fraction = _number(self.validation)
        return fraction if fraction == fraction else None

    @property
    def least_workers(self) -> int:
        return self.min_workers or self.workers

    @property
    def keeps_best(self) -> bool:
        return self.keep == "best" or (self.keep is None and self.early_stopping is not None)


def _number(text: str | None) -> float:
    """The number that is written there; not a number if it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainConfig):
    """`tlray fit`."""

    head: Annotated[str, Doc("the network that is trained; see `tlray plugins list`")] = "dense-256"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(_Backbone, _Frozen, _Source, TrainConfig):
    """`tlray finetune`."""

    from_: Annotated[
        str | None,
        Doc("the first layer that is trained, or `input` for all; only what the model trained, if not given"),
    ] = None
    head: Annotated[
        str | None, Doc("start with a new head of this name instead of the model's; needed without --model")
    ] = None
    augment: Annotated[
        str | None,
        Doc("new random views of the training images in each epoch: a name, or e.g. rotation=40,flip"),
    ] = None
    views: Annotated[
        int | None, Doc("make so many views of each image once, keep their features, and go through them")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views is not None and self.augment is None:
            raise UserError(f"--views {self.views}: of what? Add --augment, or leave it away")
        if self.streams and self.least_workers < self.workers:
            raise UserError(
                f"--min-workers {self.min_workers}: each worker needs room for the network that feeds it "
                "with new views, which a changing cluster may not have; add --views, or leave the option away"
            )

    @property
    def streams(self) -> bool:
        """Whether the training images are gone through again in each epoch."""
        return self.augment is not None and self.views is None


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Pass):
    """How a trained model is run over images."""

    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc("what the backbone computes in; auto: reduced only if it was when the model was trained"),
    ] = "auto"
    batch_size: Annotated[int, Doc("images that go through the network at once")] = 32


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """`tlray evaluate`."""

    split: Annotated[
        str | None,
        Doc(
            "evaluate this split; if not given: test, else validation. Images without splits that the "
            "model was trained on are split as for training"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """`tlray predict`."""

    split: Annotated[str | None, Doc("only the images of this split")] = None
    annotate: Annotated[
        str | None, Doc("a folder to write copies of the pictures to, with class and percent on them")
    ] = None
    top: Annotated[int | None, Doc("keep the K most probable classes of each image instead of all")] = None
