"""Plugins are found by name, and a bad one says what is wrong with it without stopping the others."""

import h5py
import pytest

from tests.support.plugins import ARRAYS, GOOD
from tlray.core.config import NetworkConfig
from tlray.core.errors import UserError
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.models.weights import digest

pytestmark = pytest.mark.usefixtures("keras_home")


def message(kind: str, name: str) -> str:
    with pytest.raises(UserError) as caught:
        registry.find(kind, name).load()
    text = str(caught.value)
    assert len(text.splitlines()) <= 2, text
    return text


# Finding


def test_the_built_ins_come_through_entry_points():
    for kind, name in (("backbones", "vgg16"), ("heads", "dense-256")):
        plugin = registry.find(kind, name)
        assert (plugin.package, plugin.load().name) == ("tlray", name)


def test_an_installed_plugin_is_found(package):
    points = {"heads": {"top": "Top"}, "weights": {"store": "Store"}}
    package("good-plugins", GOOD, "2.3", backbones={"z": "Net", "net": "Net"}, **points)
    names = [plugin.name for plugin in registry.installed("backbones")]
    assert names == sorted(names)
    assert {"net", "vgg16", "z"} <= set(names)
    plugin = registry.find("backbones", "net")
    assert (plugin.kind, plugin.name, plugin.package) == ("backbones", "net", "good-plugins")
    assert plugin.version == "2.3"
    assert registry.backbone("net").image_size == 24
    assert registry.head("top").name == "top"
    assert "store" in [provider.name for provider in registry.weights_providers()]


def test_nothing_is_imported_before_it_is_used(package):
    package("slow-plugins", "raise SystemExit('imported')", heads={"slow": "Slow"})
    assert "slow" in [plugin.name for plugin in registry.installed("heads")]
    registry.find("heads", "slow")
    assert registry.head("linear").name == "linear"


def test_an_unknown_name_brings_the_nearest_or_all():
    assert "'dense-265': did you mean dense-256" in message("heads", "dense-265")
    text = message("heads", "qqqqqqqq")
    assert all(name in text for name in ("dense-256", "dense-1024", "linear"))


def test_a_clash_names_both_packages(package):
    package("one-plugins", GOOD, "1.1", backbones={"net": "Net"})
    package("two-plugins", GOOD, "2.2", backbones={"net": "Net"})
    text = message("backbones", "net")
    assert "one-plugins 1.1" in text
    assert "two-plugins 2.2" in text
    assert registry.backbone("vgg16").name == "vgg16"
    package("three-plugins", GOOD, backbones={"vgg16": "Net"}, heads={"vgg16": "Top"})
    assert "tlray 0" in message("backbones", "vgg16")
    assert registry.find("heads", "vgg16").package == "three-plugins"  # Each kind is a name space.


# Bad plugins


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ("import no_such_module_at_all", ["no_such_module_at_all"]),
        ("raise RuntimeError('the licence has run out')", ["the licence has run out"]),
        ("class Other: pass", ["Top"]),
        (GOOD.replace("class Top", "def Top(): raise ValueError('why')\nclass _Top"), ["why"]),
        ("class Top:\n    name = 'top'", ["expected a subclass of tlray.Head"]),
        (GOOD.replace("class Top(Head)", "class Top(Backbone)"), ["Top"]),
        (GOOD.replace("def build(self, feature_shape", "def built(self, feature_shape"), ["build"]),
        (GOOD.replace('name = "top"', 'name = "tip"'), ["tip", "top"]),
        (GOOD.replace('name = "top"', ""), ["top"]),
    ],
)
def test_a_broken_plugin_says_who_and_why(package, source, reasons):
    package("bad-plugins", source, "3.4", heads={"top": "Top"})
    text = message("heads", "top")
    for word in ["bad-plugins 3.4", *reasons]:
        assert word in text


def test_a_clash_of_weights_plugins(package):
    for one in ("one-plugins", "two-plugins"):
        package(one, GOOD, weights={"store": "Store"})
    with pytest.raises(UserError, match=r"one-plugins 1\.0.*two-plugins 1\.0"):
        list(registry.weights_providers())


def test_a_broken_weights_plugin_stops_only_who_needs_it(package, keras_home):
    """These weights are in the Keras cache; nobody else is asked for them."""
    package("good-plugins", GOOD, backbones={"net": "Net"})
    package("bad-plugins", "import no_such_module_at_all", weights={"a": "A"})
    (keras_home / "models").mkdir(parents=True)
    with h5py.File(keras_home / "models" / "net.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"kernel", b"bias"]
        group["kernel"], group["bias"] = ARRAYS
    frozen = FrozenPart.decide(NetworkConfig(backbone="net", weights="known", precision="float32"))
    assert frozen.provenance.weights_sha256 == digest(ARRAYS)
    assert frozen.provenance.package == "good-plugins 1.0"
