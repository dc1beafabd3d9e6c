"""Memory and decoding on long videos, each case in a process of its own.

1. A 64-frame span in the middle of a 10-minute 1080p video (`--sampling dense --start`): frames decoded, and
   memory above the import of torch.
2. `--sampling windows` over 720p videos of 30 and of 120 seconds: memory must not grow with the length.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def make_video(path: Path, size: tuple[int, int], seconds: float, fps: int = 25) -> Path:
    """Moving texture, H.264, a keyframe every two seconds."""
    h, w = size
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (h // 40 + 1, w // 40 * 2 + 2, 3), dtype=np.uint8)
    texture = np.repeat(np.repeat(coarse, 40, axis=0), 40, axis=1)[:h]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": str(2 * fps)})
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        for i in range(int(seconds * fps)):
            shift = (4 * i) % w
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:, shift : shift + w]))
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def span(video: str, out: str) -> None:
    import torch  # noqa: F401  the baseline that the goal names

    base = peak_mb()
    import tubelens as tl
    from tubelens.video.file import FileFrames

    decoded: list[tuple[int, float]] = []
    tick = FileFrames._tick
    last = 0.0

    def counting(self: FileFrames) -> None:
        nonlocal last
        tick(self)
        decoded.append((self.decoded, last))

    FileFrames._tick = counting  # type: ignore[method-assign]
    model = tl.load_model("bundled")
    clip = model.read(video, "dense", start=300.0, stride=1, frames=64)
    reading = len(decoded)
    why = tl.explain(model, clip)
    explained = peak_mb()
    why.save(out)
    frames = sum(1 for _ in av.open(out).decode(video=0))
    print(
        json.dumps(
            {
                "span": [round(t, 2) for t in clip.source.span],
                "decoded to read": reading,
                "decoded to draw": len(decoded) - reading,
                "drawn": frames,
                "MB to explain": round(explained - base),
                "MB with drawing": round(peak_mb() - base),
            }
        )
    )


def windows(video: str, out: str) -> None:
    import torch  # noqa: F401

    base = peak_mb()
    import tubelens as tl

    model = tl.load_model("bundled")
    whole = model.windows(video, stride=2)
    why = tl.explain(model, whole)
    explained = peak_mb()
    why.save(out)
    print(
        json.dumps(
            {
                "windows": len(whole),
                "clip frames": why.size[0],
                "MB to explain": round(explained - base),
                "MB with drawing": round(peak_mb() - base),
            }
        )
    )


def run(case: str, video: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, case, str(video), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        long = make_video(room / "long.mp4", (1080, 1920), 600)
        print(
            f"64 frames at 5:00 of a 10-minute 1080p video of {long.stat().st_size / 2**20:.0f} MB"
            " (goal: at most 500 MB of memory, nothing after it decoded):"
        )
        print(f"  {run('span', long, room / 'span.mp4')}")
        long.unlink()
        results = {}
        for seconds in (30, 120):
            video = make_video(room / f"{seconds}.mp4", (720, 1280), seconds)
            results[seconds] = run("windows", video, room / f"out{seconds}.mp4")
            print(f"--sampling windows over {seconds} s of 720p: {results[seconds]}")
        for what in ("MB to explain", "MB with drawing"):
            ratio = results[120][what] / results[30][what]
            print(f"  {what}: 120 s take {ratio:.2f} of what 30 s take (goal 1)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"span": span, "windows": windows}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
