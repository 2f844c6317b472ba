"""The online clients, against servers on the loopback interface that speak the hubs' protocols."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from lingconv.errors import Error, ExitCode
from lingconv.hub import (
    MODELSCOPE_LIMIT,
    Against,
    HubListing,
    fetch,
    hugging_face_listing,
    modelscope_listing,
    parse_against,
)

REPOSITORY = "org/Model-1.0"
COMMIT = "11c5a3d5811f50298f278a704980280950aedb10"
SHA256 = "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421"
BLOB = "a16a55fda99d2f2e7b69cce5cf93ff4ad3049930"
INFO = f"/api/models/{REPOSITORY}"
TREE = f"{INFO}/tree/{COMMIT}"
FILES = f"/api/v1/models/{REPOSITORY}/repo/files"

Query = dict[str, list[str]]


class Server:
    """Answers paths with what was put there, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Query], tuple[int, dict[str, str], Any]]] = {}
        self.asked: list[tuple[str, Query, dict[str, str]]] = []
        self.stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = parse_qs(parts.query)
                outer.asked.append((parts.path, query, dict(self.headers)))
                answer = outer.answers.get(parts.path)
                status, headers, body = answer(query) if answer else (404, {}, {"error": "none"})
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, path: str, body: Any, status: int = 200, **headers: str) -> None:
        self.answers[path] = lambda _query: (status, headers, body)

    def stall(self, path: str) -> None:
        def wait(_query: Query) -> tuple[int, dict[str, str], Any]:
            self.stop.wait(30)
            return 200, {}, {}

        self.answers[path] = wait

    def close(self) -> None:
        self.stop.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


def lfs(path: str) -> dict[str, Any]:
    pointer = {"oid": SHA256, "size": 9, "pointerSize": 134}
    return {"type": "file", "path": path, "size": 9, "oid": BLOB, "lfs": pointer}


def plain(path: str) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": 7, "oid": BLOB}


def hub(server: Server, *pages: list[dict[str, Any]]) -> None:
    """A repository whose listing has these pages."""
    info = {"id": REPOSITORY, "sha": COMMIT, "siblings": []}
    server.put(INFO, info)
    server.put(f"{INFO}/revision/main", info)
    server.put(f"{INFO}/revision/{COMMIT}", info)

    def page(query: Query) -> tuple[int, dict[str, str], Any]:
        number = int(query.get("cursor", ["0"])[0])
        following = f"{server.url}{TREE}?recursive=true&cursor={number + 1}"
        more = number + 1 < len(pages)
        return 200, {"Link": f'<{following}>; rel="next"'} if more else {}, pages[number]

    server.answers[TREE] = page


def scope(files: Any, **data: Any) -> dict[str, Any]:
    return {"Code": 200, "Success": True, "Message": "", "Data": {"Files": files, **data}}


def scope_file(path: str) -> dict[str, Any]:
    return {"Path": path, "Name": path, "Type": "blob", "Size": 9, "Sha256": SHA256}


def unverifiable(listing: Callable[..., HubListing], *, timeout: float = 20.0) -> Error:
    with pytest.raises(Error) as caught:
        listing(REPOSITORY, None, timeout=timeout)
    error = caught.value
    assert (error.kind, error.exit_code) == ("unverifiable", ExitCode.UNVERIFIABLE)
    assert error.hint
    assert not error.message.endswith(".")
    return error


BOTH = pytest.mark.parametrize(
    ("listing", "path"), [(hugging_face_listing, INFO), (modelscope_listing, FILES)]
)


def test_hugging_face_lists_a_commit(server: Server) -> None:
    folder = {"type": "directory", "path": "sub", "size": 0, "oid": BLOB}
    hub(server, [folder, lfs("sub/m.safetensors") | {"xetHash": SHA256}, plain("config.json")])
    listing = hugging_face_listing(REPOSITORY, None)
    assert (listing.commit, listing.repository) == (COMMIT, REPOSITORY)
    assert listing.origin == f"{server.url}/{REPOSITORY}@{COMMIT}"
    shard, config = json.loads(listing.text)
    assert shard.pop("xetHash", SHA256) == SHA256
    assert shard == lfs("sub/m.safetensors") | {"lfs": {"oid": SHA256, "size": 9}}
    assert config == plain("config.json")
    tree = next(query for path, query, _ in server.asked if path == TREE)
    assert tree["recursive"] == ["true"]


def test_hugging_face_follows_pages(server: Server) -> None:
    pages = [[plain(f"{page}-{i}.json") for i in range(1000)] for page in range(3)]
    hub(server, *pages)
    listed = json.loads(hugging_face_listing(REPOSITORY, "main").text)
    assert listed == [entry for page in pages for entry in page]


def test_hugging_face_sends_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub(server, [plain("config.json")])
    hugging_face_listing(REPOSITORY, COMMIT)
    assert {
        headers.get("authorization") or headers.get("Authorization")
        for _, _, headers in server.asked
    } == {"Bearer hf_secret"}


def test_hugging_face_follows_a_renamed_repository(server: Server) -> None:
    hub(server, [plain("config.json")])
    moved = "old/Name"
    server.put(f"/api/models/{moved}", {}, 307, Location=INFO)
    server.put(f"/api/models/{moved}/tree/{COMMIT}", {}, 307, Location=TREE)
    listing = hugging_face_listing(moved, None)
    assert listing.repository == REPOSITORY
    assert json.loads(listing.text) == [plain("config.json")]


def test_modelscope_lists_a_revision(server: Server) -> None:
    answer = scope([scope_file("m.safetensors")], LatestCommitter={"Id": COMMIT})
    server.put(FILES, answer)
    listing = modelscope_listing(REPOSITORY, "v1.0")
    assert (json.loads(listing.text), listing.commit) == (answer, COMMIT)
    assert listing.origin == f"{server.url}/models/{REPOSITORY}@v1.0"
    ((_, query, headers),) = server.asked
    assert query == {"Revision": ["v1.0"], "Recursive": ["true"]}
    assert "Cookie" not in headers


def test_modelscope_without_a_commit(server: Server) -> None:
    server.put(FILES, scope([scope_file("m.safetensors")], LatestCommitter=None))
    assert modelscope_listing(REPOSITORY, None).commit is None
    assert server.asked[0][1]["Revision"] == ["master"]


def test_modelscope_follows_a_redirect_without_the_token(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    server.put(FILES, {}, 302, Location="/elsewhere")
    server.put("/elsewhere", scope([scope_file("m.safetensors")]))
    assert "m.safetensors" in modelscope_listing(REPOSITORY, None).text
    cookies = [headers.get("Cookie") for _, _, headers in server.asked]
    assert cookies == ["m_session_id=secret", None]


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://127.0.0.2:{port}/x",
        "http://127.0.0.1:1/x",
        "https://127.0.0.1:{port}/x",
        "http://127.0.0.1:{port}@127.0.0.2/x",
        "http://user@127.0.0.1:{port}/x",
    ],
)
def test_no_other_server_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    place = elsewhere.format(port=server.http.server_port)
    hub(server, [lfs("m.safetensors")])
    page = [lfs("m.safetensors")]
    server.put(TREE, page, Link=f'<{place}>; rel="next"')
    assert "leads to another server" in unverifiable(hugging_face_listing).message
    server.put(TREE, page, 307, Location=place)
    assert "leads to another server" in unverifiable(hugging_face_listing).message
    server.put(FILES, {}, 302, Location=place)
    assert "leads to another server" in unverifiable(modelscope_listing).message


def test_pages_in_a_circle_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lingconv.hub.MAX_REQUESTS", 20)
    hub(server, [lfs("m.safetensors")])
    server.put(TREE, [], Link=f'<{server.url}{TREE}>; rel="next"')
    assert "more than 20 pages" in unverifiable(hugging_face_listing).message


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_modelscope_is_not_led_out_of_http(server: Server, target: str) -> None:
    server.put(FILES, {}, 302, Location=target)
    unverifiable(modelscope_listing)


def test_modelscope_cuts_its_listing(server: Server) -> None:
    server.put(FILES, scope([scope_file(f"{i}.bin") for i in range(MODELSCOPE_LIMIT)]))
    assert "cut at 3000" in unverifiable(modelscope_listing).message
    server.put(FILES, scope([scope_file(f"{i}.bin") for i in range(MODELSCOPE_LIMIT - 1)]))
    modelscope_listing(REPOSITORY, None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (scope(None), "names no files"),
        (scope({}), "no listing"),
        ([], "no listing"),
        ({"Code": 404, "Success": False, "Message": "gone\x1b[2J"}, "gone [2J"),
        ({"Code": 200, "Success": True, "Data": None}, "error"),
        (b"<!DOCTYPE html>", ""),
        (b'{"Code": 200, "Data": {"Files": [', ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_modelscope_answers_that_are_no_listing(server: Server, answer: Any, reason: str) -> None:
    server.put(FILES, answer)
    assert reason in unverifiable(modelscope_listing).message


@BOTH
def test_an_answer_has_a_limit(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    listing: Callable[..., HubListing],
    path: str,
) -> None:
    monkeypatch.setattr("lingconv.hub.MAX_ANSWER", 1000)
    server.put(path, b" " * 100_000)
    assert "more than 1000 bytes" in unverifiable(listing).message
    server.put(path, gzip.compress(b" " * 100_000), **{"Content-Encoding": "gzip"})
    unverifiable(listing)


@BOTH
def test_what_an_answer_becomes_has_a_limit(
    server: Server, listing: Callable[..., HubListing], path: str
) -> None:
    server.put(path, b"[" + b"[]," * 2_000_000 + b"0]")
    assert "in memory" in unverifiable(listing).message


def test_an_answer_with_a_key_twice_is_no_listing(server: Server) -> None:
    server.put(FILES, b'{"Code": 200, "Code": 200}')
    assert "'Code' is there 2 times" in unverifiable(modelscope_listing).message


@BOTH
@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_refusal_tells_its_status(
    server: Server, listing: Callable[..., HubListing], path: str, status: int
) -> None:
    server.put(path, {"error": "no"}, status)
    error = unverifiable(listing)
    assert f"the server answers {status}" in error.message
    assert REPOSITORY in str(error.path)
    assert ("TOKEN" in str(error.hint)) == (status in (401, 403))


@BOTH
def test_a_silent_server_is_given_up(
    server: Server, listing: Callable[..., HubListing], path: str
) -> None:
    server.stall(path)
    unverifiable(listing, timeout=0.3)


def test_a_listing_that_stalls_between_pages_is_given_up(server: Server) -> None:
    hub(server, [plain("config.json")], [])
    first = server.answers[TREE]

    def stall(query: Query) -> tuple[int, dict[str, str], Any]:
        if "cursor" in query:
            server.stop.wait(30)
        return first(query)

    server.answers[TREE] = stall
    assert "within 1 s" in unverifiable(hugging_face_listing, timeout=1.0).message


@BOTH
def test_nobody_listens(server: Server, listing: Callable[..., HubListing], path: str) -> None:
    server.close()
    unverifiable(listing)


def test_hugging_face_answers_that_are_no_listing(server: Server) -> None:
    server.put(INFO, b"<!DOCTYPE html>")
    unverifiable(hugging_face_listing)
    hub(server, [{"type": "file"}])
    unverifiable(hugging_face_listing)
    server.put(INFO, {"id": REPOSITORY, "siblings": []})
    unverifiable(hugging_face_listing)


def test_what_the_user_writes_names_a_hub() -> None:
    assert parse_against("hub") == Against("hub", None, None)
    assert parse_against("hub:org/name") == Against("hub", "org/name", None)
    assert parse_against("hub:org/name@v1.0") == Against("hub", "org/name", "v1.0")
    assert parse_against("hub@refs/pr/1") == Against("hub", None, "refs/pr/1")
    assert parse_against("modelscope:a.b/c_d-1") == Against("modelscope", "a.b/c_d-1", None)
    for path in ("SHA256SUMS", "./hub", "hub.json", "hubs", "modelscope.json", "hub/x", ""):
        assert parse_against(path) is None, path


@pytest.mark.parametrize(
    "text",
    [
        "hub:",
        "hub:name",
        "hub:../name",
        "hub:org/..",
        "hub:org/name/more",
        "hub:/etc",
        "hub:org/na me",
        "hub@",
        "hub:org/name@",
        "hub:org/name@a b",
        "modelscope:org/n?x=1",
        "modelscope:org/name@\n",
    ],
)
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(Error) as caught:
        parse_against(text)
    assert caught.value.exit_code == ExitCode.USAGE


def test_what_is_left_out_comes_from_the_download(server: Server) -> None:
    hub(server, [plain("config.json")])
    assert fetch(Against("hub", None, None), repository=REPOSITORY, revision=COMMIT).commit
    assert f"{INFO}/revision/{COMMIT}" in [path for path, _, _ in server.asked]
    server.asked.clear()
    fetch(Against("hub", REPOSITORY, None), repository="other/name", revision=COMMIT)
    assert server.asked[0][0] == INFO
    server.put(FILES, scope([scope_file("m")]))
    fetch(Against("modelscope", REPOSITORY, "v2"))
    assert server.asked[-1][1]["Revision"] == ["v2"]
    with pytest.raises(Error) as caught:
        fetch(Against("hub", None, None))
    assert caught.value.exit_code == ExitCode.USAGE


def test_an_endpoint_that_is_no_web_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "file:///tmp")
    with pytest.raises(Error) as caught:
        modelscope_listing(REPOSITORY, None)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("listing", [hugging_face_listing, modelscope_listing])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_password_of_an_endpoint_is_not_shown(
    listing: Callable[..., HubListing], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, f"{scheme}user:pa55word@127.0.0.1:1/hub")
    with pytest.raises(Error) as caught:
        listing(REPOSITORY, None)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "pa55word" not in str(caught.value)
