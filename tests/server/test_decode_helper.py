from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from models.images import DecodedImage, ImageDecoder, InvalidInput
from server.decode_helper import MAX_WAITING, DecodeHelper, _start
from server.decode_process import REQUEST
from server.errors import QueueFull
from tests.models.image_files import encode, png_with, smooth

DECODER = ImageDecoder(12, 20, "stretch", 4_000_000)
PNG = encode(smooth(30, 40))
# WebP and PNG spend far longer than this on the image below.
SHORT_S = 0.02


@pytest.fixture
def helper() -> Iterator[DecodeHelper]:
    helper = DecodeHelper(30.0)
    yield helper
    helper.shutdown()


def run(helper: DecodeHelper, data: bytes, decoder: ImageDecoder = DECODER) -> DecodedImage:
    """Decode on the helper's thread, as the server does."""
    future: Future[DecodedImage] = Future()

    def decode() -> None:
        try:
            future.set_result(helper.decode(decoder, data))
        except BaseException as error:
            future.set_exception(error)

    helper.submit(decode)
    return future.result(60)


def slow_png() -> bytes:
    """A file of few bytes and many pixels."""
    return png_with([], side=6000)


def pid_of(helper: DecodeHelper) -> int:
    assert helper._helper is not None
    return helper._helper.process.pid


def test_the_process_decodes_as_this_one_does(helper: DecodeHelper) -> None:
    for decoder in (DECODER, ImageDecoder(32, 32)):
        here, there = decoder.decode(PNG), run(helper, PNG, decoder)
        assert np.array_equal(here.pixels, there.pixels) and here.size == there.size == (40, 30)
        assert there.pixels.dtype == np.uint8


def test_one_process_serves_all_images_and_starts_with_the_first(helper: DecodeHelper) -> None:
    assert helper._helper is None
    run(helper, PNG)
    first = pid_of(helper)
    for _ in range(3):
        run(helper, PNG)
    assert pid_of(helper) == first
    threads = [threading.Thread(target=run, args=(helper, PNG)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pid_of(helper) == first


@pytest.mark.parametrize("data", [b"", b"hello", PNG[:200], slow_png()])
def test_refusals_are_worded_as_here(helper: DecodeHelper, data: bytes) -> None:
    with pytest.raises(InvalidInput) as here:
        DECODER.decode(data)
    with pytest.raises(InvalidInput) as there:
        run(helper, data)
    assert (str(here.value), here.value.bound) == (str(there.value), there.value.bound)


def test_an_image_that_takes_too_long_is_refused_and_its_process_killed() -> None:
    helper = DecodeHelper(SHORT_S)
    try:
        with pytest.raises(InvalidInput, match=r"longer than 0\.02 s to decode; scale it down"):
            run(helper, slow_png(), ImageDecoder(32, 32))
        assert helper._helper is None
        helper._timeout_s = 30.0
        assert run(helper, PNG).size == (40, 30)  # by a new process
    finally:
        helper.shutdown()


def test_a_process_that_was_killed_while_idle_is_replaced(helper: DecodeHelper) -> None:
    run(helper, PNG)
    first = pid_of(helper)
    os.kill(first, signal.SIGKILL)
    assert run(helper, PNG).size == (40, 30)
    assert pid_of(helper) != first


def test_an_image_that_ends_its_process_is_refused(
    helper: DecodeHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = helper._running

    def killed() -> Any:
        running = real()
        running.process.kill()
        running.process.wait()
        return running

    monkeypatch.setattr(helper, "_running", killed)
    with pytest.raises(InvalidInput, match="ends the process that decodes it; save it again"):
        run(helper, PNG)


def test_slow_images_wait_in_a_bounded_queue(helper: DecodeHelper) -> None:
    begun, release = threading.Event(), threading.Event()
    helper.submit(lambda: begun.set() or release.wait(30))
    assert begun.wait(5)
    done: list[int] = []
    for number in range(MAX_WAITING):
        helper.submit(done.append, number)
    with pytest.raises(QueueFull, match="16 images that are slow to decode are waiting") as full:
        helper.submit(done.append, -1)
    assert full.value.headers == {"Retry-After": "30"}
    assert full.value.reason == "decode_queue_full"
    release.set()
    until_s = time.monotonic() + 10
    while helper._inside and time.monotonic() < until_s:
        time.sleep(0.01)
    assert run(helper, PNG).size == (40, 30)
    assert done == list(range(MAX_WAITING))


def test_a_function_that_fails_leaves_the_queue(helper: DecodeHelper) -> None:
    for _ in range(2 * MAX_WAITING):
        ended = threading.Event()
        helper.submit(lambda ended=ended: ended.set() or 1 / 0)
        assert ended.wait(5)
    assert run(helper, PNG).size == (40, 30)


def test_shutdown_ends_the_process_though_it_decodes() -> None:
    helper = DecodeHelper(60.0)
    run(helper, PNG)
    process = helper._helper.process if helper._helper else None
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)  # as good as an image without end
    begun, failed = threading.Event(), Future[BaseException]()

    def decode() -> None:
        begun.set()
        try:
            helper.decode(DECODER, PNG)
        except BaseException as error:
            failed.set_result(error)

    helper.submit(decode)
    assert begun.wait(5)
    started = time.perf_counter()
    helper.shutdown()
    assert process.wait(5) == -signal.SIGKILL and time.perf_counter() - started < 5
    assert isinstance(failed.result(5), InvalidInput)
    with pytest.raises(RuntimeError, match="shut down"):
        helper.submit(print)


def test_shutdown_of_an_unused_helper_starts_nothing() -> None:
    helper = DecodeHelper(1.0)
    helper.shutdown()
    assert helper._helper is None


@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_its_parent(busy: bool) -> None:
    running = _start()
    try:
        if busy:
            data = png_with([], side=7000)  # 49 megapixels
            running.connection.settimeout(30)
            running.connection.sendall(
                REQUEST.pack(32, 32, 0, 1.0, 50_000_000, 1000, 32, len(data)) + data
            )
            select.select([], [], [], 0.05)
        running.connection.close()
        # Idle it sees the end; busy, the kernel ends it with SIGIO wherever it is.
        assert running.process.wait(10) in (0, -signal.SIGIO)
    finally:
        running.process.kill()
        running.process.wait()


def test_the_kernel_ends_a_process_that_holds_its_interpreter() -> None:
    code = (
        "import re, socket, sys\n"
        "from server.decode_process import READY, _ending_with\n"
        "parent = socket.socket(fileno=sys.stdin.fileno())\n"
        "with _ending_with(parent):\n"
        "    parent.sendall(READY)\n"
        "    re.match('(a?){40}a{40}b' * 3, 'a' * 200)\n"  # takes for ever, in C
    )
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs)
    try:
        assert ours.recv(1)
        ours.close()
        assert process.wait(10) == -signal.SIGIO
    finally:
        process.kill()
        process.wait()


def test_the_process_imports_nothing_of_the_server() -> None:
    code = (
        "import sys, server.decode_process\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not names & {'fastapi', 'uvicorn', 'pydantic', 'onnxruntime', 'tokenizers'}\n"
        "own = {name for name in sys.modules if name.startswith('server.')}\n"
        "assert own == {'server.decode_process'}, own\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_works_where_nothing_can_be_written_and_the_folder_is_another(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, helper: DecodeHelper
) -> None:
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    assert run(helper, PNG).size == (40, 30)


def test_a_process_that_does_not_start_is_named(
    helper: DecodeHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        run(helper, PNG)


def test_a_request_is_of_a_fixed_size() -> None:
    assert REQUEST.size == struct.calcsize("!IIBdQQIQ") == 45
