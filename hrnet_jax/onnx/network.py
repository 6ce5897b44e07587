"""The folded HRNet as ONNX nodes: `hrnet_jax.models.hrnet` again, in the layout [batch, channels, height, width].

Weights are taken by their canonical names (`hrnet_jax.models.names`), which also name the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hrnet_jax.models.hrnet import Variant
from hrnet_jax.onnx.graph import Graph, Value


def hrnet(graph: Graph, weights: Mapping[str, np.ndarray], variant: Variant, images: Value) -> Value:
    """Adds backbone and head.

    Args:
      graph: gets the nodes and the weights.
      weights: all of the folded model (`hrnet_jax.models.fold`), by canonical name.
      variant: the sizes of the architecture.
      images: float32, normalised RGB [batch, 3, height, width], multiples of 32.

    Returns:
      The heatmaps [batch, outputs, height / 4, width / 4].

    Raises:
      ValueError: if a weight is left over.
    """
    network = _Network(graph, dict(weights), variant)
    heatmaps = network.conv("head.final_layer", network.backbone("backbone", images), relu=False)
    if network.weights:
        raise ValueError(f"no layer has the weights {', '.join(network.weights)}")
    return heatmaps


class _Network:
    """Adds layers and blocks of layers by their names; every weight is used once."""

    def __init__(self, graph: Graph, weights: dict[str, np.ndarray], variant: Variant):
        self.graph, self.weights, self.variant = graph, weights, variant

    def backbone(self, name: str, x: Value) -> Value:
        """The four stages; returns the high-resolution features."""
        variant = self.variant
        x = self.conv(f"{name}.conv1", x, stride=2)
        x = self.conv(f"{name}.conv2", x, stride=2)
        for i in range(variant.bottlenecks):
            x = self.bottleneck(f"{name}.layer1.{i}", x)

        branches = [self.conv(f"{name}.transition1.0.0", x), self.conv(f"{name}.transition1.1.0.0", x, stride=2)]
        branches = self.stage(f"{name}.stage2", branches, variant.modules[0])
        branches.append(self.conv(f"{name}.transition2.2.0.0", branches[-1], stride=2))
        branches = self.stage(f"{name}.stage3", branches, variant.modules[1])
        branches.append(self.conv(f"{name}.transition3.3.0.0", branches[-1], stride=2))
        return self.stage(f"{name}.stage4", branches, variant.modules[2], outputs=1)[0]

    def stage(self, name: str, branches: list[Value], modules: int, outputs: int | None = None) -> list[Value]:
        """A sequence of exchange modules; the last returns only the first `outputs` branches (None: all)."""
        for i in range(modules):
            last = i == modules - 1
            branches = self.exchange(f"{name}.{i}", branches, (outputs if last else None) or len(branches))
        return branches

    def exchange(self, name: str, branches: list[Value], outputs: int) -> list[Value]:
        """Parallel branches of basic blocks; each output is the sum of all branches, resized to its resolution."""
        for b in range(len(branches)):
            for i in range(self.variant.blocks):
                branches[b] = self.basic_block(f"{name}.branches.{b}.{i}", branches[b])
        summed = []
        for target in range(outputs):
            paths = [
                self.path(f"{name}.fuse_layers.{target}.{source}", x, source, target)
                for source, x in enumerate(branches)
            ]
            summed.append(self.relu(sum(paths[1:], paths[0])))
        return summed

    def path(self, name: str, x: Value, source: int, target: int) -> Value:
        """A branch at another's resolution: by nearest-neighbour upsampling, or by convolutions of stride 2."""
        if source > target:
            x = self.conv(f"{name}.0", x, relu=False)
            factors = np.array([1, 1, *[2 ** (source - target)] * 2], np.float32)
            nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            return self.graph.add("Resize", x, None, factors, name=name, **nearest)
        for k in range(target - source):
            x = self.conv(f"{name}.{k}.0", x, stride=2, relu=k < target - source - 1)
        return x

    def basic_block(self, name: str, x: Value) -> Value:
        """Two 3x3 convolutions with a residual connection."""
        y = self.conv(f"{name}.conv1", x)
        return self.relu(x + self.conv(f"{name}.conv2", y, relu=False))

    def bottleneck(self, name: str, x: Value) -> Value:
        """1x1, 3x3, 1x1 convolutions with a residual connection."""
        y = self.conv(f"{name}.conv1", x)
        y = self.conv(f"{name}.conv2", y)
        y = self.conv(f"{name}.conv3", y, relu=False)
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.conv(f"{name}.downsample.0", x, relu=False)
        return self.relu(x + y)

    def conv(self, name: str, x: Value, stride: int = 1, relu: bool = True) -> Value:
        """A convolution with bias, padded by half its kernel with zeros."""
        weight, bias = (self.weights.pop(f"{name}.{part}") for part in ("weight", "bias"))
        kernel = weight.shape[0]
        x = self.graph.add(
            "Conv",
            x,
            self.graph.constant(weight.transpose(3, 2, 0, 1), f"{name}.weight"),
            self.graph.constant(bias, f"{name}.bias"),
            name=name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )
        return self.relu(x) if relu else x

    def relu(self, x: Value) -> Value:
        """The values above 0, else 0."""
        return self.graph.add("Relu", x)
