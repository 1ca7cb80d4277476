"""A Hub on 127.0.0.1: the endpoints that a push asks, with faults on demand. Run as a script; prints its address."""

from __future__ import annotations

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(sys.argv[1])  # what was asked and committed is written here; `faults.json` says what goes wrong


class Hub(BaseHTTPRequestHandler):
    """Keeps repositories as folders; `faults.json` maps a word of the path to statuses, one a request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with (ROOT / "asked.jsonl").open("a") as file:
            file.write(json.dumps([self.command, self.path, self.headers.get("Authorization")]) + "\n")
        faults = json.loads((ROOT / "faults.json").read_text())
        for word, statuses in faults.items():
            if word in self.path and statuses:
                status = statuses.pop(0)
                (ROOT / "faults.json").write_text(json.dumps(faults))
                if status == "cut":
                    self.connection.close()
                    self.close_connection = True
                    return
                self._send({"error": f"planted {status}"}, status)
                return
        found = self._found(body)
        self._send(found or {"error": "Repository not found"}, 200 if found is not None else 404)

    def _found(self, body: bytes) -> Any:
        path, _, _ = self.path.partition("?")
        if path == "/api/repos/create":
            asked = json.loads(body)
            folder = (
                ROOT / "repos" / (f"{asked['organization']}/" if asked.get("organization") else "me/") / asked["name"]
            )
            if not folder.exists():
                folder.mkdir(parents=True)
                (folder / ".private").write_text(json.dumps(asked["visibility"] == "private"))
            return {"url": f"http://{self.headers['Host']}/{asked.get('organization', 'me')}/{asked['name']}"}
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "orgs": []}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [(one["path"], "lfs" if one["path"].endswith("safetensors") else "regular") for one in files]
            return {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            (ROOT / "lfs").mkdir(exist_ok=True)
            address = f"http://{self.headers['Host']}/lfs/"
            made = [
                {**one, "actions": {"upload": {"href": address + one["oid"]}}}
                if not (ROOT / "lfs" / one["oid"]).exists()
                else one
                for one in objects
            ]
            return {"transfer": "basic", "objects": made}
        if path.startswith("/lfs/"):
            (ROOT / path.lstrip("/")).write_bytes(body)
            return {}
        repository = path.removeprefix("/api/models/").split("/commit/")[0]
        folder = ROOT / "repos" / repository
        if not folder.is_dir():
            return None
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
                if line["key"] == "lfsFile":
                    (folder / value["path"]).write_bytes((ROOT / "lfs" / value["oid"]).read_bytes())
            return {
                "commitUrl": f"http://{self.headers['Host']}/{repository}/commit/abc",
                "commitOid": "abc",
                "hookOutput": "",
                "success": True,
            }
        return {"id": repository, "private": json.loads((folder / ".private").read_text()), "siblings": [], "tags": []}

    def _send(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
