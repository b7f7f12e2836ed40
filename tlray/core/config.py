"""The settings of every job, each with its default and its help text.

`tlray.cli.options` makes the command line from these classes, `tlray.recipes.recipe` reads recipes into them,
and Python callers give the same settings as keywords. `tlray --help` imports this module: keep it light.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from tlray.core.errors import UserError
from tlray.core.settings import (
    CLUSTER,
    COUNT,
    FRACTION,
    IMAGES,
    NETWORK,
    OUTPUT,
    POSITIVE,
    SECONDS,
    SEED,
    SHARE,
    SIDE,
    TRAINING,
    Config,
    setting,
)

MAX_PIXELS = 100_000_000
"""Width times height of the largest image that is decoded, unless the user allows more."""
SECONDS_PER_IMAGE = 60.0
"""The most time to decode one image, unless the user allows more."""


_TRAINED_SPLIT = "Images that the model was trained on keep the split that they had then."


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Config):
    """The network without its head: its weights, its input, and its number formats."""

    backbone: str | None = setting(NETWORK, "Network to run. `tlray plugins list` shows all. Default: vgg16.")
    weights: str | None = setting(
        NETWORK,
        "Weights to start from: a name that the network knows, `none` for random ones, a weights file, or a "
        "model, whose head is left out. Default: the network's own, e.g. imagenet.",
    )
    image_size: int | None = setting(
        NETWORK,
        "Side of the square that images are resized to, in pixels. Default: the network's own.",
        bounds=SIDE,
    )
    preprocess: Literal["imagenet", "rescale", "raw"] | None = setting(
        NETWORK,
        "How pixel values are prepared: `imagenet` as when the weights were trained, `rescale` multiplies "
        "them by 1/255, `raw` leaves them as they are. Default: imagenet.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        NETWORK,
        "Number format that the frozen network computes in. `auto` takes bfloat16 if the machine that runs "
        "the command supports it and the backbone allows it, else float32.",
        "auto",
    )
    store: Literal["float32", "float16"] = setting(
        OUTPUT, "Number format that features are stored in; float16 takes half the space.", "float32"
    )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Config):
    """How a network is run over images: in which processes, and how many bad images are allowed."""

    actors: str | None = setting(
        CLUSTER,
        "Processes that run the network over images: a number, or MIN-MAX to grow with the cluster. Default: "
        "one for each GPU, or one for each node if there is no GPU.",
    )
    gpus_per_actor: float = setting(
        CLUSTER, "GPUs for each process of --actors. 0.5 puts two processes on one GPU.", 1.0, SHARE
    )
    max_pixels: int = setting(
        IMAGES,
        "Largest image, as width times height. A larger one counts as bad, because it could fill the memory.",
        MAX_PIXELS,
        COUNT,
    )
    seconds_per_image: float = setting(
        IMAGES,
        "Most seconds to decode an image. One that takes longer counts as bad. Once the slow images of a "
        "shard have taken ten times as long, the limit for its other images is a twentieth.",
        SECONDS_PER_IMAGE,
        SECONDS,
    )
    path_column: str | None = setting(
        IMAGES,
        "Column of a table that contains the paths of the images. Default: path, file_name or the like.",
    )
    label_column: str | None = setting(
        IMAGES,
        "Column of a table or Parquet archive that contains the labels, or `none`; in tar files a suffix or "
        ".json key. Default: the one named label, class, category or the like.",
    )
    split_column: str | None = setting(
        IMAGES,
        "Column of a table or Parquet archive that contains the splits, or `none`. Default: the one named "
        "split, set or the like.",
    )
    max_bad_fraction: float = setting(
        IMAGES, "The job fails if more than this fraction of the images is bad.", 0.05, FRACTION
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actors is not None and self.actor_range is None:
            raise UserError(f"--actors {self.actors}: expected a number, e.g. 4, or a range, e.g. 1-8")

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """The least and the most actors; None if they are not given or not a range."""
        numbers = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", self.actors or "")
        if not numbers:
            return None
        least, most = int(numbers[1]), int(numbers[2] or numbers[1])
        return (least, most) if 1 <= least <= most else None


@dataclass(frozen=True, kw_only=True)
class _Split(InferenceConfig):
    """How images are split into training and test images."""

    split: float | None = setting(
        IMAGES,
        "Put this fraction of the images, drawn at random, into the split `train`, and the rest into `test`. "
        "--seed and the path of an image decide, so the same options give the same split. Default: the "
        "splits that the images have.",
        bounds=FRACTION,
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(BackboneConfig):
    """The frozen part of a network."""

    cut: str | None = setting(
        NETWORK,
        "Layer whose output is stored, or `input` for the pixels. `tlray plugins show NETWORK` lists the "
        "layers. Default: the end of the network.",
    )
    batch_size: int = setting(NETWORK, "Images that go through the network at once.", 32, COUNT)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(NetworkConfig, _Split):
    """The settings of `tlray extract` and `tlray plan`."""

    seed: int = setting(IMAGES, "Seed of the random split.", 0, SEED)
    retry_errors: bool = setting(
        IMAGES,
        "Try the images again that an earlier run of this job could not use. Their files are read as they "
        "are now; the other rows stay as they are.",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How the trained part of a network is trained."""

    epochs: int = setting(TRAINING, "Number of passes over the training images, at most.", 30, COUNT)
    batch_size: int = setting(TRAINING, "Images in one training step, over all workers together.", 32, COUNT)
    optimizer: str | None = setting(TRAINING, "Keras optimizer, e.g. adam. Default: the head's own.")
    learning_rate: float | None = setting(
        TRAINING, "Learning rate of the first step. Default: the head's own.", bounds=POSITIVE
    )
    decay: str | None = setting(
        TRAINING,
        "How the learning rate falls: `cosine` brings it to 0 over all epochs; a number R divides it by "
        "1 + R times the steps taken. Default: the rate stays the same.",
    )
    early_stopping: int | None = setting(
        TRAINING,
        "Stop after this many epochs in a row in which the validation loss has not improved. It needs "
        "validation images. Default: train for all --epochs.",
        bounds=COUNT,
    )
    monitor: Literal["val_loss", "val_accuracy", "loss", "accuracy"] = setting(
        TRAINING,
        "The metric that decides which epoch is the best, for early-stopping and keep.",
        "val_loss",
        is_option=False,
    )
    keep: Literal["best", "last"] | None = setting(
        TRAINING,
        "Epoch whose weights the model gets; `best` is the one with the lowest validation loss. Default: "
        "best with --early-stopping, else last.",
    )
    validation: str | None = setting(
        IMAGES,
        "Images to validate on: the name of a split, or a fraction of the training images, drawn at random. "
        "Default: the split `validation`; without one, nothing is validated.",
    )
    classes: str | None = setting(
        IMAGES,
        "All classes in the order of the model's output, separated by commas. Default: alphabetical.",
    )
    class_weights: bool = setting(
        TRAINING,
        "Make all classes count the same in the loss: the fewer images a class has, the more each of them "
        "counts.",
        False,
    )
    workers: int = setting(
        CLUSTER,
        "Number of training processes. Without dropout, any number of them trains the same model.",
        1,
        COUNT,
    )
    min_workers: int | None = setting(
        CLUSTER,
        "Fewest workers to start with, and to continue with when nodes are lost; workers on new nodes join. "
        "Default: all of --workers are needed.",
        bounds=COUNT,
    )
    tensorboard: bool = setting(OUTPUT, "Also write TensorBoard logs into the model's folder.", False)
    seed: int = setting(
        TRAINING,
        "Seed of everything random: the first weights, the order of the images, dropout, splits and views.",
        0,
        SEED,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in (None, "cosine") and (self.decay_rate is None or self.decay_rate < 0):
            raise UserError(f"--decay {self.decay}: expected cosine, or a rate of 0 or more")
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise UserError(
                f"--validation {self.validation}: expected a fraction between 0 and 1, or the name of a split"
            )
        if self.least_workers > self.workers:
            raise UserError(
                f"--min-workers {self.min_workers}: expected at most --workers, which is {self.workers}"
            )

    @property
    def decay_rate(self) -> float | None:
        """The rate in `decay`; None if it is not given or is `cosine`."""
        return _number(self.decay)

    @property
    def validation_fraction(self) -> float | None:
        """The fraction in `validation`; None if it is not given, or is the name of a split."""
        return _number(self.validation)

    @property
    def least_workers(self) -> int:
        return self.min_workers or self.workers

    @property
    def keeps_best(self) -> bool:
        return self.keep == "best" or (self.keep is None and self.early_stopping is not None)


def _number(text: str | None) -> float | None:
    """Convert a text to a finite number; None if it is not one."""
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainConfig):
    """The settings of `tlray fit`."""

    head: str = setting(
        NETWORK, "Classifier to train on the features. `tlray plugins list` shows all.", "dense-256"
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(BackboneConfig, _Split, TrainConfig):
    """The settings of `tlray finetune`."""

    DEFAULTS: ClassVar = {
        "backbone": "that of --model or of the feature set, else vgg16",
        "weights": "those of --model, else the network's own, e.g. imagenet",
        "image_size": "that of --model, else the network's own",
        "preprocess": "that of --model, else imagenet",
        "split": "the splits that the images have, or had when --model was trained on them",
        "classes": "the order of --model, else alphabetical",
        "learning_rate": "1e-5 if pretrained layers are trained too, else the head's own",
    }

    from_: str | None = setting(
        NETWORK,
        "First layer to train; layers before it stay frozen. `input` trains everything. Default: the first "
        "layer that was trained in --model; if there is none, only the head is trained.",
    )
    head: str | None = setting(
        NETWORK,
        "New, untrained classifier; `tlray plugins list` shows all. Default: that of --model; without "
        "--model it must be given.",
    )
    augment: str | None = setting(
        IMAGES,
        "Change the training images at random: `flip`, `light`, `strong`, or a list of rotation, shift, "
        "shear, zoom and flip, such as rotation=40,flip. Default: no change.",
    )
    views: int | None = setting(
        IMAGES,
        "With --augment: compute this many views of each image once; each epoch takes the next one. "
        "Default: new views in each epoch.",
        bounds=COUNT,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views is not None and self.augment is None:
            raise UserError(f"--views {self.views}: --augment is missing; add it, or leave out --views")
        if self.streams and self.least_workers < self.workers:
            raise UserError(
                f"--min-workers {self.min_workers}: each worker needs room for a network that computes new "
                "views, which a changing cluster may lack; add --views, or leave out --min-workers"
            )

    @property
    def streams(self) -> bool:
        """Whether new views of the training images are computed in each epoch."""
        return self.augment is not None and self.views is None


@dataclass(frozen=True, kw_only=True)
class RunConfig(InferenceConfig):
    """How a trained model is run over images."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        NETWORK,
        "Number format that the network computes in. `auto` takes float32, unless the model was trained on "
        "features of lower precision; then it takes the fastest format of the machine that runs the command.",
        "auto",
    )
    batch_size: int = setting(NETWORK, "Images that go through the network at once.", 32, COUNT)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """The settings of `tlray evaluate`."""

    split: str | None = setting(
        IMAGES,
        f"Split to evaluate. Default: test, else validation; without splits, all images. {_TRAINED_SPLIT}",
    )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig):
    """The settings of `tlray predict`."""

    split: str | None = setting(
        IMAGES, f"Predict only the images of this split. Default: all images. {_TRAINED_SPLIT}"
    )
    annotate: str | None = setting(
        OUTPUT,
        "Folder for copies of the images that have the predicted class and its probability on them. It must "
        "be new or empty, or hold such copies. Default: no copies.",
    )
    top: int | None = setting(
        OUTPUT,
        "Write only the N most probable classes of each image. Default: the probabilities of all classes.",
        bounds=COUNT,
    )
