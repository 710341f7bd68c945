#!/usr/bin/env python3
"""Starts a `guan serve` of its own, runs a command against it, stops it again.

    drive.py --guan PATH (--model GGUF | --upstream URL) [--config FILE] [--keep-log FILE] -- COMMAND…

The data folder is a fresh temporary one, the port a free one; FILE is added to its guan.toml. The command finds in its environment:

    GUAN_URL    https://127.0.0.1:PORT      GUAN_KEY   the first key (role admin)
    GUAN_CA     the certificate (PEM)       GUAN_DATA  the data folder, for `guan key …`
    GUAN_BIN    the guan binary             NODE_EXTRA_CA_CERTS, SSL_CERT_FILE: the certificate

The exit code is the command's, or 1 when the server didn't start or didn't end well. Standard library only.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

START_SECONDS = 180
STOP_SECONDS = 60


def fail(text: str, log: pathlib.Path | None = None) -> None:
    print(f"drive.py: {text}", file=sys.stderr)
    if log is not None and log.exists():
        print("What guan said:", file=sys.stderr)
        print(log.read_text(errors="replace")[-8000:], file=sys.stderr)


def adapt(config: pathlib.Path, more: str) -> None:
    """Puts `listen = "127.0.0.1:0"` into [server] and [admin], whatever stands there, and `more` at the end."""
    line = 'listen = "127.0.0.1:0"'
    text = config.read_text()
    text = re.sub(r"(?m)^[ \t]*listen[ \t]*=.*\n", "", text)
    if re.search(r"(?m)^[ \t]*\[server\]", text):
        text = re.sub(r"(?m)^[ \t]*\[server\].*$", lambda found: f"{found[0]}\n{line}", text, count=1)
    else:
        text = f"[server]\n{line}\n\n{text}"
    mode = config.stat().st_mode & 0o777
    config.chmod(0o600)
    config.write_text(f"{text}\n[admin]\n{line}\n{more}")
    config.chmod(mode)


def ready(data: pathlib.Path) -> str | None:
    """The server's URL, once it says that it is ready."""
    try:
        address = (data / "state/run/address").read_text().split()[0]
        context = ssl.create_default_context(cafile=str(data / "secrets/tls.crt"))
        url = "https://127.0.0.1:" + address.rstrip("/").rsplit(":", 1)[1]
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"{url}/readyz", timeout=5) as answer:
            return url if answer.status == 200 else None
    except (OSError, IndexError):
        return None


def start(guan: str, data: pathlib.Path, source: list[str], more: str, log: pathlib.Path) -> tuple[subprocess.Popen, str] | None:
    with log.open("ab") as out:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        code = subprocess.run([guan, "init", "--data", str(data), *source], **quiet).returncode
        if code != 0:
            fail(f"guan init ended with {code}", log)
            return None
        adapt(data / "guan.toml", more)
        server = subprocess.Popen([guan, "serve", "--data", str(data)], **quiet)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        if url := ready(data):
            return server, url
        time.sleep(0.1)
    fail(
        f"guan serve ended with {server.returncode}" if server.poll() is not None else "guan serve didn't become ready",
        log,
    )
    server.kill()
    server.wait()
    return None


def stop(server: subprocess.Popen, log: pathlib.Path) -> int:
    """Asks the server to end; 0 if it did, and said that all was well."""
    if server.poll() is not None:
        fail(f"guan serve had ended by itself with {server.returncode}", log)
        return 1
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        fail(f"guan serve didn't end within {STOP_SECONDS} s of SIGTERM", log)
        return 1
    if code != 0:
        fail(f"guan serve ended with {code} after SIGTERM", log)
    return 1 if code else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--guan", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model")
    source.add_argument("--upstream")
    parser.add_argument("--config", metavar="FILE", type=pathlib.Path)
    parser.add_argument("--keep-log", metavar="FILE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command after --")

    # So that the server is stopped when this script is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="guan-test-") as folder:
        data = pathlib.Path(folder, "data")
        data.mkdir(mode=0o700)
        log = pathlib.Path(folder, "guan.log")
        wanted = ["--model", os.path.abspath(args.model)] if args.model else ["--upstream", args.upstream]
        more = args.config.read_text() if args.config else ""
        started = start(os.path.abspath(args.guan), data, wanted, more, log)
        if started is None:
            return 1
        server, url = started
        code = 1
        try:
            certificate = str(data / "secrets/tls.crt")
            env = os.environ | {
                "GUAN_URL": url,
                "GUAN_KEY": (data / "secrets/first-key").read_text().split()[0],
                "GUAN_CA": certificate,
                "GUAN_DATA": str(data),
                "GUAN_BIN": os.path.abspath(args.guan),
                "NODE_EXTRA_CA_CERTS": certificate,
                "SSL_CERT_FILE": certificate,
                "NO_PROXY": "127.0.0.1,localhost",
                "no_proxy": "127.0.0.1,localhost",
            }
            code = subprocess.run(command, env=env).returncode
        finally:
            ended = stop(server, log)
            if args.keep_log:
                shutil.copyfile(log, args.keep_log)
        if code:
            fail(f"the command's exit code was {code}", log)
        return code or ended


if __name__ == "__main__":
    sys.exit(main())
