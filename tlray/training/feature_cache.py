"""Goes through the images once before a fine-tuning: features at the cut, cached views, or just a look.

The training and the validation images are two passes, whose parts lie in the model's work folder. A
pass that is done is not done again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.core.config import FinetuneConfig
from tlray.core.manifest import package_versions, versions
from tlray.core.storage import Folder
from tlray.features import inference, inference_tasks, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.features.feature_set import Rows
from tlray.images.augment import Views
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed
from tlray.models.compiled import Network
from tlray.training import holdout
from tlray.training.starting_point import StartingPoint
from tlray.training.view_stream import ViewSource

_BATCH = 32
"""Images that go through the frozen network at once."""
_LOOK = 8
"""Side in pixels, where images are only decoded to see which can be."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rows, as training takes them."""

    training: Rows
    """Without features worth having, if there is a source."""
    validation: Rows
    source: ViewSource | None
    """Where the training rows' features come from in each epoch."""
    errors: pa.Table
    """The images that cannot be decoded, with the columns of `part_files.ERRORS`."""
    passes: Sequence[ShardTiming] = ()
    """What was done of the images for it, in this run."""


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """What a fine-tuning needs of its images, decided on in full."""

    images: Images
    """With their splits."""
    uri: str
    """Where they are, for messages."""
    config: FinetuneConfig
    origin: StartingPoint
    views: Views | None
    """Of the training images: `config.views` of each are kept, or without a number new ones are streamed."""

    def run(self, work: Folder, progress: inference.Progress) -> Prepared:
        """Go through the images, on the Ray this process is connected to.

        Raises:
            UserError: there are not enough images.
            JobError: too many are bad, features do not fit into memory, or a pass failed.
        """
        counts = Counter(map(self._use, self.images))
        found: dict[str, Rows] = {}
        errors = [part_files.ERRORS.empty_table()]
        passes: list[ShardTiming] = []
        for use in ("training", "validation"):
            found[use] = Rows.join([], (0, 1))
            if counts[use]:
                images = counts["training"] + counts["validation"]
                done, writer = self._pass(use, work.child(use), images)
                loader = _looker if self._only_looks(use) else self.origin.frozen.loader
                passes += inference.run(done, writer, loader, progress, connected=lambda: None)
                errors.append(inference.reconcile(done))
                found[use] = _rows(done)
                if self._only_looks(use):
                    listed = ray.put(_good(done, errors[-1]))
        holdout.check_rows(self.config, self.uri, found["training"], found["validation"])
        source = None
        if self.config.streams:
            assert self.views is not None
            source = ViewSource(
                root=self.images.root,
                images=listed,
                views=self.views,
                image_size=self.origin.frozen.provenance.image_size,
                max_pixels=self.config.max_pixels,
                load_network=self.origin.frozen.loader(),
            )
        return Prepared(source=source, errors=pa.concat_tables(errors), passes=passes, **found)

    def _use(self, image: Listed) -> str | None:
        return None if image.label is None else holdout.part(self.config, image.split, image.path)

    def _only_looks(self, use: str) -> bool:
        return self.config.streams and use == "training"

    def _pass(self, use: str, out: Folder, images: int) -> tuple[inference_tasks.InferenceJob, IndexWriter]:
        views = self.views if use == "training" and not self.config.streams else None
        copies = (self.config.views or 1) if views else 1
        job = {"pass": use}
        chosen = (image for image in self.images if self._use(image) == use)
        writer = IndexWriter.start(out, chosen, _BATCH, job, copies)
        writer.finish()
        provenance = self.origin.frozen.provenance
        if not self._only_looks(use):
            row_bytes = np.dtype(provenance.store).itemsize * math.prod(self.origin.feature_shape) * copies
            holdout.check_memory(writer.index.images, row_bytes, self.uri)
        inference_job = inference_tasks.InferenceJob(
            root=self.images.root,
            index=writer.index,
            out=out,
            settings=self.config,
            image_size=_LOOK if self._only_looks(use) else provenance.image_size,
            batch_size=_BATCH,
            store=provenance.store,
            metadata={"job": job, "versions": versions()},
            packages=package_versions(provenance.package),
            images=images,
            views=views,
            copies=copies,
        )
        return inference_job, writer


def _rows(done: inference_tasks.InferenceJob) -> Rows:
    parts = part_files.read_parts(done.out, len(done.index.shard_sizes), done.metadata["job"])
    return Rows.join(list(map(Rows.of, parts)), (0, 1))


def _good(done: inference_tasks.InferenceJob, errors: pa.Table) -> pa.Table:
    """Where the images are that have become rows, in the order of those."""
    listed = pa.concat_tables(done.index.tables("path", "offset", "modified"))
    return listed.filter(pc.invert(pc.is_in(listed["path"], errors["path"].combine_chunks())))


def _looker() -> Callable[[], Network]:
    return _no_network


def _no_network() -> Network:
    return lambda pixels: np.zeros((len(pixels), 1), np.float32)
