"""Tasks and wake-ups: the only place where tasks are created."""

from aiodata.concurrency.async_only import AsyncOnly
from aiodata.concurrency.interrupts import held_interrupts, interrupts_wake
from aiodata.concurrency.loop import running_loop
from aiodata.concurrency.loop_lag import LoopLagMonitor
from aiodata.concurrency.release import cleared_frames, close_and_drop, without_frames
from aiodata.concurrency.reminding import FIRST_S, reminding
from aiodata.concurrency.starting import start
from aiodata.concurrency.streams import receive, send
from aiodata.concurrency.supervise import Supervisor
from aiodata.concurrency.taskset import TaskSet
from aiodata.concurrency.threads import ask_in_thread, call_in_thread, run_in_thread
from aiodata.concurrency.turn import Turn
from aiodata.concurrency.wakeup import News, Wakeup

__all__ = [
    "FIRST_S",
    "AsyncOnly",
    "LoopLagMonitor",
    "News",
    "Supervisor",
    "TaskSet",
    "Turn",
    "Wakeup",
    "ask_in_thread",
    "call_in_thread",
    "cleared_frames",
    "close_and_drop",
    "held_interrupts",
    "interrupts_wake",
    "receive",
    "reminding",
    "run_in_thread",
    "running_loop",
    "send",
    "start",
    "without_frames",
]
