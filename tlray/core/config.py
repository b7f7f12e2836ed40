"""What the user can ask of each job: the one place where its settings, their defaults and help are written.

The command line is made from these classes (`tlray.cli.options`), recipes are read into them
(`tlray.recipes.recipe`), and Python callers give the same settings as keywords. They import nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tlray.core.errors import UserError
from tlray.core.settings import (
    CLUSTER,
    FRACTION,
    IMAGES,
    NETWORK,
    OUTPUT,
    POSITIVE,
    SEED,
    SHARE,
    TRAINING,
    Config,
    setting,
)

MAX_PIXELS = 100_000_000
"""Width times height above which an image is refused unread, unless the user allows more."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Config):
    """The whole network without its head, and how it sees the images."""

    backbone: str | None = setting(
        None, NETWORK, "Network to run. `tlray plugins list` shows all. Default: vgg16."
    )
    weights: str | None = setting(
        None,
        NETWORK,
        "Weights to start from: a name that the network knows, `none` for random ones, a weights file, "
        "or a model. Default: the network's own, e.g. imagenet.",
    )
    image_size: int | None = setting(
        None,
        NETWORK,
        "Side of the square that images are resized to, in pixels. Default: the network's own.",
        bounds=POSITIVE,
    )
    preprocess: Literal["imagenet", "rescale", "raw"] | None = setting(
        None,
        NETWORK,
        "What is done to the pixels first: `imagenet` does what the weights were trained with, `rescale` "
        "multiplies by 1/255, `raw` does nothing. Default: imagenet.",
    )


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Config):
    """How the frozen part of a network is run, and in which format its output is stored."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        NETWORK,
        "Number format that the frozen network computes in. `auto` takes bfloat16 where the hardware has "
        "it and the network is good at it, else float32.",
    )
    store: Literal["float32", "float16"] = setting(
        "float32", OUTPUT, "Number format that features are stored in."
    )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Config):
    """How a network is run over images: in which processes, and what becomes of bad images."""

    actors: str | None = setting(
        None,
        CLUSTER,
        "Processes that hold the network: a number, or MIN-MAX to grow with the cluster. Default: one "
        "for each GPU, or one for each node if there is no GPU.",
    )
    gpus_per_actor: float = setting(
        1.0, CLUSTER, "GPUs for each of these processes. 0.5 puts two on one GPU.", bounds=SHARE
    )

    max_pixels: int = setting(
        MAX_PIXELS,
        IMAGES,
        "Largest image, as width times height. A larger one counts as bad, because it could fill the memory.",
        bounds=POSITIVE,
    )
    max_bad_fraction: float = setting(
        0.05, IMAGES, "The job fails if more than this fraction of the images is bad.", bounds=FRACTION
    )

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

    split: float | None = setting(
        None,
        IMAGES,
        "Put this fraction of the images, chosen by path, into the split `train`, the rest into `test`. "
        "Default: the splits that the images have.",
        bounds=FRACTION,
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(FrozenConfig, BackboneConfig):
    """The frozen part of a network."""

    cut: str | None = setting(
        None,
        NETWORK,
        "Layer whose output is stored, or `input` for the pixels. Default: the end of the network.",
    )
    batch_size: int = setting(32, NETWORK, "Images that go through the network at once.", bounds=POSITIVE)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(NetworkConfig, _Split):
    """The settings of `tlray extract` and `tlray plan`."""

    seed: int = setting(0, IMAGES, "Seed of the random split.", bounds=SEED)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How the trained part of a network is trained."""

    epochs: int = setting(30, TRAINING, "Number of passes over the training rows, at most.", bounds=POSITIVE)
    batch_size: int = setting(
        32, TRAINING, "Rows of one training step, over all workers together.", bounds=POSITIVE
    )
    optimizer: str | None = setting(None, TRAINING, "Keras optimizer, e.g. adam. Default: the head's own.")
    learning_rate: float | None = setting(
        None,
        TRAINING,
        "Learning rate. Default: the head's own, or 1e-5 if layers of the network are trained further.",
        bounds=POSITIVE,
    )
    decay: str | None = setting(
        None,
        TRAINING,
        "How the learning rate falls: `cosine` brings it to 0 over all epochs; a number R divides it by "
        "1 + R times the steps taken. Default: it stays.",
    )
    early_stopping: int | None = setting(
        None,
        TRAINING,
        "Stop after this many epochs in a row in which the validation loss has not improved. Default: "
        "train for all --epochs.",
        bounds=POSITIVE,
    )
    monitor: Literal["val_loss", "val_accuracy", "loss", "accuracy"] = setting(
        "val_loss",
        TRAINING,
        "The metric that decides which epoch is the best, for early-stopping and keep.",
        is_option=False,
    )
    keep: Literal["best", "last"] | None = setting(
        None, TRAINING, "Epoch whose weights the model gets. Default: best with --early-stopping, else last."
    )
    validation: str | None = setting(
        None,
        IMAGES,
        "Rows to validate on: a fraction of the training rows, chosen by path, or the name of a split. "
        "Default: the split `validation`, if there is one.",
    )
    classes: str | None = setting(
        None,
        IMAGES,
        "All classes in the order of the model's output, separated by commas. Default: in alphabetical "
        "order.",
    )
    class_weights: bool = setting(
        False, TRAINING, "Give every class the same weight in the loss, however many images it has."
    )
    workers: int = setting(
        1, CLUSTER, "Training processes. Any number gives the same weights.", bounds=POSITIVE
    )
    min_workers: int | None = setting(
        None,
        CLUSTER,
        "Begin with this many workers if there is no room for all, and go on with as few when nodes are "
        "lost; new nodes are taken in. Default: all of --workers are needed.",
        bounds=POSITIVE,
    )
    tensorboard: bool = setting(False, OUTPUT, "Also write TensorBoard logs into the model's folder.")
    seed: int = setting(
        0,
        TRAINING,
        "Seed of the initial weights, the order of the rows, dropout, random splits and views.",
        bounds=SEED,
    )

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

    head: str = setting(
        "dense-256", NETWORK, "Classifier to train on the features. `tlray plugins list` shows all."
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FrozenConfig, BackboneConfig, _Split, TrainConfig):
    """The settings of `tlray finetune`."""

    split: float | None = setting(
        None,
        IMAGES,
        "Put this fraction of the images, chosen by path, into the split `train`, the rest into `test`. "
        "Default: the splits that the images have, or had when --model was trained on them.",
        bounds=FRACTION,
    )
    from_: str | None = setting(
        None,
        NETWORK,
        "Layer to start training at; layers before it stay frozen. `input` trains everything. Default: "
        "what --model was trained from.",
    )
    head: str | None = setting(
        None,
        NETWORK,
        "New classifier to start with. Default: that of --model; without --model it must be given.",
    )
    augment: str | None = setting(
        None,
        IMAGES,
        "Train on random views of the images: `flip`, `light`, `strong`, or a list such as "
        "rotation=40,flip. Default: the images as they are.",
    )
    views: int | None = setting(
        None,
        IMAGES,
        "With --augment: compute this many views of each image once, and reuse them. Default: new views "
        "in each epoch.",
        bounds=POSITIVE,
    )

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

    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        NETWORK,
        "Number format that the backbone computes in. `auto` takes float32, unless the model was trained "
        "on features of lower precision.",
    )
    batch_size: int = setting(32, NETWORK, "Images that go through the network at once.", bounds=POSITIVE)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """The settings of `tlray evaluate`."""

    split: str | None = setting(
        None,
        IMAGES,
        "Split to evaluate. Default: test, else validation. Images that the model was trained on are "
        "split as they were then.",
    )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """The settings of `tlray predict`."""

    split: str | None = setting(None, IMAGES, "Predict only the images of this split. Default: all images.")
    annotate: str | None = setting(
        None,
        OUTPUT,
        "Folder for copies of the images that have the predicted class and its probability on them. "
        "Default: no copies.",
    )
    top: int | None = setting(
        None,
        OUTPUT,
        "Write only the N most probable classes of each image. Default: the probabilities of all classes.",
        bounds=POSITIVE,
    )
