"""no_leaks in what each test framework does before and after a test, which is another task than the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMON = """
import asyncio, unittest
import pytest
from aiodata.testing import no_leaks

async def numbers():
    yield 1
    yield 2

kept = []

async def leave(what):
    async for _ in numbers():
        pass
    if what == "task":
        kept.append(asyncio.get_running_loop().create_task(asyncio.sleep(60), name="forgotten"))
    if what == "generator":
        kept.append(numbers())
        await anext(kept[-1])
"""

PYTEST = """
@pytest.fixture
async def checked():
    async with no_leaks(within_s=1):
        yield

@pytest.mark.parametrize("what", ["nothing", "task", "generator"])
async def test_leaves(checked, what):
    await leave(what)
"""

ANYIO = """
pytestmark = pytest.mark.anyio

@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}
"""

UNITTEST = """
class Test(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await self.enterAsyncContext(no_leaks(within_s=1))

    async def test_leaves_nothing(self):
        await leave("nothing")

    async def test_leaves_task(self):
        await leave("task")

    async def test_leaves_generator(self):
        await leave("generator")
"""


@pytest.mark.parametrize(
    ("program", "mode", "times"),
    [(PYTEST, "auto", 1), (ANYIO + PYTEST, "strict", 2), (UNITTEST, "strict", 1)],
    ids=["pytest-asyncio", "anyio", "unittest"],
)
def test_just_those_tests_fail_that_leave_something(tmp_path: Path, program: str, mode: str, times: int) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(COMMON + program)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(path), "-q", "-o", f"asyncio_mode={mode}", "--rootdir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    said = result.stdout + result.stderr
    assert said.count("AssertionError: left behind: task 'forgotten'") >= times, said
    assert said.count("AssertionError: left behind: async generator 'numbers'") >= times, said
    # A test itself passes where its fixture fails after it; unittest takes both for one.
    assert f"{2 * times} failed" in said or f"{3 * times} passed, {2 * times} errors" in said, said
