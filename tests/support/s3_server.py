"""An S3 server on loopback, moto's, that fails as it is told; run as a module, it prints its port."""

import http.client
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from pyarrow import fs

CONTROL = "/-/"
"""Below it are no buckets, but what a test tells and asks this server."""
_CODES = {
    "403": ("403 Forbidden", "AccessDenied", "as told"),
    "expired": ("403 Forbidden", "ExpiredToken", "The provided token has expired."),
    "frozen": ("403 Forbidden", "InvalidObjectState", "The object has another storage class"),
    "500": ("500 Internal Server Error", "InternalError", "as told"),
    "503": ("503 Slow Down", "SlowDown", "as told"),
}


@dataclass(frozen=True)
class Faults:
    """What the server does wrong from now on, the same in every run.

    A request is known by its method and URL, without the name that an upload gets.
    """

    kinds: Sequence[str]
    """Of "403", "expired", "frozen" (refusals), "500", "503", "reset" (no answer), "slow"; "cut" (half of
    what a GET answers, and a reset), "short" (half, as if it were all), "same", "longer" and "shorter" (the
    object is replaced by one of such a size before the GET)."""
    method: str = ""
    """Regular expressions that a request's method and URL must match."""
    url: str = ""
    fraction: float = 1.0
    """Of the requests that match."""
    times: int = 1
    """How often a request fails before it is answered; 0: it always fails."""
    seconds: float = 0.5
    """How long a slow answer takes."""
    seed: int = 0

    def kind(self, method: str, url: str, before: int) -> str | None:
        """What happens to a request that has failed so often before; None: nothing."""
        if not re.fullmatch(self.method or ".*", method) or not re.search(self.url, url):
            return None
        chance = random.Random(f"{self.seed} {method} {url}")
        if chance.random() >= self.fraction or (self.times and before >= self.times):
            return None
        return chance.choice(self.kinds)


@dataclass(frozen=True)
class Server:
    """A running server, as a test sees it."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """What makes every process find this server at s3://, and nothing of the user's or the machine's."""
        return {
            **{"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_DEFAULT_REGION": "us-east-1"},
            **dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "test"),
            **dict.fromkeys(["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"], os.devnull),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def filesystem(self) -> fs.S3FileSystem:
        """Plain pyarrow's."""
        place = {"endpoint_override": f"127.0.0.1:{self.port}", "scheme": "http", "region": "us-east-1"}
        return fs.S3FileSystem(access_key="test", secret_key="test", **place)

    def put(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Store objects by BUCKET/KEY; a name without a slash is a new bucket."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        for name, data in objects:
            connection.request("PUT", f"/{quote(name)}", data)
            with connection.getresponse() as answer:
                assert answer.status == 200, answer.read()
                answer.read()

    @contextmanager
    def failing(self, *kinds: str, **how: Any) -> Iterator[None]:
        """Let requests fail until the block ends; see `Faults`. Of blocks within each other all do."""
        self._ask("POST", "faults", asdict(Faults(kinds, **how)))
        try:
            yield
        finally:
            self._ask("DELETE", "faults")

    def requests(self) -> list[str]:
        """METHOD URL of each request since this was last asked, and its fault if it had one."""
        return list(self._ask("GET", "requests"))

    def _ask(self, method: str, name: str, value: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, f"{CONTROL}{name}", json.dumps(value))
        with connection.getresponse() as answer:
            return json.loads(answer.read())


@contextmanager
def running() -> Iterator[Server]:
    """A server in a process of its own, which also ends when this one does."""
    command = [sys.executable, "-m", "tests.support.s3_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.terminate()


class _Failing:
    """A WSGI application before another, which it lets fail."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.faults: list[Faults] = []
        self.failed: Counter[tuple[str, str]] = Counter()
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, url = environ["REQUEST_METHOD"], environ["RAW_URI"]
        if url.startswith(CONTROL):
            return self._control(environ, start_response)
        url = re.sub(r"uploadId=[^&]*", "uploadId", url)
        with self.lock:
            kinds = [(f.kind(method, url, self.failed[method, url]), f.seconds) for f in self.faults]
            kind, seconds = next((fault for fault in kinds if fault[0]), (None, 0.0))
            self.failed[method, url] += kind is not None
            self.requests.append(f"{method} {url} {kind or ''}".strip())
        if kind in _CODES:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code, text = _CODES[kind]
            body = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response(status, headers)
            return [body]
        if kind == "reset" or (kind == "cut" and method != "GET"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if kind == "slow":
            time.sleep(seconds)
        if kind in ("same", "longer", "shorter"):
            self._replace(environ, kind)
        if kind == "short":
            return self._short(environ, start_response)
        answer: Iterable[bytes] = self.application(environ, start_response)
        return answer if kind != "cut" else self._half(answer)

    def _half(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        body = b"".join(answer)
        yield body[: len(body) // 2]
        raise ConnectionResetError

    def _short(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        started: list[Any] = []
        body = b"".join(self.application(environ, lambda *answer: started.extend(answer)))
        body = body[: len(body) // 2]
        headers = [(name, value) for name, value in started[1] if name.lower() != "content-length"]
        start_response(started[0], [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _replace(self, environ: dict[str, Any], kind: str) -> None:
        """Store VERSION2 under the key of a GET; with its size, a second later: times have no fractions."""
        time.sleep(1.1 * (kind == "same"))
        ranged = {name: value for name, value in environ.items() if name != "HTTP_RANGE"}
        data = b"".join(self.application({**ranged, "wsgi.input": io.BytesIO()}, lambda *answer: None))
        data = data.replace(b"VERSION1", b"VERSION2")
        data = {"same": data, "longer": data + b"more", "shorter": data[:-9]}[kind]
        put = {"REQUEST_METHOD": "PUT", "wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data))}
        b"".join(self.application({**ranged, **put}, lambda *answer: None))

    def _control(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        value = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        requests: list[str] = []
        with self.lock:
            if environ["REQUEST_METHOD"] == "POST":
                self.faults.append(Faults(**value))
            elif environ["REQUEST_METHOD"] == "DELETE":
                self.faults.pop()
            else:
                requests, self.requests = self.requests, []
            if not self.faults:
                self.failed.clear()
        body = json.dumps(requests).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


def _serve() -> None:
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    application = _Failing(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.buffer.read()  # Until the process that started this one ends.


if __name__ == "__main__":
    _serve()
