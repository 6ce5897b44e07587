"""The synthetic data set: drawn people with exact annotations, in the formats of COCO 2017 and AI Challenger.

`python -m data_pipelines.synthetic --root DIR` writes it. Other code treats it like real data: pass `DIR` to any
command in place of the real data set.
"""

from data_pipelines.synthetic.stats import describe
from data_pipelines.synthetic.write import write_dataset

__all__ = ["describe", "write_dataset"]
