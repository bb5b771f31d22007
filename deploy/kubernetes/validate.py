"""Render the overlays and validate the result, without a cluster.

::

    python -m deploy.kubernetes.validate [FOLDER ...]

Each manifest is validated strictly against the newest schema of Kubernetes in the package kubernetes-validate: an
unknown key is a fault. Kinds that Kubernetes does not define, such as KEDA's, are reported as not validated. Then the
checks of :mod:`deploy.kubernetes.checks` run. Exit status: 0, or 1 with a line for each fault.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kubernetes_validate

from deploy.kubernetes.checks import faults_of
from deploy.kubernetes.manifests import Kubectl, Manifest, Unusable, overlays, title


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of the validation of one manifest."""

    kind: str
    """API version and kind."""
    fault: str = ""
    """The fault, in a sentence; empty if there is none, or no schema."""
    has_schema: bool = True


def judge(manifest: Manifest, version: str) -> Judgement:
    """Validate a manifest against the schema of a version of Kubernetes."""
    kind = f"{manifest.get('apiVersion')} {manifest.get('kind')}"
    if not manifest.get("apiVersion") or not manifest.get("kind"):
        return Judgement(kind, "a manifest needs an apiVersion and a kind")
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return Judgement(kind, has_schema=False)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path) or "the manifest"
        return Judgement(kind, f"{title(manifest)}: {place}: {error.message}")
    return Judgement(kind)


def report(manifests: Sequence[Manifest], version: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines to print about the manifests of an overlay, each with whether it is a fault."""
    judgements = [judge(manifest, version) for manifest in manifests]
    for kind in sorted({judgement.kind for judgement in judgements}):
        of_kind = [judgement for judgement in judgements if judgement.kind == kind]
        if not of_kind[0].has_schema:
            yield f"  {kind:38} {len(of_kind)} not validated: Kubernetes has no schema of it", False
            continue
        faults = [judgement.fault for judgement in of_kind if judgement.fault]
        yield f"  {kind:38} {len(of_kind) - len(faults)} of {len(of_kind)} valid", False
        yield from ((f"  fault: {fault}", True) for fault in faults)
    if not any(judgement.fault for judgement in judgements):  # the checks rely on the schema
        yield from ((f"  fault: {fault}", True) for fault in faults_of(manifests))


def main(arguments: Sequence[str]) -> int:
    """Print the valid kinds and the faults; return the exit status."""
    folders = [Path(argument) for argument in arguments] or overlays()
    version = kubernetes_validate.latest_version()
    found = False
    try:
        kubectl = Kubectl.find()
        print(f"kubectl {kubectl.version}, kustomize {kubectl.kustomize}; schemas of Kubernetes {version}, strict")
        for folder in folders:
            print(folder.name)
            for line, is_fault in report(kubectl.render(folder), version):
                print(line)
                found = found or is_fault
    except Unusable as error:
        print(error, file=sys.stderr)
        return 1
    return int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
