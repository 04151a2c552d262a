"""The unedited model behind LitServe, to measure the service beside. Needs `pip install 'errata[bench]'`.

python -m benchmarks.speed.litserver --model FOLDER --port N
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import litserve
import torch
from fastapi import Request
from litserve.utils import configure_logging

from benchmarks.speed.bare import Bare

MAX_BATCH = 32
TIMEOUTS = (0.0, 0.002, 0.01)
"""Seconds that a batch waits to be filled; which is best depends on the machine."""
SECONDS_TO_START = 120


class Classifying(litserve.LitAPI):
    """A request is `{"inputs": [text]}`, as the service takes it; the answer holds label, score and scores."""

    def __init__(self, folder: Path, batch_timeout: float) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=batch_timeout)
        self._folder = folder

    def setup(self, device: str) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._bare = Bare(self._folder, device)

    def decode_request(self, request: Request) -> str:  # so annotated, it is the JSON that the request holds
        text: str = request["inputs"][0]
        return text

    def batch(self, inputs: Sequence[str]) -> list[str]:
        return list(inputs)

    def predict(self, x: Sequence[str]) -> list[list[float]]:
        return self._bare.scores(self._bare.batch(x))

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        best = max(range(len(output)), key=output.__getitem__)
        scores = dict(zip(self._bare.labels, output, strict=True))
        return {"predictions": [{"label": self._bare.labels[best], "score": output[best], "scores": scores}]}


@contextlib.contextmanager
def served(folder: Path, device: str, batch_timeout: float) -> Iterator[str]:
    """The URL to ask, while the block lasts."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.speed.litserver", "--model", str(folder), "--port", str(port)]
    command += ["--device", device, "--batch-timeout", str(batch_timeout)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        _await(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers are processes of their own
        process.wait()


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).is_success:
                    return
            time.sleep(0.1)
    raise RuntimeError("LitServe did not start.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-timeout", type=float, default=TIMEOUTS[0])
    given = parser.parse_args()
    configure_logging(level="WARNING")
    accelerator = "cuda" if given.device.startswith("cuda") else "cpu"
    server = litserve.LitServer(Classifying(given.model, given.batch_timeout), accelerator=accelerator, devices=1)
    server.run(host="127.0.0.1", port=given.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
