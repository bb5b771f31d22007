"""Build the site: ``python -m website``; with ``--external``, ask for the pages of others that it links to."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from website.built import faults_of_site
from website.stage import ROOT, SCHEMAS, Stage, StageError

HERE: Final = Path(__file__).parent


def build(folder: Path, builder: str = "html") -> list[str]:
    """Build the site, with warnings as faults; return a sentence for each fault.

    Args:
        folder: Where to; its ``source``, ``doctrees`` and ``site`` are written anew.
        builder: Sphinx's: ``html`` or ``linkcheck``.
    """
    source, site = folder / "source", folder / ("site" if builder == "html" else builder)
    try:
        Stage(source).write()
    except StageError as error:
        return str(error).splitlines()
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "--builder", builder, "--fail-on-warning", "--keep-going", "--quiet"]
    extra = ",".join(str(source / name) for name in SCHEMAS)
    command += ["--define", f"html_extra_path={extra}"]
    places = ["--conf-dir", str(HERE), "--doctree-dir", str(folder / "doctrees"), str(source), str(site)]
    # Warnings of Python within Sphinx and its extensions are theirs, and no faults of the pages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    ended = subprocess.run([*command, *places], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = list(dict.fromkeys(line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()))
    if ended.returncode:
        return said or [f"sphinx ended with status {ended.returncode}"]
    return list(faults_of_site(site)) if builder == "html" else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Build; return 0, or 1 with each fault in a line."""
    parser = argparse.ArgumentParser(prog="python -m website", description="Build the documents as a site.")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache/docs", help="where to (.cache/docs)")
    parser.add_argument("--external", action="store_true", help="check the links to other sites instead")
    options = parser.parse_args(arguments)
    faults = build(options.folder.resolve(), "linkcheck" if options.external else "html")
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    if faults:
        return 1
    if not options.external:
        sys.stdout.write(f"{options.folder / 'site/index.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
