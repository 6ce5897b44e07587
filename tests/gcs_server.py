"""A bucket in memory behind as much of Cloud Storage's JSON API as TensorStore, and the clients in fake_gcs/, ask for.

TensorStore itself is the real one. Objects have generations, and conditions on them hold.
"""

import contextlib
import http.server
import json
import os
import pathlib
import threading
import urllib.parse

BUCKET = "bucket"
_CLIENTS = pathlib.Path(__file__).parent / "fake_gcs"


class Server(http.server.ThreadingHTTPServer):
    """`objects` are the bucket's: name -> (generation, bytes)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.lock, self.generation = threading.Lock(), 0

    def environment(self) -> dict[str, str]:
        """What makes a process use this server for gs://."""
        url = f"http://localhost:{self.server_address[1]}"
        path = os.pathsep.join(filter(None, [str(_CLIENTS), os.environ.get("PYTHONPATH")]))
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "PYTHONPATH": path,
        }

    def below(self, prefix: str) -> dict[str, bytes]:
        """The content of objects by the rest of their names."""
        with self.lock:
            return {name[len(prefix) :]: data for name, (_, data) in self.objects.items() if name.startswith(prefix)}


@contextlib.contextmanager
def serve():
    """A running server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        bucket, name, query = self._parse()
        if bucket != BUCKET:
            return self._answer(404)
        if name is None:
            return self._answer(200, self._list(query) if self._wants_list else {"name": bucket})
        generation, data = self.server.objects.get(name, (0, b""))
        if not generation:
            return self._answer(404)
        if self._refused(query, generation):
            return self._answer(304 if "ifGenerationNotMatch" in query else 412)
        if query.get("alt") != "media":
            return self._answer(200, _metadata(name, generation, data))
        return self._media(data, generation)

    def do_POST(self):
        _, name, query = self._parse()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            name = name or query["name"]
            if self._refused(query, self.server.objects.get(name, (0, b""))[0]):
                return self._answer(412)
            self.server.generation += 1
            self.server.objects[name] = (self.server.generation, data)
            return self._answer(200, _metadata(name, self.server.generation, data))

    def do_DELETE(self):
        _, name, query = self._parse()
        with self.server.lock:
            if name not in self.server.objects:
                return self._answer(404)
            if self._refused(query, self.server.objects[name][0]):
                return self._answer(412)
            del self.server.objects[name]
        return self._answer(204)

    def log_message(self, *unused):
        pass

    def _parse(self):
        """/[upload/]storage/v1/b/BUCKET[/o[/NAME]] -> bucket, name or None, the query."""
        url = urllib.parse.urlsplit(self.path)
        parts = url.path.removeprefix("/upload").removeprefix("/storage/v1/b/").split("/", 2)
        self._wants_list = parts[1:] == ["o"]
        name = urllib.parse.unquote(parts[2]) if len(parts) == 3 else None
        return parts[0], name, dict(urllib.parse.parse_qsl(url.query))

    def _refused(self, query, generation):
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return (wanted is not None and int(wanted) != generation) or (
            unwanted is not None and int(unwanted) == generation
        )

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], set()
        with self.server.lock:
            for name, (generation, data) in sorted(self.server.objects.items()):
                if not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                head, slash, _ = name[len(prefix) :].partition(delimiter or "\n")
                if slash:
                    prefixes.add(prefix + head + slash)
                else:
                    items.append(_metadata(name, generation, data))
        return {"items": items, "prefixes": sorted(prefixes)}

    def _media(self, data, generation):
        wanted, status = self.headers.get("Range"), 200
        headers = {"x-goog-generation": str(generation)}
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin = int(first) if first else len(data) - int(last)
            end = min(int(last) + 1 if first and last else len(data), len(data))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            data, status = data[begin:end], 206
        self._send(status, data, headers)

    def _answer(self, status, content=None):
        self._send(status, b"" if content is None else json.dumps(content).encode(), {})

    def _send(self, status, data, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _metadata(name, generation, data):
    return {"name": name, "generation": str(generation), "size": str(len(data)), "updated": "2025-01-01T00:00:00.000Z"}
