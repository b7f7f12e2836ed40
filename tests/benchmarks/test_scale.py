"""docs/scale.md says of shards what the code does."""

from tests import ROOT
from tlray.images.index import SHARDS_PER_PIECE
from tlray.images.index_writer import shard_size

PAGE = (ROOT / "docs" / "scale.md").read_text()


def shards_of(images: int) -> int:
    first = sum(shard_size(shard, 32, 1) for shard in range(SHARDS_PER_PIECE))
    return SHARDS_PER_PIECE - (first - images) // shard_size(SHARDS_PER_PIECE, 32, 1)


def test_the_page_counts_shards_as_the_index_does():
    for images in (10**7, 10**9):
        shards = shards_of(images)
        assert f"{shards:,}" in PAGE
        assert f"{-(-shards // SHARDS_PER_PIECE):,} files" in PAGE


def test_the_page_knows_the_size_of_a_shard():
    size = shard_size(SHARDS_PER_PIECE, 32, 1)
    assert f"| {size:,} images |" in PAGE
    assert f"{size * SHARDS_PER_PIECE:,} images a file" in PAGE
    assert f"{size * 150**2 * 3 / 1e6:.0f} MB at 150 px, {size * 224**2 * 3 / 1e6:.0f} MB at 224" in PAGE
