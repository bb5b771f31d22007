"""The build step that pyproject.toml cannot express: this folder is itself the package ``services``."""

from setuptools import find_packages, setup

setup(
    package_dir={"services": "."},
    packages=["services", *(f"services.{name}" for name in find_packages("."))],
)
