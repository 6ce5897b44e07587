"""A web server on this machine that gives files, and fails in the ways a test asks for."""

import contextlib
import http.server
import threading


class Server:
    """Serves `files`, by name. `script` holds what happens to the next requests; then they are answered in full.

    A step of the script is a status code, or one of: ("cut", n) closes the connection after n bytes; ("stall", n) sends
    n bytes and then nothing until `release` is set; "whole" ignores Range; ("move", url) redirects; ("bytes", b) sends
    other content.

    Attributes:
      requests: the name and the Range header of each request.
      stalled: set once a request stalls.
    """

    def __init__(self):
        self.files, self.script, self.requests = {}, [], []
        self.release, self.stalled = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.address = ""

    def answer(self, handler):
        name, span = handler.path.rpartition("/")[2], handler.headers.get("Range")
        with self._lock:
            self.requests.append((name, span))
            step = self.script.pop(0) if self.script else None
        if isinstance(step, int) or name not in self.files:
            handler.send_error(step or 404)
            return
        kind, value = step if isinstance(step, tuple) else (step, None)
        if kind == "move":
            handler.send_response(302)
            handler.send_header("Location", value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content = value if kind == "bytes" else self.files[name]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and kind != "whole" else 0
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        end = start + value if kind in ("cut", "stall") else len(content)
        handler.wfile.write(content[start:end])
        handler.wfile.flush()
        if kind == "stall":
            self.stalled.set()
            self.release.wait(60)
        handler.close_connection = True


@contextlib.contextmanager
def serve():
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            with contextlib.suppress(ConnectionError):
                server.answer(self)

        def log_message(self, *unused):
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

    with Quiet(("127.0.0.1", 0), Handler) as listener:
        server.address = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            listener.shutdown()
            thread.join()
