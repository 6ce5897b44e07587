"""Predicts keypoints of the people in an image with the model exported to this folder, without hrnet_jax.

    python example.py photo.jpg 120,80,90,220        # one person; more boxes: more arguments, x,y,width,height
    python example.py --onnx photo.jpg 120,80,90,220 # the same by model.onnx, if the folder has one, without JAX

    model = Model("path/to/this/folder")             # or Model(folder, onnx=True)
    keypoints, scores = model(image, boxes)

Needs numpy, and Pillow to read image files; for JAX's program jax, flatbuffers and safetensors, for model.onnx
onnxruntime. README.md explains the values in program.json.
"""

import json
import pathlib
import sys

import numpy as np


class Model:
    """The exported model: maps an image and boxes to keypoints."""

    def __init__(self, folder, onnx=False):
        folder = pathlib.Path(folder)
        self.facts = json.loads((folder / "program.json").read_text())
        self.program = (onnx_program if onnx else jax_program)(folder)

    def __call__(self, image, boxes):
        """Predicts people's keypoints.

        Args:
          image: uint8 RGB [height, width, 3].
          boxes: one row per person: x, y, width, height in image pixels; may extend beyond the image.

        Returns:
          keypoints [people, K, 2], (x, y) in image pixels, pixel centres at integers; scores [people, K].
        """
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if not len(boxes):
            names = self.facts["keypoints"]["names"]
            return np.zeros((0, len(names), 2), np.float32), np.zeros((0, len(names)), np.float32)
        centers = boxes[:, :2] + boxes[:, 2:] / 2
        scales = np.stack([self.crop_scale(*box[2:]) for box in boxes])
        crops = np.stack([self.crop(image, *view) for view in zip(centers, scales, strict=True)])
        keypoints, scores = self.program(crops)
        keypoints = keypoints / np.array(self.facts["crop"]["span"], np.float32)
        return keypoints * scales[:, None] + (centers - scales / 2)[:, None], scores

    def crop_scale(self, width, height):
        """The (width, height) in image pixels of a box's crop: with a margin, and of the crop's aspect ratio."""
        size = self.facts["input"]["size"]
        ratio = size[1] / size[0]
        width = max(width, height * ratio) * self.facts["crop"]["padding"]
        return np.array([width, width / ratio], np.float32)

    def crop(self, image, center, scale):
        """Crops an image, with bilinear interpolation; black outside the image."""
        height, width = self.facts["input"]["size"]
        span_x, span_y = self.facts["crop"]["span"]
        x0, x1, along_x = _samples(center[0], scale[0], width, span_x, image.shape[1])
        y0, y1, along_y = _samples(center[1], scale[1], height, span_y, image.shape[0])
        image = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        above = _mix(image[np.ix_(y0, x0)], image[np.ix_(y0, x1)], along_x[:, None])
        below = _mix(image[np.ix_(y1, x0)], image[np.ix_(y1, x1)], along_x[:, None])
        return np.rint(_mix(above, below, along_y[:, None, None])).astype(np.uint8)


def jax_program(folder):
    """f(crops) -> keypoints in crop pixels, scores."""
    import jax
    from jax import export
    from safetensors.numpy import load_file

    fold, program = (
        jax.jit(export.deserialize(bytearray((folder / name).read_bytes())).call)
        for name in ("fold.jaxexport", "program.jaxexport")
    )
    weights = fold(load_file(folder / "model.safetensors"))

    def run(crops):
        # Each number of crops is compiled once; padding to powers of two limits these.
        filler = (1 << (len(crops) - 1).bit_length()) - len(crops)
        padded = np.concatenate([crops, np.zeros((filler, *crops.shape[1:]), np.uint8)])
        return [found[: len(crops)] for found in jax.device_get(program(weights, padded))]

    return run


def onnx_program(folder):
    """f(crops) -> keypoints in crop pixels, scores."""
    import onnxruntime

    # On a GPU, with onnxruntime-gpu: CUDAExecutionProvider, which by default multiplies with fewer bits (TF32).
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda crops: session.run(["keypoints", "scores"], {"crops": crops})


def _samples(center, scale, count, span, length):
    """Positions of a crop's rows or columns in an image with a border of one pixel: neighbours and a fraction."""
    position = center + (np.arange(count) - span / 2) * (scale / span)
    position = np.clip(position, -1, length) + 1
    low = np.minimum(position.astype(int), length)
    return low, low + 1, position - low


def _mix(a, b, way):
    return a * (1 - way) + b * way


def main():
    """The command line."""
    from PIL import Image, ImageOps

    onnx = sys.argv[1:2] == ["--onnx"]
    file, *boxes = sys.argv[1 + onnx :] or [""]
    if not boxes or any(box.count(",") != 3 for box in boxes):
        sys.exit(__doc__)
    model = Model(pathlib.Path(__file__).parent, onnx)
    image = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    keypoints, scores = model(image, [[float(number) for number in box.split(",")] for box in boxes])
    for points, values in zip(keypoints, scores, strict=True):
        people = zip(model.facts["keypoints"]["names"], points, values, strict=True)
        print(json.dumps({name: [*map(float, point), float(score)] for name, point, score in people}))


if __name__ == "__main__":
    main()
