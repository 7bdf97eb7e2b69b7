"""A local HTTP server with the parts of the Hub's API that pushing and loading need.

It implements repositories with branches and commits, Git LFS for weights, and tokens with different permissions. The
package `hf-local-hub` is not used, because it only starts a separate server program, which it does not contain.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Token → user and role
TOKENS = {"hf_writer": ("user", "write"), "hf_reader": ("user", "read")}


class Repository:
    """Commits by id (path → content), and branches that point to them."""

    def __init__(self, private=False):
        self.private = private
        self.gated = False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.lfs: set[str] = set()
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), branch, sorted(files))).encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit id and the files of a branch or commit, or None if it does not exist."""
        oid = self.branches.get(revision, revision)
        return (oid, self.commits[oid]) if oid in self.commits else None


class HubServer(ThreadingHTTPServer):
    """The server's state.

    Attributes:
        repositories: keyed by name (`user/name`).
        objects: contents uploaded with Git LFS, keyed by SHA-256.
        requests: method and path of all requests so far.
        uploading: set when an upload of weights has started.
        hold: if set, uploads wait for this event.
        faults: part of a path → status of the error response; 0 closes the connection.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.uploading = threading.Event()
        self.hold: threading.Event | None = None
        self.faults: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add_folder(self, name: str, folder: Path) -> None:
        """Create a repository with the files of a local folder."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories[name] = Repository()
        self.repositories[name].commit("main", files)


class Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *args):
        pass

    def respond(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, message, code=""):
        self.respond({"error": message}, status, X_Error_Message=message, X_Error_Code=code)

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for part, status in self.server.faults.items():
            if part in path:
                if status:
                    self.fail(status, "Out of order")
                else:
                    self.close_connection = True
                return
        user, role = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "), (None, None))
        if path == "/api/whoami-v2":
            if user is None:
                self.fail(401, "Invalid credentials in Authorization header")
            else:
                orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}]
                self.respond({"name": user, "orgs": orgs, "auth": {"accessToken": {"role": role}}})
        elif self.command == "PUT":
            self.store(path.removeprefix("/lfs/"), body)
        elif self.command == "POST":
            if path == "/api/validate-yaml":
                self.respond({"errors": [], "warnings": []})
            elif user is None:
                self.fail(401, "Invalid username or password.")
            elif role != "write":
                self.fail(403, "You have read access only")
            else:
                self.write(path, body if path.startswith("/api/models") else json.loads(body), user)
        else:
            self.read(path, user)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, path, body, user):
        if path == "/api/repos/create":
            owner = body["organization"] or user
            name = f"{owner}/{body['name']}"
            url = {"url": f"{self.server.url}/{name}"}
            if owner not in (user, "lab"):
                self.fail(403, f"You don't have the rights to create a model under the namespace {owner}")
            elif name in self.server.repositories:
                self.respond({"error": "You already created this model repo", **url}, 409)
            else:
                self.server.repositories[name] = Repository(body.get("visibility") == "private")
                self.respond(url)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.respond({"transfer": "basic", "objects": [self.upload_actions(item) for item in body["objects"]]})
        else:
            owner, name, action, revision = path.removeprefix("/api/models/").split("/", 3)
            getattr(self, action)(self.server.repositories[f"{owner}/{name}"], revision, body)

    def upload_actions(self, item):
        if item["oid"] in self.server.objects:
            return item
        return {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}

    def store(self, oid, body):
        self.server.uploading.set()
        if self.server.hold is not None:
            self.server.hold.wait(60)
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.respond()

    def branch(self, repository, name, body):
        if name in repository.branches:
            self.fail(409, "Reference already exists")
        else:
            repository.commit(name, repository.at("main")[1])
            self.respond(status=201)

    def preupload(self, repository, revision, body):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.respond({"files": modes})

    def commit(self, repository, revision, body):
        files = dict(repository.at(revision)[1])
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
                repository.lfs.add(value["path"])
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(revision, files)
        self.respond({"commitOid": oid, "commitUrl": f"{self.server.url}/x/y/commit/{oid}", "hookOutput": ""})

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, path, user):
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models" if is_api else "").strip("/").split("/")
        name, action, revision = "/".join(parts[:2]), *[*parts[2:4], "", ""][:2]
        path_in_repo = "/".join(parts[4:])
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and user is None):
            self.fail(404 if user else 401, "Repository not found", "RepoNotFound")
            return
        if repository.gated:
            self.fail(403, f"Access to model {name} is restricted", "GatedRepo")
            return
        found = repository.at(revision or "main")
        if found is None:
            self.fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        oid, files = found
        if action == "tree":
            matching = {p: c for p, c in files.items() if p.startswith(f"{path_in_repo}/" if path_in_repo else "")}
            if not matching:
                self.fail(404, f"{path_in_repo} does not exist on {revision}", "EntryNotFound")
            else:
                self.respond([self.entry(repository, p, c) for p, c in matching.items()])
        elif is_api:
            self.respond({"id": name, "sha": oid, "siblings": [{"rfilename": p} for p in files]})
        elif path_in_repo in files:
            digest = hashlib.sha256(files[path_in_repo]).hexdigest()
            self.respond(files[path_in_repo], ETag=f'"{digest}"', X_Repo_Commit=oid)
        else:
            self.respond(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)

    def entry(self, repository, path, content):
        digest = hashlib.sha256(content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": digest[:40]}
        return (
            {**entry, "lfs": {"oid": digest, "size": len(content), "pointerSize": 9}}
            if path in repository.lfs
            else entry
        )


@contextmanager
def run_hub_server():
    """Run a server without repositories in a thread."""
    server = HubServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
