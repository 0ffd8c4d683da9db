"""The server of ratings over HTTP: what it answers, and all that it refuses."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from urllib.parse import quote, urlsplit

import pytest
from typer.testing import CliRunner

from pyro_ext.cli.commands import app
from pyro_ext.cli.rating_server import MAX_BYTES, RatingServer
from pyro_ext.ratings import FILE_NAME, Ratings, read_ratings

# What runs in the background may have been told to ignore Ctrl-C, and its children with it.
MAIN = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pyro_ext.cli.commands import main
main()"""
COMMAND = [sys.executable, "-c", MAIN, "rate", "--no-open"]
JSON = {"Content-Type": "application/json"}
WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", 'b "<i>".JPG', "ü%2e.webp", os.fsdecode(b"\xe4.gif")):
        (folder / name).write_bytes(name.encode(errors="replace"))
    (folder / "secret.txt").write_text("secret")
    (tmp_path / "secret.png").write_text("secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.fixture
def server(folder):
    with RatingServer(Ratings(folder, concept="a")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, message=None, headers=None):
    """Status, headers and content of an answer; a path with a slash in front is the whole one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    path = path if path.startswith("/") else f"/{server.token}/{path}"
    body = message if message is None or isinstance(message, bytes) else json.dumps(message)
    if headers is None:
        headers = {} if body is None else JSON
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert urlsplit(server.url).hostname == "127.0.0.1" and len(server.token) >= 32


def test_the_page_and_its_headers(server):
    status, headers, content = ask(server, "")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert content.decode().count(f'nonce="{nonce}"') == 2
    assert nonce.encode() not in ask(server, "")[2]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(rb"https?://|//[a-z]", content.split(b"</style>")[0]), "works offline"


def test_images_are_served_by_their_names(server, folder):
    found = {}
    for name in server.ratings.images():
        status, headers, content = ask(server, "image/" + quote(os.fsencode(name), safe=""))
        assert status == 200 and content == (folder / name).read_bytes()
        assert "script-src 'none'" in headers["Content-Security-Policy"]
        found[name[-4:].lower()] = headers["Content-Type"]
    assert found[".jpg"] == "image/jpeg" and found["webp"] == "image/webp" and len(found) == 4


@pytest.mark.parametrize(
    "path",
    [
        "image/link.png",
        "image/secret.txt",
        "image/" + FILE_NAME,
        "image/../secret.png",
        "image/..%2fsecret.png",
        "image/..%5csecret.png",
        "image/%2e%2e/secret.png",
        "image//a.png",
        "image/a.png/",
        "image/./a.png",
        "image/a.png%00",
        "image/",
        "image",
        "image/%ff%fe",
        "secret.txt",
        "state/",
        "../state",
        "ratings.py",
    ],
)
def test_nothing_else_is_served(server, path):
    status, headers, content = ask(server, path)
    assert status == 404 and b"secret" not in content
    assert headers["Content-Type"].startswith("text/plain")


def test_an_image_that_becomes_a_link_is_not_followed(server, folder, monkeypatch):
    monkeypatch.setattr(server.ratings, "images", lambda: ["link.png"])  # as listed before
    assert ask(server, "image/link.png")[0] == 404


def test_answers_are_saved_and_taken_back(server, folder):
    state = json.loads(ask(server, "state")[2])
    assert state["concept"] == "a" and state["rank"] == 1 and state["total"] == 4
    (shown,) = state["images"]
    assert ask(server, shown["url"])[0] == 200
    status, _, content = ask(server, "rate", {"images": [shown["name"]], "answer": True})
    after = json.loads(content)
    assert status == 200 and after["done"] == 1 and after["last"]["images"] == [shown["name"]]
    assert read_ratings(folder).labels == {shown["name"]: True}
    status, _, content = ask(server, "undo", {"line": after["last"]["line"]})
    assert status == 200 and json.loads(content) == state
    assert not read_ratings(folder).labels


def test_a_second_answer_gets_the_state_instead(server, folder):
    message = {"images": ["a.png"], "answer": True}
    assert ask(server, "rate", message)[0] == 200
    status, _, content = ask(server, "rate", message | {"answer": False})
    state = json.loads(content)
    assert status == 409 and state["done"] == 1 and "must not be rated yet" in state["error"]
    assert ask(server, "undo", {"line": 1})[0] == 409
    assert ask(server, "rate", {"images": ["gone.png"], "answer": True})[0] == 409
    assert read_ratings(folder).labels == {"a.png": True}


ANSWER = {"images": ["a.png"], "answer": True}


@pytest.mark.parametrize(
    ("status", "path", "message", "headers"),
    [
        (403, "rate", ANSWER, {**JSON, "Host": "evil.example"}),
        (403, "rate", ANSWER, {**JSON, "Host": "127.0.0.1.evil.example"}),
        (403, "rate", ANSWER, {**JSON, "Host": ""}),
        (403, "state", None, {"Host": "evil.example:80"}),
        (403, "", None, {"Host": "0.0.0.0"}),
        (403, "rate", ANSWER, {**JSON, "Origin": "http://evil.example"}),
        (403, "rate", ANSWER, {**JSON, "Origin": "null"}),
        (403, "rate", ANSWER, {**JSON, "Origin": "http://127.0.0.1:1"}),
        (403, "rate", ANSWER, {**JSON, "Sec-Fetch-Site": "cross-site"}),
        (403, "image/a.png", None, {"Sec-Fetch-Site": "same-site"}),
        (403, "/", None, {}),
        (403, "/state", None, {}),
        (403, "/rate", ANSWER, JSON),
        (403, "//rate", ANSWER, JSON),
        (403, "/" + "A" * 32 + "/rate", ANSWER, JSON),
        (403, "/favicon.ico", None, {}),
        (415, "rate", ANSWER, {"Content-Type": "text/plain"}),
        (415, "rate", ANSWER, {"Content-Type": "application/x-www-form-urlencoded"}),
        (413, "rate", b"x" * (MAX_BYTES + 1), JSON),
        (411, "rate", ANSWER, {**JSON, "Content-Length": "-1"}),
        (411, "rate", ANSWER, {**JSON, "Transfer-Encoding": "chunked", "Content-Length": "5"}),
        (400, "rate", b"", JSON),
        (400, "rate", b"{", JSON),
        (400, "rate", b"[" * 60_000, JSON),
        (400, "rate", b"[1]", JSON),
        (400, "rate", b"\xff", JSON),
        (400, "rate", {}, JSON),
        (400, "rate", {"images": "a.png", "answer": True}, JSON),
        (400, "rate", {"images": ["a.png"], "answer": 1}, JSON),
        (400, "undo", {"line": "2"}, JSON),
        (400, "undo", {}, JSON),
        (404, "other", ANSWER, JSON),
    ],
)
def test_requests_that_are_refused(server, folder, status, path, message, headers):
    before = (folder / FILE_NAME).read_bytes()
    got, headers, content = ask(server, path, message, headers)
    assert got == status and headers["Connection"] == "close"
    assert (folder / FILE_NAME).read_bytes() == before
    assert server.token.encode() not in content


def test_names_of_this_machine_are_taken(server):
    for host in ("localhost", "localhost:9000", f"127.0.0.1:{server.server_port}"):
        headers = {**JSON, "Host": host, "Origin": f"http://{host}"}
        assert ask(server, "undo", {"line": 7}, headers)[0] == 409


def test_two_hosts_other_methods_and_nonsense(server):
    for request, status in (
        (f"GET /{server.token}/state HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 403),
        (f"GET /{server.token}/state HTTP/1.0\r\n\r\n", 403),
        (f"PUT /{server.token}/rate HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        ("GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        ("nonsense HTTP/1.1\r\n\r\n", 400),
        ("GET /" + "a" * 70_000 + " HTTP/1.1\r\n", 414),
    ):
        with socket.create_connection(server.server_address, timeout=10) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as file:
                assert f" {status}" in file.read().decode(), request[:60]


def test_a_file_that_cannot_be_written_is_told(server, folder, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device", str(folder / FILE_NAME))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        status, _, content = ask(server, "rate", {"images": ["a.png"], "answer": True})
    assert status == 500 and b"ratings.jsonl: No space left on device" in content
    (folder / FILE_NAME).write_text("nonsense\n")
    status, _, content = ask(server, "state")
    assert status == 500 and b"must be a file of ratings" in content
    (folder / FILE_NAME).unlink()
    assert ask(server, "state")[0] == 500


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    for _ in range(3):
        connection.request("GET", f"/{server.token}/state")
        assert connection.getresponse().read()
        assert connection.sock is not None
    connection.close()


def test_the_command_is_killed_and_goes_on_and_ends_with_ctrl_c(folder):
    command = [*COMMAND, str(folder)]
    addresses = []
    for stop in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            url = urlsplit(process.stdout.readline().split()[-1])
            addresses.append(url.path)
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
            connection.request("GET", url.path + "state")
            state = json.loads(connection.getresponse().read())
            body = json.dumps({"images": [state["images"][0]["name"]], "answer": True})
            connection.request("POST", url.path + "rate", body, JSON)
            assert connection.getresponse().status == 200
            connection.close()
            process.send_signal(stop)
            printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "2 of 4 images rated, 0 skipped" in printed
    assert addresses[0] != addresses[1]
    assert state["done"] == 1 and len(read_ratings(folder).labels) == 2


def refused(*arguments):
    result = CliRunner().invoke(app, ["rate", "--no-open", *map(str, arguments)], env=WIDE)
    assert result.exit_code == 2, result.output
    return result.output


def test_what_the_command_refuses(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "folder must have at least 1 images" in refused(tmp_path / "empty")
    assert "folder must be a folder of images" in refused(tmp_path / "none")
    assert "folder must be a folder of images" in refused(folder / "a.png")
    assert "folder must have at least 5 images" in refused(folder, "--rank", 5)
    assert "--rank" in refused(folder, "--rank", 13) and "--port" in refused(folder, "--port", -1)
    assert "path must be a file of ratings" in refused(folder, "--output", folder / "secret.txt")
    words = refused(folder, "--output", tmp_path / "none" / "r.jsonl")
    assert "--output" in words and "r.jsonl cannot be used: No such file" in words
    for output in (tmp_path / "empty", "/dev/null"):
        assert f"output must be a file, got '{output}'" in refused(folder, "--output", output)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = refused(folder, "--port", port)
    assert f"{port} cannot be used: Address already in use" in words


def test_a_folder_without_permission(folder, monkeypatch):
    def deny(path, *rest, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pyro_ext._lib.files.os.open", deny)
    words = refused(folder)
    assert (
        f"{folder / FILE_NAME} cannot be used: Permission denied" in words and "--output" in words
    )


def test_the_command_loads_no_torch(folder):
    code = (
        "import sys; from pyro_ext.cli.rating_server import RatingServer; "
        "from pyro_ext.ratings import Ratings; "
        f"RatingServer(Ratings({str(folder)!r})).server_close(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
