"""The extract job: a folder of images in, a feature set out; run again, it goes on where it was."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.cluster import session
from tlray.core.config import ExtractConfig
from tlray.core.manifest import dump, package_versions, versions
from tlray.core.storage import Folder
from tlray.features import inference, inference_tasks
from tlray.features.feature_set import FORMAT, MANIFEST, FeatureSet
from tlray.features.part_files import part_name
from tlray.images import diff
from tlray.images.index import Index
from tlray.images.listing import Images
from tlray.models.frozen import FrozenPart
from tlray.models.provenance import Provenance


def extract(
    images: str,
    out: str,
    config: ExtractConfig,
    *,
    extend: bool = False,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Extract the features of every image into a feature set.

    Args:
        images: a folder, URI, table or image; see `tlray.images.listing.Images`.
        out: the feature set's folder or URI; new, empty, or of the same job.
        config: what to extract.
        extend: look for images that were added since the set was begun. Until they are all done, a set that
            was finished stays as it was to its readers.
        address: of a running Ray; without it a local one is started and stopped.
        progress: called after each shard.

    Returns:
        JSON values: out, what `inference.counts` says, and passed_over: files whose names are of no image
        (0 if they were listed before). With `extend` also what `tlray.images.diff.counts` says.

    Raises:
        UserError: the job cannot be; nothing was written.
        JobError: the job failed; run it again to go on.
    """
    started = time.monotonic()
    source = Images.open(images).assign(config.split, config.seed)
    folder = Folder.open(out)
    source.check_outside(folder)
    ahead = not folder.is_file(MANIFEST)
    if ahead:
        session.import_ahead(address)
    frozen = FrozenPart.decide(config)
    job = {
        "format": FORMAT,
        "images": Folder.open(images).uri,
        "split": config.split,
        "seed": config.seed if config.split is not None else None,
        "max_pixels": config.max_pixels,
        "provenance": frozen.provenance.identity(),
    }
    with folder.locked():
        with session.connect(address, ahead=ahead) as connected:
            work = inference_tasks.InferenceJob(
                root=source.root,
                index=Index.start(folder, source, config.batch_size, job, extend=extend),
                out=folder,
                image_size=frozen.provenance.image_size,
                max_pixels=config.max_pixels,
                batch_size=config.batch_size,
                store=config.store,
                metadata={"job": job, "versions": versions()},
                packages=package_versions(frozen.provenance.package),
                actors=config.actor_range,
                gpus_per_actor=config.gpus_per_actor,
                max_bad_fraction=config.max_bad_fraction,
            )
            done = inference.run(work, frozen.loader, progress, connected)
            errors = inference.reconcile(work)
        result = {
            **inference.counts(work, done, errors, time.monotonic() - started),
            "passed_over": source.others,
        }
        shards = len(work.index.shard_sizes)
        if not folder.is_file(MANIFEST) or FeatureSet.open(out).manifest["shards"] < shards:
            folder.sweep()
            folder.sweep("errors")
            _finish(work, frozen.provenance, errors, result)
    if extend:
        known = work.index.known
        result |= known.counts() if known else diff.counts(added=work.index.images)
    return {"out": folder.uri, **result}


def _finish(
    work: inference_tasks.InferenceJob, provenance: Provenance, errors: pa.Table, result: dict[str, Any]
) -> None:
    """Write the manifest, which makes the set complete."""
    labels = work.index.count("split", "label")
    kept = labels - Counter(zip(errors["split"].to_pylist(), errors["label"].to_pylist(), strict=True))
    splits: Counter[str] = Counter()
    per_class: Counter[str] = Counter()
    for (split, label), count in kept.items():
        splits.update({split: count} if split is not None else {})
        per_class.update({label: count} if label is not None else {})
    with work.out.filesystem.open_input_file(work.out.join(part_name(0))) as stream:
        shape = pq.read_schema(stream).field("features").type.shape
    manifest = {
        "format": FORMAT,
        "job": work.metadata["job"],
        "provenance": provenance.to_json(),
        "feature_shape": list(shape),
        "classes": sorted({label for _, label in labels if label is not None}),
        "rows_per_class": dict(sorted(per_class.items())),
        "splits": dict(sorted(splits.items())),
        "shards": len(work.index.shard_sizes),
        **result,
        "versions": work.metadata["versions"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    work.out.write(MANIFEST, dump(manifest, indent=2).encode())
