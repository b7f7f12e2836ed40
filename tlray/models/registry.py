"""The plugins that are installed: found through entry points, loaded when they are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from typing import Any, TypeVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tlray.core.errors import UserError, unknown
from tlray.models.interfaces import Backbone, Head, WeightsProvider

KINDS: dict[str, type[Any]] = {"backbones": Backbone, "heads": Head, "weights": WeightsProvider}
"""Each entry-point group `tlray.<kind>` and what its plugins must be."""
NOUNS = {"backbones": "backbone", "heads": "head", "weights": "weights"}
"""What one plugin of a kind is called."""

P = TypeVar("P")


@dataclass(frozen=True)
class Plugin:
    """One entry point. Nothing is imported until `load`."""

    kind: str
    name: str
    package: str
    version: str
    entry_point: EntryPoint

    def load(self) -> Any:
        """Import the plugin and make the one instance that is used.

        Raises:
            UserError: its package does not fit this installation, it does not import, or it is not what
                its group must hold.
        """
        expected = KINDS[self.kind]
        where = f"plugin {self.name!r} of package {self.package} {self.version}"
        if unfit := _unfit(self.package):
            raise UserError(f"{where} is broken: {unfit}; install a version of {self.package} that fits")
        try:
            plugin = self.entry_point.load()()
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{where} is broken: {type(error).__name__}: {error}; repair or uninstall {self.package}"
            ) from error
        if not isinstance(plugin, expected):
            raise UserError(
                f"{where} is broken: {self.entry_point.value} makes a {type(plugin).__name__}, "
                f"expected a subclass of {expected.__module__}.{expected.__name__}"
            )
        missing = [name for name in expected.__annotations__ if not hasattr(plugin, name)]
        if missing:
            raise UserError(
                f"{where} is broken: the class {type(plugin).__name__} says no {', '.join(missing)}"
            )
        if wrong := _wrong(plugin):
            raise UserError(f"{where} is broken: {wrong}")
        if plugin.name != self.name:
            raise UserError(
                f"{where} is broken: the class calls itself {plugin.name!r}; "
                "give the entry point and the class one name"
            )
        return plugin


def _wrong(plugin: Any) -> str:
    """What a plugin says that no command can use; empty if all is well."""
    if isinstance(plugin, Backbone):
        cuts = plugin.cuts
        if not isinstance(cuts, tuple) or not cuts or not all(isinstance(cut, str) for cut in cuts):
            return f"cuts is {cuts!r}, expected a tuple of names of layers; one is written ('name',)"
        if not isinstance(plugin.weights, Mapping):
            return f"weights is {plugin.weights!r}, expected a dict of KnownWeights by name"
    if isinstance(plugin, WeightsProvider):
        offers = plugin.offers
        if not isinstance(offers, tuple) or not all(isinstance(x, tuple) and len(x) == 2 for x in offers):
            return (
                f"offers is {offers!r}, expected a tuple of pairs; one is written (('backbone', 'weights'),)"
            )
    return ""


def _unfit(package: str) -> str:
    """What a package requires of tlray, or of what tlray stands on, and is not here; empty if all is."""
    if package == "tlray":
        return ""
    try:
        for name, wanted in _requirements(package).items():
            if name == "tlray" or name in _requirements("tlray"):
                here = version(name)
                if not wanted.contains(here, prereleases=True):
                    return f"it requires {name}{wanted}, but {name} {here} is installed"
    except (InvalidRequirement, PackageNotFoundError) as error:
        return f"what it requires cannot be read, or is not installed: {error}"
    return ""


def _requirements(package: str) -> dict[str, SpecifierSet]:
    """What a package requires here, by name, without what is for its extras."""
    found = [Requirement(text) for text in requires(package) or ()]
    return {
        canonicalize_name(one.name): one.specifier
        for one in found
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def installed(kind: str) -> list[Plugin]:
    """Every plugin of one kind, by name; names may stand there twice."""
    found = entry_points(group=f"tlray.{kind}")
    plugins = [
        Plugin(kind, point.name, point.dist.name, point.dist.version, point) for point in found if point.dist
    ]
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package))


def clashes(plugins: Iterable[Plugin]) -> dict[str, str]:
    """The names that more than one package claims, each with the sentence that says so."""
    packages: dict[str, list[str]] = {}
    for plugin in plugins:
        packages.setdefault(plugin.name, []).append(f"{plugin.package} {plugin.version}")
    return {
        name: f"two packages provide a plugin {name!r}: {' and '.join(claims)}; uninstall one"
        for name, claims in packages.items()
        if len(claims) > 1
    }


def find(kind: str, name: str) -> Plugin:
    """The one plugin of that kind and name.

    Raises:
        UserError: there is none (the message names the nearest), or two packages claim the name.
    """
    plugins = installed(kind)
    matches = [plugin for plugin in plugins if plugin.name == name]
    if not matches:
        raise unknown(NOUNS[kind], name, (plugin.name for plugin in plugins))
    if len(matches) > 1:
        raise UserError(clashes(matches)[name])
    return matches[0]


def backbone(name: str) -> Backbone:
    """Load a backbone by name; errors as in `find` and `Plugin.load`."""
    plugin: Backbone = find("backbones", name).load()
    return plugin


def head(name: str) -> Head:
    """Load a head by name; errors as in `find` and `Plugin.load`."""
    plugin: Head = find("heads", name).load()
    return plugin


def weights_providers() -> Iterator[WeightsProvider]:
    """Every weights provider that loads, in the order of their names, when it is its turn.

    A broken one has its reason in `tlray plugins list`.
    """
    plugins = installed("weights")
    for message in clashes(plugins).values():
        raise UserError(message)
    for plugin in plugins:
        with suppress(UserError):
            yield plugin.load()
