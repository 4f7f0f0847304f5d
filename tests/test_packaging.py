"""What an installed Larmor must be: our six packages and no others, all of them, with pins that fit."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SIX = ("ehr", "finetune", "foundation", "heads", "pretrain", "serve")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
REQUIREMENTS = (ROOT / "requirements.txt").read_text()


@pytest.mark.parametrize("name", SIX)
def test_name_is_ours_and_not_another_library(name: str):
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin == str(ROOT / name / "__init__.py")


def test_every_folder_with_code_is_packaged():
    folders = {file.parent for name in SIX for file in (ROOT / name).rglob("*.py")}
    assert len(folders) >= len(SIX)
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= set(PACKAGES)
    assert {package.split(".")[0] for package in PACKAGES} == set(SIX)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_exists(package: str):
    assert (ROOT / package.replace(".", "/") / "__init__.py").is_file()


def test_every_dependency_is_pinned_within_its_range():
    """Fails when pyproject.toml was edited and `make requirements` was not run."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", REQUIREMENTS, flags=re.MULTILINE)
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]  # dev names cluster, which is then pinned like everything else
    listed = project["dependencies"] + extras["dev"] + extras["cluster"]
    wanted = [Requirement(text) for text in listed if not text.startswith("larmor[")]
    assert wanted
    for requirement in wanted:
        versions = [version for name, version in pins if name == requirement.name]
        assert any(version in requirement.specifier for version in versions), (str(requirement), versions)


def test_pins_name_no_index():
    assert "://" not in REQUIREMENTS


def test_tests_are_no_packages():
    """An `__init__.py` in tests/heads/ makes `import foundation` find tests/foundation."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
