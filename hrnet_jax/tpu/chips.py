"""Published figures of TPU chips and GPUs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published figures.

    Attributes:
      hbm: capacity, GiB.
      bandwidth: HBM bandwidth, GB/s.
      compute: bfloat16 peak, TFLOP/s.
      ici: bandwidth to other chips (ICI or NVLink), both directions together, GB/s.
      dimensions: dimensions of the network of chips; 0 for GPUs.
      clock: of a TPU's core, GHz, as its peak, the number and the size of its matrix units give it; 0: not known.
    """

    hbm: int
    bandwidth: int
    compute: int
    ici: int
    dimensions: int
    clock: float = 0


# From cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, November 2026. The v4 page does not give its ICI: six links of
# 50 GB/s per direction (Jouppi et al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer").
CHIPS = {
    "v4": Chip(hbm=32, bandwidth=1200, compute=275, ici=600, dimensions=3, clock=1.05),
    "v5e": Chip(hbm=16, bandwidth=819, compute=197, ici=400, dimensions=2, clock=1.5),
    "v5p": Chip(hbm=95, bandwidth=2765, compute=459, ici=1200, dimensions=3, clock=1.75),
    "v6e": Chip(hbm=32, bandwidth=1638, compute=918, ici=800, dimensions=2),
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as its compiler needs it.

    Attributes:
      chip: its published figures.
      name: as the driver gives it.
      capability: CUDA's compute capability.
      cores: streaming multiprocessors.
      float_units: float32 units per core.
      clock: GHz.
      l2: bytes of the L2 cache.
      shared: bytes of shared memory per core; a block can have 1,024 less.
    """

    chip: Chip
    name: str
    capability: tuple[int, int]
    cores: int
    float_units: int
    clock: float
    l2: int
    shared: int


# From NVIDIA's data sheets and white papers of the A100, H100 and H200 (SXM), and the CUDA programming guide.
_H100 = Gpu(Chip(79, 3352, 989, 900, 0), "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 50 * 2**20, 228 * 2**10)
GPUS = {
    "a100": Gpu(Chip(79, 2039, 312, 600, 0), "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 40 * 2**20, 164 * 2**10),
    "h100": _H100,
    "h200": dataclasses.replace(_H100, chip=Chip(141, 4800, 989, 900, 0), name="NVIDIA H200"),
}
