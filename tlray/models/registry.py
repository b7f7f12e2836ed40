"""The installed plugins. They register through entry points and are imported only when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from typing import Any, cast

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tlray.core.errors import UserError, unknown
from tlray.models.interfaces import Backbone, Head, WeightsProvider

KINDS: dict[str, type[Any]] = {"backbones": Backbone, "heads": Head, "weights": WeightsProvider}
"""The base class of the plugins in each entry-point group `tlray.<kind>`."""
NOUNS = {"backbones": "backbone", "heads": "head", "weights": "weights"}
"""The word for one plugin of each kind."""


@dataclass(frozen=True)
class Plugin:
    """The entry point of a plugin; only `load` imports the plugin."""

    kind: str
    name: str
    package: str
    version: str
    entry_point: EntryPoint

    def load(self) -> Any:
        """Import the plugin and return an instance of its class.

        Raises:
            UserError: the package requires other versions than are installed, the plugin cannot be imported,
                or it is not a valid plugin of its kind.
        """
        broken = f"plugin {self.name!r} of package {self.package} {self.version} is broken"
        if conflict := _version_conflict(self.package):
            raise UserError(f"{broken}: {conflict}; install a matching version of {self.package}")
        try:
            plugin = self.entry_point.load()()
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{broken}: {type(error).__name__}: {error}; repair or uninstall {self.package}"
            ) from error
        if fault := self._fault(plugin):
            raise UserError(f"{broken}: {fault}")
        return plugin

    def _fault(self, plugin: Any) -> str:
        """Describe what is wrong with the loaded plugin, or return an empty text."""
        base, kind = KINDS[self.kind], type(plugin).__name__
        if not isinstance(plugin, base):
            return f"{self.entry_point.value} is a {kind}, expected a subclass of tlray.{base.__name__}"
        if missing := [name for name in base.__annotations__ if not hasattr(plugin, name)]:
            return f"the class {kind} does not define {', '.join(missing)}"
        if isinstance(plugin, Backbone):
            cuts = plugin.cuts
            if not isinstance(cuts, tuple) or not cuts or not all(isinstance(cut, str) for cut in cuts):
                return f"cuts is {cuts!r}, expected a tuple of layer names such as ('name',)"
            if not isinstance(plugin.weights, Mapping):
                return f"weights is {plugin.weights!r}, expected a dict from names to KnownWeights"
        if isinstance(plugin, WeightsProvider):
            offers = plugin.offers
            if not isinstance(offers, tuple) or not all(isinstance(x, tuple) and len(x) == 2 for x in offers):
                return f"offers is {offers!r}, expected a tuple of pairs such as (('backbone', 'weights'),)"
        if plugin.name != self.name:
            return f"its class has name = {plugin.name!r}; give the class and the entry point the same name"
        return ""


def _version_conflict(package: str) -> str:
    """Describe an unmet requirement on tlray or one of its dependencies, or return an empty text."""
    if package == "tlray":
        return ""
    try:
        shared = {"tlray", *_requirements("tlray")}
        for name, versions in _requirements(package).items():
            if name in shared and not versions.contains(version(name), prereleases=True):
                return f"it requires {name}{versions}, but {name} {version(name)} is installed"
    except (InvalidRequirement, PackageNotFoundError) as error:
        return f"one of its requirements is not installed or cannot be read: {error}"
    return ""


def _requirements(package: str) -> dict[str, SpecifierSet]:
    """The requirements of a package on this machine by name, without those of its extras."""
    requirements = [Requirement(text) for text in requires(package) or ()]
    return {
        canonicalize_name(requirement.name): requirement.specifier
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def installed(kind: str) -> list[Plugin]:
    """Every installed plugin of one kind, sorted by name. Two packages may use the same name."""
    points = entry_points(group=f"tlray.{kind}")
    plugins = [Plugin(kind, p.name, p.dist.name, p.dist.version, p) for p in points if p.dist]
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package))


def find(kind: str, name: str) -> Plugin:
    """Return the plugin of that kind and name.

    Raises:
        UserError: no plugin has the name (the message suggests similar ones), or two packages use it.
    """
    plugins = installed(kind)
    matches = [plugin for plugin in plugins if plugin.name == name]
    if not matches:
        raise unknown(NOUNS[kind], name, (plugin.name for plugin in plugins))
    if len(matches) > 1:
        packages = " and ".join(f"{plugin.package} {plugin.version}" for plugin in matches)
        raise UserError(f"two packages provide a plugin {name!r}: {packages}; uninstall one")
    return matches[0]


def backbone(name: str) -> Backbone:
    """Load a backbone by name; raises as `find` and `Plugin.load` do."""
    return cast(Backbone, find("backbones", name).load())


def head(name: str) -> Head:
    """Load a head by name; raises as `find` and `Plugin.load` do."""
    return cast(Head, find("heads", name).load())


def weights_providers() -> Iterator[WeightsProvider]:
    """Load the weights providers in order of name, without the broken ones, which `tlray plugins list` shows.

    Raises:
        UserError: two packages use the same name for a provider.
    """
    for plugin in [find("weights", plugin.name) for plugin in installed("weights")]:
        with suppress(UserError):
            yield plugin.load()
