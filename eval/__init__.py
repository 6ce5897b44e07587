"""Turns keypoints into COCO results and average precision, on the host."""
