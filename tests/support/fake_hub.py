"""A Hugging Face hub on the loopback interface: model info with checksums, files, redirects to a store, ranges, refusals."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"
LARGE = (".safetensors", ".bin", ".model", ".gguf")


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    status: int


@dataclass
class FakeHub:
    """What it serves and how it misbehaves may be changed while it runs.

    Attributes:
        repos: repo_id -> file name -> content.
        plain: path -> content, for addresses that do not belong to the hub.
        tokens: repo_id -> the tokens that open this gated repository.
        listed: repo_id -> names that the listing claims on top.
        cut: file name -> offset beyond which no byte is sent: the connection closes instead.
        corrupt: names of files of which one byte is wrong.
        busy: how many of the next requests for content are answered 503.
        ranges: whether the Range header is honoured.
        weak: whether plain files have a weak ETag, which stays the same when their content changes.
        length: whether answers tell their length; without it they end with the connection.
        change_info: what becomes of the list of files before it is sent.
        login_page: every answer is a web page, as in a hotel's network.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    busy: int = 0
    ranges: bool = True
    weak: bool = False
    length: bool = True
    login_page: bool = False
    change_info: Callable[[Any], Any] = lambda info: info
    requests: list[Request] = field(default_factory=list)

    @property
    def handler(self) -> type["Handler"]:
        return Handler

    def __enter__(self) -> Self:
        hub = self

        handler = type("Handler", (hub.handler,), {"state": hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = f"http://localhost:{self.port}"  # another host for the client: it must not see the token
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self, name: str) -> list[Request]:
        """The requests that were answered with content of this file."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{name}") and r.status in (200, 206)]


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if self.state.login_page:
            self.send(200, b"<html>Welcome to the airport</html>", {"Content-Type": "text/html"})
        elif path.startswith("/datasets/") and path in self.state.plain:
            self.content(parts[-1], self.state.plain[path], '"1"', {})
        elif path.startswith("/api/models/"):
            self.info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", tree="tree" in parts[4:5])
        elif "resolve" in parts:
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif parts[0] == "store":
            content = next(
                files[parts[2]] for files in self.state.repos.values() if sha256(files.get(parts[2], b"")) == parts[1]
            )
            self.content(parts[2], content, f'"{parts[1]}"', {})
        elif path in self.state.plain:
            etag = hashlib.md5(self.state.plain[path]).hexdigest()
            self.content(parts[-1], self.state.plain[path], 'W/"same"' if self.state.weak else f'"{etag}"', {})
        else:
            self.send(404, b"", {})

    def known(self, repo_id: str, revision: str) -> bool:
        if repo_id not in self.state.repos:
            # as the hub does: without a token one cannot tell a missing repository from a private one
            self.refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif self.headers.get("Authorization") == "Bearer hf_expired":
            self.refuse(401, None, "Invalid credentials in Authorization header")
        else:
            return True
        return False

    def info(self, repo_id: str, revision: str, tree: bool) -> None:
        if not self.known(repo_id, revision):
            return
        entries: list[dict[str, Any]] = []
        for name, content in self.state.repos[repo_id].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        entries += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.state.listed.get(repo_id, [])]
        body: Any = {"id": repo_id, "sha": COMMIT, "siblings": entries, "private": False, "tags": [], "downloads": 0}
        body = self.state.change_info(body)
        if tree:
            body = [{"type": "file", "path": e["rfilename"], "oid": e["blobId"], "size": e["size"]} for e in entries]
        self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        if not self.known(repo_id, revision):
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo_id in self.state.tokens and token not in self.state.tokens[repo_id]:
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
            return
        content = self.state.repos[repo_id].get(name)
        if content is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif name.endswith(LARGE):
            linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": COMMIT}
            self.send(302, b"", {"Location": f"{self.state.store}/store/{sha256(content)}/{name}", **linked})
        else:
            self.content(name, content, f'"{blob_id(content)}"', {"X-Repo-Commit": COMMIT})

    def content(self, name: str, content: bytes, etag: str, headers: dict[str, str]) -> None:
        if self.state.busy > 0:
            self.state.busy -= 1
            self.send(503, b"", {})
            return
        if name in self.state.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, end, span = 0, len(content), self.headers.get("Range")
        if span and self.state.ranges and self.headers.get("If-Range", etag) == etag:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, len(content)) if last else len(content)
            if start >= len(content):
                self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        body = content[start:end]
        stop = max(0, self.state.cut[name] - start) if name in self.state.cut else len(body)
        self.send(206 if body != content else 200, body, {"ETag": etag, "Accept-Ranges": "bytes", **headers}, stop)

    def refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, json.dumps({"error": message}).encode(), {**headers, "Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}, status))
        self.send_response(status)
        if self.state.length:
            headers = {"Content-Length": str(len(body)), **headers}
        else:
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop])
        if stop is not None and stop < len(body):
            self.close_connection = True


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
