"""requirements.lock holds what pyproject.toml asks for, with hashes, and names no index."""

import re
import tomllib

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = [
    Requirement(line)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in group
]


def pinned() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK, re.MULTILINE):
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


def test_every_requirement_is_locked_at_a_version_that_it_allows() -> None:
    locked = pinned()
    for asked in ASKED:
        found = locked.get(canonicalize_name(asked.name), set())
        assert found, f"{asked.name}: in pyproject.toml, not in requirements.lock; run `make lock`"
        assert all(asked.specifier.contains(version) for version in found), (
            f"{asked}: locked at {found}; run `make lock`"
        )


def test_every_package_has_hashes_and_no_index_is_named() -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)
    assert "://" not in LOCK
    assert "index-url" not in LOCK
