"""What every test stands on: the running server that drive.py names, keys made while it runs, and two clients.

`client` is the official SDK without retries, so that each refusal is seen; `http` is bare HTTP for what an SDK
can't send. `make_key` runs the real `guan key create` beside the server.
"""

import json
import os
import re
import ssl
import subprocess

import httpx
import openai
import pytest

PATIENCE = 120.0  # seconds: a small model on two busy cores


def env(name: str) -> str:
    if name not in os.environ:
        pytest.exit(f"{name} isn't set: run this through tests/sdk/drive.py (scripts/test does)", returncode=2)
    return os.environ[name]


@pytest.fixture(scope="session")
def url() -> str:
    return env("GUAN_URL")


@pytest.fixture(scope="session")
def first_key() -> str:
    """The one that was made with the data folder, role admin: 100 calls a minute."""
    return env("GUAN_KEY")


@pytest.fixture(scope="session")
def key(make_key) -> str:
    """One that no rate stops."""
    return make_key("tester")[0]


@pytest.fixture(scope="session")
def trust() -> ssl.SSLContext:
    """Trusts the server's own certificate and nothing else."""
    return ssl.create_default_context(cafile=env("GUAN_CA"))


@pytest.fixture(scope="session")
def sdk(url, trust):
    """sdk(key) -> the official client with that key."""
    made = []

    def make(api_key: str, **options) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=trust, trust_env=False)
        made.append(http)
        options = {"max_retries": 0, "timeout": PATIENCE} | options
        return openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, http_client=http, **options)

    yield make
    for http in made:
        http.close()


@pytest.fixture(scope="session")
def client(sdk, key) -> openai.OpenAI:
    return sdk(key)


@pytest.fixture(scope="session")
def http(url, trust):
    with httpx.Client(base_url=url, verify=trust, timeout=PATIENCE, trust_env=False) as bare:
        yield bare


@pytest.fixture(scope="session")
def auth(key) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="session")
def model(client) -> str:
    return client.models.list().data[0].id


def guan(*arguments: str) -> str:
    """The real command line, on the data folder of the running server."""
    done = subprocess.run(
        [env("GUAN_BIN"), *arguments, "--data", env("GUAN_DATA")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"guan {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def make_key():
    """make_key(role) -> (key, its id)."""

    def make(role: str) -> tuple[str, str]:
        shown = json.dumps(json.loads(guan("key", "create", "--role", role, "--name", f"test {role}", "--json")))
        found = re.search(r"sk-guan-([0-9A-Za-z]{12})_[0-9A-Za-z]+_[0-9A-Za-z]+", shown)
        assert found, "guan key create --json shows no key"
        return found[0], found[1]

    return make


@pytest.fixture(scope="session")
def revoke():
    return lambda key_id: guan("key", "revoke", key_id)
