import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

import aiodata
from aiodata import cli

ROWS = 1_000


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    directory = tmp_path / "people"
    directory.mkdir()
    for part in range(4):
        ids = range(part * ROWS // 4, (part + 1) * ROWS // 4)
        table = pa.table({"id": list(ids), "name": [f"name-{i}" for i in ids], "height": [1.5] * len(ids)})
        pyarrow.parquet.write_table(table, directory / f"part-{part}.parquet", row_group_size=50)
    return str(directory)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def facts(output: str) -> dict[str, str]:
    """Read the summary's lines as name -> rest."""
    lines = [line.split(None, 1) for line in output.splitlines()]
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def test_scan_counts_every_row_and_batch(dataset: str) -> None:
    result = invoke("scan", dataset, "--runtime", "local", "--batch-size", "64")
    assert result.exit_code == 0, result.output
    summary = facts(result.stdout)
    assert summary["rows"] == "1,000"
    assert summary["batches"] == "16"
    assert summary["runtime"] == "local"
    assert "waiting for data" in result.stdout


def test_scan_without_a_terminal_is_quiet_on_stderr(dataset: str) -> None:
    result = invoke("scan", dataset, "--runtime", "local")
    assert result.stderr == ""


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas", "polars"])
def test_scan_takes_every_format(dataset: str, batch_format: str) -> None:
    pytest.importorskip(batch_format)
    result = invoke("scan", dataset, "--runtime", "local", "--format", batch_format)
    assert result.exit_code == 0, result.output
    assert facts(result.stdout)["rows"] == "1,000"


def test_scan_stops_at_the_limit(dataset: str) -> None:
    result = invoke("scan", dataset, "--runtime", "local", "--limit", "70")
    assert result.exit_code == 0, result.output
    assert facts(result.stdout)["rows"] == "70"


def test_scan_of_no_rows_has_a_summary(dataset: str) -> None:
    result = invoke("scan", dataset, "--runtime", "local", "--limit", "0")
    assert result.exit_code == 0, result.output
    assert facts(result.stdout)["rows"] == "0"


def test_scan_on_a_terminal_shows_progress_and_the_same_summary(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    result = invoke("scan", dataset, "--runtime", "local")
    assert result.exit_code == 0, result.output
    assert "rows/s" in result.stderr
    assert "1,000" in result.stdout


def test_scan_leaves_with_130_and_no_words_on_ctrl_c(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_main: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(aiodata, "run", interrupt)
    result = invoke("scan", dataset)
    assert result.exit_code == 130
    assert result.output == ""


@pytest.mark.parametrize("command", ["scan", "head", "schema"])
def test_a_missing_path_is_one_line_and_exit_code_1(command: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    result = invoke(command, missing, "--runtime", "local")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert missing in result.stderr


def test_an_unknown_format_is_a_usage_error(dataset: str) -> None:
    result = invoke("scan", dataset, "--format", "xml")
    assert result.exit_code == 2


def test_head_shows_as_many_rows_as_asked_for(dataset: str) -> None:
    result = invoke("head", dataset, "-n", "3", "--runtime", "local")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("name-") == 3
    assert "height" in result.stdout


def test_head_names_the_columns_that_do_not_fit(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    result = invoke("head", dataset, "-n", "1", "--runtime", "local")
    assert result.exit_code == 0, result.output
    assert "Not shown" in result.stdout
    assert "height" in result.stdout.split("Not shown")[1]


def test_schema_names_columns_and_types(dataset: str) -> None:
    result = invoke("schema", dataset, "--runtime", "local")
    assert result.exit_code == 0, result.output
    columns = facts(result.stdout)
    assert columns["id"] == "int64"
    assert columns["name"] == "string"
    assert columns["height"] == "double"


def test_explain_prints_the_plan(dataset: str) -> None:
    result = invoke("explain", dataset, "--runtime", "local")
    assert result.exit_code == 0, result.output
    assert "parquet" in result.stdout.lower()


def test_doctor_is_content_with_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    for name in ("python", "aiodata", "ray", "pyarrow", "anyio", "cores", "memory", "RAY_ADDRESS"):
        assert name in result.stdout


def test_doctor_sees_a_cluster_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        result = invoke("doctor")
    assert result.exit_code == 0, result.output
    assert "answers" in result.stdout


def test_doctor_faults_an_address_where_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert address in result.stdout
    assert "ray start" in result.stdout


def test_doctor_faults_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "somewhere" in result.stdout


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("scan", "head", "schema", "explain", "doctor"):
        assert command in result.stdout
