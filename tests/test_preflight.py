"""What is missing on a machine is said at once, with what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ecomspark import preflight


def fake_java(folder: Path, says: str) -> None:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    java.chmod(0o755)


@pytest.mark.parametrize(
    ("says", "fault"),
    [
        ('openjdk version "17.0.15" 2025-04-15', None),
        ('openjdk version "21.0.2"', None),
        ('java version "1.8.0_391"', "is version 8; install Java 17 or 21"),
        ('openjdk version "11.0.20"', "is version 11; install Java 17 or 21"),
        ("hello", "does not say which version it is"),
    ],
)
def test_java_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, fault: str | None) -> None:
    fake_java(tmp_path, says)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found = preflight.java_fault()
    assert found is None if fault is None else fault in str(found)


def test_no_java_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install openjdk-17-jre-headless" in str(preflight.java_fault())
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "which has no bin/java" in str(preflight.java_fault())


def test_too_little_memory_or_disk_says_how_much_is_needed(tmp_path: Path) -> None:
    assert "memory: 1e+06 GiB must be free" in str(preflight.memory_fault(1e6))
    assert preflight.memory_fault(0.001) is None
    assert "disk: 1e+06 GiB must be free" in str(preflight.disk_fault(1e6, tmp_path))
    assert preflight.disk_fault(0.001, tmp_path) is None


def test_all_faults_are_printed_at_once_before_anything_is_built(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "ecomspark" / "preflight.py"), "--memory", "1e6", "--disk", "1e6"]
    env = {**os.environ, "JAVA_HOME": str(tmp_path)}
    ended = subprocess.run(script, capture_output=True, text=True, env=env, check=False)
    assert ended.returncode == 2
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == ["Java", "memory", "disk"]
