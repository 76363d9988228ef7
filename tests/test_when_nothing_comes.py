"""docs/when-nothing-comes.md shows messages as they are."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiodata.errors import AiodataError
from aiodata.execution.workers import ActorPool
from aiodata.plan.nodes import Resources

pytest.importorskip("ray")

from aiodata.runtime.ray import fitting
from aiodata.runtime.ray.fitting import check_fits
from aiodata.runtime.ray.holders import ClusterView, Holder
from aiodata.runtime.ray.start import _note_slow_start
from aiodata.runtime.ray.starts import describe_wait

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "when-nothing-comes.md").read_text()
SHOWN = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)

# Those that are made up of what only a run has: their words are looked for where they are written.
WORDS = {
    "split 1 has waited 30 s": ("batching/split_feed.py", ["s for epoch", "not there; every split needs a consumer"]),
    "split 1 has waited 9 s": ("batching/split_feed.py", ["s for rows; its coordinator says:"]),
    "streaming_split does not": ("runtime/ray/host.py", ["does not answer for", "is busy. If it goes on, see"]),
    "block 00ffa1b2": ("runtime/ray/fetching.py", ["has not come for", "; it is asked for again", "its owner, "]),
    "map_batches(f): nothing": ("execution/task_operator.py", ["nothing has come of its", "never returns, give what"]),
}


def refusal(name: str, resources: Resources, **node: float) -> str:
    """The error where the only node has no more than this."""
    with pytest.raises(AiodataError) as caught:
        asyncio.run(check_fits(name, resources, [{"Alive": True, "Resources": node}]))
    return str(caught.value)


MESSAGES: dict[str, Callable[[], Any]] = {
    "others": lambda: describe_wait(
        {"CPU": 1.0}, 7.0, ClusterView({"CPU": 2.0}, {}, (Holder("2 actors Trainer", {"CPU": 2.0}),))
    ),
    "workers": lambda: describe_wait({"CPU": 1.0}, 7.0, ClusterView({"CPU": 2.0}, {"CPU": 1.0}, ())),
    "no GPU": lambda: refusal("map_batches(Model)", Resources(num_gpus=1), CPU=8.0),
    "no CPU": lambda: refusal("read_parquet(flights)", Resources()),
    "start": lambda: _note_slow_start(None, 12.0),
    "constructor": lambda: ActorPool("map_batches(Model)", 1, 1, 1.0)._warn_of_constructor(7.0),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message_is_shown_as_it_is(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "has_autoscaler", lambda: False)
    caplog.set_level(logging.INFO)
    message = MESSAGES[name]() or caplog.messages[0]
    assert message in SHOWN


@pytest.mark.parametrize("begins", WORDS)
def test_words_of_a_message_are_those_of_the_code(begins: str) -> None:
    [shown] = [message for message in SHOWN if message.startswith(begins)]
    path, words = WORDS[begins]
    code = (ROOT / "aiodata" / path).read_text()
    for some in words:
        assert some in shown
        assert some in code


def test_every_message_is_held_against_the_code() -> None:
    assert len(SHOWN) == len(MESSAGES) + len(WORDS)
