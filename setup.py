"""The build steps that pyproject.toml cannot express: optional compilation, the wheel's tag, links in the metadata."""

import re
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]
REPOSITORY = PROJECT["tool"]["framebus"]["repository"].rstrip("/")
CODE_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
RELATIVE_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!\w+:)(?P<target>[^)\s]+)\)")

# A module for the stable ABI of CPython 3.11 runs on later versions too. A free-threaded build cannot load it and runs
# the steps in Python.
COMPILE = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


def absolute_link(link: re.Match[str]) -> str:
    """Return the link with an absolute target or, if the repository has no address yet, without any."""
    if REPOSITORY:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({REPOSITORY}/{kind}/v{VERSION}/{link['target']})"
    return "" if link["image"] else link["text"]


def long_description() -> str:
    """Return the README without relative links, which would be dead on a package's page."""
    parts = CODE_BLOCK.split((ROOT / "README.md").read_text(encoding="utf-8"))
    parts[::2] = [RELATIVE_LINK.sub(absolute_link, part) for part in parts[::2]]
    return "".join(parts)


def project_urls() -> dict[str, str]:
    """Return the links that a package's page shows beside the description."""
    if not REPOSITORY:
        return {}
    files = f"{REPOSITORY}/blob/v{VERSION}"
    return {
        "Repository": REPOSITORY,
        "Documentation": f"{files}/docs/design.md",
        "Changelog": f"{files}/CHANGELOG.md",
    }


class BuildSteps(build_ext):
    """Compiles the steps of a hand-over."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one module."""
        # Otherwise a module of an earlier build would be packed if this compilation fails.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().build_extension(ext)


class TaggedWheel(bdist_wheel):
    """Tags the wheel by its content: a wheel without the compiled module is pure Python."""

    def run(self) -> None:
        """Compile first, then make the wheel."""
        if self.distribution.has_ext_modules():
            self.run_command("build_ext")
            outputs = self.get_finalized_command("build_ext").get_outputs()
            if not all(Path(output).exists() for output in outputs):
                self.distribution.ext_modules = []
                self.root_is_pure = True
                self.reinitialize_command("build", reinit_subcommands=True)
        super().run()


steps = Extension(
    "framebus.ring._ring_c",
    ["framebus/ring/_ring_c.c"],
    extra_compile_args=["-O2", "-std=c11"],
    py_limited_api=True,
    optional=True,  # without a compiler, framebus runs the steps in Python
)
setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    project_urls=project_urls(),
    ext_modules=[steps] if COMPILE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if COMPILE else {},
    cmdclass={"build_ext": BuildSteps, "bdist_wheel": TaggedWheel},
)
