"""As much of the Hugging Face Hub as huggingface_hub asks for, on this machine, with one repository: user/name."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = "0" * 40


@contextlib.contextmanager
def hub(files, home):
    """Serves `files`, by path, and adds those of commits to them.

    Yields the environment of a process that takes this for the Hub; its cache is in the folder `home`.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path, body = self.path.partition("?")[0], None
            if "/resolve/" in path:
                body = files.get(path.partition("/resolve/")[2].partition("/")[2])
            elif path.startswith("/api/models/user/name"):
                siblings = [{"rfilename": name} for name in files]
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "1" * 40} for n, b in files.items()]
                info = {"id": "user/name", "sha": COMMIT, "siblings": siblings}
                body = json.dumps(tree if "/tree/" in path else info).encode()
            self.answer(404 if body is None else 200, body or b"")

        def do_POST(self):
            content, reply = self.rfile.read(int(self.headers["Content-Length"])), {}
            if self.path.endswith("/repos/create"):
                wanted = json.loads(content)
                if (wanted.get("organization"), wanted["name"]) != ("user", "name"):
                    self.answer(403, b'{"error": "You have no right to create a model here"}')
                    return
                reply = {"url": f"{address}/user/name"}
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(content)["files"]]
                reply = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            elif "/commit/" in self.path:
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                reply = {"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/user/name/commit/{COMMIT}"}
            self.answer(200, json.dumps(reply).encode())

        def answer(self, status, body):
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *unused):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        address = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_of_mine"}
        listener.shutdown()
        thread.join()
