"""Datasets of a Hugging Face hub on the loopback interface, as `datasets` and HfFileSystem ask for them."""

import json
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fake_hub import COMMIT, FakeHub, Handler, blob_id


class DatasetHub(FakeHub):
    """A hub whose `repos` are datasets. `tokens` gates them: their files and their lists of files."""

    @property
    def handler(self) -> type[Handler]:
        return _Handler


class _Handler(Handler):
    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and parts[4:5] == ["paths-info"]:
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            entries = [entry for name in asked for entry in self.entries("/".join(parts[2:4])) if entry["path"] == name]
            if self.opened("/".join(parts[2:4]), unquote(parts[5])):
                self.json(entries)
        else:
            self.send(404, b"", {})

    def do_GET(self) -> None:  # noqa: N802
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            repo, kind = "/".join(parts[2:4]), (parts[4:5] or ["info"])[0]
            if not self.opened(repo, parts[5] if len(parts) > 5 else "main", listing=kind == "tree"):
                return
            if kind == "tree":
                self.tree(repo, "/".join(parts[6:]))
            else:
                siblings = [{"rfilename": name} for name in self.state.repos[repo]]
                self.json({"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "gated": False})
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            repo, name = "/".join(parts[1:3]), "/".join(parts[5:])
            if self.opened(repo, parts[4], listing=True):
                content = self.state.repos[repo].get(name)
                if content is None:
                    self.refuse(404, "EntryNotFound", "Entry not found")
                else:
                    self.content(name, content, f'"{blob_id(content)}"', {"X-Repo-Commit": COMMIT})
        else:
            self.send(404, b"", {})

    def opened(self, repo: str, revision: str, listing: bool = False) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not self.known(repo, revision):
            return False
        if listing and repo in self.state.tokens and token not in self.state.tokens[repo]:
            self.refuse(403 if token else 401, "GatedRepo", f"Access to dataset {repo} is restricted.")
            return False
        return True

    def entries(self, repo: str) -> list[dict[str, Any]]:
        files = self.state.repos[repo]
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
        found = [{"type": "file", "path": n, "oid": blob_id(c), "size": len(c)} for n, c in files.items()]
        return [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)] + found

    def tree(self, repo: str, folder: str) -> None:
        recursive = "recursive=true" in urlsplit(self.path).query.lower() or "recursive=1" in urlsplit(self.path).query
        inside = [e for e in self.entries(repo) if folder == "" or e["path"].startswith(folder + "/")]
        if not recursive:
            inside = [e for e in inside if str(PurePosixPath(e["path"]).parent) == (folder or ".")]
        if inside or not folder:
            self.json(inside)
        else:
            self.refuse(404, "EntryNotFound", "Entry not found")

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
