"""The page of ``pyro-ext rate``, served to this machine alone.

Other sites that the browser has open, and other users of the machine, can reach the port as well.
So the address holds a random word, without which nothing is answered; the host has to be named as
this machine, against sites whose names are made to lead here; requests of other pages are refused;
and no files are served but the images that :class:`Ratings` lists.
"""

import hmac
import json
import os
import re
import secrets
import sys
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from pyro_ext._lib.files import json_object, open_file
from pyro_ext.ratings import IMAGE_TYPES, Ratings

ADDRESS = "127.0.0.1"
MAX_BYTES = 1 << 16  # of an answer
SECONDS = 60.0  # that a connection may be idle
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")


class RatingServer(ThreadingHTTPServer):
    """A server of the page.

    :param Ratings ratings: where answers go.
    :param int port: on which it listens; 0 for one that is free.
    :raises OSError: where the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere two servers could listen on one port

    def __init__(self, ratings: Ratings, port: int = 0) -> None:
        self.ratings = ratings
        self.token = secrets.token_urlsafe(24)
        self.page = files("pyro_ext.cli").joinpath("ratings.html").read_text("utf-8")
        super().__init__((ADDRESS, port), _Handler)

    def server_bind(self) -> None:
        """Listen, without a look for the host's name, which may take a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def state(self) -> dict[str, Any]:
        """All that the page shows."""
        progress = self.ratings.progress()
        last = progress.last
        return {
            "concept": self.ratings.concept,
            "rank": self.ratings.rank,
            "images": [{"name": name, "url": _url(name)} for name in progress.images],
            "upcoming": [_url(name) for name in progress.upcoming],
            "done": progress.done,
            "skipped": progress.skipped,
            "total": progress.total,
            "last": last and {"line": last.line, "images": last.images, "label": last.label},
            "output": str(self.ratings.path.absolute()),
        }

    def run(self, browser: bool, echo: Callable[[str], object]) -> None:
        """Serve the page until Ctrl-C."""
        path = self.ratings.path
        echo(f"Rate the images at {self.url}")
        echo(f"Answers are saved in {path} as they come; Ctrl-C ends.")
        # Without a display there may be a browser in the terminal, which cannot show the page.
        if browser and (sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}):
            webbrowser.open(self.url)
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            progress = self.ratings.progress()
            rated = progress.done - progress.skipped
            echo(f"\n{rated} of {progress.total} images rated, {progress.skipped} skipped: {path}")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about a browser that went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _url(name: str) -> str:
    return "image/" + quote(os.fsencode(name), safe="")


class _Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "pyro_ext", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Leave the terminal to the command."""

    def _respond(self, answer: Callable[[str], None]) -> None:
        try:
            answer(self._check())
        except _Refused as refused:
            self._refuse(refused.status, str(refused))
        except ConnectionError:
            raise
        except OSError as error:
            reason = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
        except ValueError as error:  # the file is none of ratings anymore
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _check(self) -> str:
        """Look where a request comes from; returns what it asks for."""
        host, *others = self.headers.get_all("Host", [""])
        if others or not _HOST.fullmatch(host):
            raise _Refused(HTTPStatus.FORBIDDEN, "this page is for the machine that it runs on")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if origin not in (None, f"http://{host}") or site not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, "the request comes from another page")
        token, *path = self.path.partition("?")[0].removeprefix("/").split("/", 1)
        if not path or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "open the address that `pyro-ext rate` printed when it started",
            )
        return path[0]

    def _get(self, path: str) -> None:
        folder, _, name = path.partition("/")
        if path == "":
            nonce = secrets.token_urlsafe(16)
            page = self.server.page.replace("{nonce}", nonce)
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), nonce)
        elif path == "state":
            self._send_state(HTTPStatus.OK)
        elif folder == "image":
            name = os.fsdecode(unquote_to_bytes(name))
            content = self._image(name)
            kind = IMAGE_TYPES[os.path.splitext(name)[1].lower()]
            self._send(HTTPStatus.OK, kind, content)
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _image(self, name: str) -> bytes:
        """Read an image of the folder; nothing that is listed leads out of it."""
        if name in self.server.ratings.images():
            try:
                with open_file(self.server.ratings.folder / name, links=False) as file:
                    return file.read()
            except OSError as error:
                raise _Refused(HTTPStatus.NOT_FOUND, f"{error.strerror}") from error
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such image")

    def _post(self, path: str) -> None:
        if path not in ("rate", "undo"):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        message = self._message()
        ratings = self.server.ratings
        try:
            if path == "undo":
                ratings.undo(message.get("line"))  # type: ignore[arg-type]
            else:
                ratings.rate(message.get("images"), message.get("answer"))  # type: ignore[arg-type]
        except TypeError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except ValueError as error:  # another tab was there first, or the image is gone
            self._send_state(HTTPStatus.CONFLICT, str(error))
        else:
            self._send_state(HTTPStatus.OK)

    def _message(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "answers are JSON")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,18}", length) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "answers say how long they are")
        if int(length) > MAX_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "answers are short")
        try:
            return json_object(self.rfile.read(int(length)))
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "answers are JSON objects") from error

    def _send_state(self, status: HTTPStatus, error: str = "") -> None:
        state = self.server.state()
        if error:
            state["error"] = error
        self._send(status, "application/json", json.dumps(state).encode())

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        # What else the request holds was not read, and is no next request.
        self.close_connection = True
        text = reason.encode(errors="replace")
        self._send(status, "text/plain; charset=utf-8", text)

    def _send(self, status: HTTPStatus, kind: str, content: bytes, nonce: str = "") -> None:
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": (
                f"default-src 'none'; script-src {own}; style-src {own}; img-src 'self' data:; "
                "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
