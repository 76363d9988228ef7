"""Run one schedule of `test_schedules.py` again, and print what it is and what came of it."""

from __future__ import annotations

import sys

from tests.testing.schedules import check, simulation_of


def main() -> None:
    [seed] = sys.argv[1:]
    simulation = simulation_of(int(seed))
    print(simulation, flush=True)  # noqa: T201 - it is a program.
    print(check(simulation))  # noqa: T201


if __name__ == "__main__":
    main()
