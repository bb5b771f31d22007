"""The report of an image as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from bench.image_usage.advice import advise, base_note, largest_idle, lost_without, megabytes
from bench.image_usage.usage import MB, Report, Row, Share, share, shares

FORMAT: Final = 1
GROUPS: Final = 15
LARGEST: Final = 20
SENTENCES: Final = 20
COMMAND_CHARACTERS: Final = 60


def text(report: Report) -> str:
    """Return the report as text; its last line is the summary."""
    return "\n".join([*_lines(report), report.summary()])


def _lines(report: Report) -> Iterator[str]:
    ours = [row for row in report.rows if row.ours]
    yield f"# {report.image}"
    yield ""
    yield f"Work: {report.work}."
    if report.service:
        yield f"Counted from the first program of the service: {' '.join(report.service)}"
    yield f"Base: {report.base or 'none'} ({report.base_known_by})."
    yield from (f"{remark[:1].upper()}{remark[1:]}." for remark in report.remarks)
    yield from _sharing(report)
    yield ""
    yield from _table(
        "layer", {_layer_name(report, number): _of_layer(report, number) for number in range(len(report.layers))}
    )
    yield from _table(
        "package, of our layers", _most(shares((row for row in ours if row.visible), lambda row: str(row.package)))
    )
    yield from _table(
        "kind, of our layers", _most(shares(ours, lambda row: row.kind if row.visible else row.file.state.value))
    )
    yield "The largest files that nothing used:"
    yield ""
    for row in largest_idle(ours, LARGEST):
        state = "" if row.visible else f" ({row.file.state.value})"
        yield f"{row.file.size_bytes / MB:8.1f} MB  {row.file.path}  [{row.package}, {row.kind}]{state}"
    yield ""
    yield from _apart(report)
    yield "What to do:"
    yield ""
    yield from (f"- {one.text}" for one in advise(report.rows)[:SENTENCES])
    if note := base_note(report.rows):
        yield f"- {note}"
    yield ""


def _sharing(report: Report) -> Iterator[str]:
    shared = sorted({name for layer in report.layers for name in layer.shared_with})
    if shared:
        yield f"Images here with layers in common, whose files in memory are the same pages: {', '.join(shared)}."
    if report.held_bytes:
        holders = f" by {', '.join(report.sharers)}" if report.sharers else ""
        # Only of opened files: the work cannot have touched the pages of the others.
        unsure = sum(row.seen.held_bytes for row in report.rows if row.seen.opened)
        yield (
            f"{megabytes(report.held_bytes)} were held in memory{holders} before the start. Whether the work touched "
            f"them cannot be seen, so they are not counted: up to {megabytes(unsure)} more may have been touched."
        )


def _layer_name(report: Report, number: int) -> str:
    layer = report.layers[number]
    command = " ".join(layer.command.replace("/bin/sh -c", "").replace("# buildkit", "").split())[:COMMAND_CHARACTERS]
    return f"{number} {'ours' if layer.ours else 'base'} {command or layer.digest[7:19]}"


def _of_layer(report: Report, number: int) -> Share:
    # Hidden files count too, because the layer contains and transfers them.
    return share(row for row in report.rows if row.file.layer == number)


def _most(groups: Mapping[str, Share]) -> dict[str, Share]:
    # The groups are sorted by what was not opened, so the rest has little to save.
    kept = dict(list(groups.items())[:GROUPS])
    rest = list(groups.items())[GROUPS:]
    if rest:
        sums = [one for _, one in rest]
        kept[f"{len(rest)} more"] = Share(
            *(sum(values) for values in zip(*(vars(one).values() for one in sums), strict=True))
        )
    return kept


def _table(head: str, groups: Mapping[str, Share]) -> Iterator[str]:
    width = max([len(head), *(len(name) for name in groups)])
    yield f"{'':{width}}  all           opened        read or mapped  touched"
    yield f"{head:{width}}  files      MB  files      MB  files      MB       MB    %"
    for name, one in groups.items():
        pairs = ((one.files, one.size_bytes), (one.opened_files, one.opened_bytes), (one.read_files, one.read_bytes))
        cells = "  ".join(f"{files:5} {size_bytes / MB:7.1f}" for files, size_bytes in pairs)
        yield f"{name:{width}}  {cells}  {one.touched_bytes / MB:7.1f} {one.touched * 100:4.0f}"
    yield ""


def _apart(report: Report) -> Iterator[str]:
    only = [row for row in report.rows if row.seen.apart and not row.seen.opened]
    if only:
        size = megabytes(sum(row.file.size_bytes for row in only))
        yield f"Only health checks, shells, and what starts the service opened {len(only)} files, {size}."
        yield ""
    for name, group in lost_without(report.rows).items():
        size = megabytes(sum(row.file.size_bytes for row in group))
        yield f"Only '{name}' opened {len(group)} files, {size}, which an image of the work alone would have lost:"
        yield from (f"{row.file.size_bytes / MB:8.1f} MB  {row.file.path}" for row in group[:LARGEST])
        yield ""


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON's own types."""
    return {
        "format": FORMAT,
        "image": report.image,
        "base": report.base,
        "base_known_by": report.base_known_by,
        "work": report.work,
        "service": list(report.service),
        "held_bytes": report.held_bytes,
        "held_by": list(report.sharers),
        "ours": _share_json(report.ours),
        "whole": _share_json(report.whole),
        "layers": [
            {
                "digest": layer.digest,
                "command": layer.command,
                "base": not layer.ours,
                "shared_with": list(layer.shared_with),
                **_share_json(_of_layer(report, number)),
            }
            for number, layer in enumerate(report.layers)
        ],
        "packages": _groups_json(report.rows, lambda row: str(row.package)),
        "kinds": _groups_json(report.rows, lambda row: row.kind),
        "states": _groups_json(report.rows, lambda row: row.file.state.value),
        "advice": [{"saves_bytes": one.saves_bytes, "text": one.text} for one in advise(report.rows)],
        "files": [_file_json(row) for row in report.rows],
        "summary": report.summary(),
    }


def _groups_json(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, Any]:
    return {name: _share_json(one) for name, one in shares(rows, key).items()}


def _share_json(one: Share) -> dict[str, Any]:
    return dict(vars(one))


def _file_json(row: Row) -> dict[str, Any]:
    seen = row.seen
    return {
        "path": row.file.path,
        "other_paths": list(row.file.paths[1:]),
        "layer": row.file.layer,
        "state": row.file.state.value,
        "size_bytes": row.file.size_bytes,
        "package": row.package.name,
        "version": row.package.version,
        "manager": row.package.manager,
        "kind": row.kind,
        "order": seen.order,
        "opened": seen.opened,
        "read_or_mapped": seen.read,
        "touched_bytes": seen.touched_bytes,
        "held_bytes": seen.held_bytes,
        "apart": sorted(role.value for role in seen.apart),
        "only_in": seen.only_in,
    }


def opened_in(content: str) -> tuple[str, frozenset[str]]:
    """Return the work of a saved report, and all paths that the work or a further command opened.

    Raises:
        ValueError: The content is not a saved report.
    """
    try:
        saved = json.loads(content)
        if saved["format"] != FORMAT:
            raise ValueError(f"its format is {saved['format']} instead of {FORMAT}")
        # Files of further commands count as opened by that run too.
        files = [one for one in saved["files"] if one["opened"] or one["only_in"]]
        return saved["work"], frozenset(path for one in files for path in (one["path"], *one["other_paths"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"it has no {error}") from None
