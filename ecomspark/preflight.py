"""What the machine must have before anything is built or started. Standard library only: runs before the environment.

python3 ecomspark/preflight.py [--memory GIB] [--disk GIB]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PYTHONS = ((3, 11), (3, 12))
JAVAS = (17, 21)
GIB = 1024**3


def java_fault() -> str | None:
    """What is wrong with Java, and the remedy; None if it will do."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    install = (
        "install Java 17 or 21 (Debian, Ubuntu: apt install openjdk-17-jre-headless; "
        "macOS: brew install openjdk@17; anywhere: a Temurin build) and see that `java -version` prints it"
    )
    if java is None or not Path(java).exists():
        where = f"JAVA_HOME is {home}, which has no bin/java" if home else "no `java` on PATH"
        return f"Java: Spark needs version 17 or 21, but {where}; {install}"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None:
        return f"Java: {java} does not say which version it is; {install}"
    if int(found[1]) < JAVAS[0]:
        return f"Java: Spark needs version 17 or 21, {java} is version {found[1]}; {install}"
    return None


def python_fault() -> str | None:
    """What is wrong with this Python; None if it will do."""
    if sys.version_info[:2] in PYTHONS:
        return None
    return (
        f"Python: 3.11 or 3.12 is needed, this is {sys.version_info.major}.{sys.version_info.minor}; "
        "install one of them and say `make PYTHON=python3.11 …`"
    )


def memory_fault(gib: float) -> str | None:
    """What is wrong with the free memory; None if it will do or cannot be told."""
    free = free_memory()
    if free is None or free >= gib * GIB:
        return None
    return f"memory: {gib:g} GiB must be free, {free / GIB:.1f} GiB are; end other programs or take a larger machine"


def disk_fault(gib: float, folder: Path) -> str | None:
    """What is wrong with the free disk space under `folder`; None if it will do."""
    free = shutil.disk_usage(folder).free
    if free >= gib * GIB:
        return None
    return f"disk: {gib:g} GiB must be free in {folder}, {free / GIB:.1f} GiB are; make room or clone elsewhere"


def free_memory() -> int | None:
    """Bytes that can still be used, by the system or, if less, by the container; None where it cannot be told."""
    amounts = []
    meminfo, cgroup = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        amounts.append(int(found[1]) * 1024)
    limit = cgroup / "memory.max"
    if limit.exists() and limit.read_text().strip().isdigit():
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        used = int((cgroup / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        amounts.append(int(limit.read_text()) - used)
    return min(amounts) if amounts else None


def main() -> int:
    parser = argparse.ArgumentParser(description="See whether this machine can run ecomspark.")
    parser.add_argument("--memory", type=float, default=0, metavar="GIB", help="memory that must be free")
    parser.add_argument("--disk", type=float, default=0, metavar="GIB", help="disk space that must be free here")
    asked = parser.parse_args()
    found = [python_fault(), java_fault(), memory_fault(asked.memory), disk_fault(asked.disk, Path.cwd())]
    faults = [fault for fault in found if fault]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
