"""Certificates for tests, by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support import lacks


def openssl(*arguments: str, folder: Path) -> None:
    """Run openssl in the folder."""
    if shutil.which("openssl") is None:
        lacks("no openssl here: run 'make system-packages'")
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)


def make_authority(folder: Path, name: str) -> None:
    """Make an authority's certificate and key."""
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", folder=folder)  # fmt: skip


def make_certificate(folder: Path, name: str, authority: str) -> None:
    """Make a certificate for the loopback, and its key."""
    (folder / "names").write_text("subjectAltName = DNS:localhost,IP:127.0.0.1\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", folder=folder)  # fmt: skip
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", f"{name}.pem", folder=folder)  # fmt: skip
    (folder / f"{name}.key").chmod(0o644)
