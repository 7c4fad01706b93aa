from __future__ import annotations

import signal
import threading

import pytest

from server.processes.zygote import start_zygote
from tests.server.processes.running import begin, run


def test_a_child_has_its_settings_its_descriptors_and_no_others() -> None:
    assert run("starts").value == {
        "status": 0,
        "zygote_is_parent": True,
        "role": "tell",
        "index": 12,
        "settings": {"name": "images", "exits": [1, 2]},
        "inherited": [],
        "comm": "eenet-tell-12",
    }


def test_statuses_and_traces_of_children() -> None:
    value, output = run("statuses")
    assert value == [0, 0, 7, 1, 1]
    assert "fail 0 ended by an unexpected error" in output
    assert "LookupError: what the role ran into" in output
    # Buffers are flushed at the end, and never copied into a child.
    assert output.count("before the failure") == output.count("why") == 1


def test_a_start_that_cannot_be_is_refused() -> None:
    unknown, large = run("refusals").value
    assert unknown == "no role 'pilot'; the zygote knows beat, fail, leave, tell, wait"
    assert large.startswith("tell 0 has 200051 bytes of settings and 0 descriptors; at most")


def test_ends_are_reported_after_starts() -> None:
    assert run("many").value == {"early": []}


def test_a_child_whose_starter_was_cancelled_is_killed() -> None:
    assert run("cancelled").value == signal.SIGKILL


def test_signals_of_a_terminal_reach_only_control() -> None:
    value = run("interrupted").value
    assert value == {"heard": [signal.SIGINT, signal.SIGTERM], "still_there": True}


def test_closing_ends_all_children() -> None:
    assert run("closed").value == "the zygote has ended; restart the server"


def test_the_death_of_the_zygote_is_told_and_ends_its_children() -> None:
    assert run("zygote_killed").value == "children gone"


def test_all_end_when_control_is_killed() -> None:
    with begin("control_waits") as control:
        assert control.stdout is not None
        assert control.stdout.readline() == "ready\n"
        control.kill()
        # Standard output ends once the zygote and the three children have.
        assert control.stdout.read() == ""
    assert control.returncode == -signal.SIGKILL


def test_a_process_with_threads_is_not_forked() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="reader")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match=r"before other threads; running: .*reader"):
            start_zygote({})
    finally:
        release.set()
        thread.join()
