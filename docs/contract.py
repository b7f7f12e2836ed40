"""Writes contract.md from the docstrings in the code: python docs/contract.py > docs/contract.md."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from tlray.models import registry
from tlray.models.interfaces import KnownWeights
from tlray.plugins import contract

TITLES = {"backbones": "Backbone", "heads": "Head", "weights": "Weights provider"}


def page() -> str:
    """Return the whole page."""
    parts = [
        "# The contract of plugins",
        "This page lists what a plugin must define, and what `tlray plugins check` and "
        "`tlray.plugins.testing` check. `docs/contract.py` generates it from the code. "
        "[plugins.md](plugins.md) explains how to write a plugin.",
    ]
    for kind, title in TITLES.items():
        parts += [f"## {title}", *described(registry.KINDS[kind])]
        parts.append("| check | requirement |\n|---|---|\n" + "\n".join(rows(kind)))
        if kind == "backbones":
            parts += described(KnownWeights)
    return "\n\n".join(textwrap.fill(part, 118) if part[0] not in "#|`" else part for part in parts) + "\n"


def rows(kind: str) -> Iterator[str]:
    """The checks of one kind of plugin as rows of a table."""
    for check in contract.CHECKS[kind]:
        yield f"| `{check.name}` | {check.requirement} |"


def described(interface: type) -> Iterator[str]:
    """The name, the docstring, the attributes and the public methods of a class."""
    yield f"### `tlray.{interface.__name__}`"
    yield from map(paragraph, inspect.cleandoc(interface.__doc__ or "").split("\n\n"))
    (tree,) = ast.parse(inspect.getsource(interface)).body
    assert isinstance(tree, ast.ClassDef)
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            text = following.value.value if isinstance(following, ast.Expr) else ""  # type: ignore[attr-defined]
            yield f"**`{ast.unparse(node)}`** {paragraph(text)}"
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = textwrap.indent(ast.get_docstring(node) or "", "    ")
            signature = f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
            yield f"```\n{signature}:\n{text}\n```"


def paragraph(text: str | None) -> str:
    """Put a paragraph on one line."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    print(page(), end="")
