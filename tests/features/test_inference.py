"""What a job says when the listing of its images fails."""

from concurrent.futures import Future
from unittest.mock import Mock

import pytest

from tlray.core.errors import JobError, UserError
from tlray.features import inference


@pytest.mark.parametrize("is_new", [True, False])
def test_a_job_that_has_begun_says_what_to_remove_when_its_labels_are_wrong(is_new):
    """A new job removes its index itself; see `IndexWriter.grow` for the message of the other one."""
    mistake, failure = UserError("mend the labels"), JobError("mend the labels; then remove /set")
    failure.__cause__ = mistake
    listing: Future[None] = Future()
    listing.set_exception(failure)
    announce = Mock()
    with pytest.raises((UserError, JobError)) as caught:
        inference._announce(listing, 0, Mock(), announce, is_new)
    assert caught.value is (mistake if is_new else failure)
    announce.assert_not_called()
