"""EpochState: whatever the splits do, each row goes to one of them, and none waits for what is there."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiodata import EpochError
from aiodata.coordination.epoch import EpochPhase, EpochState
from aiodata.coordination.lease import Lease
from aiodata.options import OnSplitLost
from tests.coordination.epochs import Model, bundle_of, ids_of

MODES: list[OnSplitLost] = ["wait", "redistribute", "raise"]
NUMBERS = st.integers(0, 40)


class Epochs(RuleBasedStateMachine):
    """Splits come, ask, repeat, acknowledge, leave and are lost; a plain model keeps the books."""

    @initialize(
        num_splits=st.integers(1, 4),
        equal=st.booleans(),
        mode=st.sampled_from(MODES),
        max_calls=st.integers(1, 2),
        delivery_bytes=st.sampled_from([1, 50, 1 << 20]),
        starts=st.booleans(),
    )
    def begin(
        self, num_splits: int, equal: bool, mode: OnSplitLost, max_calls: int, delivery_bytes: int, starts: bool
    ) -> None:
        self.model = Model(num_splits, equal=equal, mode=mode, max_calls=max_calls, delivery_bytes=delivery_bytes)
        if starts:
            for split in range(num_splits):
                self.model.arrive(split)
            self.model.start()

    @property
    def is_over(self) -> bool:
        """Whether the coordinator calls the state no more but to have splits leave it."""
        return self.model.state.failure is not None or self.model.state.phase is EpochPhase.ENDED

    @precondition(lambda self: self.model.vacant and not self.is_over)
    @rule(drawn=NUMBERS)
    def arrive(self, drawn: int) -> None:
        self.model.arrive(self.model.vacant[drawn % len(self.model.vacant)])

    @precondition(lambda self: not self.model.started and self.model.consumers and not self.model.state.absent)
    @rule()
    def start(self) -> None:
        self.model.start()

    @precondition(lambda self: self.model.started and self.model.askers and not self.is_over)
    @rule(drawn=NUMBERS, max_bundles=st.integers(1, 3))
    def ask(self, drawn: int, max_bundles: int) -> None:
        self.model.ask(self.model.askers[drawn % len(self.model.askers)], max_bundles)

    @precondition(lambda self: self.model.started and self.model.consumers and not self.is_over)
    @rule(drawn=NUMBERS)
    def repeat(self, drawn: int) -> None:
        split = sorted(self.model.consumers)[drawn % len(self.model.consumers)]
        one = self.model.consumers[split]
        # With everything acknowledged nothing is kept that could be asked for again.
        if one.asked and not one.has_ended and (one.waits or one.acked < len(one.given)):
            self.model.repeat(split)
            if not one.waits:
                bundles = self.model.state.ledgers[split].delivery(one.asked - 1) or ()
                assert ids_of(*bundles) == one.deliveries[-1]

    @precondition(lambda self: self.model.started and not self.model.exhausted and self.model.state.num_wanted)
    @rule(num_rows=st.integers(1, 7))
    def offer(self, num_rows: int) -> None:
        if not self.is_over:
            self.model.offer(num_rows)

    @precondition(lambda self: self.model.started and not self.model.exhausted and not self.is_over)
    @rule()
    def exhaust(self) -> None:
        self.model.exhaust()

    @precondition(lambda self: self.model.started and self.model.consumers)
    @rule(drawn=NUMBERS, count=NUMBERS)
    def acknowledge(self, drawn: int, count: int) -> None:
        split = sorted(self.model.consumers)[drawn % len(self.model.consumers)]
        given = len(self.model.consumers[split].given)
        if count <= given:
            self.model.acknowledge(split, count)
        else:
            with pytest.raises(EpochError, match=rf"split {split} acknowledged {count} rows; it was given {given}"):
                self.model.acknowledge(split, count)

    @precondition(lambda self: self.model.consumers)
    @rule(drawn=NUMBERS)
    def finish(self, drawn: int) -> None:
        self.model.finish(sorted(self.model.consumers)[drawn % len(self.model.consumers)])

    @precondition(lambda self: self.model.started and (self.model.finished or self.model.missing))
    @rule(drawn=NUMBERS, is_lost=st.booleans())
    def notice_comes_late(self, drawn: int, is_lost: bool) -> None:
        gone = sorted(self.model.finished | self.model.missing)
        split = gone[drawn % len(gone)]
        if is_lost:
            self.model.state.lose(split, RuntimeError())
        else:
            self.model.state.finish(split)

    @precondition(lambda self: self.model.consumers and not self.is_over)
    @rule(drawn=NUMBERS)
    def lose(self, drawn: int) -> None:
        self.model.lose(sorted(self.model.consumers)[drawn % len(self.model.consumers)])

    @rule()
    def look_for_room(self) -> None:
        if self.model.state.failure is None:
            room = [split for split in range(self.model.num_splits) if self.model.state.can_arrive(split)]
            assert room == self.model.vacant

    @invariant()
    def the_books_agree(self) -> None:
        self.model.check()

    @invariant()
    def little_waits(self) -> None:
        if self.model.equal and not self.model.missing:
            assert len(self.model.state._pool) <= self.model.num_splits

    def teardown(self) -> None:
        if hasattr(self, "model") and self.model.state.failure is None:
            self.model.drain()


TestEpochs = Epochs.TestCase
TestEpochs.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def running(num_splits: int, *, equal: bool = False, mode: OnSplitLost = "wait", max_calls: int = 1) -> EpochState:
    """An epoch that all have arrived at."""
    state = EpochState(0, num_splits, equal=equal, on_split_lost=mode, max_calls=max_calls)
    for split in range(num_splits):
        state.arrive(Lease(0, split, split))
    state.start()
    return state


def offer(state: EpochState, *sizes: int, first: int = 0) -> None:
    """Offer bundles of so many rows, whose ids count on."""
    for size in sizes:
        state.offer(bundle_of(range(first, first + size)))
        first += size


def given(state: EpochState, split: int, sequence: int) -> list[int]:
    return ids_of(*(state.ledgers[split].delivery(sequence) or ()))


def test_bundles_go_to_whoever_waited_longest() -> None:
    state = running(3)
    for split in (2, 0, 1, 2):
        state.ask(split, 0)
    offer(state, 1, 1, 1)
    assert state.assign() == [2, 0, 1]
    assert [given(state, split, 0) for split in (2, 0, 1)] == [[0], [1], [2]]


def test_each_in_line_gets_its_part_of_what_there_is() -> None:
    state = running(2)
    state.ask(0, 0, 16)
    state.ask(1, 0, 16)
    offer(state, 1, 1, 1, 1, 1)
    assert state.assign() == [0, 1]
    assert [given(state, split, 0) for split in (0, 1)] == [[0, 1, 2], [3, 4]]


def test_second_call_in_flight_is_answered_at_once_if_there_is_more() -> None:
    state = running(1, max_calls=2)
    state.ask(0, 0, 1)
    state.ask(0, 1, 1)
    offer(state, 1, 1)
    assert state.assign() == [0]
    assert [given(state, 0, sequence) for sequence in (0, 1)] == [[0], [1]]


def test_delivery_ends_with_the_bundle_that_makes_it_large() -> None:
    state = EpochState(0, 1, delivery_bytes=20)
    state.arrive(Lease(0, 0, 0))
    state.start()
    state.ask(0, 0, 16)
    offer(state, 2, 1, 5)
    state.assign()
    assert given(state, 0, 0) == [0, 1, 2]


def test_split_gets_bundles_of_its_node_first() -> None:
    state = EpochState(0, 3, nodes=["a", "b"])
    for split in range(3):
        state.arrive(Lease(0, split, split))
        state.ask(split, 0)
    state.start()
    for row, node in enumerate(["c", "b", "a"]):
        state.offer(bundle_of([row]), node)
    state.assign()
    assert [given(state, split, 0) for split in range(3)] == [[2], [1], [0]], "the one without a node got the rest"


def test_nearness_lets_nobody_wait() -> None:
    state = EpochState(0, 1, nodes=["a"])
    state.arrive(Lease(0, 0, 0))
    state.start()
    state.ask(0, 0, 16)
    state.offer(bundle_of([0]), "b")
    assert state.assign() == [0]
    assert given(state, 0, 0) == [0]


@pytest.mark.parametrize("size", [1, 4, 7, 100])
@pytest.mark.parametrize("num_rows", [0, 2, 99, 100])
def test_equal_splits_get_the_same_number_of_rows_whoever_is_faster(num_rows: int, size: int) -> None:
    model = Model(3, equal=True, mode="wait", max_calls=1)
    for split in range(3):
        model.arrive(split)
    model.start()
    sizes = [min(size, num_rows - first) for first in range(0, num_rows, size)]
    for turn in range(10 * num_rows):
        # Split 0 asks whenever it can, the others now and then.
        for split in model.askers:
            if turn % (4 * split + 1) == 0:
                model.ask(split)
        if sizes and model.state.num_wanted:
            model.offer(sizes.pop(0))
        model.check()
    assert not sizes
    model.drain()


@pytest.mark.parametrize("num_finished", [1, 2, 3])
def test_equal_part_is_that_of_all_whoever_leaves_early(num_finished: int) -> None:
    model = Model(4, equal=True, mode="wait", max_calls=1)
    for split in range(4):
        model.arrive(split)
    model.start()
    model.ask(0)
    for size in (5, 5, 5, 5):
        model.offer(size)
    for split in range(num_finished):
        model.finish(split)
    for size in (9, 13):
        for split in model.askers:
            model.ask(split)
        while not model.state.num_wanted:
            for split in model.askers:
                model.ask(split)
        model.offer(size)
        assert len(model.state._pool) <= 4
    stayed = list(model.consumers)
    model.drain()
    assert [len(model.over[split]) for split in stayed] == [42 // 4] * len(stayed)
    assert model.state.dropped_rows == 42 % 4


def test_equal_rows_are_narrowed_never_copied() -> None:
    state = running(2, equal=True)
    state.ask(0, 0)
    state.ask(1, 0)
    rows = range(10)
    state.offer(bundle_of(rows))
    assert state.assign() == [], "more may come"
    state.exhaust()
    assert state.assign() == [0, 1]
    parts = [(state.ledgers[split].delivery(0) or ())[0] for split in range(2)]
    assert [(part.start, part.stop) for part in parts] == [(0, 5), (5, 10)]
    assert all(part.ref is rows for part in parts)


def test_lost_split_that_says_afterwards_that_it_has_finished_costs_the_others_nothing() -> None:
    state = running(3, equal=True, mode="redistribute")
    for split in range(3):
        state.ask(split, 0)
    offer(state, 2, 2, 2)
    state.assign()
    state.lose(0, RuntimeError())
    state.finish(0)
    offer(state, 4, 4, first=6)
    state.exhaust()
    for split in (1, 2):
        state.ask(split, 1, 9)
    state.assign()
    for split in (1, 2):
        state.ask(split, 2, 9)
    state.assign()
    assert [state.ledgers[split].rows for split in (1, 2)] == [7, 7]
    assert state.dropped_rows == 0


def test_equal_splits_stay_equal_if_one_is_lost_at_the_end() -> None:
    state = running(3, equal=True, mode="redistribute")
    for split in range(3):
        state.ask(split, 0)
    offer(state, 2, 2, 2)
    state.exhaust()
    state.assign()
    state.ask(0, 1)
    assert state.assign() == [], "others have rows that may come to be its own"
    state.lose(2, RuntimeError())
    assert state.assign() == [0]
    state.ask(1, 1)
    assert state.assign() == [1]
    assert [state.ledgers[split].rows for split in (0, 1)] == [3, 3]


def test_last_split_stays_until_the_others_have_gone_and_gets_what_they_leave() -> None:
    state = running(2, mode="redistribute")
    for split in range(2):
        state.ask(split, 0)
    offer(state, 2, 2)
    state.assign()
    state.acknowledge(0, 1, 0)
    state.exhaust()
    state.ask(0, 1)
    assert state.assign() == [], "split 1 has not had all"
    state.ask(1, 1)
    assert state.assign() == [0]
    state.lose(0, RuntimeError())
    assert state.assign() == [1]
    assert given(state, 1, 1) == [1]
    state.ask(1, 2)
    assert state.assign() == [1]
    assert state.has_ended(1)


@pytest.mark.parametrize("is_lost_first", [True, False])
def test_failed_epoch_waits_for_no_lost_consumer(is_lost_first: bool) -> None:
    state = running(2)
    error = ZeroDivisionError()
    if is_lost_first:
        state.lose(1, RuntimeError())
        state.fail(error)
    else:
        state.fail(error)
        state.lose(1, RuntimeError())
    state.finish(0)
    assert state.phase is EpochPhase.ENDED
    assert state.failure is error


def test_of_several_failures_the_first_is_told() -> None:
    state = running(3, mode="raise")
    first = RuntimeError()
    state.lose(2, first)
    state.lose(1, RuntimeError())
    state.fail(RuntimeError())
    assert state.failure is first


def test_epoch_waits_for_all_again_if_all_are_lost_before_it() -> None:
    state = EpochState(0, 2, on_split_lost="redistribute")
    for split in range(2):
        state.arrive(Lease(0, split, split))
        state.lose(split, RuntimeError())
    assert state.absent == [0, 1]
    assert EpochState(1, 2, missing=[0, 1]).absent == [0, 1]
    assert EpochState(1, 2, missing=[0]).absent == [1]


@pytest.mark.parametrize("split", [-1, 2])
def test_unknown_split_is_refused_with_their_number(split: int) -> None:
    with pytest.raises(EpochError, match=f"there is no split {split}; there are 2"):
        EpochState(0, 2).can_arrive(split)


@pytest.mark.parametrize("end", ["drop", "finish", "fail"])
def test_epoch_that_is_over_refers_to_nothing(end: str) -> None:
    class Rows(list[int]):
        """Weakly referable."""

    state = running(1, max_calls=2)
    rows = [Rows([0]), Rows([1])]
    refs = [weakref.ref(one) for one in rows]
    state.offer(bundle_of(rows.pop()))
    if end != "fail":
        state.ask(0, 0)
        state.assign()
    state.offer(bundle_of(rows.pop()))
    match end:
        case "drop":
            state.drop()
        case "finish":
            state.finish(0)
            state.drop()
        case _:
            state.fail(RuntimeError())
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_who_was_told_of_the_end_gets_nothing_of_what_a_lost_one_leaves() -> None:
    state = running(3, mode="redistribute", max_calls=2)
    offer(state, 1, 1, 1)
    state.ask(1, 0, 3)
    state.assign()
    state.exhaust()
    for split, sequence in ((2, 0), (0, 0), (1, 1)):
        state.ask(split, sequence, 1)
    assert state.assign() == [0, 1]
    state.lose(1, RuntimeError())
    # Another call of the same consumer, which was under way.
    state.ask(0, 1, 1)
    state.assign()
    assert state.ledgers[0].rows == 0
    assert state.ledgers[2].rows == 1
