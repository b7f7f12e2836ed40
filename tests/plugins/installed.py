"""`make test-plugins`: the contract of plugins that are installed and not tlray's own; some minutes."""

import pytest

from tlray.models import registry
from tlray.plugins import testing

ONE_OF_EACH_KIND = (
    "convnext-tiny",  # layer normalisation, and layers that scale
    "efficientnet-lite0",  # weights that are here, of PyTorch
    "inception-v3",  # branches that are joined
    "mobilenet",  # a chain of depthwise convolutions
    "mobilenet-v3-small",  # squeeze and excitation
    "xception",  # separable convolutions, and shortcuts
)


def names(kind: str) -> list[str]:
    return [plugin.name for plugin in registry.installed(kind) if plugin.package != "tlray"]


def of_other_networks() -> list[str]:
    """`make test-plugins-all` checks these as well."""
    return [name for name in names("backbones") if name not in ONE_OF_EACH_KIND]


test_backbones = testing.backbone_contract(*ONE_OF_EACH_KIND)
test_other_backbones = pytest.mark.every_network(testing.backbone_contract(*of_other_networks()))
test_heads = testing.head_contract(*names("heads"))
test_weights = testing.weights_contract(*names("weights"))
