"""The contract as pytest tests: one line in a plugin's test file gives one test for each check."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from tlray.plugins import contract
from tlray.plugins.contract.check import Check, FreshProcess, Subject

Test = Callable[..., None]
_fresh_process = FreshProcess()
"""The process for the tests of one file; it ends with them."""


def backbone_contract(*names: str) -> Test:
    """The tests of backbones, e.g. `test_contract = tlray.plugins.testing.backbone_contract("my-net")`."""
    return _contract("backbones", names)


def head_contract(*names: str) -> Test:
    """The tests of heads, used like `backbone_contract`."""
    return _contract("heads", names)


def weights_contract(*names: str) -> Test:
    """The tests of weights providers, used like `backbone_contract`."""
    return _contract("weights", names)


def _contract(kind: str, names: tuple[str, ...]) -> Test:
    @lru_cache(maxsize=1)  # The checks of one plugin run in a row and share its subject.
    def subject(name: str) -> Subject[Any]:
        return contract.SUBJECTS[kind](name, _fresh_process)

    @pytest.mark.parametrize("check", contract.CHECKS[kind], ids=lambda check: check.name)
    @pytest.mark.parametrize("name", names)
    def test_contract(name: str, check: Check, request: pytest.FixtureRequest) -> None:
        request.node.getparent(pytest.Module).addfinalizer(_fresh_process.close)
        outcome = check.outcome(subject(name))
        if outcome.state == "skipped":
            pytest.skip(outcome.reason)
        if outcome.error is not None:
            raise outcome.error

    return test_contract
