"""What the stand-in for the hub does with uploads: repositories are made, large files kept, and commits come whole."""

import base64
import json
from typing import Any
from urllib.parse import unquote, urlsplit


def answer_post(handler: Any) -> None:
    """Answers POST: the creation of a repository, the questions before an upload, and the commit."""
    hub, place = handler.hub, unquote(urlsplit(handler.path).path)
    body = handler.rfile.read(int(handler.headers["Content-Length"]))
    hub.asked.append(f"POST {place}")
    if hub.down:
        handler._send(503, b"down")
    elif place == "/api/validate-yaml":
        errors = [{"message": "invalid card"}] if hub.refuses_cards else []
        handler._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())
    elif handler.headers.get("Authorization") != f"Bearer {hub.token}":
        handler._send(403, b"{}", {"X-Error-Message": "You do not have the rights to write here"})
    elif place == "/api/repos/create":
        asked = json.loads(body)
        id = f"{asked['organization']}/{asked['name']}"
        hub.repository(id)
        if asked.get("visibility") == "private":
            hub.created_private.add(id)
        handler._json({"url": f"{hub.url}/{id}"})
    elif "/preupload/" in place:
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        handler._json({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
    elif place.endswith("/info/lfs/objects/batch"):
        objects = json.loads(body)["objects"]
        actions = [{**one, "actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}} for one in objects]
        handler._json({"transfer": "basic", "objects": actions})
    elif "/commit/" in place:
        _commit(handler, place.removeprefix("/api/models/").partition("/commit/")[0], body)
    else:
        handler._send(404, b"{}")


def answer_put(handler: Any) -> None:
    """Keeps a large file until the commit names it."""
    handler.hub.asked.append(f"PUT {handler.path}")
    body = handler.rfile.read(int(handler.headers["Content-Length"]))
    handler.hub.large[handler.path.rpartition("/")[2]] = body
    handler._send(200, b"")


def _commit(handler: Any, id: str, body: bytes) -> None:
    hub = handler.hub
    for line in body.decode().splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            hub.messages.append(value["summary"])
            continue
        path = hub.repository(id) / value["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = hub.large[value["oid"]] if entry["key"] == "lfsFile" else base64.b64decode(value["content"])
        path.write_bytes(whole)
    handler._json({"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/{id}/commit/{'0' * 40}"})
