"""What the user can ask of each job: the one place where its settings, their defaults and help are written.

The command line is made from these classes (`tlray.cli.options`), recipes are read into them
(`tlray.recipes.recipe`), and Python callers give the same settings as keywords. They import nothing heavy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from annotated_doc import Doc

from tlray.core.errors import UserError, unknown
from tlray.core.schema import coerced

MAX_PIXELS = 100_000_000
"""Width times height above which an image is refused unread, unless the user allows more."""


@dataclass(frozen=True)
class Group:
    """The heading under which `--help` shows a setting."""

    title: str


IMAGES = Group("Images and labels")
NETWORK = Group("Network")
TRAINING = Group("Training")
OUTPUT = Group("Output")
CLUSTER = Group("Cluster")


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may be."""

    contain: Callable[[float], bool]
    expected: str


POSITIVE = Bounds(lambda value: 0 < value < math.inf, "more than 0")
FRACTION = Bounds(lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
SHARE = Bounds(lambda value: 0 < value <= 1, "more than 0 and at most 1")
SEED = Bounds(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
NOT_AN_OPTION = object()
"""Marks a setting that only recipes and Python callers have."""


def option(field: str) -> str:
    """How a setting is written on the command line."""
    return f"--{field.rstrip('_').replace('_', '-')}"


class Setting(NamedTuple):
    """What the annotation of a setting says."""

    kind: Any
    """Its type."""
    help: str
    group: Group
    bounds: Bounds | None
    is_option: bool
    """Whether it is on the command line; the others are for recipes and Python callers."""


def settings(config: type[Any]) -> dict[str, Setting]:
    """The settings of a config class, by the names of its fields."""
    hints = get_type_hints(config, include_extras=True)
    found = {}
    for field in fields(config):
        doc, group, *markers = hints[field.name].__metadata__
        bounds = next((marker for marker in markers if isinstance(marker, Bounds)), None)
        kind = hints[field.name].__origin__
        found[field.name] = Setting(kind, doc.documentation, group, bounds, NOT_AN_OPTION not in markers)
    return found


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings, checked.

    Raises:
        UserError: a value has the wrong type, or is out of its bounds.
    """

    def __post_init__(self) -> None:
        for name, setting in settings(type(self)).items():
            try:
                value = coerced(getattr(self, name), setting.kind)
            except ValueError as error:
                raise UserError(f"{option(name)} {getattr(self, name)!r}: expected {error}") from error
            object.__setattr__(self, name, value)
            if setting.bounds is not None and value is not None and not setting.bounds.contain(value):
                raise UserError(f"{option(name)} {value}: expected {setting.bounds.expected}")


C = TypeVar("C", bound=Config)


def configured(kind: type[C], config: C | None, given: Mapping[str, Any]) -> C:
    """The settings of a Python caller: a config object, keywords, or both.

    Args:
        kind: the config class of the job.
        config: the settings to start from; without it the defaults.
        given: settings by name; they replace those of `config`.

    Raises:
        UserError: there is no such setting (the message names the nearest), or a value is wrong.
    """
    if not isinstance(config, kind | None):
        raise UserError(f"config is {config!r}: expected a {kind.__name__}")
    known = settings(kind)
    for name in given:
        if name not in known:
            raise unknown("setting", name, known)
    return kind(**given) if config is None else replace(config, **given)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Config):
    """The whole network without its head, and how it sees the images."""

    backbone: Annotated[
        str | None, Doc("Network to run. `tlray plugins list` shows all. Default: vgg16."), NETWORK
    ] = None
    weights: Annotated[
        str | None,
        Doc(
            "Weights to start from: a name that the network knows, `none` for random ones, a weights file, "
            "or a model. Default: the network's own, e.g. imagenet."
        ),
        NETWORK,
    ] = None
    image_size: Annotated[
        int | None,
        Doc("Side of the square that images are resized to, in pixels. Default: the network's own."),
        NETWORK,
        POSITIVE,
    ] = None
    preprocess: Annotated[
        Literal["imagenet", "rescale", "raw"] | None,
        Doc(
            "What is done to the pixels first: `imagenet` does what the weights were trained with, `rescale` "
            "multiplies by 1/255, `raw` does nothing. Default: imagenet."
        ),
        NETWORK,
    ] = None


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Config):
    """How the frozen part of a network is run, and in which format its output is stored."""

    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc(
            "Number format that the frozen network computes in. `auto` takes bfloat16 where the hardware has "
            "it and the network is good at it, else float32."
        ),
        NETWORK,
    ] = "auto"
    store: Annotated[
        Literal["float32", "float16"], Doc("Number format that features are stored in."), OUTPUT
    ] = "float32"


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Config):
    """How a network is run over images: in which processes, and what becomes of bad images."""

    actors: Annotated[
        str | None,
        Doc(
            "Processes that hold the network: a number, or MIN-MAX to grow with the cluster. Default: one "
            "for each GPU, or one for each node if there is no GPU."
        ),
        CLUSTER,
    ] = None
    gpus_per_actor: Annotated[
        float, Doc("GPUs for each of these processes. 0.5 puts two on one GPU."), CLUSTER, SHARE
    ] = 1.0

    max_pixels: Annotated[
        int,
        Doc(
            "Largest image, as width times height. A larger one counts as bad, because it could fill the "
            "memory."
        ),
        IMAGES,
        POSITIVE,
    ] = MAX_PIXELS
    max_bad_fraction: Annotated[
        float, Doc("The job fails if more than this fraction of the images is bad."), IMAGES, FRACTION
    ] = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actors is not None and self.actor_range is None:
            raise UserError(f"--actors {self.actors}: expected a number, e.g. 4, or two, e.g. 1-8")

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """The least and the most actors; None if they are not given, or make no sense."""
        numbers = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", self.actors or "")
        if not numbers:
            return None
        least, most = int(numbers[1]), int(numbers[2] or numbers[1])
        return (least, most) if 1 <= least <= most else None


@dataclass(frozen=True, kw_only=True)
class _Split(InferenceConfig):
    """How images without splits get them."""

    split: Annotated[
        float | None,
        Doc(
            "Put this fraction of the images, chosen by path, into the split `train`, the rest into `test`. "
            "Default: the splits that the images have."
        ),
        IMAGES,
        FRACTION,
    ] = None


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(FrozenConfig, BackboneConfig):
    """The frozen part of a network."""

    cut: Annotated[
        str | None,
        Doc("Layer whose output is stored, or `input` for the pixels. Default: the end of the network."),
        NETWORK,
    ] = None
    batch_size: Annotated[int, Doc("Images that go through the network at once."), NETWORK, POSITIVE] = 32


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(NetworkConfig, _Split):
    """The settings of `tlray extract` and `tlray plan`."""

    seed: Annotated[int, Doc("Seed of the random split."), IMAGES, SEED] = 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How the trained part of a network is trained."""

    epochs: Annotated[int, Doc("Number of passes over the training rows, at most."), TRAINING, POSITIVE] = 30
    batch_size: Annotated[
        int, Doc("Rows of one training step, over all workers together."), TRAINING, POSITIVE
    ] = 32
    optimizer: Annotated[
        str | None, Doc("Keras optimizer, e.g. adam. Default: the head's own."), TRAINING
    ] = None
    learning_rate: Annotated[
        float | None,
        Doc("Learning rate. Default: the head's own, or 1e-5 if layers of the network are trained further."),
        TRAINING,
        POSITIVE,
    ] = None
    decay: Annotated[
        str | None,
        Doc(
            "How the learning rate falls: `cosine` brings it to 0 over all epochs; a number R divides it by "
            "1 + R times the steps taken. Default: it stays."
        ),
        TRAINING,
    ] = None
    early_stopping: Annotated[
        int | None,
        Doc(
            "Stop after this many epochs in a row in which the validation loss has not improved. Default: "
            "train for all --epochs."
        ),
        TRAINING,
        POSITIVE,
    ] = None
    monitor: Annotated[
        Literal["val_loss", "val_accuracy", "loss", "accuracy"],
        Doc("The metric that decides which epoch is the best, for early-stopping and keep."),
        TRAINING,
        NOT_AN_OPTION,
    ] = "val_loss"
    keep: Annotated[
        Literal["best", "last"] | None,
        Doc("Epoch whose weights the model gets. Default: best with --early-stopping, else last."),
        TRAINING,
    ] = None
    validation: Annotated[
        str | None,
        Doc(
            "Rows to validate on: a fraction of the training rows, chosen by path, or the name of a split. "
            "Default: the split `validation`, if there is one."
        ),
        IMAGES,
    ] = None
    classes: Annotated[
        str | None,
        Doc(
            "All classes in the order of the model's output, separated by commas. Default: in alphabetical "
            "order."
        ),
        IMAGES,
    ] = None
    class_weights: Annotated[
        bool, Doc("Give every class the same weight in the loss, however many images it has."), TRAINING
    ] = False
    workers: Annotated[
        int, Doc("Training processes. Any number gives the same weights."), CLUSTER, POSITIVE
    ] = 1
    min_workers: Annotated[
        int | None,
        Doc(
            "Begin with this many workers if there is no room for all, and go on with as few when nodes are "
            "lost; new nodes are taken in. Default: all of --workers are needed."
        ),
        CLUSTER,
        POSITIVE,
    ] = None
    tensorboard: Annotated[bool, Doc("Also write TensorBoard logs into the model's folder."), OUTPUT] = False
    seed: Annotated[
        int,
        Doc("Seed of the initial weights, the order of the rows, dropout, random splits and views."),
        TRAINING,
        SEED,
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
        """The fraction in `validation`; None if it is not given, or is the name of a split."""
        fraction = _number(self.validation)
        return fraction if fraction == fraction else None

    @property
    def least_workers(self) -> int:
        return self.min_workers or self.workers

    @property
    def keeps_best(self) -> bool:
        return self.keep == "best" or (self.keep is None and self.early_stopping is not None)


def _number(text: str | None) -> float:
    """The number that a text is; not-a-number if it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainConfig):
    """The settings of `tlray fit`."""

    head: Annotated[
        str, Doc("Classifier to train on the features. `tlray plugins list` shows all."), NETWORK
    ] = "dense-256"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FrozenConfig, BackboneConfig, _Split, TrainConfig):
    """The settings of `tlray finetune`."""

    from_: Annotated[
        str | None,
        Doc(
            "Layer to start training at; layers before it stay frozen. `input` trains everything. Default: "
            "what --model was trained from."
        ),
        NETWORK,
    ] = None
    head: Annotated[
        str | None,
        Doc("New classifier to start with. Default: that of --model; without --model it must be given."),
        NETWORK,
    ] = None
    augment: Annotated[
        str | None,
        Doc(
            "Train on random views of the images: `flip`, `light`, `strong`, or a list such as "
            "rotation=40,flip. Default: the images as they are."
        ),
        IMAGES,
    ] = None
    views: Annotated[
        int | None,
        Doc(
            "With --augment: compute this many views of each image once, and reuse them. Default: new views "
            "in each epoch."
        ),
        IMAGES,
        POSITIVE,
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views is not None and self.augment is None:
            raise UserError(f"--views {self.views}: of what? Add --augment, or leave --views away")
        if self.streams and self.least_workers < self.workers:
            raise UserError(
                f"--min-workers {self.min_workers}: each worker needs room for the network that feeds it "
                "with new views, which a changing cluster may not have; add --views, or leave the option away"
            )

    @property
    def streams(self) -> bool:
        """Whether new views of the training images are computed in each epoch."""
        return self.augment is not None and self.views is None


@dataclass(frozen=True, kw_only=True)
class RunConfig(InferenceConfig):
    """How a trained model is run over images."""

    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Doc(
            "Number format that the backbone computes in. `auto` takes float32, unless the model was trained "
            "on features of lower precision."
        ),
        NETWORK,
    ] = "auto"
    batch_size: Annotated[int, Doc("Images that go through the network at once."), NETWORK, POSITIVE] = 32


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """The settings of `tlray evaluate`."""

    split: Annotated[
        str | None,
        Doc(
            "Split to evaluate. Default: test, else validation. Images that the model was trained on are "
            "split as they were then."
        ),
        IMAGES,
    ] = None


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """The settings of `tlray predict`."""

    split: Annotated[
        str | None, Doc("Predict only the images of this split. Default: all images."), IMAGES
    ] = None
    annotate: Annotated[
        str | None,
        Doc(
            "Folder for copies of the images that have the predicted class and its probability on them. "
            "Default: no copies."
        ),
        OUTPUT,
    ] = None
    top: Annotated[
        int | None,
        Doc(
            "Write only the N most probable classes of each image. Default: the probabilities of all classes."
        ),
        OUTPUT,
        POSITIVE,
    ] = None
