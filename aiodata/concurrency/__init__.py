"""Tasks and wake-ups: the only place where tasks are created."""

from aiodata.concurrency.release import cleared_frames, close_and_drop
from aiodata.concurrency.supervise import Supervisor
from aiodata.concurrency.taskset import TaskSet
from aiodata.concurrency.wakeup import Wakeup

__all__ = ["Supervisor", "TaskSet", "Wakeup", "cleared_frames", "close_and_drop"]
