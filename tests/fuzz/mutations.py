"""Files as they come out of broken copies, wrong programs and ill will, and a place where it is safe to read them."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("MIEN_FUZZ_EXAMPLES", "12"))
"""Of each reader; `MIEN_FUZZ_EXAMPLES=2000 pytest tests/fuzz` looks longer."""

SECONDS = 20
MEMORY = 3 * 2**29
"""Address space beyond what the process has already: 1.5 GiB."""

NUMBERS = [b"nan", b"inf", b"-1", b"0", b"1e400", b"99999999999999999999", b"-0x1", b"", b"1.5.2", "½".encode(), b"\0"]
WORDS = [
    *NUMBERS,
    b"../../etc/passwd",
    b"{",
    b"}",
    b'"',
    b"\n",
    b",",
    b"\r\n\r\n",
    b"\xff\xfe",
    b"A" * 5000,
    b"[" * 5000,
]

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="MIEN_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after one to four accidents."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        # Headers decide about sizes and kinds, so they are hit as often as all the rest.
        place = draw(st.sampled_from([place, place % 64, place % 512]))
        length = draw(st.sampled_from([1, 2, 4, 8, 100, len(content)]))
        kind = draw(st.sampled_from(["cut", "flip", "set", "drop", "twice", "zero", "word", "huge"]))
        head, middle, tail = content[:place], content[place : place + length], content[place + length :]
        if kind == "cut":
            content = head
        elif kind == "flip":
            content = head + bytes(value ^ draw(st.integers(1, 255)) for value in middle[:8]) + middle[8:] + tail
        elif kind == "set":
            content = head + draw(st.binary(min_size=len(middle[:8]), max_size=len(middle[:8]))) + middle[8:] + tail
        elif kind == "drop":
            content = head + tail
        elif kind == "twice":
            content = head + 2 * middle[:4096] + tail
        elif kind == "zero":
            content = head + bytes(len(middle)) + tail
        elif kind == "huge":
            # Four or eight bytes that some header takes for a size.
            content = head + b"\xff\xff\xff\x7f\xff\xff\xff\x7f"[: max(4, min(8, length))] + content[place + 4 :]
        else:
            content = head + draw(st.sampled_from(WORDS)) + tail
    return content


@contextmanager
def limited() -> Iterator[None]:
    """Little time and little memory, so that a hang or a blow-up becomes an error of the test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def late(*_: object) -> None:
        raise AssertionError(f"a reader took more than {SECONDS} s")

    alarm = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGALRM, late) if alarm else None
    signal.alarm(SECONDS if alarm else 0)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        if alarm:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)


def refuses_or_reads(read: Callable[[], Any], *refusals: type[Exception]) -> str | None:
    """Read within the limits; the message, in one line, if it is refused as it should be."""
    refused: Exception | None = None
    with limited():
        try:
            read()
        except refusals as error:
            refused = error
    if refused is None:
        return None
    assert not isinstance(refused, UnicodeError), f"{type(refused).__name__}: {refused}"
    message = str(refused)
    assert message, type(refused)
    assert len(message) < 1000, message
    return message
