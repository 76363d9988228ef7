"""Run the command line."""

from benchmarks.cli import app

app(prog_name="python -m benchmarks")
