"""`tlray plugins list` and `show`: all that is installed, with what is wrong with it."""

import json
from typing import Any

import pytest

from tests.support.command_line import invoke
from tests.support.plugins import GOOD

pytestmark = pytest.mark.usefixtures("keras_home")


def listed() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(invoke("plugins", "list", "--json").stdout)["plugins"]}


def test_list(package):
    points = {"backbones": {"net": "Net"}, "heads": {"top": "Top"}, "weights": {"store": "Store"}}
    package("good-plugins", GOOD, "2.3", **points)
    rows = listed()
    assert {"vgg16", "dense-256", "dense-1024", "linear"} < set(rows)
    assert (rows["net"]["package"], rows["net"]["version"]) == ("good-plugins", "2.3")
    assert [rows[name]["kind"] for name in ("net", "top", "store")] == ["backbone", "head", "weights"]
    assert not any("broken" in rows[name] for name in ("net", "top", "store", "vgg16"))
    net = rows["net"]
    assert (net["cuts"], net["weights"], net["weights_here"]) == (["early", "late"], ["known"], [])
    (line,) = (line for line in invoke("plugins", "list").stdout.splitlines() if " net " in line)
    expected = "backbone net good-plugins 2.3 24 px, 2 cuts, early to late, weights known"
    assert " ".join(line.split()) == expected


def test_show(package):
    package("good-plugins", GOOD, "2.3", heads={"top": "Top"})
    text = invoke("plugins", "show", "top").stdout
    for word in ("top", "good-plugins", "2.3", "A small head.", "rmsprop", "0.0001"):
        assert word in text


@pytest.mark.slow
def test_show_builds_a_backbone(package):
    package("good-plugins", GOOD, backbones={"net": "Net"})
    (row,) = json.loads(invoke("plugins", "show", "small-vggnet", "--json").stdout)["plugins"]
    assert (row["parameters"], row["features"], row["image_size"]) == (427_520, [8, 8, 128], 64)
    assert "427,520 parameters" in invoke("plugins", "list", "--parameters").stdout
    assert "build(24) failed: NotImplementedError" in invoke("plugins", "show", "net").stdout


def test_show_tells_whether_the_weights_are_here(package, keras_home):
    package("good-plugins", GOOD, backbones={"net": "Net"})
    (keras_home / "models").mkdir(parents=True)
    (keras_home / "models" / "net.h5").write_bytes(b"")
    assert listed()["net"]["weights_here"] == ["known"]
    package("more-plugins", GOOD.replace('"other"', '"net"'), weights={"store": "Store"})
    (keras_home / "models" / "net.h5").unlink()
    assert listed()["net"]["weights_here"] == ["known"]


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
KINDS = {"backbones": ("net", "Net"), "heads": ("top", "Top"), "weights": ("store", "Store")}
SAID = {"backbones": {"no size", "no cuts", "empty cuts"}, "heads": set(), "weights": {"no offers"}}
"""What each kind has to say, beside being what it is; a docstring is no duty."""


def test_bad_plugins_do_not_stop_the_list(package):
    """Every way to be bad of each kind, all installed at once."""
    expected = {}
    for how, source in BROKEN.items():
        suffix = how.replace(" ", "-")
        for _, (name, _) in KINDS.items():
            source = source.replace(f'name = "{name}"', f'name = "{name}-{suffix}"')
        points = {kind: {f"{name}-{suffix}": value} for kind, (name, value) in KINDS.items()}
        package(f"bad-{suffix}", source, **points)
        for kind, (name, _) in KINDS.items():
            expected[f"{name}-{suffix}"] = how in {"import", "exits", "base"} | SAID[kind]
    rows, lines = listed(), invoke("plugins", "list").stdout.splitlines()
    assert {name: "broken" in rows[name] for name in expected} == expected
    assert not any("broken" in rows[name] for name in ("vgg16", "linear"))
    for name, is_broken in expected.items():
        (line,) = (line for line in lines if f" {name} " in line)
        assert f" {rows[name]['package']} " in line
        if is_broken:
            assert rows[name]["broken"] in invoke("plugins", "show", name).stdout


def test_a_clash_is_listed_as_broken_twice(package):
    for one in ("one-plugins", "two-plugins"):
        package(one, GOOD, backbones={"net": "Net"})
    rows = json.loads(invoke("plugins", "list", "--json").stdout)["plugins"]
    broken = [row for row in rows if row["name"] == "net"]
    assert len(broken) == 2
    assert all("one-plugins" in row["broken"] and "two-plugins" in row["broken"] for row in broken)
