"""Stands in for gcsfs: as much of it as `etils.epath` uses, with its rules for folders, which buckets do not have.

A folder is there while an object is below it; making one does nothing. Like the real one it remembers listings unless
told not to, and does not hear of what others write.
"""

import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request

import fsspec

_API = os.environ["STORAGE_EMULATOR_HOST"] + "/storage/v1/b/"


class GCSFileSystem(fsspec.AbstractFileSystem):
    protocol = ("gs", "gcs")

    def _object(self, path):
        bucket, _, name = self._strip_protocol(path).partition("/")
        return bucket, name.rstrip("/")

    def ls(self, path, detail=True, **unused):
        bucket, name = self._object(path)
        key = f"{bucket}/{name}".rstrip("/")
        try:
            out = self.dircache[key]
        except KeyError:
            prefix = f"{name}/" if name else ""
            found = json.loads(_ask("GET", f"{bucket}/o", prefix=prefix, delimiter="/"))
            out = [_entry(bucket, item["name"], "file", int(item["size"])) for item in found["items"]]
            out += [_entry(bucket, folder.rstrip("/"), "directory", 0) for folder in found["prefixes"]]
            if not out and name:
                out = [self._file(bucket, name)]
            self.dircache[key] = out
        return out if detail else sorted(entry["name"] for entry in out)

    def info(self, path, **unused):
        bucket, name = self._object(path)
        if not name:
            _ask("GET", bucket)
            return _entry(bucket, "", "directory", 0)
        full = f"{bucket}/{name}"
        for entry in self._ls_from_cache(full) or []:
            if entry["name"] == full:
                return entry
        try:
            return self._file(bucket, name)
        except FileNotFoundError:
            self.ls(path)
            return _entry(bucket, name, "directory", 0)

    def _file(self, bucket, name):
        return _entry(bucket, name, "file", int(json.loads(_ask("GET", _path(bucket, name)))["size"]))

    def mkdir(self, path, create_parents=True, **unused):
        _ask("GET", self._object(path)[0])

    def makedirs(self, path, exist_ok=False):
        self.mkdir(path)

    def rmdir(self, path):
        pass

    def rm(self, path, recursive=False, **unused):
        bucket, name = self._object(path)
        names = [name]
        if recursive:
            found = json.loads(_ask("GET", f"{bucket}/o", prefix=f"{name}/"))
            names += [item["name"] for item in found["items"]]
        removed = 0
        for each in names:
            try:
                _ask("DELETE", _path(bucket, each))
                removed += 1
            except FileNotFoundError:
                pass
            self._forget(f"{bucket}/{each}")
        if not removed:
            raise FileNotFoundError(path)

    def _open(self, path, mode="rb", **unused):
        bucket, name = self._object(path)
        if mode == "rb":
            return io.BytesIO(_ask("GET", _path(bucket, name), alt="media"))
        if mode != "wb":
            raise ValueError(f"mode {mode!r}: objects cannot be appended to")
        return _Upload(self, bucket, name)

    def _forget(self, path):
        while path:
            self.dircache.pop(path, None)
            path = path.rpartition("/")[0]


class _Upload(io.BytesIO):
    """An object that is written when it is closed."""

    def __init__(self, files, bucket, name):
        super().__init__()
        self._files, self._bucket, self._name = files, bucket, name

    def close(self):
        if not self.closed:
            _ask("POST", f"{self._bucket}/o", self.getvalue(), name=self._name)
            self._files._forget(f"{self._bucket}/{self._name}")
        super().close()


def _entry(bucket, name, kind, size):
    return {"name": f"{bucket}/{name}".rstrip("/"), "type": kind, "size": size}


def _path(bucket, name):
    return f"{bucket}/o/{urllib.parse.quote(name, safe='')}"


def _ask(method, path, data=None, **query):
    url = f"{_API}{path}?{urllib.parse.urlencode(query)}"
    if data is not None:
        url = url.replace("/storage/", "/upload/storage/", 1)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method)) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise FileNotFoundError(path) from None
        raise OSError(f"{path}: {error}") from None
