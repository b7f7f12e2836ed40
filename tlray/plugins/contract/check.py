"""How a check runs and fails, the check that all kinds of plugins share, and helpers for checks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast
from unittest import mock

import numpy as np
import numpy.typing as npt

from tlray.cluster import session
from tlray.core.errors import UserError
from tlray.models import registry
from tlray.models.layers import foreign_layers

if TYPE_CHECKING:
    import keras

P = TypeVar("P")
T = TypeVar("T")

TOLERANCE = 1e-4
"""The largest relative error of equal results; the order of additions changes their last digits."""


class Failed(AssertionError):  # noqa: N818 - named like the outcomes of pytest
    """Raised by a check that fails; the message says what is wrong and how to repair it."""


class Skipped(Exception):  # noqa: N818
    """Raised by a check that cannot run on this machine or for this plugin; the message says why."""


@dataclass(frozen=True)
class Check:
    """One line of the contract."""

    function: Callable[[Any], None]
    """Takes the subject; raises Failed, UserError or Skipped. Its name and docstring form the contract."""
    vital: bool = False
    """Whether all later checks are skipped if this one fails."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def requirement(self) -> str:
        return " ".join((self.function.__doc__ or "").split())

    def outcome(self, subject: Subject[Any]) -> Outcome:
        """Run the check, unless a vital check of the plugin has failed before."""
        if subject.failed_vital:
            return Outcome(self.name, self.requirement, "skipped", f"{subject.failed_vital} failed")
        try:
            self.function(subject)
        except Skipped as skipped:
            return Outcome(self.name, self.requirement, "skipped", str(skipped))
        except Exception as error:
            explained = isinstance(error, (Failed, UserError))
            reason = str(error) if explained else f"{type(error).__name__}: {summary(error)}"
            subject.failed_vital = self.name if self.vital else ""
            return Outcome(self.name, self.requirement, "failed", reason, error)
        return Outcome(self.name, self.requirement, "ok")


@dataclass(frozen=True)
class Outcome:
    """The result of one check."""

    check: str
    requirement: str
    state: Literal["ok", "failed", "skipped"]
    reason: str = ""
    error: Exception | None = None

    def to_json(self) -> dict[str, str]:
        return {"check": self.check, "says": self.requirement, "state": self.state, "why": self.reason}

    def __str__(self) -> str:
        if self.state == "ok":
            return f"ok       {self.check}: {self.requirement}"
        return f"{'FAILED ' if self.state == 'failed' else 'skipped'}  {self.check}: {self.reason}"


class FreshProcess(ExitStack):
    """A Ray actor in a process of its own. The first call starts it, and Ray if needed; `close` ends both."""

    def __init__(self, address: str | None = None) -> None:
        super().__init__()
        self._address = address
        self._actor: Any = None

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the actor and return its result.

        Raises:
            Failed: the function fails there, or its arguments or result cannot be sent between processes.
        """
        if self._actor is None:
            self.enter_context(session.connect(self._address))()
            self.callback(setattr, self, "_actor", None)
        import ray

        self._actor = self._actor or ray.remote(num_cpus=1)(_Actor).remote()
        try:
            return cast("T", ray.get(self._actor.call.remote(function, *arguments)))
        except Exception as error:
            raise Failed(f"the plugin fails in a Ray actor: {session.reason(error)}") from error


class _Actor:
    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)


class Subject(Generic[P]):
    """The plugin under test, with everything that its checks share."""

    kind: str

    def __init__(self, name: str, fresh_process: FreshProcess) -> None:
        self.name, self.fresh_process = name, fresh_process
        self.failed_vital = ""
        """The name of the vital check that failed, if any."""

    @cached_property
    def plugin(self) -> P:
        return cast("P", registry.find(self.kind, self.name).load())


# The check that all kinds of plugins share


def loads(subject: Subject[Any]) -> None:
    """Only one package provides this name, its requirements are met, and loading the plugin does not
    import Keras, TensorFlow, PyTorch, JAX or Ray.
    """
    _ = subject.plugin
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
        raise Failed(
            f"the plugin loads here, but not in a fresh process: {done.stderr.strip().splitlines()[-1]}"
        )
    if heavy := done.stdout.split():
        raise Failed(
            f"the module imports {', '.join(heavy)}, which slows down commands that need no network: "
            "import it inside the methods"
        )


def require(condition: object, message: str) -> None:
    """Raise Failed with the message unless the condition holds."""
    if not condition:
        raise Failed(message)


def summary(error: BaseException) -> str:
    """The first informative line of an error message, without colour codes."""
    lines = [part.strip() for part in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()]
    lines = [part for part in lines if part and not part.startswith("Exception encountered when calling")]
    return lines[0] if lines else type(error).__name__


@contextmanager
def explain(message: str) -> Iterator[None]:
    """Turn errors of the plugin's code into Failed, with the message in front."""
    try:
        yield
    except (Failed, Skipped):
        raise
    except (Exception, SystemExit) as error:
        raise Failed(f"{message}: {type(error).__name__}: {summary(error)}") from error


def offline() -> AbstractContextManager[object]:
    """Block network access."""
    refuse = mock.Mock(side_effect=OSError("network access is not allowed in this check"))
    return mock.patch.multiple(socket, getaddrinfo=refuse, create_connection=refuse)


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The norm of the difference of two arrays, divided by the norm of the expected one."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) or 1.0))


def require_equal(
    actual: npt.ArrayLike, expected: npt.ArrayLike, message: str, tolerance: float = TOLERANCE
) -> None:
    """Raise Failed with the message unless the relative error of `actual` is below the tolerance."""
    error = relative_error(actual, expected)
    require(error < tolerance, f"{message} (relative error {error:.2g})")


# Checks of Keras models


def check_saving(model: keras.Model, inputs: npt.NDArray[Any]) -> None:
    """Raise Failed unless the saved model loads in Keras' safe mode, without the plugin, and is the same."""
    import keras

    with TemporaryDirectory(prefix="tlray-") as folder:
        path = Path(folder, "model.keras")
        foreign = foreign_layers(model)  # A plugin's own layers may fail to be saved.
        if not foreign:
            with explain("the model cannot be saved"):
                model.save(path)
            with zipfile.ZipFile(path) as file:
                foreign = sorted(_foreign_classes(json.loads(file.read("config.json"))))
        require(
            not foreign,
            f"a saved model would not load without this package, because it uses {', '.join(foreign)}: "
            "use Keras' own layers and keras.ops",
        )
        with explain("the saved model does not load in Keras' safe mode"):
            loaded = keras.saving.load_model(path, safe_mode=True)
            output = loaded(inputs, training=False)
    require_equal(output, model(inputs, training=False), "the output differs after saving and loading")


def check_export(model: keras.Model, inputs: npt.NDArray[Any]) -> None:
    """Raise Failed unless the model, exported as a SavedModel, gives equal output."""
    import tensorflow as tf

    with TemporaryDirectory(prefix="tlray-") as folder, explain("the export as a SavedModel fails"):
        model.export(folder, verbose=False)
        loaded = tf.saved_model.load(folder)
        serve = loaded.signatures["serving_default"]
        (name,) = serve.structured_input_signature[1]
        (output,) = serve(**{name: tf.constant(inputs)}).values()
    require_equal(output, model(inputs, training=False), "the output differs in the SavedModel")


def _foreign_classes(config: Any) -> set[str]:
    """The classes in the configuration of a saved model that neither Keras nor Python provides."""
    if isinstance(config, list):
        return set().union(*map(_foreign_classes, config))
    if not isinstance(config, dict):
        return set()
    module = config.get("module")
    standard = module is None or str(module).partition(".")[0] in ("keras", "builtins")
    classes = set() if standard else {f"{module}.{config.get('class_name')}"}
    return classes | _foreign_classes(list(config.values()))
