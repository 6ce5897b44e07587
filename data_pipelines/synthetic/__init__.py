"""The embedded data set: drawn people with exact annotations, in the files of COCO 2017 and AI Challenger.

`python -m data_pipelines.synthetic --root DIR` writes it. Nothing else knows that it is synthetic: point any command
at `DIR` where it would be pointed at the real data.
"""

from data_pipelines.synthetic.stats import describe, mean_pose, mean_pose_predictions
from data_pipelines.synthetic.write import write_dataset

__all__ = ["describe", "mean_pose", "mean_pose_predictions", "write_dataset"]
