"""The build step that pyproject.toml cannot express: this folder is itself the package ``services``."""

from setuptools import find_packages, setup

setup(
    script_name="setup.py",  # which is not a module of the package, as setuptools would take it for under PEP 517
    package_dir={"services": "."},
    packages=["services", *(f"services.{name}" for name in find_packages("."))],
)
