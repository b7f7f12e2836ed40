"""Sends the images through the frozen network once before a fine-tuning, and caches what the training needs.

The cache in the model's work folder holds features at the cut, of each image or of several views of it. If
every epoch streams new views, the pass over the training images only finds out which of them can be decoded.
Training and validation images are two passes; a pass that is complete is not repeated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tlray.core.config import FinetuneConfig
from tlray.core.manifest import package_versions, versions
from tlray.core.storage import Folder
from tlray.features import inference, part_files
from tlray.features.bottleneck import ShardTiming
from tlray.features.feature_set import Rows
from tlray.features.inference_tasks import InferenceJob
from tlray.images.augment import Views
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed
from tlray.images.reader import Place
from tlray.models.compiled import Network
from tlray.training import holdout
from tlray.training.holdout import TrainingData
from tlray.training.starting_point import StartingPoint
from tlray.training.view_stream import ViewSource

_BATCH = 32
"""Images that go through the frozen network at once."""
_DECODE_ONLY_SIZE = 8
"""Side in pixels of images that are only decoded to find out which can be."""


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The passes over the images of a fine-tuning."""

    images: Images
    """The images with their splits."""
    uri: str
    """The URI of the images, for messages."""
    config: FinetuneConfig
    starting_point: StartingPoint
    views: Views | None
    """The views of the training images; the cache holds `config.views` of each, or none if that is None."""

    def fill(
        self, work: Folder, feature_shape: tuple[int, ...], progress: inference.Progress
    ) -> TrainingData:
        """Go through the images, on the Ray that this process is connected to, and return their rows."""
        counts = Counter(map(self._use, self.images))
        images = counts["training"] + counts["validation"]
        rows = dict.fromkeys(("training", "validation"), Rows.join([], (0, 1)))
        errors = [part_files.ERRORS.empty_table()]
        passes: list[ShardTiming] = []
        source = None
        for use in rows:
            if not counts[use]:
                continue
            job, writer = self._start(use, work, feature_shape, images)
            loader = (lambda: _no_network) if self._only_decodes(use) else self.starting_point.frozen.loader
            passes += inference.run(job, writer, loader, progress, connected=lambda: None)
            errors.append(inference.reconcile(job))
            parts = part_files.read_parts(job.index)
            rows[use] = Rows.join(list(map(Rows.of, parts)), (0, 1))
            if self._only_decodes(use):
                source = self._source(job, errors[-1])
        holdout.check_rows(self.config, self.uri, rows["training"], rows["validation"])
        return TrainingData(
            **rows,
            source=source,
            has_views=self.config.views is not None,
            errors=pa.concat_tables(errors),
            passes=passes,
        )

    def _use(self, image: Listed) -> str | None:
        return None if image.label is None else holdout.part(self.config, image.split, image.path)

    def _only_decodes(self, use: str) -> bool:
        return self.config.streams and use == "training"

    def _start(
        self, use: str, work: Folder, feature_shape: tuple[int, ...], images: int
    ) -> tuple[InferenceJob, IndexWriter]:
        """Write the index of a pass; `images` is the number of images of both passes."""
        out = work.child(use)
        views = self.views if use == "training" and not self.config.streams else None
        copies = (self.config.views or 1) if views else 1
        job = {"pass": use}
        chosen = (image for image in self.images if self._use(image) == use)
        writer = IndexWriter.start(out, chosen, _BATCH, job, copies, work=work)
        writer.finish()
        provenance = self.starting_point.frozen.provenance
        if not self._only_decodes(use):
            holdout.check_memory((writer.index.images, copies, *feature_shape), provenance.store, self.uri)
        inference_job = InferenceJob(
            root=self.images.root,
            index=writer.index,
            out=out,
            settings=self.config,
            image_size=_DECODE_ONLY_SIZE if self._only_decodes(use) else provenance.image_size,
            batch_size=_BATCH,
            store=provenance.store,
            metadata={"job": job, "versions": versions()},
            packages=package_versions(provenance.package),
            images=images,
            views=views,
            copies=copies,
        )
        return inference_job, writer

    def _source(self, job: InferenceJob, errors: pa.Table) -> ViewSource:
        """Return the source of new views of the images without an error, in the order of the rows."""
        assert self.views is not None
        listed = pa.concat_tables(job.index.tables(*Place._fields))
        is_bad = pc.is_in(listed["path"], errors["path"].combine_chunks())
        return ViewSource(
            root=self.images.root,
            images=ray.put(listed.filter(pc.invert(is_bad))),
            views=self.views,
            image_size=self.starting_point.frozen.provenance.image_size,
            limits=(self.config.max_pixels, self.config.seconds_per_image),
            load_network=self.starting_point.frozen.loader(),
        )


def _no_network() -> Network:
    return lambda pixels: np.zeros((len(pixels), 1), np.float32)
