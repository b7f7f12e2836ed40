"""Writes contract.md, from the code: python docs/contract.py > docs/contract.md."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from tlray.models import registry
from tlray.plugins import contract

TITLES = {"backbones": "Backbone", "heads": "Head", "weights": "Weights provider"}


def page() -> str:
    """The whole page."""
    parts = [
        "# The contract of plugins",
        "What a plugin must have, and what `tlray plugins check` and `tlray.plugins.testing` check it for. "
        "Generated from the code by `docs/contract.py`; how to write a plugin is in "
        "[plugins.md](plugins.md).",
    ]
    for kind, title in TITLES.items():
        base = registry.KINDS[kind]
        parts += [
            f"## {title}",
            f"A subclass of `{base.__module__}.{base.__name__}`, registered as an entry ",
        ]
        parts[-1] += f"point of the group `tlray.{kind}`. {paragraph(inspect.getdoc(base))}"
        parts += members(base)
        parts.append("| check | what must hold |\n|---|---|\n" + "\n".join(rows(kind)))
    return "\n\n".join(textwrap.fill(part, 118) if part[0] not in "#|`" else part for part in parts) + "\n"


def rows(kind: str) -> Iterator[str]:
    """The checks of a kind, as rows of a table."""
    for check in contract.CHECKS[kind]:
        yield f"| `{check.name}` | {check.says} |"


def members(base: type) -> Iterator[str]:
    """The attributes and methods of a base class, each with what its docstring says."""
    (tree,) = ast.parse(inspect.getsource(base)).body
    assert isinstance(tree, ast.ClassDef)
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            said = following.value.value if isinstance(following, ast.Expr) else ""  # type: ignore[attr-defined]
            yield f"**`{ast.unparse(node)}`** {paragraph(said)}"
        elif isinstance(node, ast.FunctionDef):
            said = textwrap.indent(ast.get_docstring(node) or "", "    ")
            signature = f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
            yield f"```\n{signature}:\n{said}\n```"


def paragraph(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    print(page(), end="")
