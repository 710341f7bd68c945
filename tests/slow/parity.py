#!/usr/bin/env python3
"""Greedy output of the engine equals llama-server's on the same GGUF, and how fast it is beside it.

    parity.py FOLDER GGUF     (FOLDER: where peer.py put llama-server)

Run through tests/sdk/drive.py, which starts Guan. llama-server runs on a Unix socket of its own; both serve the same
file with the same number of threads. Prints the speeds and their ratio; asserts equal text only. The last line is
`N passed, N failed in S s`. Standard library only.
"""

import http.client
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse

# Each step of these has a clear winner with the small test model. Elsewhere two tokens can be so close that other CPU
# kernels, or llama-server's own `--no-repack`, decide between them, and equal text would be a matter of luck. How
# clear it was is printed as the smallest gap between the first and the second token.
PROMPTS = [
    "1, 2, 3, 4, 5, 6, 7, 8,",
    '{"a": 1, "b": 2, "c": 3, "d":',
    "从前有座山，山里有座庙，",
]
TOKENS = 32
BENCH_TOKENS = 128
BENCH_ROUNDS = 3
START_SECONDS = 120


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: str):
        super().__init__("localhost", timeout=300)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def guan() -> http.client.HTTPConnection:
    address = urllib.parse.urlsplit(os.environ["GUAN_URL"])
    context = ssl.create_default_context(cafile=os.environ["GUAN_CA"])
    return http.client.HTTPSConnection(address.hostname, address.port, timeout=300, context=context)


def call(connection: http.client.HTTPConnection, method: str, path: str, body: dict | None = None) -> dict:
    headers = {"Authorization": f"Bearer {os.environ['GUAN_KEY']}", "Content-Type": "application/json"}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path}: {answer.status} {text[:400]!r}")
    return json.loads(text)


def complete(connection: http.client.HTTPConnection, model: str, prompt: str, tokens: int, **more) -> dict:
    """The greedy continuation."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "seed": 1} | more
    return call(connection, "POST", "/v1/completions", body)


def smallest_gap(answer: dict) -> float:
    """How clear the closest decision was, in log probability."""
    steps = answer["choices"][0]["logprobs"]["content"]
    return min(step["top_logprobs"][0]["logprob"] - step["top_logprobs"][1]["logprob"] for step in steps)


def speed(connection: http.client.HTTPConnection, model: str) -> float:
    """Tokens a second of one stream, the best of a few rounds."""
    best = 0.0
    for round_number in range(BENCH_ROUNDS):
        # A new beginning each time, so that no cache of prompts helps either side.
        began = time.monotonic()
        answer = complete(connection, model, f"{round_number + 1}. Long ago and far away", BENCH_TOKENS)
        best = max(best, answer["usage"]["completion_tokens"] / (time.monotonic() - began))
    return best


def start_peer(binary: pathlib.Path, gguf: str, path: str, log) -> subprocess.Popen:
    threads = str(os.cpu_count() or 2)
    command = [binary, "-m", gguf, "--host", path, "-t", threads, "-tb", threads, "-np", "1", "-c", "4096"]
    peer = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and peer.poll() is None:
        try:
            call(UnixConnection(path), "GET", "/health")
            return peer
        except (OSError, RuntimeError, http.client.HTTPException):
            time.sleep(0.2)
    peer.kill()
    raise SystemExit(f"llama-server didn't start; its words are in {log.name}")


def main() -> int:
    folder, gguf = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    began = time.monotonic()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as work, open(folder / "llama-server.log", "w", encoding="utf-8") as log:
        path = f"{work}/peer.sock"
        peer = start_peer(folder / "llama-server", gguf, path, log)
        try:
            model = call(guan(), "GET", "/v1/models")["data"][0]["id"]
            for prompt in PROMPTS:
                ours = complete(guan(), model, prompt, TOKENS)["choices"][0]["text"]
                answer = complete(UnixConnection(path), model, prompt, TOKENS, logprobs=2)
                theirs = answer["choices"][0]["text"]
                same = ours == theirs
                passed, failed = passed + same, failed + (not same)
                print(f"{'equal' if same else 'DIFFERENT'}: {prompt!r} (smallest gap {smallest_gap(answer):.2f})")
                if not same:
                    print(f"  engine:       {ours!r}\n  llama-server: {theirs!r}")
            theirs, ours = speed(UnixConnection(path), model), speed(guan(), model)
            print(f"one stream: engine {ours:.1f} tokens/s, llama-server {theirs:.1f} tokens/s, ratio {ours / theirs:.2f}")
        finally:
            peer.terminate()
            peer.wait(30)
    print(f"{passed} passed, {failed} failed in {time.monotonic() - began:.2f}s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
