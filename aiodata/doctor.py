"""Checks of the installation and of this machine: what `aiodata doctor` shows."""

import contextlib
import enum
import importlib.metadata
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_CONNECT_TIMEOUT_S = 2.0


class Verdict(enum.Enum):
    """How a check of the doctor went."""

    OK = "ok"
    OPTIONAL = "–"
    FAULT = "fault"

    @property
    def style(self) -> str:
        """The colour it is shown in."""
        return {Verdict.OK: "green", Verdict.OPTIONAL: "dim", Verdict.FAULT: "bold red"}[self]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: what was looked at, what was found, and what to do about it."""

    verdict: Verdict
    what: str
    found: str
    remedy: str = ""


def checks() -> Iterator[Check]:
    """Yield everything that is checked, in the order it is shown."""
    yield from _check_installation()
    yield from _check_machine()
    yield _check_ray_address()
    for extra in ("pandas", "polars", "torch"):
        yield from _check_requirements(extra=extra, missing=Verdict.OPTIONAL)


def _check_installation() -> Iterator[Check]:
    """Hold what is installed against what aiodata's own metadata asks for."""
    yield Check(Verdict.OK, "python", f"{platform.python_version()} ({platform.python_implementation()})")
    try:
        yield Check(Verdict.OK, "aiodata", importlib.metadata.version("aiodata"))
    except importlib.metadata.PackageNotFoundError:
        yield Check(Verdict.FAULT, "aiodata", "on the path, but not installed", "pip install -e .")
        return
    yield from _check_requirements(extra="", missing=Verdict.FAULT)


def _check_requirements(extra: str, missing: Verdict) -> Iterator[Check]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("aiodata") or ():
            requirement = Requirement(line)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            # A requirement of an extra holds only where that extra is asked for.
            if needed and (not extra or not always):
                yield _check_requirement(requirement.name, requirement.specifier, extra, missing)


def _check_requirement(name: str, wanted: SpecifierSet, extra: str, missing: Verdict) -> Check:
    remedy = f'pip install "aiodata[{extra}]"' if extra else f'pip install "{name}{wanted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(missing, name, "not installed", remedy)
    if wanted.contains(version, prereleases=True):
        return Check(Verdict.OK, name, version)
    return Check(Verdict.FAULT, name, f"{version}, but aiodata needs {wanted}", f'pip install "{name}{wanted}"')


def _check_machine() -> Iterator[Check]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check(Verdict.OK, "cores", f"{usable} usable")
    if hasattr(os, "sysconf"):
        yield Check(
            Verdict.OK, "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:,.1f} GiB"
        )


def _check_ray_address() -> Check:
    """See whether something listens where RAY_ADDRESS points to."""
    address = os.environ.get("RAY_ADDRESS", "")
    what = "RAY_ADDRESS"
    if not address:
        return Check(Verdict.OK, what, "not set: Ray is used where a program asks for it")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        if address in {"auto", "local"}:
            return Check(Verdict.OK, what, f"{address}: Ray finds or starts the cluster itself")
        return Check(Verdict.FAULT, what, f"{address!r} is no address", "set it to HOST:PORT, or unset it")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S):
            return Check(Verdict.OK, what, f"{address} answers")
    except (OSError, OverflowError) as error:
        return Check(Verdict.FAULT, what, f"{address}: {error}", "start the cluster (ray start --head), or unset it")
