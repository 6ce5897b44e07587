"""HRNet with a heatmap head (Sun et al., "Deep High-Resolution Representation Learning", CVPR 2019).

    stem      stage 1        stage 2         stage 3              stage 4
    /4 ── bottlenecks ──┬── branch ──╳── ── branch ──╳── ... ── branch ──╳── 1x1 conv ── heatmaps
                        └── branch ──╳── ── branch ──╳── ... ── branch ──╳
                                     └───── branch ──╳── ... ── branch ──╳
                                                     └── ... ── branch ──╳

Branch b runs at 1/2^b of the first branch's resolution with 2^b times its width; every ╳ exchanges information
between all branches. Structure, order of additions and attribute names follow the official and the MMPose
implementation, so that parameter paths match theirs (`hrnet_jax.models.names`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hrnet_jax.models.batch_norm import BatchNorm, running_averages
from hrnet_jax.models.convolution import conv_general_dilated
from hrnet_jax.models.sequential import Sequential


@dataclasses.dataclass(frozen=True)
class Variant:
    """The sizes that define an HRNet variant.

    Attributes:
      width: channels of the high-resolution branch; branch b has width * 2^b.
      stem: channels of the stem; stage 1's bottlenecks output four times as many.
      bottlenecks: bottleneck blocks in stage 1.
      modules: exchange modules in stages 2, 3 and 4.
      blocks: basic blocks per branch in each module.
    """

    width: int
    stem: int = 64
    bottlenecks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4


class _NoKeys:
    """Replaces nnx.Rngs, which take most of a model's construction time; zero initialisers need no key."""

    @staticmethod
    def params() -> None:
        return None


_ZEROS: Any = {"kernel_init": nnx.initializers.zeros_init(), "rngs": _NoKeys()}

VARIANTS = {
    "w32": Variant(width=32),
    "w48": Variant(width=48),
    # For CPUs: one module per stage, one block per branch.
    "small": Variant(width=16, stem=16, bottlenecks=1, modules=(1, 1, 1), blocks=1),
    "tiny": Variant(width=8, stem=8, bottlenecks=1, modules=(1, 1, 1), blocks=1),
}


class HRNet(nnx.Module):
    """Backbone and head: images [B, H, W, 3] -> heatmaps [B, H/4, W/4, outputs].

    Kernels are zero until `hrnet_jax.models.create_model` fills them.

    Args:
      variant: sizes of the architecture.
      outputs: heatmap channels.
      dtype: compute type of convolutions and activations; parameters, statistics and heatmaps are float32.
      group_size: samples per BatchNorm statistics group; None: the batch.
      folded: replaces convolution and BatchNorm by a convolution with bias (`hrnet_jax.models.fold`).
      scan: runs equal blocks of a branch, and equal modules of a stage, as loops over stacked arrays.
    """

    def __init__(
        self,
        variant: Variant,
        outputs: int,
        *,
        dtype: Any = jnp.float32,
        group_size: int | None = None,
        folded: bool = False,
        scan: bool = False,
    ):
        self.backbone = Backbone(variant, nn=Layers(dtype, group_size, folded, scan))
        self.head = Head(variant.width, outputs, dtype)

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch h w outputs"]:
        """Returns the heatmaps of normalised RGB images, whose height and width must be multiples of 32."""
        if images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"input height and width must be multiples of 32, got {images.shape[1:3]}")
        with running_averages(self):
            return self.head(self.backbone(images))


class Head(nnx.Module):
    """A 1x1 convolution from features to heatmaps."""

    def __init__(self, features: int, outputs: int, dtype: Any):
        self.final_layer = nnx.Conv(features, outputs, (1, 1), dtype=dtype, **_ZEROS)

    def __call__(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h w outputs"]:
        return self.final_layer(x).astype(jnp.float32)


class Backbone(nnx.Module):
    """The four stages; returns the high-resolution features [B, H/4, W/4, width]."""

    def __init__(self, variant: Variant, nn: Layers):
        stem, width = variant.stem, variant.width
        self.conv1, self.bn1 = nn.conv(3, stem, stride=2), nn.norm(stem)
        self.conv2, self.bn2 = nn.conv(stem, stem, stride=2), nn.norm(stem)
        self.layer1 = nn.sequential(
            Bottleneck(stem if i == 0 else 4 * stem, stem, nn) for i in range(variant.bottlenecks)
        )
        widths = [width * 2**b for b in range(4)]
        self.transition1 = nnx.List([ConvBN(4 * stem, widths[0], nn), Sequential([ConvBN(4 * stem, widths[1], nn, 2)])])
        self.stage2 = stage(variant.modules[0], widths[:2], variant.blocks, nn)
        self.transition2 = nnx.List([Identity(), Identity(), Sequential([ConvBN(widths[1], widths[2], nn, 2)])])
        self.stage3 = stage(variant.modules[1], widths[:3], variant.blocks, nn)
        new_branch = Sequential([ConvBN(widths[2], widths[3], nn, 2)])
        self.transition3 = nnx.List([Identity(), Identity(), Identity(), new_branch])
        self.stage4 = stage(variant.modules[2], widths, variant.blocks, nn, outputs=1)

    def __call__(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch h w features"]:
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)

        branches = [x]
        for transition, modules in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # A new branch starts from the lowest resolution so far.
            branches = [layer(branches[min(b, len(branches) - 1)]) for b, layer in enumerate(transition)]
            branches = modules(branches)
        return branches[0]


def stage(modules: int, widths: list[int], blocks: int, nn: Layers, outputs: int | None = None) -> Sequential:
    """A sequence of exchange modules; the last returns only the first `outputs` branches (None: all)."""
    last = len(widths) if outputs is None else outputs
    return nn.sequential(
        ExchangeModule(widths, blocks, nn, len(widths) if i < modules - 1 else last) for i in range(modules)
    )


class ExchangeModule(nnx.Module):
    """Parallel branches of basic blocks; each output is the sum of all branches, resized to its resolution."""

    def __init__(self, widths: list[int], blocks: int, nn: Layers, outputs: int):
        self.branches = nnx.List(nn.sequential(BasicBlock(width, nn) for _ in range(blocks)) for width in widths)
        self.fuse_layers = nnx.List(
            nnx.List(self._path(widths, i, j, nn) for j in range(len(widths))) for i in range(outputs)
        )

    @staticmethod
    def _path(widths: list[int], target: int, source: int, nn: Layers) -> nnx.Module:
        if source == target:
            return Identity()
        if source > target:
            return ConvBN(widths[source], widths[target], nn, kernel=1, relu=False, upsample=2 ** (source - target))
        steps = target - source
        return Sequential(
            ConvBN(widths[source], widths[target if k == steps - 1 else source], nn, 2, relu=k < steps - 1)
            for k in range(steps)
        )

    def __call__(self, branches: list[Array]) -> list[Array]:
        branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        return [
            jax.nn.relu(sum(path(x) for path, x in zip(paths, branches, strict=True))) for paths in self.fuse_layers
        ]


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, width: int, nn: Layers):
        self.conv1, self.bn1 = nn.conv(width, width), nn.norm(width)
        self.conv2, self.bn2 = nn.conv(width, width), nn.norm(width)

    def __call__(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h w features"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        return jax.nn.relu(x + self.bn2(self.conv2(y)))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions with a residual connection; the output has four times `width` channels."""

    def __init__(self, features: int, width: int, nn: Layers):
        self.conv1, self.bn1 = nn.conv(features, width, kernel=1), nn.norm(width)
        self.conv2, self.bn2 = nn.conv(width, width), nn.norm(width)
        self.conv3, self.bn3 = nn.conv(width, 4 * width, kernel=1), nn.norm(4 * width)
        self.downsample: nnx.Module = Identity()
        if features != 4 * width:
            self.downsample = ConvBN(features, 4 * width, nn, kernel=1, relu=False)

    def __call__(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h w2 out"]:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        return jax.nn.relu(self.downsample(x) + self.bn3(self.conv3(y)))


class ConvBN(nnx.Module):
    """Convolution and BatchNorm, optionally followed by ReLU and nearest-neighbour upsampling."""

    def __init__(
        self,
        features: int,
        out: int,
        nn: Layers,
        stride: int = 1,
        kernel: int = 3,
        relu: bool = True,
        upsample: int = 1,
    ):
        self.conv, self.bn = nn.conv(features, out, kernel, stride), nn.norm(out)
        self.relu, self.upsample = relu, upsample

    def __call__(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h2 w2 out"]:
        x = self.bn(self.conv(x))
        if self.relu:
            x = jax.nn.relu(x)
        return upsample_nearest(x, self.upsample) if self.upsample > 1 else x


class Identity(nnx.Module):
    """Returns its input."""

    def __call__(self, x: Array) -> Array:
        return x


def upsample_nearest(x: Float[Array, "batch h w features"], factor: int) -> Float[Array, "batch h2 w2 features"]:
    """Repeats every pixel factor x factor times, by a broadcast: its gradient is a sum instead of a scatter."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Builds layers with the model-wide settings."""

    dtype: Any
    group_size: int | None
    folded: bool
    scan: bool

    def conv(self, features: int, out: int, kernel: int = 3, stride: int = 1) -> nnx.Conv:
        """A convolution, padded like PyTorch's padding=kernel // 2 (not XLA's SAME)."""
        return nnx.Conv(
            features,
            out,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=self.folded,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            **_ZEROS,
        )

    def norm(self, features: int) -> nnx.Module:
        """BatchNorm over sample groups; the identity if folded into the convolution."""
        return Identity() if self.folded else BatchNorm(features, dtype=self.dtype, group_size=self.group_size)

    def sequential(self, modules: Iterable[nnx.Module]) -> Sequential:
        """Modules in sequence; equal ones as a loop if `scan`."""
        return Sequential(modules, scan=self.scan)
