"""One file a target: what is legal there, and the passes that make a canonical graph so."""

from __future__ import annotations

from runtime.errors import IntvitError


def broken_rule(target: str, where: str, why: str) -> IntvitError:
    """The error for a graph of ours that ``target`` cannot take: a fault of the toolchain, not of the user."""
    return IntvitError(
        f"the graph breaks a rule of the {target} target",
        where=where,
        why=why,
        next="please report it with the command that built the bundle",
    )
