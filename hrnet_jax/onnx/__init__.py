"""Trained models as ONNX files, from crops to keypoints (extra `onnx`).

    model = pose_model(config, weights)     # weights: of hrnet_jax.models.fold
    onnx.save(model, "model.onnx")

Exporters from JAX programs do not know a batch of any size with these decoders; here each layer and each step of
decoding becomes a few nodes of their own, and the weights are inside the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from ml_collections import ConfigDict

from data_pipelines.keypoints import keypoint_set
from hrnet_jax.codecs import create_codec
from hrnet_jax.inference.steps import MEAN, STD
from hrnet_jax.models.hrnet import VARIANTS
from hrnet_jax.onnx.decode import decode, flip_back
from hrnet_jax.onnx.graph import IR_VERSION, OPSET, Graph
from hrnet_jax.onnx.network import hrnet

__all__ = ["IR_VERSION", "OPSET", "pose_model"]


def pose_model(config: ConfigDict, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model that `hrnet_jax.inference.steps.make_eval_step` computes, in float32.

    Its input is `crops`, uint8 RGB [batch, height, width, 3] for any batch; its outputs are `keypoints` [batch, K, 2],
    (x, y) in crop pixels, and `scores` [batch, K]. With `config.eval.flip_test` it computes the flip test.

    Args:
      config: of the model.
      weights: of the folded model by canonical name, float32.

    Raises:
      InputError: if the codec has no decoder here.
    """
    codec, joints = create_codec(config.codec), keypoint_set(config.keypoints)
    graph = Graph()
    crops = graph.input("crops", np.uint8, ("batch", *codec.input_size, 3))
    images = graph.add("Transpose", crops.astype(np.float32), perm=[0, 3, 1, 2])
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    images = (images - mean) / std
    if config.eval.flip_test:
        backwards = np.arange(codec.input_size[1])[::-1]
        images = graph.add("Concat", images, graph.add("Gather", images, backwards, axis=3), axis=0)
    heatmaps = hrnet(graph, weights, VARIANTS[config.model.variant], images)
    if config.eval.flip_test:
        straight, mirrored = graph.split("Split", heatmaps, names=["straight", "mirrored"], axis=0)
        heatmaps = (straight + flip_back(graph, codec, mirrored, joints.flip_indices)) * 0.5
    keypoints, scores = decode(graph, codec, heatmaps)
    graph.output("keypoints", keypoints, ("batch", len(joints), 2))
    graph.output("scores", scores, ("batch", len(joints)))
    return graph.model(f"hrnet_{config.model.variant}")
