"""The build steps that pyproject.toml cannot express: this folder is a package, and has an optional compiled module."""

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

RENDERING = "stitcher/rendering"
# A module for the stable ABI of CPython 3.11 runs on later versions too. A free-threaded build cannot load it.
COMPILE = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildWarp(build_ext):  # type: ignore[misc]  # setuptools has no types
    """Compiles the warp."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one module."""
        # Otherwise a module of an earlier build would be packed if this compilation fails.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().build_extension(ext)


class TaggedWheel(bdist_wheel):  # type: ignore[misc]
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


warp = Extension(
    "services.stitcher.rendering._warp_c",
    [f"{RENDERING}/_warp_c.c"],
    depends=[f"{RENDERING}/_warp.h", f"{RENDERING}/_warp_avx2.h"],
    extra_compile_args=["-O2", "-std=c11"],
    py_limited_api=True,
    optional=True,  # without a compiler, OpenCV renders
)
setup(
    script_name="setup.py",  # which is not a module of the package, as setuptools would take it for under PEP 517
    package_dir={"services": "."},
    packages=["services", *(f"services.{name}" for name in find_packages("."))],
    ext_modules=[warp] if COMPILE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if COMPILE else {},
    cmdclass={"build_ext": BuildWarp, "bdist_wheel": TaggedWheel},
)
