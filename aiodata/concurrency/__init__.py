"""Tasks and wake-ups: the only place where tasks are created."""

from aiodata.concurrency.interrupts import held_interrupts, interrupts_wake
from aiodata.concurrency.loop_lag import LoopLagMonitor
from aiodata.concurrency.release import cleared_frames, close_and_drop, without_frames
from aiodata.concurrency.starting import start
from aiodata.concurrency.streams import receive, send
from aiodata.concurrency.supervise import Supervisor
from aiodata.concurrency.taskset import TaskSet
from aiodata.concurrency.threads import ask_in_thread, call_in_thread, run_in_thread
from aiodata.concurrency.turn import Turn
from aiodata.concurrency.wakeup import News, Wakeup

__all__ = [
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
    "run_in_thread",
    "send",
    "start",
    "without_frames",
]
