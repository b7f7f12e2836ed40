"""What a check is, how it fails, and what all plugins are checked for."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tlray.cluster import session
from tlray.core import private
from tlray.core.errors import UserError
from tlray.models import registry

if TYPE_CHECKING:
    import keras

P = TypeVar("P")
T = TypeVar("T")

CLOSE = 1e-4
"""Relative error of numbers that are the same, added up in another order."""


class Failed(AssertionError):  # noqa: N818 - as pytest's outcomes are called
    """What a check found wrong: one sentence that says what was found and how to repair it."""


class NotHere(Exception):  # noqa: N818
    """Why something cannot be checked on this machine, or of this plugin."""


@dataclass(frozen=True)
class Check:
    """One line of the contract."""

    make: Callable[[Any], None]
    """Given the subject; raises Failed or NotHere. Its docstring is what the contract says."""
    vital: bool = False
    """Whether nothing more can be checked when it fails."""

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def says(self) -> str:
        return " ".join((self.make.__doc__ or "").split())

    def outcome(self, subject: Subject[Any]) -> Outcome:
        """Check a plugin; skipped if a vital check of it has failed before."""
        if subject.missing:
            return Outcome(self.name, self.says, "skipped", f"needs {subject.missing}")
        try:
            self.make(subject)
        except NotHere as reason:
            return Outcome(self.name, self.says, "skipped", str(reason))
        except Exception as error:
            why = (
                str(error)
                if isinstance(error, (Failed, UserError))
                else f"{type(error).__name__}: {line(error)}"
            )
            subject.missing = self.name if self.vital else ""
            return Outcome(self.name, self.says, "failed", why, error)
        return Outcome(self.name, self.says, "ok")


@dataclass(frozen=True)
class Outcome:
    """What came of one check."""

    check: str
    says: str
    state: Literal["ok", "failed", "skipped"]
    why: str = ""
    error: Exception | None = None

    def to_json(self) -> dict[str, str]:
        return {"check": self.check, "says": self.says, "state": self.state, "why": self.why}

    def __str__(self) -> str:
        if self.state == "ok":
            return f"ok       {self.check}: {self.says}"
        return f"{'FAILED ' if self.state == 'failed' else 'skipped'}  {self.check}: {self.why}"


class Elsewhere:
    """An actor in a fresh process, on a Ray that is started for the first call; a context manager."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._stack = ExitStack()
        self._actor: Any = None

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actor, and the Ray that was started for it."""
        self._actor = None
        self._stack.close()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there.

        Raises:
            Failed: it failed there, or could not be sent there and back.
        """
        if self._actor is None:
            self._stack.enter_context(session.connect(self._address))()
        import ray

        if self._actor is None:
            self._actor = ray.remote(num_cpus=1)(_Actor).remote()
        try:
            found: T = ray.get(self._actor.call.remote(function, *arguments))
        except Exception as error:
            raise Failed(f"in an actor it fails: {session.reason(error)}") from error
        return found


class _Actor:
    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)


class Subject(Generic[P]):
    """The plugin that is checked, and what its checks share."""

    kind: str

    def __init__(self, name: str, elsewhere: Elsewhere) -> None:
        self.name, self.elsewhere = name, elsewhere
        self.missing = ""
        """The vital check that has failed."""

    @cached_property
    def plugin(self) -> P:
        plugin: P = registry.find(self.kind, self.name).load()
        return plugin


# What all plugins are checked for


def loads(subject: Subject[Any]) -> None:
    """One package has the name, the package fits this installation, and the plugin loads without
    importing Keras, TensorFlow or Ray.
    """
    try:
        _ = subject.plugin
    except UserError as error:
        raise Failed(str(error)) from error
    code = (
        "import sys; from tlray.models import registry\n"
        f"registry.find({subject.kind!r}, {subject.name!r}).load()\n"
        "print(*sorted({'keras', 'ray', 'tensorflow', 'torch', 'jax'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise Failed(f"it loads here, but not in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    if heavy := done.stdout.split():
        raise Failed(
            f"its module imports {', '.join(heavy)}, which commands that need no network would wait for: "
            "import it in the methods"
        )


def must(fact: object, sentence: str) -> None:
    """Raise Failed with the sentence unless the fact holds."""
    if not fact:
        raise Failed(sentence)


def line(error: BaseException) -> str:
    """The line of an error that says most."""
    lines = [part.strip() for part in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()]
    told = [part for part in lines if part and not part.startswith("Exception encountered when calling")]
    return told[0] if told else type(error).__name__


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Code of the plugin; what it raises becomes a sentence."""
    try:
        yield
    except (Failed, NotHere):
        raise
    except (Exception, SystemExit) as error:
        raise Failed(f"{what}: {type(error).__name__}: {line(error)}") from error


@contextmanager
def offline() -> Iterator[None]:
    """Nothing in this block reaches the network."""

    def refuse(*arguments: object, **options: object) -> Any:
        raise OSError("it reached for the network, which the contract forbids here")

    kept = {name: getattr(socket, name) for name in ("getaddrinfo", "create_connection")}
    try:
        for name in kept:
            setattr(socket, name, refuse)
        yield
    finally:
        for name, function in kept.items():
            setattr(socket, name, function)


def difference(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The relative error of some arrays, as vectors."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(one - other) / (np.linalg.norm(other) or 1.0))


# What all networks are checked for


def saved(model: keras.Model, inputs: npt.NDArray[Any]) -> None:
    """Raise Failed unless the model loads again, in Keras' safe mode and without the plugin, as it is."""
    import keras

    with TemporaryDirectory(prefix="tlray-") as folder:
        path = Path(folder, "model.keras")
        with trying("it cannot be saved"):
            model.save(path)
        with zipfile.ZipFile(path) as file:
            foreign = sorted(_foreign(json.loads(file.read("config.json"))))
        must(
            not foreign,
            f"a model with it would not load without this package, because of {', '.join(foreign)}: "
            "use Keras' own layers and keras.ops",
        )
        with trying("what was saved does not load in Keras' safe mode"):
            loaded = keras.saving.load_model(path, safe_mode=True)
            error = difference(loaded(inputs, training=False), model(inputs, training=False))
    must(error < CLOSE, f"saved and loaded it gives other numbers: relative error {error:.2g}")


def exported(model: keras.Model, inputs: npt.NDArray[Any]) -> None:
    """Raise Failed unless the model, exported as a SavedModel, gives the same numbers."""
    import tensorflow as tf

    with TemporaryDirectory(prefix="tlray-") as folder, trying("it cannot be exported as a SavedModel"):
        model.export(folder, verbose=False)
        loaded = tf.saved_model.load(folder)
        serve = loaded.signatures["serving_default"]
        (name,) = serve.structured_input_signature[1]
        (found,) = serve(**{name: tf.constant(inputs)}).values()
        error = difference(found, model(inputs, training=False))
    must(error < CLOSE, f"as a SavedModel it gives other numbers: relative error {error:.2g}")


def foreign_layers(model: keras.Model) -> list[str]:
    """The classes of its layers that are not Keras' own."""
    kinds = {type(layer) for layer in private.flatten_layers(model)}
    return sorted(
        f"{kind.__module__}.{kind.__name__}" for kind in kinds if not kind.__module__.startswith("keras.")
    )


def _foreign(config: Any) -> set[str]:
    """What a saved model needs that is neither Keras' nor Python's own."""
    if isinstance(config, list):
        return set().union(*map(_foreign, config))
    if not isinstance(config, dict):
        return set()
    module = config.get("module")
    own = module is None or str(module).partition(".")[0] in ("keras", "builtins")
    found = set() if own else {f"{module}.{config.get('class_name')}"}
    return found | _foreign(list(config.values()))
