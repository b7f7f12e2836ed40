"""The contract as tests: one line in a plugin's test file, one test for each check. Needs pytest."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from tlray.plugins import contract
from tlray.plugins.contract.check import Check, Elsewhere, Subject

Test = Callable[..., None]
_elsewhere = Elsewhere()
"""Of the test file that runs, ended with it."""


def backbone_contract(*names: str) -> Test:
    """A test of backbones: `test_contract = tlray.plugins.testing.backbone_contract("my-net")`."""
    return _contract("backbones", names)


def head_contract(*names: str) -> Test:
    """A test of heads, in the same way."""
    return _contract("heads", names)


def weights_contract(*names: str) -> Test:
    """A test of weights providers, in the same way."""
    return _contract("weights", names)


def _contract(kind: str, names: tuple[str, ...]) -> Test:
    @lru_cache(maxsize=1)  # Checks of one plugin follow each other, and share what it builds.
    def subject(name: str) -> Subject[Any]:
        return contract.SUBJECTS[kind](name, _elsewhere)

    @pytest.mark.parametrize("check", contract.CHECKS[kind], ids=lambda check: check.name)
    @pytest.mark.parametrize("name", names)
    def test_contract(name: str, check: Check, request: pytest.FixtureRequest) -> None:
        request.node.getparent(pytest.Module).addfinalizer(_elsewhere.close)
        outcome = check.outcome(subject(name))
        if outcome.state == "skipped":
            pytest.skip(outcome.why)
        if outcome.error is not None:
            raise outcome.error

    return test_contract
