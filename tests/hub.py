"""A stand-in of the Hugging Face hub: the few routes that huggingface_hub calls."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """Repositories by name; each has commits, and branches that name them."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.url = ""

    def create(self, name: str) -> None:
        if name not in self.commits:
            self.commits[name], self.branches[name] = {}, {}
            self.commit(name, {".gitattributes": b"*.bin filter=lfs\n"})

    def commit(self, name: str, changes: Mapping[str, bytes], branch: str = "main") -> str:
        """Add files to a branch; returns the commit."""
        commits = self.commits[name]
        before = commits.get(self.branches[name].get(branch, ""), {})
        files = {**before, **changes}
        sha = hashlib.sha1(repr((len(commits), sorted(files.items()))).encode()).hexdigest()
        commits[sha], self.branches[name][branch] = files, sha
        return sha

    def put_folder(self, name: str, folder: Path) -> str:
        """Commit all files of a folder; returns the commit."""
        self.create(name)
        files = (path for path in folder.rglob("*") if path.is_file())
        return self.commit(
            name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        )

    def resolve(self, name: str, revision: str) -> str | None:
        """The commit of a branch or of a commit's own name."""
        found = self.branches[name].get(revision, revision)
        return found if found in self.commits[name] else None


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int, value: Any = None, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for field, content in headers.items():
            self.send_header(field.replace("_", "-"), content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str) -> None:
        self.reply(404, {"error": code}, X_Error_Code=code)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+)|/tree/(.+))?", path):
            name, revision = found[1], found[3] or found[4] or "main"
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision = found[1], found[2]
        else:
            return self.refuse("EntryNotFound")
        if name not in self.hub.commits:
            return self.refuse("RepoNotFound")
        sha = self.hub.resolve(name, revision)
        if sha is None:
            return self.refuse("RevisionNotFound")
        files = self.hub.commits[name][sha]
        if "/resolve/" in path:
            content = files.get(found[3])
            if content is None:
                return self.refuse("EntryNotFound")
            tags = {"ETag": f'"{oid(content)}"', "X_Repo_Commit": sha}
            return self.reply(200, content, **tags)
        if "/tree/" in path:
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": oid(content)}
                for file, content in files.items()
            ]
            return self.reply(200, listed)
        siblings = [{"rfilename": file} for file in files]
        self.reply(200, {"id": name, "sha": sha, "siblings": siblings, "private": False})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            body = b"".join(self.chunks())
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.create(name)
            return self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for each in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines()]
            changes = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            sha = self.hub.commit(found[1], changes, found[2])
            url = f"{self.hub.url}/{found[1]}/commit/{sha}"
            return self.reply(200, {"commitUrl": url, "commitOid": sha, "hookOutput": ""})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = self.hub.branches[found[1]]
            branches.setdefault(found[2], branches["main"])
            return self.reply(200, {})
        self.refuse("EntryNotFound")

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port; HF_ENDPOINT is its `url`."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
