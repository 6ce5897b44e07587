"""From keypoints to COCO results and average precision, on the host."""
