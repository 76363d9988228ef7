"""EpochState as a state machine: whatever the splits do, each bundle goes to one of them, and repeats are harmless."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiodata import EpochError
from aiodata.bundle import RefBundle
from aiodata.coordination.epoch import EpochPhase, EpochState
from tests.strategies import bundle_of

SPLITS = st.integers(0, 4)


class Epochs(RuleBasedStateMachine):
    """Splits ask, repeat, wait in line and leave; a plain model keeps the books."""

    @initialize(num_splits=st.integers(1, 5))
    def begin(self, num_splits: int) -> None:
        self.state = EpochState(7, num_splits)
        self.arrived: set[int] = set()
        self.finished: set[int] = set()
        self.line: list[int] = []
        self.received: list[list[RefBundle]] = [[] for _ in range(num_splits)]
        self.assigned: list[RefBundle] = []
        self.exhausted = False
        # Splits that have asked for more since they were given something.
        self.asked_on: set[int] = set()

    def split(self, drawn: int) -> int:
        return drawn % self.state.num_splits

    @rule(drawn=SPLITS)
    def arrive(self, drawn: int) -> None:
        self.state.arrive(self.split(drawn))
        self.arrived.add(self.split(drawn))

    @rule(drawn=SPLITS)
    def ask(self, drawn: int) -> None:
        split = self.split(drawn)
        self.state.ask(split, len(self.received[split]))
        self.asked_on.add(split)
        if split not in self.line and split not in self.finished and not self.exhausted:
            self.line.append(split)

    @rule(drawn=SPLITS)
    def repeat(self, drawn: int) -> None:
        split = self.split(drawn)
        if self.received[split] and split not in self.asked_on:
            sequence = len(self.received[split]) - 1
            self.state.ask(split, sequence)
            expected = None if split in self.finished else self.received[split][-1]
            assert self.state.delivery(split, sequence) is expected

    @rule(drawn=SPLITS, wrong=st.sampled_from([-3, -2, 1, 2, 10]))
    def ask_out_of_turn(self, drawn: int, wrong: int) -> None:
        split = self.split(drawn)
        with pytest.raises(
            EpochError, match=rf"split {split} asked for .*; the next one is {len(self.received[split])}"
        ):
            self.state.ask(split, len(self.received[split]) + wrong)

    @precondition(lambda self: self.line)
    @rule()
    def assign(self) -> None:
        bundle = bundle_of(len(self.assigned))
        split = self.state.assign(bundle)
        assert split == self.line.pop(0), "the split that has waited longest gets it"
        self.received[split].append(bundle)
        self.asked_on.discard(split)
        self.assigned.append(bundle)

    @rule(drawn=SPLITS)
    def finish(self, drawn: int) -> None:
        split = self.split(drawn)
        self.state.finish(split)
        self.arrived.add(split)
        self.finished.add(split)
        self.line = [one for one in self.line if one != split]

    @rule()
    def exhaust(self) -> None:
        self.state.exhaust()
        self.exhausted = True
        self.line = []

    @invariant()
    def every_bundle_went_to_one_split(self) -> None:
        given = [id(bundle) for received in self.received for bundle in received]
        assert sorted(given) == sorted(map(id, self.assigned))

    @invariant()
    def delivery_is_the_last_bundle_or_nothing(self) -> None:
        for split, received in enumerate(self.received):
            is_held = received and split not in self.finished | self.asked_on
            holds = received[-1] if is_held else None
            assert self.state.delivery(split, len(received) - 1) is holds
            assert self.state.delivery(split, len(received)) is None
            assert self.state.delivery(split, len(received) - 2) is None

    @invariant()
    def line_is_known(self) -> None:
        assert self.state.wants_bundle == bool(self.line)

    @invariant()
    def end_is_known(self) -> None:
        for split in range(self.state.num_splits):
            assert self.state.is_at_end(split) == (self.exhausted or split in self.finished)

    @invariant()
    def phase_follows_from_who_came_and_went(self) -> None:
        everyone = set(range(self.state.num_splits))
        assert self.state.absent == sorted(everyone - self.arrived)
        if self.finished == everyone:
            assert self.state.phase is EpochPhase.ENDED
        else:
            assert self.state.phase is (EpochPhase.RUNNING if self.arrived == everyone else EpochPhase.GATHERING)


TestEpochs = Epochs.TestCase
TestEpochs.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_repeated_sequence_returns_same_bundle() -> None:
    state = EpochState(0, 2)
    bundle = bundle_of(1, 2)
    state.ask(1, 0)
    assert state.assign(bundle) == 1
    for _ in range(3):
        state.ask(1, 0)
        assert state.delivery(1, 0) is bundle
    assert not state.wants_bundle


def test_bundles_go_to_whoever_waited_longest() -> None:
    state = EpochState(0, 3)
    for split in (2, 0, 1, 2):
        state.ask(split, 0)
    assert [state.assign(bundle_of(one)) for one in range(3)] == [2, 0, 1]


@pytest.mark.parametrize("split", [-1, 2])
def test_unknown_split_is_refused_with_their_number(split: int) -> None:
    state = EpochState(0, 2)
    for call in (state.arrive, state.finish, lambda one: state.ask(one, 0)):
        with pytest.raises(EpochError, match=f"there is no split {split}; there are 2"):
            call(split)
