"""Valid inputs for benchmarks/fuzz.py, and damaged copies of them."""

from __future__ import annotations

import functools
import json
import pathlib
import random
import shutil

import cv2
import numpy as np

from benchmarks import fuzz_inputs as inputs
from data_pipelines.synthetic import write_dataset
from hrnet_jax import config as config_lib
from hrnet_jax.inference.predictor import Predictor, load
from hrnet_jax.models import abstract_model, initial_arrays, state_dict
from hrnet_jax.weights import checkpoint
from hrnet_jax.weights.folder import load_folder, save_folder

CONFIG = str(pathlib.Path(__file__).resolve().parent.parent / "configs/quickstart.py")

Rng = random.Random


class Workshop:
    """Valid inputs below a folder, and a place to put damaged ones."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.data = root / "data"
        write_dataset(self.data, coco_train=1, coco_val=3, aic_train=2, processes=1)
        self.coco, self.aic = self.data / "coco", self.data / "aic/ai_challenger_keypoint_train_20170902"
        self.images = self.coco / "val2017"
        self.photos = sorted(self.images.iterdir())
        self.annotations = self.coco / "annotations/person_keypoints_val2017.json"
        self.aic_annotations = self.aic / "keypoint_train_annotations_20170909.json"
        self.aic_images = self.aic / "keypoint_train_images_20170902"
        self.detections = next((self.coco / "person_detection_results").iterdir())
        self.results = root / "results.json"
        people = json.loads(self.annotations.read_text())["annotations"]
        keys = "image_id", "category_id", "keypoints", "bbox"
        self.results.write_text(json.dumps([{**{k: person[k] for k in keys}, "score": 0.5} for person in people]))
        self.folder = root / "folder"
        _save_model(self.folder)
        self.workdir = root / "workdir"
        _save_workdir(self.folder, self.workdir)
        self.video = root / "clip.avi"
        _write_video(self.video)
        self._scratch = root / "scratch"

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The model, compiled."""
        predictor = load(self.folder, batch_size=1)
        predictor(np.zeros((60, 80, 3), np.uint8))
        return predictor

    def scratch(self) -> pathlib.Path:
        """An empty folder."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        return self._scratch

    def damaged(self, rng: Rng, path: pathlib.Path, *, as_json: bool) -> pathlib.Path:
        """A damaged copy of a file."""
        mutate = inputs.mutated_json if as_json and rng.random() < 0.75 else inputs.mutated_bytes
        copy = self.scratch() / path.name
        copy.write_bytes(mutate(rng, path.read_bytes()))
        return copy

    def damaged_folder(self, rng: Rng, folder: pathlib.Path, name: str = "**/*") -> pathlib.Path:
        """A copy of a folder with one of its files, or folders, damaged or gone."""
        copy = self.scratch() / folder.name
        shutil.copytree(folder, copy)
        victim = rng.choice(sorted(copy.glob(name)))
        if victim.is_dir():
            shutil.rmtree(victim)
            if rng.random() < 0.3:
                victim.write_bytes(b"x")
        elif rng.random() < 0.1:
            victim.unlink()
            if rng.random() < 0.5:
                victim.mkdir()
        else:
            is_json = victim.name.endswith(".json") and rng.random() < 0.75
            victim.write_bytes((inputs.mutated_json if is_json else inputs.mutated_bytes)(rng, victim.read_bytes()))
        return copy


def _save_model(folder: pathlib.Path) -> None:
    config = config_lib.load_config(CONFIG)
    config.model.variant = "tiny"
    config.eval.batch_size = 4
    params, stats = state_dict(abstract_model(config))
    arrays = initial_arrays({**params, **stats}, seed=0)
    # Peaks of about 1, so that answers are spread over the crop.
    arrays["head.final_layer.weight"] = arrays["head.final_layer.weight"] * 300
    save_folder(folder, config, arrays)


def _save_workdir(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    stored = load_folder(folder)
    workdir.mkdir()
    shutil.copy(folder / "config.json", workdir)
    for name in ("checkpoints", "best"):
        with checkpoint.Checkpoints(workdir / name, keep=1) as checkpoints:
            checkpoints.save(7, {"params": stored.params, "stats": stored.stats}, {"progress": {}})
            checkpoints.wait()


def _write_video(path: pathlib.Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for number in range(5):
        writer.write(np.full((64, 96, 3), 40 * number, np.uint8))
    writer.release()
