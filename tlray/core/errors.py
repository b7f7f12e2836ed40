"""The two kinds of error that end a command, and the error for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TlrayError(Exception):
    """An error whose message is all the user needs."""

    exit_status = 1


class UserError(TlrayError):
    """The command cannot do what the user asked for; it has started and written nothing."""

    exit_status = 2


class JobError(TlrayError):
    """The job started, and failed."""


class DivergenceError(JobError):
    """A training arrived at numbers that are not finite, so nothing of it can be used."""


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist; it suggests the nearest names that do.

    Args:
        kind: the kind of thing that the user named, e.g. "backbone".
        given: the name as the user typed it.
        known: all names that exist.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if not names:
        hint = f"no {kind} is installed"
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    return UserError(f"unknown {kind} {given!r}: {hint}")
