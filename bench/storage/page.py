"""Writes the tables of a run into docs/storage.md, each section between its two marks; the rest of the page stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.storage.figures import from_json, lines


def begin(section: str) -> str:
    """Return the mark before a section's tables."""
    return f"<!-- Made by 'make bench-storage PUBLISH=1': {section} -->"


def end(section: str) -> str:
    """Return the mark after a section's tables."""
    return f"<!-- End of {section} -->"


def published(page: str, results: Mapping[str, Any]) -> str:
    """Return the page with the new tables of all sections in ``results``.

    Raises:
        ValueError: The page has no place for a section.
    """
    for section, saved in results["sections"].items():
        tables = "\n".join(line for one in from_json(saved["tables"]) for line in lines(one)).strip()
        made = f"{begin(section)}\n\n{tables}\n\n{_ran(section, saved, results)}\n\n{end(section)}"
        pattern = f"{re.escape(begin(section))}.*?{re.escape(end(section))}"
        page, count = re.subn(pattern, lambda _, made=made: made, page, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page needs the line {begin(section)} and, below it, {end(section)}, once each")
    return page


def _ran(section: str, saved: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    form = f" --form {results['form']}" if results["form"] != "short" else ""
    image = f" --image {results['image']}" if section == "drivers" and results["image"] else ""
    rounds = f" --rounds {results['rounds']}" if results.get("rounds") else ""
    return (
        f"`python -m bench.storage {section}{form}{rounds}{image}`, as root, on {results['started']} in "
        f"{saved['seconds']:.0f} s: "
        f"{machine['cores']} cores, Linux {machine['kernel'].partition('-')[0]}, load average before it "
        f"{saved['load_before']}. Median (least to most)."
    )
