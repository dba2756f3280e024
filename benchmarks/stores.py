"""Servers that hosts share, on this machine: PostgreSQL as Debian installs it, and an object store with the S3 API."""

import http.client
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

BUCKET = "latents"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def postgres_binaries() -> Path | None:
    """Return the folder with PostgreSQL's server, on the path or where Debian installs it."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders and (folders[-1] / "initdb").exists() else None


@contextmanager
def postgres_server(password: str | None = None, settings: str = "") -> Iterator[sa.URL]:
    """Run a PostgreSQL server with a password, and yield the URL of its database for the driver psycopg2.

    Args:
        password: Password of the user; a random one by default.
        settings: More options of the server, such as `-c timezone=UTC`.

    Raises:
        FileNotFoundError: The server is not installed, or this is root and there is no user postgres.
    """
    binaries, password = postgres_binaries(), password or secrets.token_hex(8)
    if binaries is None:
        raise FileNotFoundError("PostgreSQL's server is not installed")
    # Not below a folder of the tests, which only their user can enter.
    with tempfile.TemporaryDirectory(prefix="postgres_") as name:
        folder = Path(name)
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        if os.getuid() == 0:  # the server refuses to run as root
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                raise FileNotFoundError("PostgreSQL does not run as root, and there is no user postgres") from None
            os.chown(folder, user.pw_uid, user.pw_gid)
            options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder}
        port, secret, data = free_port(), folder / "password", folder / "data"
        secret.write_text(password)
        secret.chmod(0o644)
        login = ["-U", "tester", f"--pwfile={secret}", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8"]
        subprocess.run([binaries / "initdb", "-D", data, *login], check=True, **options)
        all_settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -F {settings}"
        subprocess.run(
            [binaries / "pg_ctl", "-D", data, "-o", all_settings, "-l", folder / "log", "-w", "-t", "60", "start"],
            check=True,
            **options,
        )
        try:
            yield sa.URL.create("postgresql+psycopg2", "tester", password, "127.0.0.1", port, "postgres")
        finally:
            subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], check=True, **options)


def s3_request(port: int, method: str, path: str) -> int:
    """Send a request to an object store, and return its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def s3_server() -> Iterator[int]:
    """Run an object store, and yield its port.

    Raises:
        FileNotFoundError: moto is not installed.
        TimeoutError: It does not answer within 30 s.
    """
    port = free_port()
    command = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if command is None:
        raise FileNotFoundError("moto_server is missing; install the extra dev")
    process = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 30
        while True:
            try:
                s3_request(port, "GET", "/moto-api/")
                break
            except OSError:
                if time.monotonic() > end:
                    raise TimeoutError("moto_server did not start within 30 seconds") from None
                time.sleep(0.25)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def s3_environment(port: int) -> Mapping[str, str]:
    """Return the variables with which clients use an object store of this machine."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
