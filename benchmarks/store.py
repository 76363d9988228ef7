"""Keep the raw figures of each scenario's latest run, beside the page made from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.outcome import ScenarioResult, result_from_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FORMAT = 1

FOLDER = Path(__file__).resolve().parent
RAW_NAME = "results.json"
PAGE_NAME = "RESULTS.md"


class StoredResultsError(Exception):
    """The stored figures can not be read; the message names the file."""


def load_results(path: Path) -> dict[str, ScenarioResult]:
    """Read the stored figures, by scenario; none when there is no file yet.

    Raises:
        StoredResultsError: The file is not one that `save_results` wrote.
    """
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {_FORMAT}")
        scenarios: Mapping[str, Any] = document["scenarios"]
        return {name: result_from_json(name, value) for name, value in scenarios.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise StoredResultsError(
            f"{path} can not be read ({error}): delete it and run `python -m benchmarks all`"
        ) from error


def merge_results(stored: Mapping[str, ScenarioResult], new: Iterable[ScenarioResult]) -> dict[str, ScenarioResult]:
    """Replace the scenarios that were run, and keep the others."""
    return {**stored, **{result.scenario: result for result in new}}


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def save_results(path: Path, results: Mapping[str, ScenarioResult]) -> None:
    """Write the figures of all scenarios."""
    scenarios = {name: results[name].to_json() for name in sorted(results)}
    document = {"format": _FORMAT, "scenarios": scenarios}
    write_whole(path, json.dumps(document, indent=1) + "\n")
