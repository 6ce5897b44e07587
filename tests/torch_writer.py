"""A minimal writer of PyTorch's two file formats, opcode by opcode: no PyTorch, no pickling of ours."""

import struct
import zipfile

import numpy as np

from hrnet_jax.weights import torch_files


class Global:
    """`module.name`, as a pickle refers to code."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """A call of a global; with `state`, the result's `__setstate__` after it."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state


class Persistent:
    """A reference to what lies outside of the pickle."""

    def __init__(self, *pid):
        self.pid = pid


def opcodes(value):
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            made = opcodes(value.function) + opcodes(value.args) + b"R"
            return made if value.state is None else made + opcodes(value.state) + b"b"
        case Persistent():
            return opcodes(value.pid) + b"Q"
    raise TypeError(type(value))


def pickled(value):
    return b"\x80\x02" + opcodes(value) + b"."


KINDS = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}
ORDERED_DICT = Global("collections", "OrderedDict")
OS_SYSTEM = Global("posix", "system")


class Torch:
    """Describes tensors for a pickle, and collects their storages."""

    def __init__(self, legacy=False):
        self.legacy, self.storages = legacy, {}

    def tensor(self, array, offset=0, shape=None, strides=None):
        """A tensor over a storage that holds `array`; by default all of it, in C order."""
        key = str(len(self.storages))
        self.storages[key] = array
        size, strides = (
            (array.shape, tuple(s // array.itemsize for s in array.strides)) if shape is None else (shape, strides)
        )
        kind = Global("torch", f"{KINDS[str(array.dtype)]}Storage")
        view = (None,) if self.legacy else ()
        storage = Persistent("storage", kind, key, "cpu", array.size, *view)
        hooks = Call(ORDERED_DICT)
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), storage, offset, size, strides, False, hooks)

    def save(self, path, content):
        if not self.legacy:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("archive/data.pkl", pickled(content))
                file.writestr("archive/byteorder", "little")
                for key, array in self.storages.items():
                    file.writestr(f"archive/data/{key}", array.tobytes())
            return
        with open(path, "wb") as file:
            for value in (torch_files.LEGACY_MAGIC, 1001, {"little_endian": True}, content, list(self.storages)):
                file.write(pickled(value))
            for array in self.storages.values():
                file.write(struct.pack("<q", array.size) + array.tobytes())


def save_torch(path, tensors, legacy=False, nested=False, meta=None):
    torch = Torch(legacy)
    state = {name: torch.tensor(np.asarray(array)) for name, array in tensors.items()}
    torch.save(path, {"meta": meta or {}, "state_dict": state} if nested else state)
    return path


def named(tensors, style):
    """The same network under other names."""
    bare = {name.replace("backbone.", "").replace("head.", ""): array for name, array in tensors.items()}
    if style == "timm":
        bare = {name: array for name, array in bare.items() if not name.startswith("final_layer.")}
        rest = ("incre_modules.0.0.conv1.weight", "downsamp_modules.0.0.bias", "final_layer.0.weight")
        rest += ("final_layer.1.num_batches_tracked", "classifier.weight", "stage4.0.fuse_layers.3.1.0.0.weight")
        bare |= {name: np.ones(3, np.float32) for name in rest}
    return {
        "mmpose": tensors,
        "mmpose 0.x": {name.replace("head.", "keypoint_head."): array for name, array in tensors.items()},
        "official": bare,
        "timm": bare,
        "parallel": {f"module.{name}": array for name, array in bare.items()},
    }[style]
