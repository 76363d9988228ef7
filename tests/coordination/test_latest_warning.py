"""The latest warning is kept while somebody listens, and is told while it is new."""

from __future__ import annotations

import logging

from aiodata.coordination.latest_warning import LatestWarning

logger = logging.getLogger("aiodata")


def test_latest_warning_is_told_while_it_is_new_and_other_records_are_not() -> None:
    latest = LatestWarning()
    with latest.listening():
        assert latest.within(1000) == ""
        logger.warning("first of %d", 2)
        logger.warning("second")
        logger.info("no warning")
        assert latest.within(1000) == "second"
        assert latest.within(0) == ""
    logger.warning("nobody listens")
    assert latest.within(1000) == "second"
    assert latest not in logger.handlers
