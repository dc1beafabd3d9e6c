"""A model behind HTTP, explained as a black box.

Serve a model (here the bundled one), then explain it from anywhere that reaches it:

    python examples/http_scorer.py serve 8765
    TUBELENS_SCORER=http://127.0.0.1:8765 \
        tubelens explain VIDEO --model examples/http_scorer.py:client --method "rise(n=500)"

Clips go as the bytes of an .npy array, float32 (b, c, t, h, w) in [0, 1]; scores come back as JSON.
"""

import io
import json
import os
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

import tubelens as tl

TIMEOUT = 60  # seconds


def client() -> tl.BlackBox:
    """The factory that `--model examples/http_scorer.py:client` calls."""
    url = os.environ.get("TUBELENS_SCORER", "http://127.0.0.1:8765")
    about = json.load(urllib.request.urlopen(f"{url}/about", timeout=TIMEOUT))

    def score(clips: np.ndarray) -> np.ndarray:
        body = io.BytesIO()
        np.save(body, clips.astype(np.float32), allow_pickle=False)
        request = urllib.request.Request(f"{url}/score", body.getvalue(), method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return np.array(json.load(answer), dtype=np.float32)

    return tl.wrap_scorer(
        score,
        numpy=True,
        frames=about["frames"],
        size=tuple(about["size"]),
        labels=about["labels"],
        output="logits",
        name=f"{about['name']} at {url}",
    )


def server(port: int) -> ThreadingHTTPServer:
    """The bundled model on a port; 0 is any that is free."""
    model = tl.load_model("bundled")
    about = {
        "name": model.name,
        "frames": model.spec.frames,
        "size": model.spec.size,
        "labels": list(model.labels or ()),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(about)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            clips = np.load(io.BytesIO(body), allow_pickle=False)
            self.answer(model(torch.from_numpy(clips)).tolist())

        def answer(self, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    with server(int(sys.argv[2]) if len(sys.argv) > 2 else 8765) as running:
        print(f"serving on {running.server_address}", flush=True)
        running.serve_forever()
