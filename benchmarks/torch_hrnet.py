# ruff: noqa: D102 (the modules' docstrings say what calling them does)
"""HRNet, its training step and its inference in plain PyTorch, as fast as PyTorch's own means make them.

The other side of `versus_torch.py` and `cpu_inference.py`. Names of parameters are MMPose's, so that
`python -m hrnet_jax.convert --to mmpose` writes what `HRNet.load_state_dict` takes. timm's `hrnet_w32` with
`features_only` computes the same high-resolution features, and three outputs of the last stage besides that nobody
needs here; this definition leaves them out, which is to PyTorch's advantage.

Images go in as uint8 NHWC, as in the trainer: normalising, targets and the flip test are part of what is compiled.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# How the model is run; each is a setting of its own in the comparison.
MODES = ("eager", "compile", "max-autotune")


class HRNet(nn.Module):
    """Images [B,3,H,W] -> heatmaps [B,outputs,H/4,W/4].

    Args:
      variant: `width`, `stem`, `bottlenecks`, `modules` and `blocks`, as `hrnet_jax.models.Variant` has them.
      outputs: heatmaps.
    """

    def __init__(self, variant: Mapping[str, Any], outputs: int):
        super().__init__()
        self.backbone = Backbone(**variant)
        self.head = nn.ModuleDict({"final_layer": nn.Conv2d(variant["width"], outputs, 1)})

    def forward(self, images: Tensor) -> Tensor:
        return self.head["final_layer"](self.backbone(images))


class Backbone(nn.Module):
    """Returns the high-resolution branch's features."""

    def __init__(self, width: int, stem: int, bottlenecks: int, modules: Sequence[int], blocks: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, stem, 2), nn.BatchNorm2d(stem)
        self.conv2, self.bn2 = conv3x3(stem, stem, 2), nn.BatchNorm2d(stem)
        self.layer1 = nn.Sequential(*(Bottleneck(4 * stem if i else stem, stem) for i in range(bottlenecks)))
        widths = [width * 2**b for b in range(4)]
        first = [conv_bn(4 * stem, widths[0]), nn.Sequential(conv_bn(4 * stem, widths[1], 2))]
        self.transition1 = nn.ModuleList(first)
        for number, count in enumerate(modules, start=2):
            if number > 2:
                new = nn.Sequential(conv_bn(widths[number - 2], widths[number - 1], 2))
                setattr(self, f"transition{number - 1}", nn.ModuleList([*(nn.Identity(),) * (number - 1), new]))
            whole = [Exchange(widths[:number], blocks, number) for _ in range(count)]
            if number == 4:
                whole[-1] = Exchange(widths, blocks, outputs=1)
            setattr(self, f"stage{number}", nn.Sequential(*whole))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        for number in (2, 3, 4):
            transition = getattr(self, f"transition{number - 1}")
            branches = [step(branches[min(b, len(branches) - 1)]) for b, step in enumerate(transition)]
            branches = getattr(self, f"stage{number}")(branches)
        return branches[0]


class Exchange(nn.Module):
    """Branches of basic blocks, then each output sums all branches at its resolution."""

    def __init__(self, widths: Sequence[int], blocks: int, outputs: int):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Basic(w) for _ in range(blocks))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, i, j) for j in range(len(widths))) for i in range(outputs)
        )

    @staticmethod
    def _path(widths: Sequence[int], target: int, source: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
            return nn.Sequential(
                nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]), up
            )
        steps = target - source
        return nn.Sequential(
            *(
                conv_bn(widths[source], widths[target if k == steps - 1 else source], 2, relu=k < steps - 1)
                for k in range(steps)
            )
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        return [
            F.relu(sum(path(x) for path, x in zip(paths, branches, strict=True)))  # type: ignore[arg-type]
            for paths in self.fuse_layers
        ]


class Basic(nn.Module):
    """Two 3x3 convolutions around a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a residual."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(features, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if features != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(features, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(self.downsample(x) + y)


def conv3x3(features: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(features, out, 3, stride, padding=1, bias=False)


def conv_bn(features: int, out: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    return nn.Sequential(
        conv3x3(features, out, stride), nn.BatchNorm2d(out), *([nn.ReLU(inplace=True)] if relu else [])
    )


def fold(model: nn.Module) -> nn.Module:
    """Multiplies every BatchNorm into the convolution before it, in place; for inference."""
    model.eval()
    for module in model.modules():
        children = dict(module.named_children())
        for before, after in itertools.pairwise(children):
            if isinstance(children[before], nn.Conv2d) and isinstance(children[after], nn.BatchNorm2d):
                fused = nn.utils.fusion.fuse_conv_bn_eval(children[before], children[after])
                setattr(module, before, fused)
                setattr(module, after, nn.Identity())
    return model


def compiled(function: Callable, mode: str) -> Callable:
    """A function as the mode runs it."""
    if mode == "eager":
        return function
    return torch.compile(function, mode=None if mode == "compile" else mode, fullgraph=True, dynamic=False)


def make_train_step(model: HRNet, device: str, *, sigma: float, dtype: str, mode: str) -> Callable[..., Tensor]:
    """f(images uint8 [B,H,W,3], keypoints [B,K,2], visible [B,K]) -> the loss, with the weights updated by Adam."""
    model.to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, fused=True)

    def loss_of(images: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        height, width = images.shape[1] // 4, images.shape[2] // 4
        targets, weights = encode(keypoints, visible, (height, width), sigma)
        with autocast(device, dtype):
            heatmaps = model(normalise(images))
        return (weights * (heatmaps.float() - targets).square().mean((2, 3))).mean()

    loss_of = compiled(loss_of, mode)

    def step(images: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, keypoints, visible)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_predict_step(
    model: HRNet, device: str, *, flip_indices: Sequence[int], dtype: str, mode: str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """f(images uint8 [B,H,W,3]) -> keypoints [B,K,2] in crop pixels by the flip test, scores [B,K], on the device.

    BatchNorm is folded into the convolutions and weights are of the compute type.
    """
    fold(model).to(device=device, dtype=getattr(torch, dtype), memory_format=torch.channels_last)
    order = torch.tensor(list(flip_indices), device=device)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        images = normalise(images).to(getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)
        heatmaps = model(torch.cat([images, images.flip(3)])).float()
        straight, mirrored = heatmaps.chunk(2)
        mirrored = mirrored.flip(3)[:, order]
        mirrored = torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=3)
        return decode((straight + mirrored) * 0.5)

    forward = compiled(forward, mode)

    def step(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return forward(images)

    return step


def normalise(images: Tensor) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] with ImageNet's statistics, channels last in memory."""
    mean, std = (torch.tensor(values, device=images.device) for values in (MEAN, STD))
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def encode(keypoints: Tensor, visible: Tensor, size: tuple[int, int], sigma: float) -> tuple[Tensor, Tensor]:
    """The MSRA codec's targets [B,K,h,w] and weights [B,K], rendered on the device."""
    cell = torch.trunc(keypoints / 4 + 0.5)

    def along(axis: int, length: int) -> Tensor:
        distance = torch.arange(length, device=cell.device) - cell[..., axis, None]
        return torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() <= 3 * sigma)

    extent = torch.tensor([size[1], size[0]], device=cell.device)
    marked = ((cell - 3 * sigma < extent) & (cell + 3 * sigma + 1 >= 0)).all(-1)
    shown = ((visible >= 0.5) & marked)[..., None, None]
    targets = along(1, size[0])[..., :, None] * along(0, size[1])[..., None, :] * shown
    return targets, torch.where((visible >= 0.5) & ~marked, 0.0, visible)


def decode(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Heatmaps [B,K,h,w] -> keypoints [B,K,2] in crop pixels and scores [B,K], on the heatmaps' device.

    The peak's cell and a quarter of a cell towards the higher neighbour, under MMPose 1.3.2's conditions.
    """
    height, width = heatmaps.shape[2:]
    flat = heatmaps.flatten(2)
    score, index = flat.max(2)
    x, y = index % width, index // width

    def at(dx: int, dy: int) -> Tensor:
        cell = (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)
        return flat.gather(2, cell[..., None])[..., 0]

    move_x = torch.sign(at(1, 0) - at(-1, 0)) * ((x > 1) & (x < width - 1) & (y > 0))
    move_y = torch.sign(at(0, 1) - at(0, -1)) * ((y > 1) & (y < height - 1) & (x > 0))
    cell = torch.stack([x + 0.25 * move_x, y + 0.25 * move_y], dim=-1)
    return 4 * torch.where(score[..., None] > 0, cell, -1.0), score


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager:
    """bfloat16 by autocast, or nothing."""
    if dtype != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
