"""The list of a job's images: every one in exactly one shard, and the job known again."""

import itertools
import pickle
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from operator import length_hint
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.bad_files import damaged_parquet
from tests.support.slow_storage import SlowStorage
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import read_stamp, stamp
from tlray.core.storage import Folder
from tlray.images.index import SCHEMA, Index, piece_name
from tlray.images.index_diff import Changes
from tlray.images.index_writer import IndexWriter, listing_for
from tlray.images.listing import Images, Listed

JOB = {"source": "/images", "seed": None, "provenance": {"cut": "end", "weights_sha256": "ab"}}
LARGE = 64 * 128 + 3000
NAME = piece_name(0)
SMALL = (1, JOB, 128)
"""Batch size, job and copies of an index whose shards have 1 image at first, and later 8."""
PIECE, NEXT = 64, 64 * 8
"""Images in its first piece, and in each that follows."""


def listing(count: int) -> list[Listed]:
    day = datetime(2024, 2, 29, 12, 30, 15, 123456, UTC)
    return [
        Listed(f"{i % 3}/{i:06d}.png", ("train", "test")[i % 2], str(i % 3), i, day) for i in range(count)
    ]


def start(folder: Folder, images: Iterable[Listed], batch_size: int = 32, **changed: object) -> Index:
    writer = IndexWriter.start(folder, images, batch_size, {**JOB, **changed})
    writer.finish()
    return writer.index


def small(folder: Folder, images: Iterable[Listed], **options: bool) -> IndexWriter:
    writer = IndexWriter.start(folder, images, *SMALL, **options)
    writer.finish()
    return writer


def rows(index: Index) -> list[Listed]:
    return [
        Listed(*row.values())
        for shard in index.shards(())
        for row in shard.drop_columns(["shard"]).to_pylist()
    ]


def forbidden() -> Iterable[Listed]:
    raise AssertionError("the images were listed again")
    yield


# Shards


@pytest.mark.parametrize("batch_size", [1, 20, 129, 1000])
@pytest.mark.parametrize("count", [1, 128, 129, 1001])
def test_every_row_is_in_one_shard_in_order(folder, batch_size, count):
    images = listing(count)
    index = start(folder, images, batch_size)
    assert rows(index) == images
    assert index.images == sum(index.shard_sizes) == count
    assert all(size % batch_size == 0 for size in index.shard_sizes[:-1])
    assert min(index.shard_sizes) > 0


@pytest.mark.parametrize(
    ("batch_size", "first", "later"), [(32, 128, 1024), (50, 150, 1050), (1, 128, 1024), (300, 300, 1200)]
)
def test_shards_grow_with_the_set(folder, batch_size, first, later):
    count = 64 * first + 3000
    index = start(folder, listing(count), batch_size)
    full, rest = divmod(3000, later)
    assert index.shard_sizes == [first] * 64 + [later] * full + ([rest] if rest else [])


def test_a_shard_is_a_slice_of_the_listing_and_is_left_out_when_it_is_done(folder):
    images = listing(LARGE)
    index = start(folder, images)
    assert len(index.shard_sizes) == 67
    left = sorted(set(range(67)) - {0, 3, 64, 66})
    for shard, table in zip(left, index.shards({0, 3, 64, 66}), strict=True):
        first = sum(index.shard_sizes[:shard])
        expected = [image.path for image in images[first : first + index.shard_sizes[shard]]]
        assert table["path"].to_pylist() == expected
        assert set(table["shard"].to_pylist()) == {shard}


def test_all_values_come_back(folder):
    images = [
        Listed("new\nline/tab\t.png", None, "new\nline", 2**40, datetime(1970, 1, 1, tzinfo=UTC)),
        Listed("日本/é😀\u202e.jpg", "test", "日本", 0, None),
        Listed("e\u0301 is not é", "train", None, None, datetime(2261, 1, 1, tzinfo=UTC)),
        Listed(" ", "validation", "", 1, None),
        Listed("a" * 5000, None, "'\"\\,;", None, None),
    ]
    index = start(folder, images)
    assert rows(index) == images
    assert rows(Index.open(folder)) == images


def test_work_begins_when_the_first_piece_is_listed(folder):
    """No more is looked at than tells that another piece follows; the rest is listed on demand."""
    images = iter(listing(64 * 128 + 64 * 1024 + 5))
    writer = IndexWriter.start(folder, images, 32, JOB)
    index = writer.index
    assert length_hint(images) == 64 * 1024 + 4
    assert (index.images, index.complete) == (64 * 128, False)
    shards = index.shards(())
    assert [next(shards)["shard"][0].as_py() for _ in range(64)] == list(range(64))
    growing = writer.grow()
    next(growing)
    assert (index.images, index.complete) == (64 * 128 + 64 * 1024, False)
    assert next(shards)["shard"][0].as_py() == 64
    writer.finish()
    assert (index.images, index.complete) == (64 * 128 + 64 * 1024 + 5, True)
    assert sum(table.num_rows for table in shards) == 63 * 1024 + 5


def test_a_reader_waits_for_what_is_being_listed(folder):
    writer = IndexWriter.start(folder, listing(PIECE + 5), *SMALL)
    sizes = ThreadPoolExecutor(1).submit(lambda: [table.num_rows for table in writer.index.shards(())])
    time.sleep(0.5)
    assert not sizes.done()
    writer.finish()
    assert sizes.result(timeout=10) == writer.index.shard_sizes


def test_a_reader_is_told_that_a_listing_was_stopped(folder):
    images = listing(PIECE + 5)
    writer = IndexWriter.start(folder, images, *SMALL)
    shards = ThreadPoolExecutor(1).submit(list, writer.index.shards(()))
    writer.stop()
    with pytest.raises(JobError, match="was stopped"):
        shards.result(timeout=10)
    again = IndexWriter.start(folder, images, *SMALL)
    again.finish()
    assert rows(again.index) == images
    again.stop()
    assert folder.names("index") == ["part-00000.parquet", "part-00001.parquet"]


def test_a_listing_in_another_thread_is_stopped_at_its_next_image(folder):
    going = Event()

    def images() -> Iterator[Listed]:
        yield from listing(64 * 128 + 64 * 1024)
        going.set()
        yield from (Listed(f"z{number}", None, None, None, None) for number in itertools.count())

    writer = IndexWriter.start(folder, images(), 32, JOB)
    listed = ThreadPoolExecutor(1).submit(writer.finish)
    assert going.wait(30)
    writer.stop()
    with pytest.raises(JobError, match="was stopped"):
        listed.result(timeout=30)


def test_an_index_is_sent_as_its_place(folder):
    index = start(folder, listing(300))
    sent = pickle.loads(pickle.dumps(index))
    assert rows(sent) == rows(index)
    assert len(pickle.dumps(index)) < 1000


# Counts


def test_count(folder):
    images = [*listing(LARGE), Listed("x", None, None, None, None)]
    index = start(folder, images)
    assert index.count("split", "label") == Counter((image.split, image.label) for image in images)
    assert index.count("label") == Counter((image.label,) for image in images)


# A job is started, and known again


def test_a_job_in_an_empty_folder_starts_with_plain_parquet(folder):
    Path(folder.path).mkdir()
    assert start(folder, listing(300)).job == JOB
    assert folder.names() == ["index"]
    assert folder.names("index") == [Path(NAME).name]
    table = pq.read_table(folder.join(NAME))
    assert table.schema.names == ["path", "split", "label", "size", "modified", "offset", "shard"]
    assert Counter(table["shard"].to_pylist()) == {0: 128, 1: 128, 2: 44}


@pytest.mark.parametrize("batch_size", [20, 64])
def test_the_same_job_keeps_its_shards_and_is_not_listed_again(folder, batch_size):
    images = listing(1001)
    sizes = start(folder, images, 20).shard_sizes
    for index in (start(folder, forbidden(), batch_size), Index.open(folder)):
        assert (index.shard_sizes, index.images, index.complete, index.job) == (sizes, 1001, True, JOB)
        assert rows(index) == images


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": "/other"}, ["source", "/images", "/other"]),
        ({"seed": 7}, ["seed", "7"]),
        ({"provenance": {"cut": "middle", "weights_sha256": "ab"}}, ["cut", "end", "middle"]),
        ({"more": 1}, ["more", "1"]),
    ],
)
def test_another_job_is_refused_with_the_difference(folder, changed, words):
    start(folder, listing(3))
    before = folder.read(NAME)
    with pytest.raises(UserError) as caught:
        start(folder, forbidden(), **changed)
    message = str(caught.value)
    assert all(word in message for word in [folder.uri, *words])
    assert not any(f"{name} " in message for name in {"source", "seed", "cut", "weights_sha256"} - {words[0]})
    assert folder.read(NAME) == before


@pytest.mark.parametrize("stranger", ["notes.txt", "photos/a.jpg", "manifest.json", ".hidden"])
def test_a_folder_of_something_else_is_refused(folder, stranger):
    folder.write(stranger, b"mine")
    name = stranger.partition("/")[0]
    with pytest.raises(UserError, match=rf"{folder.uri} is not empty .*it holds {name}"):
        start(folder, forbidden())
    assert folder.names() == [name]


def test_without_an_image_nothing_is_written(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        start(folder, Images.open(str(tmp_path / "empty")))
    assert not folder.exists()


def test_the_first_image_is_looked_for_in_the_listing_that_goes_on(folder):
    images = listing(300)
    rest = iter(images)
    listed = listing_for(folder, rest)
    assert length_hint(rest) == 299
    assert not folder.exists()
    assert rows(start(folder, listed)) == images
    # Where there is an index, no image is looked for.
    assert start(folder, listing_for(folder, forbidden())).images == 300


def test_a_listing_that_fails_on_its_way_leaves_nothing(folder):
    def images() -> Iterable[Listed]:
        yield from listing(300)
        raise UserError("cannot list the folder")

    with pytest.raises(UserError, match="cannot list"):
        start(folder, images())
    assert folder.names() == []
    assert start(folder, listing(3)).images == 3


def test_a_listing_that_fails_later_can_be_gone_on_with(folder):
    images = listing(PIECE + NEXT + 5)

    def unreadable() -> Iterable[Listed]:
        yield from images[: PIECE + 7]
        raise UserError("cannot list the folder")

    writer = IndexWriter.start(folder, unreadable(), *SMALL)
    with pytest.raises(JobError, match=r"cannot list the folder.*run it again"):
        writer.finish()
    assert writer.index.images == PIECE
    assert rows(small(folder, images).index) == images


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_listing_that_was_killed_goes_on_after_what_is_written(folder, pieces):
    """What came meanwhile belongs to the job, wherever in the listing it comes."""
    images = listing(PIECE + NEXT + 5)
    growing = IndexWriter.start(folder, images, *SMALL).grow()
    for _ in range(pieces - 1):
        next(growing)
    before = [folder.read(piece_name(piece)) for piece in range(pieces)]
    new = [Listed("0/0.png", None, None, None, None), Listed("z", None, None, None, None)]
    listed = [PIECE, PIECE + NEXT][pieces - 1]
    expected = [*images[:listed], new[0], *images[listed:], new[1]]
    assert rows(small(folder, [new[0], *images, new[1]]).index) == expected
    assert [folder.read(piece_name(piece)) for piece in range(pieces)] == before


@pytest.mark.parametrize("left", [PIECE - 1, PIECE])
def test_a_listing_goes_on_though_images_are_gone(folder, left):
    """Also if there is nothing left to list: nobody waits for another piece."""
    images = listing(PIECE + 5)
    IndexWriter.start(folder, images, *SMALL)
    writer = IndexWriter.start(folder, images[:left], *SMALL)
    assert writer.index.complete
    assert writer.diff.changes().removed == PIECE - left
    assert rows(writer.index) == images[:PIECE] == rows(Index.open(folder))


def test_a_job_that_was_killed_while_listing_starts_again(folder):
    """SIGKILL leaves the temporary file and its folder."""
    folder.write("index/.part-00000.parquet.0123abcd.tmp", b"PAR1 and then the power went")
    images = listing(300)
    assert rows(start(folder, images)) == images


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    folder = Folder.open(str(tmp_path / "file" / "features"))
    with pytest.raises(UserError, match=r"^cannot write to .*/file/features: Not a directory$"):
        start(folder, listing(3))


# Images that come later


def extend(folder: Folder, images: Iterable[Listed]) -> IndexWriter:
    writer = IndexWriter.start(folder, images, 32, JOB, extend=True)
    writer.finish()
    return writer


@pytest.mark.parametrize("count", [1, 30, PIECE, PIECE + 5, PIECE + NEXT])
def test_new_images_come_in_shards_behind_the_others(folder, count):
    images, new = listing(count), [image._replace(path=f"0/new-{image.path}") for image in listing(200)]
    sizes = small(folder, images).index.shard_sizes
    writer = small(folder, sorted([*images, *new]), extend=True)
    index = writer.index
    assert index.shard_sizes[: len(sizes)] == sizes
    assert rows(index) == rows(Index.open(folder)) == [*images, *sorted(new)]
    assert index.images == Index.open(folder).images == count + 200
    shards = [shard for table in index.shards(()) for shard in set(table["shard"].to_pylist())]
    assert shards == list(range(len(index.shard_sizes)))
    assert writer.diff.changes() == Changes(added=200)
    again = small(folder, [*images, *new], extend=True)
    assert (again.index.complete, again.index.shard_sizes) == (True, index.shard_sizes)
    assert again.diff.changes() == Changes(added=0)


def test_many_small_additions(folder):
    images = listing(70 * 3)
    start(folder, images[:3])
    for end in range(6, len(images) + 1, 3):
        extend(folder, images[:end])
    index = Index.open(folder)
    assert index.shard_sizes == [3] * 70
    assert rows(index) == images
    assert folder.names("index") == ["part-00000.parquet", "part-00001.parquet"]


def test_an_extension_that_was_killed_while_listing(folder):
    """Run again, with or without --extend, it lists the rest, and nothing twice."""
    images, new = listing(30), [Listed(f"0/{i}", None, None, i, None) for i in range(PIECE)]
    small(folder, images)
    writer = IndexWriter.start(folder, [*new, *images], *SMALL, extend=True)
    assert not writer.index.complete
    again = small(folder, [*new, *images]).index
    assert again.complete
    assert rows(again) == [*images, *new]


def test_without_extend_nothing_is_listed(folder):
    start(folder, listing(300))
    extend(folder, listing(400))
    writer = IndexWriter.start(folder, forbidden(), 32, JOB)
    assert (writer.index.images, writer.diff) == (400, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 7},
        {"size": None},
        {"modified": datetime(2024, 2, 29, 12, 30, 15, 123457, UTC)},
        {"modified": None},
        {"label": "other"},
        {"split": None},
    ],
)
def test_an_image_that_was_replaced_is_noticed(folder, changed):
    images = listing(300)
    start(folder, images)
    images[200] = images[200]._replace(**changed)
    expected = Changes(added=0, replaced=1, removed=1, replaced_paths=[images[200].path])
    assert extend(folder, images[1:]).diff.changes() == expected


CHANGES = [
    (lambda images: [*images, Listed("new.png", None, None, 1, None)], "1 added, 0 replaced, 0 removed"),
    (
        lambda images: [images[0]._replace(size=9), *images[1:]],
        "0 added, 1 replaced, e.g. 0/000000.png, 0 removed",
    ),
    (lambda images: images[:-1], "0 added, 0 replaced, 1 removed"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_stopped_job_does_not_go_on_with_other_images(folder, change, words):
    images = listing(PIECE + 5)
    small(folder, images)
    assert small(folder, images, work=folder).index.images == len(images)
    for _ in range(2):  # The first refusal changes nothing.
        with pytest.raises(UserError, match=f"{words}.: remove {folder.uri}, which has results"):
            small(folder, change(images), work=folder)
    assert rows(Index.open(folder)) == images


def test_a_stopped_listing_goes_on_unless_listed_images_have_changed(folder):
    images = listing(PIECE + 5)
    IndexWriter.start(folder, images, *SMALL)
    changed = [*images[1:], images[0]._replace(path="z.png")]
    with pytest.raises(JobError, match=rf"0 added, 0 replaced, 1 removed.: remove {folder.uri}"):
        small(folder, changed, work=folder)
    other = folder.child("other")
    IndexWriter.start(other, images, *SMALL)
    assert small(other, [*images, changed[-1]], work=other).index.images == len(images) + 1


# Damage


@pytest.mark.parametrize("how", ["empty", "text", "truncated", "overwritten"])
def test_a_damaged_index(folder, how):
    start(folder, listing(5000))
    folder.write(NAME, damaged_parquet(folder.read(NAME))[how])
    for attempt in (Index.open, lambda folder: start(folder, forbidden())):
        with pytest.raises(JobError) as caught:
            rows(attempt(folder))
        assert folder.join(NAME) in str(caught.value)


def test_parquet_that_is_no_index(folder):
    start(folder, listing(3))
    table = pq.read_table(folder.join(NAME))
    unstamped, reversed_columns = table.replace_schema_metadata(), table.select(SCHEMA.names[::-1])
    for other in (table.drop_columns(["shard"]), unstamped, reversed_columns):
        pq.write_table(other, folder.join(NAME))
        with pytest.raises(JobError):
            Index.open(folder)


@pytest.mark.parametrize(
    "values", [{"shards": [-1, 4]}, {"shards": "3"}, {"shards": [0, 3]}, {"job": "text"}]
)
def test_an_index_made_to_do_harm(folder, values):
    start(folder, listing(3))
    table = pq.read_table(folder.join(NAME))
    harm = stamp({**read_stamp(table.schema.metadata), **values})
    pq.write_table(table.replace_schema_metadata(harm), folder.join(NAME))
    with pytest.raises(JobError, match="cannot be read"):
        Index.open(folder)


def test_an_index_on_remote_storage():
    folder, images = Folder.open("memory://index-test"), listing(300)
    try:
        assert rows(start(folder, images)) == images
        assert start(folder, forbidden()).images == 300
    finally:
        folder.remove()


def test_pieces_are_asked_for_side_by_side(tmp_path):
    written, storage = small(Folder.open(str(tmp_path)), listing(PIECE + 10 * NEXT)).index, SlowStorage()
    index = Index.open(storage.folder(tmp_path))
    assert (index.shard_sizes, index.complete) == (written.shard_sizes, True)
    assert storage.most["open"] > 5


@pytest.mark.parametrize("count", [PIECE + 2 * NEXT, PIECE + 2 * NEXT + 3])
def test_pieces_that_are_done_are_not_read(folder, count):
    small(folder, listing(count))
    folder.remove(piece_name(0))
    folder.remove(piece_name(1))
    left = pa.concat_tables([SCHEMA.empty_table(), *Index(folder, JOB).shards(range(192))])
    assert left["path"].to_pylist() == [image.path for image in listing(count)[PIECE + 2 * NEXT :]]
