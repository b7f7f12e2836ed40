"""The contract of plugins: lists of checks, which `tlray plugins check` and pytest run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tlray.plugins.contract import backbones, heads, providers
from tlray.plugins.contract.check import Check, FreshProcess, Outcome, Subject
from tlray.plugins.contract.subject import BackboneSubject

SUBJECTS: dict[str, type[Subject[Any]]] = {
    "backbones": BackboneSubject,
    "heads": heads.HeadSubject,
    "weights": providers.ProviderSubject,
}
"""The class of the subject of the checks, for each kind of plugin."""
CHECKS: dict[str, Sequence[Check]] = {
    "backbones": backbones.CHECKS,
    "heads": heads.CHECKS,
    "weights": providers.CHECKS,
}
"""The checks of each kind of plugin, in the order in which they run."""


def run(kind: str, name: str, fresh_process: FreshProcess) -> Iterator[Outcome]:
    """Run the checks of one plugin one by one; after a vital check fails, the others are skipped."""
    subject = SUBJECTS[kind](name, fresh_process)
    return (check.outcome(subject) for check in CHECKS[kind])
