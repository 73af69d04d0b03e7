"""Signals are held back while a message is half sent, on the thread that sends it."""

from __future__ import annotations

import threading

import pytest

from sfsc.interrupts import deferred


class Interrupted(BaseException):
    pass


def test_an_interrupt_waits_for_the_end_of_the_outermost_block() -> None:
    reached = []

    def send() -> None:
        with deferred:
            with deferred:
                deferred.interrupt(Interrupted())
                reached.append("inner")
            reached.append("outer")

    with pytest.raises(Interrupted):
        send()
    assert reached == ["inner", "outer"]


def test_a_block_of_another_thread_holds_nothing_back() -> None:
    entered, leave = threading.Event(), threading.Event()

    def send() -> None:
        with deferred:
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=send)
    thread.start()
    entered.wait(30)
    try:
        with pytest.raises(Interrupted):
            deferred.interrupt(Interrupted())
    finally:
        leave.set()
        thread.join()
