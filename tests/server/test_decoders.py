import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from models.images import FEW_PIXELS
from server.decoders import PixelRoom
from server.shared_turn import SharedTurn, create

MILLION = 1_000_000
TAKE = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_large_images_wait_for_room_in_the_order_they_came() -> None:
    room, entered, leave = PixelRoom(20 * MILLION), list[int](), threading.Event()

    def enter(number: int, pixels: int, inside: threading.Event) -> None:
        with room.hold(pixels):
            entered.append(number)
            inside.set()
            assert leave.wait(30)

    with ThreadPoolExecutor(4) as pool:
        signs = [threading.Event() for _ in range(3)]
        pool.submit(enter, 0, 15 * MILLION, signs[0])
        assert signs[0].wait(5)
        waiting = pool.submit(enter, 1, 10 * MILLION, signs[1])
        while room._turn.acquire(blocking=False):  # until it waits for room
            room._turn.release()
        behind = pool.submit(enter, 2, 5 * MILLION, signs[2])  # would fit, but is not first
        assert not signs[1].is_set() and not behind.done()
        with room.hold(FEW_PIXELS):
            assert entered == [0]  # a small one passes
        leave.set()
        waiting.result(5)
        behind.result(5)
    assert entered == [0, 1, 2] and room._held == 0


def test_an_image_larger_than_the_room_has_it_alone() -> None:
    room = PixelRoom(MILLION)
    with room.hold(50 * MILLION):
        assert room._held == MILLION
    try:
        with room.hold(50 * MILLION):
            raise KeyError
    except KeyError:
        assert room._held == 0


def test_the_largest_images_of_all_processes_take_turns() -> None:
    """A room of each front-end, and one image beyond its share: no more in the whole server."""
    descriptor, held = create(), list[bool]()
    room = PixelRoom(MILLION * 25, SharedTurn(descriptor))
    for pixels in (25 * MILLION, 25 * MILLION + 1):
        with room.hold(pixels):
            take = [sys.executable, "-c", TAKE, str(descriptor)]  # here it would take our own lock
            taken = subprocess.run(take, pass_fds=[descriptor], stderr=subprocess.DEVNULL)
            held.append(taken.returncode != 0)
    os.close(descriptor)
    assert held == [False, True] and room._held == 0
