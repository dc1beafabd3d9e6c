"""Decoding ahead of the work, in processes of their own: a file that crashes the decoder costs that clip.

A worker is a fresh interpreter that is talked to over pipes. It imports nothing of the user's program, so
scripts and notebooks need no guard, and it is started only when a file has to be read.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import InputError, VideoError
from tubelens.evaluate.items import Item, read_item
from tubelens.model import BlackBox, InputSpec
from tubelens.truth import Truth

Read = tuple[Clip, Truth | None]


@dataclass(frozen=True)
class Feed:
    """What clip a model takes; models that take the same share it.

    Attributes:
        spec: frames, size, bands, sampling.
        name: of the model, for clips whose evidence depends on it; else empty.
    """

    spec: InputSpec
    name: str = ""


MOST = 4
SERVE = "from tubelens.evaluate.decode import serve; serve()"


def default_workers() -> int:
    """Decoders where nobody says how many: one where there are few cores, four at most."""
    return max(1, min(MOST, (os.cpu_count() or 1) // 2))


def decoded(item: Item, feed: Feed) -> Read:
    """The clip, and what is known of the evidence in it."""
    return read_item(item, BlackBox(_nothing, feed.spec, name=feed.name))


def portable(item: Item) -> Item:
    """An item that can be sent to another process."""
    return replace(item, extra={})


def _nothing(clips: Tensor) -> Tensor:
    raise NotImplementedError("only its spec is asked for")


class Decoders:
    """Reads clips ahead.

    Args:
        workers: processes; 0: a thread of this process, without protection from a decoder that crashes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._threads = ThreadPoolExecutor(max(1, workers), "decoding")
        self._own = threading.local()
        self._children: list[_Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, item: Item, feed: Feed) -> Future[Read]:
        """The clip, when it is ready."""
        return self._threads.submit(self._read, item, feed)

    def close(self) -> None:
        """Stop everything, whatever it is doing."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, item: Item, feed: Feed) -> Read:
        if self.workers == 0 or item.path is None:  # frames that are in memory already
            return decoded(item, feed)
        child = self._child()
        try:
            return child.ask(item, feed)
        except (EOFError, BrokenPipeError):
            code = child.kill()
            self._own.child = None
            how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
            if code >= 0 and not child.ready:
                raise VideoError(
                    f"{item.path}: not read: a process that decodes could not be started ({how}): try"
                    " workers 0"
                ) from None
            raise VideoError(
                f"{item.path}: the decoder crashed on it ({how}): the file may be damaged"
            ) from None

    def _child(self) -> _Child:
        child: _Child | None = getattr(self._own, "child", None)
        if child is None:
            with self._lock:
                if self._closed:
                    raise InputError("decoding was stopped")
                child = self._own.child = _Child()
                self._children.append(child)
        return child


class _Child:
    """A worker, as its parent sees it."""

    def __init__(self) -> None:
        self.ready = False
        paths = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE],  # files of the folder one is in must not hide libraries
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what codecs have to say of a file is in its error, or of no use
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, item: Item, feed: Feed) -> Read:
        """What the worker reads.

        Raises:
            EOFError: it died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, (portable(item), feed))
        if not self.ready:
            _receive(self._process.stdout)
            self.ready = True
        good, answer = _receive(self._process.stdout)
        if not good:
            raise answer
        read: Read = answer
        return read

    def kill(self) -> int:
        """End it; gives the exit code that it had, or has now."""
        try:
            code = self._process.wait(timeout=0.2) if self._process.poll() is None else self._process.poll()
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        return int(code or 0)


def serve() -> None:
    """A worker's life: read what is asked for, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent closes the pipe
    torch.set_num_threads(1)
    asked = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    _send(answers, "ready")
    while True:
        try:
            item, feed = _receive(asked)
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = (True, decoded(item, feed))
        except Exception as error:
            answer = (False, _sendable(error))
        _send(answers, answer)


def _sendable(error: Exception) -> Exception:
    """The error, if it can be sent; else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return VideoError(f"{type(error).__name__}: {error}")
    return error


class _Pickler(pickle.Pickler):
    """Tensors as arrays: torch's own way goes through a file in memory."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor:
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def _send(pipe: BinaryIO | Any, value: Any) -> None:
    data = io.BytesIO()
    _Pickler(data, protocol=5).dump(value)
    pipe.write(struct.pack("<Q", data.tell()))
    pipe.write(data.getbuffer())
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)
