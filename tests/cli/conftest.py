"""Videos for the command line, and a machine without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import NETS
from tests.videos import coded, coded_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small networks and some videos."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "nets.py").write_text(NETS)
    coded_video(folder / "a.mp4", 40)
    coded_video(folder / "b.mkv", 24, fps=12)
    coded_video(folder / "sound.mp4", 50, tone=440.0)
    coded_video(folder / "odd.avi", 20, size=(51, 73), codec="mjpeg", pix_fmt="yuvj444p")
    for name in ("one", "two"):
        (folder / name).mkdir()
        coded_video(folder / name / "same.mp4", 12)
    (folder / "frames").mkdir()
    for number in range(12):
        Image.fromarray(coded(number)).save(folder / "frames" / f"f{number}.png")
    return folder


@pytest.fixture(autouse=True)
def at_the_videos(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(videos)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """No connection can be made; whoever tries is noted."""
    tried: list[object] = []

    def refuse(*args: object, **options: object) -> None:
        tried.append(args)
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried
