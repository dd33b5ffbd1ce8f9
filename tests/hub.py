"""A hub on loopback: just enough of the protocol for `huggingface_hub` to download what a folder holds."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow
from pyarrow import parquet

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def commit_of(revision):
    """The commit that a revision with a folder of its own stands for."""
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serve(folder, refusals=()):
    """Serve `folder/ORG/NAME/...` as models and `folder/datasets/ORG/NAME/...` as datasets, the same at any revision.

    Where there is a folder `ORG/NAME@REVISION`, that revision is served from it, and only such ones and main exist.
    Yields the address for HF_ENDPOINT and the requests seen, `GET part` being those for a range of bytes. `refusals` maps repositories (`datasets/ORG/NAME`) to the
    hub's code for why they are refused, or to a status and that code.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = unquote(urlsplit(self.path).path)
            part = self.command == "GET" and "Range" in self.headers
            seen.append(("GET part" if part else self.command, path))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.repository(Path(*parts[2:4]), parts[4:])
            elif "resolve" in parts[2:4]:
                at = parts.index("resolve", 2)
                self.file(Path(*parts[:at]), parts[at + 1], Path(*parts[at + 2 :]))
            else:
                self.refuse("RepoNotFound")

        def repository(self, name, rest):
            if not (folder / name).is_dir():
                return self.refuse("RepoNotFound")
            files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
            if rest[:1] == ["tree"]:
                listed = [
                    {
                        "type": "file",
                        "path": str(path.relative_to(folder / name)),
                        "size": path.stat().st_size,
                        "oid": "0",
                    }
                    for path in files
                    if str(path.relative_to(folder / name)).startswith("/".join(rest[2:]))
                ]
                return self.send(json.dumps(listed).encode()) if listed else self.refuse("EntryNotFound")
            siblings = [{"rfilename": str(path.relative_to(folder / name))} for path in files]
            return self.send(json.dumps({"id": str(name), "sha": COMMIT, "siblings": siblings}).encode())

        def file(self, name, revision, path):
            if str(name) in refusals:
                return self.refuse(refusals[str(name)])
            if not (folder / name).is_dir():
                return self.refuse("RepoNotFound")
            commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT
            others = sorted(path.name for path in (folder / name).parent.glob(f"{name.name}@*"))
            named = {other.partition("@")[2]: other for other in others}
            if revision in named:
                commit, name = commit_of(revision), name.with_name(named[revision])
            elif known := [other for of, other in named.items() if commit_of(of) == revision]:
                name = name.with_name(known[0])
            elif others and revision not in ("main", COMMIT):
                return self.refuse("RevisionNotFound")
            if not (folder / name / path).is_file():
                return self.refuse("EntryNotFound")
            return self.send((folder / name / path).read_bytes(), headers={"X-Repo-Commit": commit})

        def refuse(self, code):
            status, code = (404, code) if isinstance(code, str) else code
            self.send(b"", status, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

        def send(self, body, status=200, headers=None):
            tag, size = hashlib.sha256(body).hexdigest(), len(body)
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span and status == 200:
                first, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
                status, body = 206, body[first : last + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{tag}"')
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            for key, value in (headers or {"X-Repo-Commit": COMMIT}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


GSM8K_CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
---
# Dataset Card for GSM8K
"""


def gsm8k_repository(folder):
    """GSM8K as its official repository lays it out, with rows of our own; returns `folder`, to be served."""
    repository = folder / "datasets" / "openai" / "gsm8k"
    (repository / "main").mkdir(parents=True)
    (repository / "README.md").write_text(GSM8K_CARD)
    for split, count in (("train", 5), ("test", 30)):
        table = {
            "question": [f"A box of the {split} set holds {n} pens. How many are in 50 boxes?" for n in range(count)],
            "answer": [f"There are {n}*50=<<{n}*50={n * 50}>>{n * 50} pens.\n#### {n * 50:,}" for n in range(count)],
        }
        parquet.write_table(pyarrow.table(table), repository / "main" / f"{split}-00000-of-00001.parquet")
    return folder
