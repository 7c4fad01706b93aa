"""One process at a time has the turn, also if its holder dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from server.shared_turn import SharedTurn, create

HOLD = """
import sys
from server.shared_turn import SharedTurn
with SharedTurn(int(sys.argv[1])).hold():
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
sys.stdin.readline()
"""


def holder(descriptor: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[descriptor],
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    return process


def test_a_process_waits_for_the_turn_of_another_and_of_one_that_dies() -> None:
    descriptor = create()
    entered = threading.Event()

    def enter() -> None:
        with SharedTurn(descriptor).hold():
            entered.set()

    for end in ("leave", "die"):
        entered.clear()
        with holder(descriptor) as process:
            thread = threading.Thread(target=enter)
            thread.start()
            assert not entered.wait(0.05)
            if end == "leave":
                assert process.stdin is not None
                process.stdin.write("go on\n")
                process.stdin.flush()
            else:
                process.send_signal(signal.SIGKILL)
            assert entered.wait(10), end
            thread.join()
            process.kill()
    os.close(descriptor)
