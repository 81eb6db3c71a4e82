"""What a Hub on loopback answers to the requests of a client; see hub_server.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import yaml

from tests.catalog.hub_http import Answer, Exchange, Request
from tests.catalog.hub_state import Refused, Repository, is_large, tree_of

_SIGNATURE = "signed-for-a-while"
_REPOSITORY = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/datasets/{_REPOSITORY}"
_WRITES = frozenset({"preupload", "commit", "branch", "tag", "batch", "verify"})

ROUTES: tuple[tuple[str, str, str], ...] = (
    ("create", "POST", "/api/repos/create"),
    ("delete", "DELETE", "/api/repos/delete"),
    ("whoami", "GET", "/api/whoami-v2"),
    ("yaml", "POST", "/api/validate-yaml"),
    ("list", "GET", "/api/datasets"),
    ("preupload", "POST", rf"{_API}/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", rf"{_API}/commit/(?P<revision>[^/]+)"),
    ("branch", "POST|DELETE", rf"{_API}/branch/(?P<revision>[^/]+)"),
    ("tag", "POST|DELETE", rf"{_API}/tag/(?P<revision>[^/]+)"),
    ("refs", "GET", rf"{_API}/refs"),
    ("tree", "GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?"),
    ("paths", "POST", rf"{_API}/paths-info/(?P<revision>[^/]+)"),
    ("info", "GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?"),
    ("batch", "POST", rf"/datasets/{_REPOSITORY}\.git/info/lfs/objects/batch"),
    ("verify", "POST", rf"/datasets/{_REPOSITORY}\.git/info/lfs/verify"),
    ("resolve", "GET|HEAD", rf"/datasets/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.*)"),
)
STORE_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("upload", "PUT", r"/objects/(?P<oid>[0-9a-f]{64})"),
    ("content", "GET|HEAD", r"/objects/(?P<oid>[0-9a-f]{64})"),
)


class Handler(Exchange):
    """The Hub itself."""

    routes = ROUTES

    def _allowed(self, request: Request) -> None:
        """Raises Refused: no such repository for this user, or one that may not be written to."""
        name = request.parts["name"]
        writes = self.hub.may_write(request.user, name)
        repository = self.hub.repositories.all.get(name)
        if repository is None or (repository.private and not writes):
            if request.user is None:
                raise Refused(401, "RepoNotFound", "Invalid username or password.")
            raise Refused(404, "RepoNotFound", "Repository not found")
        if repository.gated and not writes and request.kind in ("resolve", "tree"):
            raise Refused(403, "GatedRepo", f"Access to dataset {name} is restricted")
        if request.kind in _WRITES and not writes:
            raise Refused(403 if request.user else 401, "", "You don't have the rights to write here")

    def _repository(self, request: Request) -> Repository:
        return self.hub.repositories.get(request.parts["name"])

    def _create(self, request: Request) -> Answer:
        told = request.json
        name = f"{told.get('organization') or request.user}/{told['name']}"
        if not self.hub.may_write(request.user, name):
            raise Refused(403 if request.user else 401, "", "You don't have the rights to create a dataset there")
        url = f"{self.hub.url}/datasets/{name}"
        try:
            self.hub.repositories.create(name, told.get("visibility") == "private")
        except Refused as refused:
            body = json.dumps({"error": refused.message, "url": url}).encode()
            return Answer(409, {"Content-Type": "application/json"}, body)
        return Answer.of({"url": url, "name": name})

    def _delete(self, request: Request) -> Answer:
        told = request.json
        name = f"{told.get('organization') or request.user}/{told['name']}"
        if not self.hub.may_write(request.user, name):
            raise Refused(403, "", "You don't have the rights to delete it")
        self.hub.repositories.get(name)
        del self.hub.repositories.all[name]
        return Answer.of({})

    def _whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise Refused(401, "", "Invalid username or password.")
        orgs = [{"name": name} for name in sorted(self.hub.members.get(request.user, set()))]
        return Answer.of({"type": "user", "name": request.user, "orgs": orgs, "auth": {"type": "access_token"}})

    def _yaml(self, request: Request) -> Answer:
        parts = str(request.json["content"]).split("---\n")
        try:
            content = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
            wrong = "" if isinstance(content, dict) else "metadata must be a mapping"
        except yaml.YAMLError as error:
            wrong = str(error)
        if wrong:
            told = {"errors": [{"message": wrong}], "warnings": []}
            return Answer(400, {"Content-Type": "application/json"}, json.dumps(told).encode())
        return Answer.of({"errors": [], "warnings": []})

    def _list(self, request: Request) -> Answer:
        filters, words = request.query.get("filter", []), " ".join(request.query.get("search", [])).lower()
        found = []
        for name, repository in sorted(self.hub.repositories.all.items()):
            hidden = repository.private and not self.hub.may_write(request.user, name)
            line = self._info_of(name, repository, "main")
            if not hidden and set(filters) <= set(line["tags"]) and words in name.lower():
                found.append(line)
        limit = int(request.query.get("limit", ["1000"])[0])
        return self._paged(request, found[:limit])

    def _paged(self, request: Request, lines: list[dict[str, Any]]) -> Answer:
        start = int(request.query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        if end >= len(lines):
            return Answer.of(lines[start:])
        query = urlencode({**request.query, "cursor": [str(end)]}, doseq=True)
        link = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        return Answer.of(lines[start:end], Link=link)

    def _info(self, request: Request) -> Answer:
        revision = request.parts.get("revision", "main")
        return Answer.of(self._info_of(request.parts["name"], self._repository(request), revision))

    @staticmethod
    def _info_of(name: str, repository: Repository, revision: str) -> dict[str, Any]:
        card = repository.card(revision)
        tags = [tag for tag in card.get("tags") or [] if isinstance(tag, str)]
        siblings = [{"rfilename": path} for path in sorted(repository.files(revision))]
        told = {"id": name, "author": name.split("/")[0], "sha": repository.find(revision), "siblings": siblings}
        return {**told, "private": repository.private, "gated": False, "tags": tags, "cardData": card, "downloads": 0}

    def _preupload(self, request: Request) -> Answer:
        files = self._repository(request).files(request.parts["revision"])
        lines = []
        for line in request.json["files"]:
            path, mode = line["path"], "lfs" if is_large(line["path"], line["size"]) else "regular"
            held = {"oid": files[path].tag} if path in files else {}
            lines.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **held})
        return Answer.of({"files": lines})

    def _batch(self, request: Request) -> Answer:
        name, lines = request.parts["name"], []
        for line in request.json["objects"]:
            told = {"oid": line["oid"], "size": line["size"]}
            if not self.hub.repositories.objects.path(line["oid"]).is_file():
                href = f"{self.hub.store_url}/objects/{line['oid']}?signature={_SIGNATURE}"
                verify = f"{self.hub.url}/datasets/{name}.git/info/lfs/verify"
                told["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            lines.append(told)
        return Answer.of({"transfer": "basic", "objects": lines})

    def _verify(self, request: Request) -> Answer:
        path = self.hub.repositories.objects.path(request.json["oid"])
        if not path.is_file() or path.stat().st_size != request.json["size"]:
            raise Refused(404, "EntryNotFound", "no such object")
        return Answer.of({})

    def _commit(self, request: Request) -> Answer:
        assert isinstance(request.body, bytes)
        name, branch = request.parts["name"], request.parts["revision"]
        oid = self.hub.repositories.apply(self._repository(request), branch, request.body.splitlines())
        url = f"{self.hub.url}/datasets/{name}/commit/{oid}"
        return Answer.of({"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})

    def _branch(self, request: Request) -> Answer:
        repository, branch = self._repository(request), request.parts["revision"]
        with self.hub.repositories.lock:
            if request.method == "DELETE":
                if branch == "main" or branch not in repository.branches:
                    raise Refused(403 if branch == "main" else 404, "", "no such branch, or a protected one")
                del repository.branches[branch]
            elif branch in repository.branches:
                raise Refused(409, "", "Reference already exists")
            else:
                repository.branches[branch] = repository.find(request.json.get("startingPoint", "main"))
        return Answer.of({})

    def _tag(self, request: Request) -> Answer:
        repository, revision = self._repository(request), request.parts["revision"]
        with self.hub.repositories.lock:
            if request.method == "DELETE":
                if repository.tags.pop(revision, None) is None:
                    raise Refused(404, "RevisionNotFound", "no such tag")
            elif request.json["tag"] in repository.tags:
                raise Refused(409, "", "Tag reference exists already")
            else:
                repository.tags[request.json["tag"]] = repository.find(revision)
        return Answer.of({})

    def _refs(self, request: Request) -> Answer:
        def lines(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in sorted(names.items())]

        repository = self._repository(request)
        told = {"branches": lines("heads", repository.branches), "tags": lines("tags", repository.tags)}
        return Answer.of({**told, "converts": []})

    def _tree(self, request: Request) -> Answer:
        files = self._repository(request).files(request.parts["revision"])
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        return self._paged(request, tree_of(files, request.parts.get("path", ""), recursive))

    def _paths(self, request: Request) -> Answer:
        assert isinstance(request.body, bytes)
        files = self._repository(request).files(request.parts["revision"])
        lines = []
        for path in parse_qs(request.body.decode()).get("paths", []):
            path = path.strip("/")
            if path in files:
                lines.append(files[path].listed(path))
            elif any(name.startswith(f"{path}/") for name in files):
                lines.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return Answer.of(lines)

    def _resolve(self, request: Request) -> Answer:
        repository = self._repository(request)
        commit = repository.find(request.parts["revision"])
        file = repository.commits[commit].files.get(request.parts["path"])
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        told = {"X-Repo-Commit": commit, "ETag": f'"{file.tag}"', "Accept-Ranges": "bytes"}
        if file.sha256 is not None:
            place = f"{self.hub.store_url}/objects/{file.sha256}?signature={_SIGNATURE}"
            linked = {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "Location": place}
            return Answer(302, {**told, **linked})
        body = Answer(200, {**told, "Content-Type": "application/octet-stream"}, file.data)
        return self._ranged(body, file.size, request.range)


class StoreHandler(Exchange):
    """The store of large files: signed addresses, and no token."""

    routes = STORE_ROUTES

    def _user(self, kind: str) -> str | None:
        if token := self.headers.get("Authorization"):
            with self.hub.lock:
                self.hub.strangers.add(token)
        return None

    def _upload(self, request: Request) -> Answer:
        assert isinstance(request.body, Path)
        self._signed(request)
        if not self.hub.repositories.objects.take(request.body, request.parts["oid"]):
            raise Refused(400, "", "other content than its sha256 says")
        return Answer()

    def _content(self, request: Request) -> Answer:
        self._signed(request)
        path = self.hub.repositories.objects.path(request.parts["oid"])
        if not path.is_file():
            raise Refused(404, "", "no such object")
        answer = Answer(200, {"ETag": f'"{path.name}"', "Accept-Ranges": "bytes"}, path)
        return self._ranged(answer, path.stat().st_size, request.range)

    @staticmethod
    def _signed(request: Request) -> None:
        if request.query.get("signature") != [_SIGNATURE]:
            raise Refused(403, "", "an address that was not signed")
