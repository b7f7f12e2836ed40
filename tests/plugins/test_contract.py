"""Every plugin that is installed keeps the contract, and each way to break it has its sentence."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import ROOT
from tests.support.command_line import invoke
from tlray.core.errors import UserError
from tlray.models import registry
from tlray.plugins import contract, new_package, testing

HERE = SimpleNamespace(call=lambda function, *arguments: function(*arguments))
"""In place of an actor in another process."""


def names(kind: str) -> list[str]:
    """Tlray's own; `make test-plugins` checks the others."""
    return [plugin.name for plugin in registry.installed(kind) if plugin.package == "tlray"]


test_backbones = pytest.mark.slow(testing.backbone_contract(*names("backbones")))
test_heads = pytest.mark.slow(testing.head_contract(*names("heads")))


def failed(kind: str, name: str, last: str = "") -> dict[str, str]:
    """What fails, and the sentence; if a check is named, up to that one."""
    reasons = {}
    for outcome in contract.run(kind, name, HERE):
        if outcome.state == "failed":
            reasons[outcome.check] = outcome.reason
        if outcome.check == last:
            break
    return reasons


def test_the_page_is_generated_from_the_code():
    docs = ROOT / "docs"
    page = runpy.run_path(str(docs / "contract.py"))["page"]()
    assert page == (docs / "contract.md").read_text(), "python docs/contract.py > docs/contract.md"


# Mistakes

NET = """
from pathlib import Path
import numpy as np
from tlray.models.interfaces import Backbone, KnownWeights
from tlray.models.interfaces import Head
from tlray.models.weights import WeightsProvider

class Net(Backbone):
    name = "net"
    image_size = 16
    cuts = ("conv", "end")
    def build(self, image_size):
        import keras
        layers = keras.layers
        pixels = keras.Input((image_size, image_size, 3))
        x = layers.Conv2D(4, 3, padding="same", name="conv")(pixels)
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.Dropout(0.5, name="drop")(x)
        x = layers.GlobalAveragePooling2D(name="end")(x)
        return keras.Model(pixels, x)
    def preprocess(self, pixels):
        import keras
        return keras.layers.Rescaling(1 / 255)(pixels)

class Top(Head):
    name = "top"
    def build(self, feature_shape, classes):
        import keras
        layers = keras.layers
        return keras.Sequential([
            keras.Input(feature_shape), layers.Flatten(), layers.Dropout(0.5),
            layers.Dense(classes, "softmax"),
        ])

class Store(WeightsProvider):
    name = "store"
    offers = (("net", "known"),)
    def provide(self, backbone, weights, folder):
        if (backbone, weights) not in self.offers:
            return None
        np.savez(folder / "a.npz", np.ones(3, np.float32))
        return folder / "a.npz"
"""
WEIGHTS = f'weights = {{"known": KnownWeights(sha256="{"0" * 64}")}}'
OWN_LAYER = """
    def build(self, image_size):
        import keras
        class Scale(keras.layers.Layer):
            def __init__(self, factor):
                super().__init__(name="end")
                self.factor = factor
            def call(self, x):
                return x * self.factor
        pixels = keras.Input((image_size, image_size, 3))
        return keras.Model(pixels, Scale(2.0)(keras.layers.Conv2D(4, 3, name="conv", padding="same")(pixels)))
    def built("""

MISTAKES = {
    "wrong shape": (
        [("Input((image_size, image_size, 3))", "Input((32, 32, 3))")],
        "builds",
        r"build\(16\) takes \(None, 32, 32, 3\), expected one input of \(None, 16, 16, 3\)",
    ),
    "wrong shape of the preprocessing": (
        [("Rescaling(1 / 255)(pixels)", "Flatten()(pixels)")],
        "preprocesses",
        r"preprocess returned the shape \(None, 768\), but the network takes \(None, 16, 16, 3\)",
    ),
    "unknown layer": (
        [('("conv", "end")', '("conv1", "end")')],
        "has_cuts",
        r"cuts lists a layer that does not exist: unknown layer 'conv1': did you mean conv\?",
    ),
    "preprocessing in Python": (
        [("keras.layers.Rescaling(1 / 255)(pixels)", "np.asarray(pixels) / 255")],
        "preprocesses",
        r"preprocess failed on a symbolic tensor \(use Keras' layers and keras\.ops, not NumPy\): \w+Error",
    ),
    "random layer in the frozen part": (
        [('name="drop")(x)', 'name="drop")(x, training=True)')],
        "repeats",
        r"the same images have other features in a second run, from the cut end on: a layer draws",
    ),
    "moving batch statistics": (
        [('name="norm")(x)', 'name="norm")(x, training=True)')],
        "keeps_weights",
        r"norm/moving_mean, norm/moving_variance changed in inference: call no layer, such as batch norm",
    ),
    "a layer that cannot be saved": (
        [("    def build(", OWN_LAYER)],
        "saves",
        r"a saved model would not load without this package, because it uses bad_plugins\.Scale: use Keras'",
    ),
    "a lambda": (
        [('layers.Dropout(0.5, name="drop")', 'layers.Lambda(lambda x: x * 2, name="drop")')],
        "saves",
        r"does not load in Keras' safe mode: ValueError: .*lambda",
    ),
    "wrong digest": (
        [("cuts =", f"{WEIGHTS}\n    cuts =")],
        "matches_digests",
        r"does not hold the 'known' weights of net: digest \w{16}\.\.\., expected 0{16}",
    ),
    "no name of a layer": (
        [('"same", name="conv")', '"same")'), ('("conv", "end")', '("end",)')],
        "names_layers",
        r"the layer conv2d\w* is called conv2d\w* in another build: give it a name=",
    ),
    "it ends after its last cut": (
        [('("conv", "end")', '("conv", "norm")')],
        "has_cuts",
        r"the last cut is norm, but the output layer is end: append end to cuts",
    ),
    "a way around a cut": (
        [('name="drop")(x)', 'name="drop")(layers.Concatenate(name="both")([x, pixels]))')],
        "rejoins",
        r"the network cannot be split at conv: later layers use earlier ones; remove it from cuts",
    ),
    "a download": (
        [
            (
                "layers = keras.layers",
                "layers = keras.layers; keras.utils.get_file(origin='http://localhost/x')",
            )
        ],
        "builds",
        r"build\(16\) used a file or the network .*: build the network without weights",
    ),
    "one size only": (
        [("GlobalAveragePooling2D(", "Dense(2, name='d')(layers.Flatten()(x)); x = layers.Identity(")],
        "builds",
        r"the shapes of the weights depend on the image size: set minimum_size = 16",
    ),
    "no smallest size": (
        [('padding="same", name="conv"', 'name="conv"')],
        "builds",
        r"build\(1\) failed: ValueError: .*; if this image size is too small, raise minimum_size",
    ),
    "it ends the process": (
        [("        layers = keras.layers\n", "        raise SystemExit(3)\n")],
        "builds",
        r"build\(16\) failed: SystemExit: 3",
    ),
    "a heavy import": (
        [("import numpy", "import torch\nimport numpy")],
        "loads",
        r"the module imports torch",
    ),
    "one string for cuts": ([('("conv", "end")', '"end"')], "loads", r"cuts is 'end', expected a tuple"),
}
"""What is replaced in NET, the check that fails, and its sentence."""


@pytest.mark.slow
@pytest.mark.parametrize("how", MISTAKES)
def test_a_mistake_in_a_backbone(package, how):
    changes, check, sentence = MISTAKES[how]
    source = NET
    for old, new in changes:
        assert old in source
        source = source.replace(old, new, 1)
    package("torch", "")  # As heavy as Keras, were it the real one.
    package("bad-plugins", source, backbones={"net": "Net"}, weights={"store": "Store"})
    reasons = failed("backbones", "net", check)
    assert re.search(sentence, reasons.pop(check, "")), reasons
    assert set(reasons) <= ({"repeats"} if check == "keeps_weights" else set())


@pytest.mark.slow
def test_without_a_mistake_nothing_fails(package):
    package("good-plugins", NET, backbones={"net": "Net"}, heads={"top": "Top"})
    assert failed("backbones", "net") == {}
    assert failed("heads", "top") == {}


OUTPUT = 'layers.Dense(classes, "softmax")'
HEAD_MISTAKES = {
    "no probabilities": (OUTPUT, "layers.Dense(classes)", "gives_probabilities"),
    "not one": (OUTPUT, 'layers.Dense(classes, "sigmoid")', "gives_probabilities"),
    "wrong width": (OUTPUT, 'layers.Dense(7, "softmax")', "builds"),
    "unknown loss": ('name = "top"', 'name = "top"; loss = "no_such"', "declares"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HEAD_MISTAKES)
def test_a_mistake_in_a_head(package, how):
    old, new, check = HEAD_MISTAKES[how]
    package("bad-plugins", NET.replace(old, new), heads={"top": "Top"})
    assert set(failed("heads", "top", check)) == {check}


RETURN = 'return folder / "a.npz"'
STORE_MISTAKES = {
    "nothing": (RETURN, "return None", "provides", "offers has net/known, but provide returned None"),
    "no file": (RETURN, 'return folder / "b.npz"', "provides", "expected the path of"),
    "no pairs": ('(("net", "known"),)', '("net", "known")', "loads", "expected a tuple of pairs"),
    "whatever": ("not in self.offers", "is None", "declines_others", "return None unless"),
    "unknown to it": (WEIGHTS, "", "matches_digests", "but net declares none"),
    "wrong digest": ("", "", "matches_digests", "expected 0000000000000000..."),
}


@pytest.mark.parametrize("how", STORE_MISTAKES)
def test_a_mistake_in_a_weights_provider(package, how):
    old, new, check, sentence = STORE_MISTAKES[how]
    source = NET.replace("cuts =", f"{WEIGHTS}\n    cuts =", 1).replace(old, new)
    package("bad-plugins", source, backbones={"net": "Net"}, weights={"store": "Store"})
    reasons = failed("weights", "store")
    assert sentence in reasons.pop(check, ""), reasons
    assert set(reasons) <= {"matches_digests"}


# The command


def check(name: str, *options: str) -> str:
    result = invoke("plugins", "check", name, *options)
    assert result.exit_code == 1, result.output
    return result.stdout if options else result.output


def test_an_import_error(package):
    package("bad-plugins", "import no_such_module_at_all", "3.4", backbones={"net": "Net"})
    text = check("net")
    assert "FAILED   loads: plugin 'net' of package bad-plugins 3.4 is broken" in text
    assert "skipped  builds: loads failed" in text
    assert text.count("FAILED") == 1
    values = json.loads(check("net", "--json"))
    assert (values["failed"], values["ok"]) == (1, 0)
    first, *others = values["checks"]
    assert (first["check"], first["state"]) == ("loads", "failed")
    assert "bad-plugins 3.4 is broken: ModuleNotFoundError: No module named 'no_such" in first["why"]
    assert {row["state"] for row in others} == {"skipped"}


@pytest.mark.parametrize("requirement", ["tlray>=9", "keras<3", 'Keras ==1.0; python_version > "3"'])
def test_a_version_that_does_not_fit(package, requirement):
    package("old-plugins", NET, requires=[requirement], heads={"top": "Top"})
    text = check("top")
    name = re.match(r"\w+", requirement).group().lower()
    assert f"plugin 'top' of package old-plugins 1.0 is broken: it requires {name}" in text
    assert f"but {name} " in text
    listed = invoke("plugins", "list").stdout
    assert "BROKEN: plugin 'top' of package old-plugins 1.0 is broken: it requires" in listed


@pytest.mark.parametrize("requirement", ["tlray>=0.1", "keras<1; extra == 'x'", "no-such-package>3", "keras"])
def test_a_version_that_fits_or_is_not_ours_to_judge(package, requirement):
    package("new-plugins", NET, requires=[requirement], heads={"top": "Top"})
    assert registry.head("top").name == "top"


# New plugins


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_new_packages_install_and_keep_the_contract_unedited(folder, monkeypatch):
    made = {"head": "my-top", "weights": "my-store"}
    for kind, name in made.items():
        new_package.create(name, kind)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*install, "--no-index", "--target", "site", *(f"./{name}" for name in made.values())], check=True
    )
    monkeypatch.syspath_prepend(str(folder / "site"))
    for kind, name in (("heads", "my-top"), ("weights", "my-store"), ("backbones", "my-store-net")):
        outcomes = {outcome.check: outcome for outcome in contract.run(kind, name, HERE)}
        assert {outcome.state for outcome in outcomes.values()} == {"ok"}, [*map(str, outcomes.values())]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("My-Net", "backbone", "small letters"),
        ("../net", "backbone", "small letters"),
        ("my_net", "backbone", "small letters"),
        ("class", "backbone", "small letters"),
        ("", "head", "small letters"),
        ("net", "network", "backbone, head, weights"),
        ("vgg16", "backbone", "tlray already provides the backbone 'vgg16'"),
        ("numpy", "head", "module numpy already exists"),
        ("there", "head", "already exists"),
    ],
)
def test_what_cannot_be_made(folder, name, kind, words):
    (folder / "there").mkdir()
    with pytest.raises(UserError, match=words):
        new_package.create(name, kind)
    assert [path.name for path in folder.iterdir()] == ["there"]
