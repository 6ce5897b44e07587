"""Exports a checkpoint to a folder that predicts keypoints without hrnet_jax.

    python -m hrnet_jax.export --checkpoint runs/quickstart --output runs/quickstart_export

    OUTPUT/config.json, model.safetensors    a converted folder, for evaluate, predict and config.init
    OUTPUT/fold.jaxexport                    arrays -> weights: folds BatchNorm into the convolutions, once
    OUTPUT/program.jaxexport                 weights, uint8 crops -> keypoints, scores; both for cpu, cuda and tpu
    OUTPUT/program.json                      the program's inputs and outputs, and how it was checked
    OUTPUT/model.onnx                        with --onnx: uint8 crops -> keypoints, scores, by ONNX runtimes
    OUTPUT/example.py, README.md             prediction with jax, numpy, flatbuffers and safetensors, or onnxruntime
    OUTPUT/SHA256SUMS

README.md is a model card, too: results with their conditions (stored with the checkpoint, published, or `--metrics`),
intended use, and the licence of the weights (`--license`). `--push hf://USER/REPOSITORY` uploads the folder to the
Hugging Face Hub (extra `hub`; token of `hf auth login` or HF_TOKEN).

Keys of the checkpoint's config can be overridden: `--config.eval.flip_test=False` halves the programs' work. Exit
status 2: a program and the live model differ, and nothing was written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hrnet_jax import __version__, cli


class Tolerance(NamedTuple):
    """Accepted differences: crop pixels, deviation of scores, and share of keypoints that may move farther."""

    pixels: float
    scores: float
    moved: float


# bfloat16 has 8 bits of precision: of two peaks with nearly equal heights, the other may win.
TOLERANCE = {"float32": Tolerance(1e-4, 1e-4, 0.0), "bfloat16": Tolerance(1.0, 0.05, 0.1)}
# Another library adds the products of a convolution in another order.
ONNX_TOLERANCE = Tolerance(1e-3, 1e-4, 0.0)

OPTIONS: cli.Options = {
    "checkpoint": cli.CHECKPOINT,
    "output": (None, "new folder"),
    "dtype": ("float32", f"the program's arithmetic: {' or '.join(TOLERANCE)}"),
    "onnx": (False, "also write model.onnx, which computes in float32 (extra onnx)"),
    "metrics": ("", "metrics.json of an evaluation, for the model card; default: the checkpoint's"),
    "license": ("other", "licence of the weights for the model card, by the Hub's identifier; other: that of the data"),
    "push": ("", "hf://USER/REPOSITORY[@REVISION][/PATH] on the Hugging Face Hub, to which the folder is uploaded"),
}
cli.help_first(__name__, __doc__, OPTIONS)  # the imports below take seconds

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from data_pipelines.errors import InputError, extra
from data_pipelines.json_files import json_text, read_json
from data_pipelines.keypoints import keypoint_set
from data_pipelines.synthetic.render import Settings, render_scene
from data_pipelines.transforms import PADDING, view_of_box, warp_image, warp_matrix, warp_span
from hrnet_jax import config as config_lib
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.example import jax_program, onnx_program
from hrnet_jax.inference.steps import make_eval_step
from hrnet_jax.models import FunctionalModel, abstract_model, array_shapes
from hrnet_jax.models.fold import fold
from hrnet_jax.models.names import Arrays
from hrnet_jax.outcomes import Aborted
from hrnet_jax.weights import card, checkpoint, hub
from hrnet_jax.weights.folder import Model, check_free, new_folder

FORMAT_VERSION = 2
PLATFORMS = ("cpu", "cuda", "tpu")
FOLD, PROGRAM, FACTS = "fold.jaxexport", "program.jaxexport", "program.json"
ONNX = "model.onnx"

_EXAMPLE = pathlib.Path(__file__).parent / "inference" / "example.py"


class Deviation(NamedTuple):
    """Differences between a program and the live float32 model.

    Attributes:
      keypoints: maximum, in crop pixels.
      scores: maximum, divided by the highest score if that is above 1.
      moved: share of keypoints that differ by more than their tolerance.
    """

    keypoints: float
    scores: float
    moved: float


def export(
    trained: Model,
    output: str | pathlib.Path,
    dtype: str = "float32",
    onnx: bool = False,
    license_id: str = "other",
) -> dict[str, Any]:
    """Exports a model.

    Args:
      trained: from `hrnet_jax.weights.checkpoint.load`; moving averages if there are any.
      output: a folder that does not exist yet or is empty; it appears after all checks have passed.
      dtype: "float32" or "bfloat16", the arithmetic of JAX's program; the stored weights are always float32.
      onnx: whether to write `ONNX` too.
      license_id: the licence of the weights, by the Hub's identifier; "other": that of the training data.

    Returns:
      The content of program.json.

    Raises:
      InputError: the config, dtype, licence or folder is invalid, the model's outputs are not finite, or ONNX is not
        installed.
      Aborted: a program, read back from the folder, differs from the live model by more than is accepted.
    """
    config = trained.config
    if dtype not in TOLERANCE:
        raise InputError(f"--dtype={dtype}: unknown; there are {', '.join(TOLERANCE)}")
    config_lib.check(config, training=False)
    card.check_license(license_id)
    check_free(output)
    arrays = {name: np.asarray(a, np.float32) for name, a in {**trained.params, **trained.stats}.items()}
    facts = describe(config, dtype, trained.origin)
    files = {}
    if onnx:
        files[ONNX], facts["onnx"] = build_onnx(trained)
    programs = build(config, dtype)
    files |= {name: bytes(program.serialize()) for name, program in programs.items()}
    facts["made_with"]["calling_convention_version"] = programs[PROGRAM].calling_convention_version

    with new_folder(output, config, arrays) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        allowed = {PROGRAM: TOLERANCE[dtype], ONNX: ONNX_TOLERANCE}
        for name, found in deviations(folder, trained, allowed).items():
            if not (found.scores <= allowed[name].scores and found.moved <= allowed[name].moved):  # nor NaN
                raise Aborted(
                    f"{output}: not written: {name} and the model differ by {found.keypoints:.2g} pixels and "
                    f"{found.scores:.2g} of the scores; {found.moved:.0%} of the keypoints exceed the tolerance"
                )
            part = facts["onnx"] if name == ONNX else facts
            part |= {"deviation": found._asdict(), "tolerance": allowed[name]._asdict()}
        text = json_text(facts)
        (folder / FACTS).write_text(text)
        (folder / "example.py").write_bytes(_EXAMPLE.read_bytes())
        head = card.front_matter(config, facts["model"], trained.metrics, license_id)
        body = (_README + (_README_ONNX if onnx else "")).format(**facts)
        rest = card.sections(config, trained.metrics, license_id)
        (folder / "README.md").write_text(f"{head}{body}\n{rest}")
        sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir())]
        (folder / "SHA256SUMS").write_text("".join(sums))
    return json.loads(text)


def build(config: ConfigDict, dtype: str) -> dict[str, jax_export.Exported]:
    """Exports two programs, by file name.

    `FOLD`: arrays by canonical name -> weights, with BatchNorm folded into convolutions. A separate program, because
    XLA on CPUs would otherwise fold again for every batch.
    `PROGRAM`: weights, uint8 crops [b,H,W,3] -> keypoints [b,K,2], scores [b,K], as in evaluation. float32 is exact on
    every platform; by default, GPUs and TPUs would multiply with fewer bits.
    """
    params, stats = array_shapes(config)
    step = _step(config, dtype, folded=True)

    def folded(arrays: Arrays) -> Arrays:
        weights = fold({name: arrays[name] for name in params}, {name: arrays[name] for name in stats})
        return {name: weight.astype(dtype) for name, weight in weights.items()}

    def program(weights: Arrays, crops: UInt8[Array, "b h w 3"]) -> tuple[Array, Array]:
        return step(weights, {}, crops)

    arrays = {name: jax.ShapeDtypeStruct(a.shape, jnp.float32) for name, a in {**params, **stats}.items()}
    (batch,) = jax_export.symbolic_shape("batch")
    crops = jax.ShapeDtypeStruct((batch, *create_codec(config.codec).input_size, 3), jnp.uint8)
    with _precision(dtype), _no_locations():
        return {
            FOLD: jax_export.export(jax.jit(folded), platforms=PLATFORMS)(arrays),
            PROGRAM: jax_export.export(jax.jit(program), platforms=PLATFORMS)(jax.eval_shape(folded, arrays), crops),
        }


def build_onnx(trained: Model) -> tuple[bytes, dict[str, Any]]:
    """The content of `ONNX` and its description; see `hrnet_jax.onnx.pose_model`.

    Raises InputError if the extra `onnx` is not installed, or the codec has no decoder there.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise InputError(f"--onnx: needs onnx and onnxruntime: {extra('onnx')}") from None
    from hrnet_jax.onnx import OPSET, pose_model

    with _precision("float32"):
        weights = jax.device_get(jax.jit(fold)(trained.params, trained.stats))
    content = pose_model(trained.config, weights).SerializeToString(deterministic=True)
    made_with = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return content, {"file": ONNX, "opset": OPSET, "made_with": made_with}


def deviations(folder: pathlib.Path, trained: Model, allowed: Mapping[str, Tolerance]) -> dict[str, Deviation]:
    """Compares an exported folder's programs, read from disk, with the live model in float32.

    Uses `check_crops`, as one batch and the first crop alone. Decoding a flat map magnifies rounding errors: a keypoint
    may additionally differ by ten times its change in the live model when the crop's values change by a millionth.

    Args:
      folder: the folder.
      trained: what was exported.
      allowed: accepted differences by file name, of `PROGRAM` and, if the folder has it, `ONNX`.

    Returns:
      The differences by file name.

    Raises:
      InputError: the live model's outputs are not finite.
    """
    config, crops = trained.config, check_crops(trained.config)
    live = _step(config, "float32", folded=False)
    views = [crops * np.float32(1 + change) for change in (0, 1e-6, -1e-6)]
    with _precision("float32"):
        answers = jax.device_get(live(trained.params, trained.stats, np.concatenate(views)))
    if not all(np.isfinite(answer).all() for answer in answers):
        raise InputError(f"{trained.origin}: the network's outputs are not finite; its weights are damaged")
    keypoints, scores = (answer.reshape(len(views), len(crops), *answer.shape[1:]) for answer in answers)
    unsteady = np.abs(keypoints[1:] - keypoints[0]).max((0, -1))

    again = [*range(len(crops)), 0]

    def compare(program: Callable, tolerance: Tolerance) -> Deviation:
        found = [program(part) for part in (crops, crops[:1])]
        found_keypoints, found_scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        off = np.abs(found_keypoints - keypoints[0, again]).max(-1)
        stays = off <= tolerance.pixels + 10 * unsteady[again]
        score_off = np.abs(found_scores - scores[0, again]).max() / max(1, np.abs(scores[0]).max())
        return Deviation(float(off.max()), float(score_off), float(1 - stays.mean()))

    found = {PROGRAM: compare(jax_program(folder), allowed[PROGRAM])}
    if (folder / ONNX).exists():
        found[ONNX] = compare(onnx_program(folder), allowed[ONNX])
    return found


def check_crops(config: ConfigDict) -> UInt8[np.ndarray, "3 h w 3"]:
    """One crop of noise and two of rendered people."""
    rng = np.random.default_rng(0)
    codec = create_codec(config.codec)
    scene = render_scene(rng, (240, 320), Settings(people=(0.0, 0.0, 1.0), truncated=0.0, tiny=0.0, crowd=0.0))
    crops = [rng.integers(0, 256, (*codec.input_size, 3), np.uint8)]
    for person in scene.people:
        x, y, w, h = person.box
        view = view_of_box(np.array([x, y, x + w, y + h], np.float32)).fix_aspect(codec.input_size)
        crops.append(warp_image(scene.image, warp_matrix(view, codec.input_size, codec.warp), codec.input_size))
    return np.stack(crops)


def describe(config: ConfigDict, dtype: str, origin: str) -> dict[str, Any]:
    """The description of the program for its users, JSON-serialisable."""
    joints, codec = keypoint_set(config.keypoints), create_codec(config.codec)
    height, width = codec.input_size
    return {
        "format_version": FORMAT_VERSION,
        "model": f"{config.model.variant} {height}x{width} {config.codec.name}",
        "weights": pathlib.PurePath(origin).name,  # without parent folders
        "input": {"size": [height, width], "dtype": "uint8", "layout": "NHWC", "colours": "RGB"},
        "crop": {
            "padding": PADDING,
            "warp": codec.warp,
            "span": warp_span(codec.input_size, codec.warp),
        },
        "keypoints": {
            "name": joints.name,
            "names": joints.names,
            "flip_pairs": joints.flip_pairs,
            "skeleton": joints.skeleton,
            "colours": joints.colours,
            "sigmas": joints.sigmas,
        },
        "flip_test": bool(config.eval.flip_test),
        "dtype": dtype,
        "platforms": PLATFORMS,
        "made_with": {"jax": jax.__version__, "hrnet_jax": __version__},
    }


def _step(config: ConfigDict, dtype: str, folded: bool) -> Callable:
    network = FunctionalModel.of(abstract_model(config, folded, dtype=dtype, scan=False))
    flip_indices = keypoint_set(config.keypoints).flip_indices
    return make_eval_step(network, create_codec(config.codec), flip_indices, config.eval.flip_test)


def _precision(dtype: str) -> contextlib.AbstractContextManager:
    return jax.default_matmul_precision("highest" if dtype == "float32" else "default")


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Removes source paths from programs, so that equal models give equal files everywhere."""
    before = getattr(jax.config, "jax_traceback_in_locations_limit")  # noqa: B009 (not declared to type checkers)
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


_README = """\
# {model}, {keypoints[name]} keypoints

    pip install jax numpy flatbuffers safetensors pillow
    python example.py photo.jpg 120,80,90,220

prints a line of JSON per person; the argument is a box: x, y, width, height in pixels. `Model` in example.py does the
same from Python, on CPU, GPU or TPU, in these steps:

1. A box grows to the crop's aspect ratio and by `crop.padding`: it has a center and a scale (width, height). Pixel p of
   the crop is image pixel center + (p - span / 2) * scale / span, bilinear, black outside, with `crop.span` (x, y).
2. fold.jaxexport turns the arrays of model.safetensors into weights, with BatchNorm folded into convolutions. With
   these program.jaxexport turns uint8 RGB crops [b, {input[size][0]}, {input[size][1]}, 3] into keypoints [b, K, 2],
   (x, y) in the crop's pixels, and scores [b, K], including normalisation, flip test ({flip_test}) and decoding.
   Arithmetic is {dtype}.
3. Keypoint k is image pixel center + (k - span / 2) * scale / span, like every pixel of the crop.

program.json describes the rest. Made with jax {made_with[jax]}; JAX guarantees that releases of the next six months can
read it. `sha256sum --check SHA256SUMS` checks that the files are complete. hrnet_jax can evaluate and train with
config.json and model.safetensors.
"""

_README_ONNX = """
## Without JAX

    pip install onnxruntime numpy pillow
    python example.py --onnx photo.jpg 120,80,90,220

model.onnx (ONNX opset {onnx[opset]}) replaces step 2: its input `crops` are the uint8 crops, for any b; its outputs are
`keypoints` and `scores`. It contains normalisation, flip test ({flip_test}), decoding, and the weights with BatchNorm
folded. Arithmetic is float32.
"""


def main() -> None:
    """The command line."""
    cli.run(__doc__, OPTIONS, _export, lambda values: checkpoint.stored_config(values["checkpoint"]))


def _export(values: Mapping[str, Any], config: ConfigDict) -> None:
    if values["push"]:
        hub.check_target(values["push"])
    trained = checkpoint.load(values["checkpoint"])
    if values["metrics"]:
        metrics = read_json(values["metrics"])
        if not isinstance(metrics, dict) or "AP" not in metrics:
            raise InputError(f"{values['metrics']}: not the metrics.json of an evaluation")
        trained = trained._replace(metrics=metrics)
    trained, output = trained._replace(config=config), values["output"]
    facts = export(trained, output, values["dtype"], values["onnx"], values["license"])
    print(f"{trained.origin} -> {output}; differences from the float32 model, at most:")
    for name, part in {PROGRAM: facts, ONNX: facts.get("onnx")}.items():
        if part:
            found = part["deviation"]
            print(f"{name}: {found['keypoints']:.2g} px, {found['scores']:.2g} of the scores")
    if values["push"]:
        print(f"uploaded to {hub.push(output, values['push'])}")


if __name__ == "__main__":
    main()
