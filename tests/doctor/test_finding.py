"""A check that raises, or waits for ever, is a line like any other."""

import signal
import threading
import time
from collections.abc import Iterator

from neurovol.doctor.finding import Finding, examined
from neurovol.errors import UserError

FINE = Finding("ok", "first", "all is well")


def raising(error: Exception) -> Iterator[Finding]:
    yield FINE
    raise error


def waiting() -> Iterator[Finding]:
    yield FINE
    time.sleep(30)


def test_what_a_check_finds_is_what_it_yields() -> None:
    assert examined("n", 5, lambda: [FINE, FINE]) == [FINE, FINE]


def test_an_unexpected_error_is_a_line_in_its_own_words_behind_what_was_found() -> None:
    found = examined("n", 5, lambda: raising(ValueError("seven is\nno colour")))
    assert found[0] == FINE
    assert found[1].level == "fail"
    assert "ValueError: seven is no colour →" in found[1].line
    assert "\n" not in found[1].line


def test_a_mistake_of_the_users_is_said_as_it_says_itself() -> None:
    assert examined("n", 5, lambda: raising(UserError("p.toml: no")))[1] == Finding("fail", "n", "p.toml: no")


def test_a_check_that_waits_for_ever_is_ended() -> None:
    first, late = examined("n", 0.2, waiting)
    assert first == FINE
    assert late.text == "gave no answer within 0 s"


def test_a_timer_that_ran_before_runs_on() -> None:
    rung = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        examined("n", 5, lambda: [FINE])
        assert rung.wait(10)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


def test_no_check_is_ended_in_another_thread_which_has_no_alarms() -> None:
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.extend(examined("n", 5, lambda: [FINE])))
    thread.start()
    thread.join()
    assert found == [FINE]
