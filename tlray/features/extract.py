"""The extract job: makes a feature set from images. Run again, it continues where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tlray.cluster import session
from tlray.core.config import ExtractConfig
from tlray.core.manifest import MANIFEST, package_versions, versions
from tlray.core.record import dump
from tlray.core.results import Account, ImageError, InferenceCounts
from tlray.core.settings import configured
from tlray.core.storage import Folder, StrPath
from tlray.features import inference, inference_tasks, part_files
from tlray.features.feature_set import FORMAT, ExtractJob, FeatureSet, FeatureSetManifest
from tlray.images.account import Announce, warn
from tlray.images.conventions import ColumnNames
from tlray.images.index import Index
from tlray.images.index_diff import Changes
from tlray.images.index_writer import IndexWriter, listing_for
from tlray.images.listing import Images
from tlray.models.frozen import FrozenPart
from tlray.models.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class ExtractResult(InferenceCounts):
    """The result of an extraction."""

    out: str
    """The URI of the feature set."""
    was_complete: bool
    """Whether the set was already complete, so that this run had nothing to do."""
    account: Account | None
    """What was understood of the images; None for a set that tlray 0.1 has made."""
    classes: list[str]
    """The labels of the images, sorted; empty if no image has a label."""
    first_errors: list[ImageError]
    """The first three error rows, in the order of the listing."""
    errors_uri: str | None
    """The URI of the folder with all error rows; None if there are none."""
    changes: Changes | None
    """How the images differ from those that an earlier run listed; None without `extend`."""


def extract(
    images: StrPath,
    out: StrPath,
    config: ExtractConfig | None = None,
    *,
    extend: bool = False,
    address: str | None = None,
    progress: inference.Progress = lambda done, total: None,
    announce: Announce = warn,
    **settings: Any,
) -> ExtractResult:
    """Run a network once over every image, and store its features as Parquet.

    After an interruption, the same call continues where it stopped.

    Args:
        images: the folder, URI, table or image to read; see `tlray.images.listing.Images`.
        out: the folder or URI of the feature set: new, empty, or of the same job.
        config: the settings.
        extend: also extract images that were added after the set was begun. Readers of a finished set see the
            new images only when all of them are done.
        address: the address of a running Ray. Without it, a local Ray is started and stopped again.
        progress: called after each shard; see `tlray.features.inference.Progress`.
        announce: called with what was understood of the images, before the first one is decoded and at the
            end. By default, its warnings become Python's.
        settings: single fields of `config`, e.g. `backbone="vgg16"`.

    Raises:
        UserError: the job cannot be done; nothing was written.
        JobError: the job failed; run it again to continue.
    """
    started = time.monotonic()
    config = configured(ExtractConfig, config, settings)
    source = Images.open(images, ColumnNames.of(config)).assign(config.split, config.seed)
    folder = Folder.open(out)
    source.check_outside(folder)
    ahead = not folder.is_file(MANIFEST)
    if ahead:
        session.import_ahead(address)
    frozen = FrozenPart.decide(config)
    job = ExtractJob(
        format=FORMAT,
        images=Folder.open(images).uri,
        split=config.split,
        seed=config.seed if config.split is not None else None,
        max_pixels=config.max_pixels,
        path_column=config.path_column,
        label_column=config.label_column,
        split_column=config.split_column,
        provenance=frozen.provenance.identity(),
    )
    listing = listing_for(folder, source)
    with folder.locked():
        with session.connect(address, ahead=ahead) as connected:
            writer = IndexWriter.start(
                folder, listing, config.batch_size, job.to_json(), source=source, extend=extend
            )
            work = _work(source.root, writer.index, config, frozen, job)
            done = inference.run(work, writer, frozen.loader, progress, connected, announce)
            errors = inference.reconcile(work)
        counts = inference.counts(work, done, errors, time.monotonic() - started)
        shards = len(writer.index.shard_sizes)
        was_complete = folder.is_file(MANIFEST) and FeatureSet.open(out).manifest.shards == shards
        if not was_complete:
            folder.sweep()
            folder.sweep("errors")
            _finish(work, job, frozen.provenance, errors, counts)
    if (account := writer.index.account) is not None:
        announce(account)
    changes = writer.diff.changes() if writer.diff else Changes(added=work.index.images)
    return ExtractResult(
        **vars(counts),
        out=folder.uri,
        was_complete=was_complete,
        account=account,
        classes=FeatureSet.open(out).classes,
        first_errors=part_files.first_errors(errors),
        errors_uri=folder.child("errors").uri if counts.errors else None,
        changes=changes if extend else None,
    )


def _work(
    root: Folder, index: Index, config: ExtractConfig, frozen: FrozenPart, job: ExtractJob
) -> inference_tasks.InferenceJob:
    return inference_tasks.InferenceJob(
        root=root,
        index=index,
        out=index.folder,
        settings=config,
        image_size=frozen.provenance.image_size,
        batch_size=config.batch_size,
        store=config.store,
        metadata={"job": job.to_json(), "versions": versions()},
        packages=package_versions(frozen.provenance.package),
        retry_errors=config.retry_errors,
    )


def _finish(
    work: inference_tasks.InferenceJob,
    job: ExtractJob,
    provenance: Provenance,
    errors: pa.Table,
    counts: InferenceCounts,
) -> None:
    """Write the manifest, which makes the set complete."""
    listed = work.index.count("split", "label")
    rows = listed - Counter(zip(errors["split"].to_pylist(), errors["label"].to_pylist(), strict=True))
    splits: Counter[str] = Counter()
    per_class: Counter[str] = Counter()
    for (split, label), count in rows.items():
        splits.update({split: count} if split is not None else {})
        per_class.update({label: count} if label is not None else {})
    manifest = FeatureSetManifest(
        **vars(counts),
        format=FORMAT,
        job=job,
        provenance=provenance,
        feature_shape=part_files.feature_shape(work.out, job.to_json()),
        classes=sorted({label for _, label in listed if label is not None}),
        rows_per_class=dict(sorted(per_class.items())),
        splits=dict(sorted(splits.items())),
        shards=len(work.index.shard_sizes),
        account=work.index.account,
        versions=work.metadata["versions"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    work.out.write(MANIFEST, dump(manifest, indent=2).encode())
