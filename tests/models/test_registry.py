"""Plugins are found by name, and a bad one says what is wrong with it without stopping the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from tlray.cli import app
from tlray.core.config import NetworkConfig
from tlray.core.errors import UserError
from tlray.models import registry
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Backbone, Head
from tlray.models.weights import digest

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)]

GOOD = f'''
from tlray.models.interfaces import Backbone, KnownWeights
from tlray.models.interfaces import Head
from tlray.models.weights import WeightsProvider

class Net(Backbone):
    """A small network."""
    name = "net"
    image_size = 24
    cuts = ("early", "late")
    weights = {{"known": KnownWeights(sha256="{digest(ARRAYS)}", url="https://example.invalid/net.h5")}}
    def build(self, image_size): raise NotImplementedError
    def preprocess(self, pixels): return pixels

class Top(Head):
    """A small head."""
    name = "top"
    def build(self, feature_shape, classes): raise NotImplementedError

class Store(WeightsProvider):
    """Weights of another network."""
    name = "store"
    offers = (("other", "known"),)
    def provide(self, backbone, weights, folder): return None
'''


def message(kind: str, name: str) -> str:
    with pytest.raises(UserError) as caught:
        registry.find(kind, name).load()
    text = str(caught.value)
    assert len(text.splitlines()) <= 2, text
    return text


def invoke(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["plugins", *arguments])
    assert result.exit_code == status, result.output
    return result


def listed() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(invoke("list", "--json").stdout)["plugins"]}


@pytest.fixture(autouse=True)
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights of this machine."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


# Finding


@pytest.mark.parametrize(
    ("kind", "name", "base"),
    [
        ("backbones", "vgg16", Backbone),
        ("heads", "dense-256", Head),
        ("heads", "dense-1024", Head),
        ("heads", "linear", Head),
    ],
)
def test_the_built_ins_come_through_entry_points(kind, name, base):
    plugin = registry.find(kind, name)
    assert plugin.package == "tlray"
    loaded = plugin.load()
    assert isinstance(loaded, base)
    assert loaded.name == name


def test_an_installed_plugin_is_found(package):
    package(
        "good-plugins",
        GOOD,
        "2.3",
        backbones={"net": "Net"},
        heads={"top": "Top"},
        weights={"store": "Store"},
    )
    plugin = registry.find("backbones", "net")
    assert (plugin.kind, plugin.name, plugin.package, plugin.version) == (
        "backbones",
        "net",
        "good-plugins",
        "2.3",
    )
    assert registry.backbone("net").image_size == 24
    assert registry.head("top").name == "top"
    assert "store" in [provider.name for provider in registry.weights_providers()]


def test_they_are_sorted_by_name(package):
    package("good-plugins", GOOD, backbones={"net": "Net"})
    package("more-plugins", GOOD, backbones={"z": "Net", "a": "Net"})
    names = [plugin.name for plugin in registry.installed("backbones")]
    assert names == sorted(names)
    assert {"a", "net", "vgg16", "z"} <= set(names)


def test_nothing_is_imported_before_it_is_used(package):
    package("slow-plugins", "raise SystemExit('imported')", heads={"slow": "Slow"})
    assert "slow" in [plugin.name for plugin in registry.installed("heads")]
    registry.find("heads", "slow")
    assert registry.head("linear").name == "linear"


def test_a_kind_is_a_name_space(package):
    package("good-plugins", GOOD, heads={"vgg16": "Top"})
    assert registry.find("backbones", "vgg16").package == "tlray"
    assert registry.find("heads", "vgg16").package == "good-plugins"


@pytest.mark.parametrize(
    ("kind", "name", "nearest"), [("backbones", "vg16", "vgg16"), ("heads", "dense-265", "dense-256")]
)
def test_an_unknown_name_brings_the_nearest(kind, name, nearest):
    text = message(kind, name)
    assert repr(name) in text
    assert nearest in text


def test_an_unknown_name_near_to_none_brings_all():
    text = message("heads", "qqqqqqqq")
    assert all(name in text for name in ("dense-256", "dense-1024", "linear"))


def test_a_clash_names_both_packages(package):
    package("one-plugins", GOOD, "1.1", backbones={"net": "Net"})
    package("two-plugins", GOOD, "2.2", backbones={"net": "Net"})
    text = message("backbones", "net")
    assert "one-plugins 1.1" in text
    assert "two-plugins 2.2" in text
    assert registry.backbone("vgg16").name == "vgg16"


def test_a_clash_with_a_built_in(package):
    package("one-plugins", GOOD, backbones={"vgg16": "Net"})
    text = message("backbones", "vgg16")
    assert "one-plugins" in text
    assert "tlray 0" in text


# Bad plugins


@pytest.mark.parametrize(
    ("source", "reasons"),
    [
        ("import no_such_module_at_all", ["no_such_module_at_all"]),
        ("x = 1 +", ["SyntaxError"]),
        ("raise RuntimeError('the licence has run out')", ["the licence has run out"]),
        ("class Other: pass", ["Top"]),
        ("class Top:\n    def __init__(self): raise OSError('no such file')", ["no such file"]),
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


# `tlray plugins`


def test_list():
    lines = invoke("list").stdout.splitlines()
    assert any("backbone" in line and "vgg16" in line and "tlray" in line for line in lines)
    for head in ("dense-256", "dense-1024", "linear"):
        assert any(line.startswith("head ") and head in line for line in lines)


def test_list_json(package):
    package(
        "good-plugins",
        GOOD,
        "2.3",
        backbones={"net": "Net"},
        heads={"top": "Top"},
        weights={"store": "Store"},
    )
    found = listed()
    assert {"vgg16", "dense-256", "dense-1024", "linear"} < set(found)
    assert (found["net"]["package"], found["net"]["version"]) == ("good-plugins", "2.3")
    assert [found[name]["kind"] for name in ("net", "top", "store")] == ["backbone", "head", "weights"]
    assert not any("broken" in found[name] for name in ("net", "top", "store", "vgg16"))


def test_show(package):
    package("good-plugins", GOOD, "2.3", heads={"top": "Top"})
    text = invoke("show", "top").stdout
    for word in ("top", "good-plugins", "2.3", "A small head.", "rmsprop", "0.0001"):
        assert word in text


def test_a_backbone_in_the_list(package):
    package("good-plugins", GOOD, "2.3", backbones={"net": "Net"})
    row = listed()["net"]
    assert (row["cuts"], row["weights"], row["weights_here"]) == (["early", "late"], ["known"], [])
    (line,) = (line for line in invoke("list").stdout.splitlines() if " net " in line)
    expected = "backbone net good-plugins 2.3 24 px, 2 cuts, early to late, weights known"
    assert " ".join(line.split()) == expected


@pytest.mark.slow
def test_show_builds_a_backbone(package):
    package("good-plugins", GOOD, backbones={"net": "Net"})
    (row,) = json.loads(invoke("show", "small-vggnet", "--json").stdout)["plugins"]
    assert (row["parameters"], row["features"], row["image_size"]) == (427_520, [8, 8, 128], 64)
    assert "427,520 parameters" in invoke("list", "--parameters").stdout
    assert "build(24) failed: NotImplementedError" in invoke("show", "net").stdout


def test_show_tells_whether_the_weights_are_here(package, keras_home):
    package("good-plugins", GOOD, backbones={"net": "Net"})
    (keras_home / "models").mkdir(parents=True)
    (keras_home / "models" / "net.h5").write_bytes(b"")
    assert listed()["net"]["weights_here"] == ["known"]
    package("more-plugins", GOOD.replace('"other"', '"net"'), weights={"store": "Store"})
    (keras_home / "models" / "net.h5").unlink()
    assert listed()["net"]["weights_here"] == ["known"]


def test_show_of_an_unknown_plugin():
    result = invoke("show", "vgg61", status=2)
    assert "vgg16" in result.stderr
    result = invoke("show", "vgg61", "--json", status=2)
    assert json.loads(result.stdout)["exit_status"] == 2


BROKEN = {
    "import": "import no_such_module_at_all",
    "exits": "raise SystemExit(3)",
    "base": "class Net: pass\nclass Top: pass\nclass Store: pass",
    "no docstring": "import re\n"
    + GOOD.replace('"""A small network."""', "").replace('"""A small head."""', ""),
    "no size": GOOD.replace("image_size = 24", ""),
    "no cuts": GOOD.replace('cuts = ("early", "late")', ""),
    "empty cuts": GOOD.replace('cuts = ("early", "late")', "cuts = ()"),
    "no offers": GOOD.replace('offers = (("other", "known"),)', ""),
}
FINE = {"no docstring"}
"""There is nothing wrong with these, they only say less."""


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("backbones", "net", "Net"), ("heads", "top", "Top"), ("weights", "store", "Store")],
)
def test_a_bad_plugin_does_not_stop_the_list(package, how, kind, name, value):
    package("bad-plugins", BROKEN[how], **{kind: {name: value}})
    found = listed()
    assert {"vgg16", "linear", name} <= set(found)
    assert "broken" not in found["vgg16"]
    whole = {"backbones": {"no offers"}, "heads": {"no size", "no cuts", "empty cuts", "no offers"}}
    fine = FINE | whole.get(kind, {"no size", "no cuts", "empty cuts"})
    assert ("broken" in found[name]) == (how not in fine)
    line = next(line for line in invoke("list").stdout.splitlines() if f" {name} " in line)
    assert "bad-plugins" in line
    if "broken" in found[name]:
        assert found[name]["broken"] in invoke("show", name).stdout


def test_a_clash_is_listed_as_broken_twice(package):
    for one in ("one-plugins", "two-plugins"):
        package(one, GOOD, backbones={"net": "Net"})
    rows = json.loads(invoke("list", "--json").stdout)["plugins"]
    broken = [row for row in rows if row["name"] == "net"]
    assert len(broken) == 2
    assert all("one-plugins" in row["broken"] and "two-plugins" in row["broken"] for row in broken)


def test_listing_imports_nothing_heavy(package):
    """A plugin author is told to import Keras only in methods; the list shows that we do."""
    code = (
        "import sys; from typer.testing import CliRunner; from tlray.cli import app\n"
        "assert CliRunner().invoke(app, ['plugins', 'list']).exit_code == 0\n"
        "print(*({'ray', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
