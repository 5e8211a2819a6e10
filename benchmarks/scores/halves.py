"""docs/scores.md has two halves, each written by its own command; each command leaves the other's as it is."""

from __future__ import annotations

PLUS = "# SynthSeg+"  # the heading that the second half begins with


def with_first(page: str, first: str) -> str:
    """The page with another first half. ``page`` is empty when there is none yet."""
    _, heading, second = _split(page)
    return first.rstrip("\n") + "\n" + (f"\n{heading}{second}" if heading else "")


def with_second(page: str, second: str) -> str:
    """The page with another second half, which begins with the heading :data:`PLUS`."""
    first, _, _ = _split(page)
    return (first.rstrip("\n") + "\n\n" if first.strip() else "") + second


def _split(page: str) -> tuple[str, str, str]:
    if page.startswith(f"{PLUS}\n"):
        return "", PLUS, page[len(PLUS) :]
    first, heading, second = page.partition(f"\n{PLUS}\n")
    return first, heading.strip("\n"), f"\n{second}" if heading else ""
