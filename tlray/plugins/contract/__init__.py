"""What plugins must keep to, as tables of checks, which `tlray plugins check` and pytest run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tlray.plugins.contract import backbones, heads, providers
from tlray.plugins.contract.check import Check, Elsewhere, Outcome, Subject
from tlray.plugins.contract.subject import BackboneSubject

SUBJECTS: dict[str, type[Subject[Any]]] = {
    "backbones": BackboneSubject,
    "heads": heads.HeadSubject,
    "weights": providers.ProviderSubject,
}
"""By kind: the plugin that is checked, and what its checks share."""
CHECKS: dict[str, Sequence[Check]] = {
    "backbones": backbones.CHECKS,
    "heads": heads.CHECKS,
    "weights": providers.CHECKS,
}
"""By kind: the contract, in the order in which it is checked."""


def run(kind: str, name: str, elsewhere: Elsewhere) -> Iterator[Outcome]:
    """Check one plugin, a check at a time; one that fails does not stop those that can do without it."""
    subject = SUBJECTS[kind](name, elsewhere)
    return (check.outcome(subject) for check in CHECKS[kind])
