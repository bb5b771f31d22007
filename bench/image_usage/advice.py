"""Advice on an image: what it could do without, and how much that saves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from bench.image_usage.layers import State
from bench.image_usage.usage import MB, Row, share

LEAST_BYTES: Final = 100_000
"""Smaller savings get no sentence."""
DROP: Final = {
    "docs": "drop them",
    "tests": "drop them",
    "headers": "drop them",
    "static libraries": "drop them",
    "debug symbols": "strip them off",
    "source of compiled code": "drop it",
    "type stubs": "drop them",
    "translations": "drop them",
    "Python": "drop them only where byte code replaces them",
    "byte code": "drop it, or leave it out where nothing imports its source",
    "package lists": "remove them in the instruction that made them",
    "plug-ins": "keep those that are used",
    "licences": "keep them: licences require it",
}


METADATA: Final = frozenset({"package lists", "licences"})
"""If only these files of a package were opened, the package was listed, such as for its entry points, but not used."""


class Advice(NamedTuple):
    """A sentence, and the number of bytes that it would save."""

    saves_bytes: int
    text: str


def megabytes(size_bytes: float) -> str:
    """Return a size to print."""
    return f"{size_bytes / MB:.0f} MB" if size_bytes >= 10 * MB else f"{size_bytes / MB:.1f} MB"


def advise(rows: Sequence[Row], least_bytes: int = LEAST_BYTES) -> list[Advice]:
    """Return sentences on the layers above the base's, the largest saving first.

    Whole packages come before their parts: a package of which nothing was used is one sentence.
    """
    ours = [row for row in rows if row.ours]
    found = [*_packages(ours), *_hidden(ours), *_hidden_in_base(rows)]
    return sorted(
        (one for one in found if one.saves_bytes >= least_bytes), key=lambda one: (-one.saves_bytes, one.text)
    )


def _packages(rows: Iterable[Row]) -> Iterable[Advice]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        # Hidden files have sentences of their own: dropping their package would not remove them.
        if row.visible:
            groups.setdefault(str(row.package), []).append(row)
    for name, group in groups.items():
        used = any(row.used and row.kind not in METADATA for row in group)
        if not used and group[0].package.manager:
            # One sentence on the whole package, instead of one for each kind of its files.
            total = share(group)
            yield Advice(
                total.size_bytes, f"{_title(name)}: {_amount(group)}, of which the work used nothing; {_leave(group)}."
            )
            continue
        kinds: dict[str, list[Row]] = {}
        for row in group:
            if not row.used:
                kinds.setdefault(row.kind, []).append(row)
        for kind, idle in kinds.items():
            whole = not any(row.used and row.kind == kind for row in group)
            never = "never opened" if whole else "never opened, unlike others of this kind"
            action = DROP.get(kind, "check whether they are needed")
            yield Advice(
                sum(row.file.size_bytes for row in idle),
                f"{_possessive(name)} {kind}: {_amount(idle)}, {never}; {action}.",
            )


def _leave(group: Sequence[Row]) -> str:
    how = {
        "deb": "do not install it, or see which package asks for it",
        "wheel": "uninstall it at the end of the build",
    }
    return how.get(group[0].package.manager, "leave it out")


def _hidden(rows: Iterable[Row]) -> Iterable[Advice]:
    """Yield advice on files of our layers that a later one of our layers hides."""
    for state, text in (
        (State.SUPERSEDED, "written again by a later layer; make each file once, in one instruction"),
        (
            State.DELETED,
            "deleted by a later layer, which does not make the image smaller; delete them in the same instruction",
        ),
    ):
        group = [row for row in rows if row.file.state is state]
        if group:
            yield Advice(sum(row.file.size_bytes for row in group), f"{_amount(group)} {text}.")


def _hidden_in_base(rows: Iterable[Row]) -> Iterable[Advice]:
    group = [row for row in rows if not row.ours and not row.visible]
    if group:
        text = (
            f"{_amount(group)} of the base are superseded or deleted above it, which does not make the image smaller."
        )
        yield Advice(sum(row.file.size_bytes for row in group), text)


def base_note(rows: Sequence[Row]) -> str:
    """Return a sentence on the base's layers, which only another base can change."""
    base = share(row for row in rows if not row.ours)
    if not base.files:
        return ""
    return (
        f"Of the base, {megabytes(base.opened_bytes)} of {megabytes(base.size_bytes)} were opened: a smaller base "
        f"could save at most {megabytes(base.idle_bytes)}."
    )


def lost_without(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the files that only a further observation used, by its name: what a smaller image would have lost."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.seen.only_in:
            found.setdefault(row.seen.only_in, []).append(row)
    return {name: sorted(group, key=lambda row: -row.file.size_bytes) for name, group in found.items()}


def largest_idle(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the largest files that nothing opened, or that no container can see."""
    # A hidden file is never used, so it is listed too.
    idle = [row for row in rows if not row.used]
    return sorted(idle, key=lambda row: (-row.file.size_bytes, row.file.path))[:count]


def _amount(group: Sequence[Row]) -> str:
    files = "1 file" if len(group) == 1 else f"{len(group):,} files"
    return f"{megabytes(sum(row.file.size_bytes for row in group))} in {files}"


def _title(name: str) -> str:
    return name[:1].upper() + name[1:] if name.startswith("no package") else name


def _possessive(name: str) -> str:
    return f"{_title(name)}:" if name.startswith("no package") else f"{name}'s"
