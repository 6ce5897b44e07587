"""From images and boxes to keypoints: compiled steps, the predictor, what it reads."""
