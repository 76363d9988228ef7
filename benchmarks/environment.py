"""Describe the machine and the libraries that figures were measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIBRARIES = (
    "aiodata",
    "ray",
    "pyarrow",
    "numpy",
    "pandas",
    "polars",
    "duckdb",
    "torch",
    "uvloop",
    "anyio",
)
_BYTES_PER_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Environment:
    """Hold what figures depend on.

    Attributes:
        cpu_model: The processor's name.
        num_cpus: Cores that the process may use.
        memory_gib: Main memory, in GiB.
        system: The operating system and its release.
        python: The interpreter and its version.
        versions: Version of each library that is installed.
    """

    cpu_model: str
    num_cpus: int
    memory_gib: float
    system: str
    python: str
    versions: Mapping[str, str]

    @property
    def machine_text(self) -> str:
        """Describe the machine in a line."""
        return f"{self.cpu_model}, {self.num_cpus} cores, {self.memory_gib:g} GiB, {self.system}, {self.python}"

    @property
    def versions_text(self) -> str:
        """List the libraries in a line."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def num_cpus() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def current_environment() -> Environment:
    """Describe this machine and the libraries installed here."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {library: _version(library) for library in _LIBRARIES}
    return Environment(
        cpu_model=_cpu_model(),
        num_cpus=num_cpus(),
        memory_gib=round(memory_bytes / _BYTES_PER_GIB, 1),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions={name: version for name, version in versions.items() if version is not None},
    )
