"""`make test-plugins`: the contract of every plugin that is installed and not tlray's own; some minutes."""

from __future__ import annotations

from tlray.models import registry
from tlray.plugins import testing


def names(kind: str) -> list[str]:
    return [plugin.name for plugin in registry.installed(kind) if plugin.package != "tlray"]


test_backbones = testing.backbone_contract(*names("backbones"))
test_heads = testing.head_contract(*names("heads"))
test_weights = testing.weights_contract(*names("weights"))
