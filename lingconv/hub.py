"""Listings of Hugging Face and ModelScope: what the files of a repository should be.

The only module that uses a network, and only when the user names a hub. A listing comes back as
JSON text for the core to parse, since what a hub says is no more trusted than a file. Every failure
is an `Error` with exit code 9: nothing could be compared.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from lingconv import foreign
from lingconv.errors import Error, ExitCode, invalid_error, limit_of, usage_error

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

HUGGING_FACE = "Hugging Face"
MODELSCOPE = "ModelScope"
MODELSCOPE_URL = "https://www.modelscope.cn"
MODELSCOPE_REVISION = "master"
# The service cuts a listing here without saying so.
MODELSCOPE_LIMIT = 3_000
TIMEOUT = 60.0
MAX_FILES = 100_000
MAX_ANSWER = 64 << 20
MAX_REQUESTS = 2_000
CHUNK = 1 << 16

_AGAINST = re.compile(r"(hub|modelscope)(?::([^@]*))?(?:@(.*))?", re.DOTALL)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"[^\s\x00-\x1f\x7f]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubListing:
    """A whole listing as JSON, of a commit where the hub names one."""

    text: str
    commit: str | None
    repository: str
    origin: str


@dataclass(frozen=True)
class Against:
    """A hub that the user named; what is left out is deduced from the download."""

    hub: Literal["hub", "modelscope"]
    repository: str | None
    revision: str | None


def parse_against(text: str) -> Against | None:
    """Read `hub[:ORG/NAME][@REV]` or `modelscope[:ORG/NAME][@REV]`; `None` for anything else."""
    found = _AGAINST.fullmatch(text)
    if found is None:
        return None
    hub, repository, revision = found.groups()
    hint = f"write {hub}:ORG/NAME@REVISION, or {hub} alone; a file of that name is ./{hub}"
    if repository is not None and not _REPOSITORY.fullmatch(repository):
        raise usage_error(f"{repository!r} is no ORG/NAME of a repository", hint=hint)
    if revision is not None and not _REVISION.fullmatch(revision):
        raise usage_error(f"{revision!r} is no revision", hint=hint)
    return Against("hub" if hub == "hub" else "modelscope", repository, revision)


def fetch(
    against: Against,
    *,
    repository: str | None = None,
    revision: str | None = None,
    timeout: float = TIMEOUT,
) -> HubListing:
    """Fetch the listing that `against` names; the other two fill what it leaves out."""
    name = against.repository or repository
    # A revision that was deduced for one repository means nothing in another.
    deduced = revision if name == (repository or name) else None
    wanted = against.revision or deduced
    if name is None:
        raise usage_error(
            "the download does not say which repository it is of",
            hint=f"name it: --against {against.hub}:ORG/NAME",
        )
    listing = hugging_face_listing if against.hub == "hub" else modelscope_listing
    return listing(name, wanted, timeout=timeout)


def hugging_face_listing(
    repository: str, revision: str | None, *, timeout: float = TIMEOUT
) -> HubListing:
    """List the files of a repository at the commit that `revision` means now.

    HF_ENDPOINT and the token are those of huggingface_hub.
    """
    endpoint = _endpoint("HF_ENDPOINT")
    place = f"{endpoint or 'https://huggingface.co'}/{repository}"

    def work() -> HubListing:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        # It announces its retries on stderr, where the error must be the last line.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        api = HfApi(endpoint=endpoint, library_name="lingconv")
        entries = []
        with _asking_only(api.endpoint):
            info = api.model_info(repository, revision=revision, timeout=timeout)
            if info.sha is None:
                raise ValueError("the answer names no commit")
            for entry in api.list_repo_tree(repository, recursive=True, revision=info.sha):
                if isinstance(entry, RepoFile):
                    entries.append(_as_json(entry))
                if len(entries) > MAX_FILES:
                    raise ValueError(f"more than {MAX_FILES} files")
        origin = f"{place}@{info.sha}"
        return HubListing(json.dumps(entries), info.sha, info.id or repository, origin)

    login = "log in with `hf auth login` or set HF_TOKEN"
    return _guarded(HUGGING_FACE, f"{place}@{revision or 'main'}", login, timeout, work)


def _endpoint(variable: str) -> str | None:
    """The address that a variable holds. One with a password in it would be shown and logged."""
    endpoint = (os.environ.get(variable) or "").rstrip("/") or None
    if endpoint and "@" in endpoint.split("://", 1)[-1].split("/", 1)[0]:
        raise usage_error(
            f"{variable} holds a user name or password",
            hint="leave it out of the address, and set the token",
        )
    return endpoint


@contextmanager
def _asking_only(endpoint: str) -> Iterator[None]:
    """Let the library ask nobody but `endpoint`, and not without end.

    It follows what an answer names as the next page, and takes the token along. It takes answers of
    any size, which may inflate a thousandfold and become lists of 64 times that in memory.
    """
    from huggingface_hub import get_session

    own, asked = _origin(endpoint), 0

    def check(request: Any) -> None:
        nonlocal asked
        asked += 1
        _check_origin(str(request.url), own)
        if asked > MAX_REQUESTS:
            raise ValueError(f"a listing of more than {MAX_REQUESTS} pages")

    def bound(response: Any) -> None:
        read = response.iter_bytes
        response.iter_bytes = lambda *args, **words: _bounded(read(*args, **words))

    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {
        "request": [check, *hooks["request"]],
        "response": [bound, *hooks["response"]],
    }
    try:
        yield
    finally:
        session.event_hooks = hooks


def _origin(url: str) -> tuple[str, str | None, int | None, str | None]:
    """Scheme, host, port and user of an address: a token is for one of these alone."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.username


def _check_origin(url: str, own: tuple[str, str | None, int | None, str | None]) -> None:
    """Refuse an address that an answer leads to, if it is not the endpoint's."""
    if _origin(url) != own:
        raise ValueError(f"the answer leads to another server: {url}")


def _bounded(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Bytes of an answer, as long as it becomes nothing that has no room."""
    size = built = 0
    for chunk in chunks:
        size += len(chunk)
        built += foreign.built_size(chunk)
        if size > MAX_ANSWER or built > foreign.MAX_BUILT:
            raise ValueError(f"an answer of more than {MAX_ANSWER} bytes, or as much in memory")
        yield chunk


def _as_json(file: RepoFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": file.path, "size": file.size}
    entry["oid"] = file.blob_id
    if file.lfs is not None:
        entry["lfs"] = {"oid": file.lfs.sha256, "size": file.lfs.size}
    # Older versions of the library do not know it.
    xet_hash = getattr(file, "xet_hash", None)
    if xet_hash is not None:
        entry["xetHash"] = xet_hash
    return entry


def modelscope_listing(
    repository: str, revision: str | None, *, timeout: float = TIMEOUT
) -> HubListing:
    """List the files of a repository; MODELSCOPE_ENDPOINT says where, MODELSCOPE_API_TOKEN who.

    The service names the commit only sometimes.
    """
    revision = revision or MODELSCOPE_REVISION
    endpoint = _endpoint("MODELSCOPE_ENDPOINT") or MODELSCOPE_URL
    endpoint = endpoint if "://" in endpoint else f"https://{endpoint}"
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise usage_error("MODELSCOPE_ENDPOINT is no http or https address")
    query = urlencode({"Revision": revision, "Recursive": "true"})
    url = f"{endpoint}/api/v1/models/{quote(repository)}/repo/files?{query}"
    place = f"{endpoint}/models/{repository}@{revision}"

    def work() -> HubListing:
        answer = _get(url, timeout)
        commit = _check_modelscope(foreign.parse_json(answer, url, refuse=invalid_error))
        return HubListing(answer.decode(), commit, repository, place)

    return _guarded(MODELSCOPE, place, "set MODELSCOPE_API_TOKEN", timeout, work)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects within the server that was asked: a page of another is not its word."""

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> Request | None:
        _check_origin(newurl, _origin(req.full_url))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _get(url: str, timeout: float) -> bytes:
    request = Request(url, headers={"Accept": "application/json", "User-Agent": "lingconv"})
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    if token:
        # Not sent on to where a redirect leads.
        request.add_unredirected_header("Cookie", f"m_session_id={token}")
    with build_opener(_Redirects).open(request, timeout=timeout) as response:
        return b"".join(_bounded(iter(lambda: response.read(CHUNK), b"")))


def _check_modelscope(answer: Any) -> str | None:
    """Refuse an answer that is no whole listing; the commit if it names one."""
    if not isinstance(answer, dict):
        raise ValueError("the answer is no listing")
    data = answer.get("Data")
    if answer.get("Success") is False or not isinstance(data, dict):
        raise ValueError(f"the answer is an error: {answer.get('Message')}")
    files = data.get("Files")
    if files is None:
        raise ValueError("the answer names no files, as for a revision that does not exist")
    if not isinstance(files, list):
        raise ValueError("the answer is no listing")
    if len(files) >= MODELSCOPE_LIMIT:
        raise ValueError(f"the listing is cut at {MODELSCOPE_LIMIT} entries")
    committer = data.get("LatestCommitter")
    commit = committer.get("Id") if isinstance(committer, dict) else None
    return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None


def _guarded(
    service: str, place: str, login: str, timeout: float, work: Callable[[], HubListing]
) -> HubListing:
    try:
        return _within(timeout, work)
    except FutureTimeoutError:
        reason, status = f"no whole answer within {timeout:g} s", None
    except Exception as error:
        if limit := limit_of(error):
            raise limit from None
        reason, status = _reason(error)
    raise Error(
        f"no listing from {service}: {reason}",
        kind="unverifiable",
        exit_code=ExitCode.UNVERIFIABLE,
        path=place,
        hint=_hint(status, login),
    )


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Do `work` on a thread that is left behind if it takes longer.

    The library's requests have no time limit of their own, and the calling thread must stay free to
    receive signals.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hub-listing", daemon=True).start()
    return future.result(timeout=seconds)


def _reason(error: Exception) -> tuple[str, int | None]:
    """What went wrong in one line, and the HTTP status if there is one."""
    status = getattr(error, "code", None)
    status = getattr(getattr(error, "response", None), "status_code", status)
    if isinstance(status, int):
        return f"the server answers {status}", status
    said = getattr(error, "reason", None) or error
    text = " ".join("".join(c if c.isprintable() else " " for c in str(said)).split())
    return (text[:200] or type(error).__name__), None


def _hint(status: int | None, login: str) -> str:
    if status in (401, 403):
        return f"{login}, and check the name of the repository"
    if status in (404, 410):
        return "check the names of the repository and the revision"
    return "try again, or save a listing where there is a network and use --against FILE"
