"""Published figures of TPU chips."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published figures.

    Attributes:
      hbm: capacity, GiB.
      bandwidth: HBM bandwidth, GB/s.
      compute: bfloat16 peak, TFLOP/s.
      ici: bandwidth to other chips, both directions together, GB/s.
      dimensions: dimensions of the network of chips.
    """

    hbm: int
    bandwidth: int
    compute: int
    ici: int
    dimensions: int


# From cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, November 2026. The v4 page does not give its ICI: six links of
# 50 GB/s per direction (Jouppi et al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer").
CHIPS = {
    "v4": Chip(hbm=32, bandwidth=1200, compute=275, ici=600, dimensions=3),
    "v5e": Chip(hbm=16, bandwidth=819, compute=197, ici=400, dimensions=2),
    "v5p": Chip(hbm=95, bandwidth=2765, compute=459, ici=1200, dimensions=3),
    "v6e": Chip(hbm=32, bandwidth=1638, compute=918, ici=800, dimensions=2),
}
