"""A model trained on twelve real people: it gets them right, and everything that should matter matters."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from data_pipelines.keypoints import COCO
from eval.coco import evaluate_results
from hrnet_jax.codecs import Udp
from hrnet_jax.inference.drawings import TILE
from hrnet_jax.inference.evaluator import Evaluator
from hrnet_jax.inference.steps import make_eval_step
from hrnet_jax.mesh import create_mesh
from hrnet_jax.models import FunctionalModel, abstract_model, create_model, state_dict
from hrnet_jax.weights import checkpoint


@pytest.fixture(scope="module")
def trained(overfitted):
    return checkpoint.load(overfitted)


@pytest.fixture(scope="module")
def evaluator(trained):
    return Evaluator(trained.config, create_mesh())


def test_it_knows_its_people(overfitted, shared):
    metrics = json.loads((overfitted / "metrics.json").read_text())
    assert metrics["AP"] >= 0.95
    assert metrics["codec_AP"] >= 0.99
    assert metrics["instances"] == 12
    total = metrics["distances"]["keypoints"]["all"]
    assert metrics["distances"]["missed"] == 0
    assert total["PCK@0.2"] > 0.9
    assert 0 < total["error"] < total["RMSE"]
    # The results file says the same to anybody's pycocotools.
    again = evaluate_results(
        shared / "data/coco_val4/annotations/person_keypoints_val2017.json", overfitted / "keypoints.json"
    )
    assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-6)


def test_the_best_median_and_worst_predictions_are_drawn(overfitted):
    """Three rows of three people; here predictions lie on their annotations, so both halves of a tile show the same."""
    sheet = cv2.imread(str(overfitted / "predictions.png")).astype(int)
    width, height = 2 * TILE[1] + 4, TILE[0]
    assert sheet.shape == (3 * (height + 56), 3 * width + 24, 3)
    for row, column in np.ndindex(3, 3):
        top, left = row * (height + 56) + 22, column * (width + 12)
        tile = sheet[top : top + height, left : left + width]
        ours, truth = tile[:, : TILE[1]], tile[:, TILE[1] + 4 :]
        assert np.ptp(tile, axis=(0, 1)).min() > 100
        assert 0.0005 < (np.abs(ours - truth).sum(-1) > 60).mean() < 0.15
        caption = sheet[top + height : top + height + 22, left : left + width]
        assert (caption.sum(-1) < 300).any()


def test_the_curves_are_drawn(overfitted):
    picture = cv2.imread(str(overfitted / "curves.png")).astype(int)
    coloured = np.ptp(picture, axis=-1) > 60
    assert coloured[:, :500].any(0).sum() > 300  # losses: lines from the left to the right
    assert coloured[:, 500:].any()  # an evaluation


def test_evaluation_repeats_from_the_checkpoint(trained, evaluator, overfitted):
    metrics, _ = evaluator(trained.params, trained.stats)
    assert metrics["AP"] == json.loads((overfitted / "metrics.json").read_text())["AP"]


def test_untrained_weights_know_nobody(trained, evaluator):
    metrics, _ = evaluator(*state_dict(create_model(trained.config, seed=1)))
    assert metrics["AP"] < 0.05


def test_swapped_left_and_right_lower_the_ap(trained, evaluator):
    params = dict(trained.params)
    for name in ("head.final_layer.weight", "head.final_layer.bias"):
        params[name] = params[name][..., COCO.flip_indices]
    assert evaluator(params, trained.stats)[0]["AP"] < 0.6


def test_bgr_for_rgb_lowers_the_ap(trained, evaluator):
    params = {**trained.params, "backbone.conv1.weight": trained.params["backbone.conv1.weight"][:, :, ::-1]}
    assert evaluator(params, trained.stats)[0]["AP"] < 0.9


def test_a_flip_moved_by_one_cell_lowers_the_ap(trained, evaluator):
    class Shifted(Udp):
        shift = True  # UDP's maps fit without

    shifted = Evaluator(trained.config, create_mesh())
    codec = Shifted(**dataclasses.asdict(shifted.codec))
    network = FunctionalModel.of(abstract_model(trained.config, folded=True))
    shifted.step = make_eval_step(network, codec, COCO.flip_indices, flip_test=True)
    metrics, _ = shifted(trained.params, trained.stats)
    right, _ = evaluator(trained.params, trained.stats)
    assert metrics["AP"] < right["AP"] - 0.02


def test_ceiling_and_padding_do_not_touch_the_predictions(trained, evaluator):
    """Eight boxes a batch leave four padding rows; the keypoints stay the same."""
    config = trained.config.copy_and_resolve_references()
    config.eval.batch_size = 8
    padded = Evaluator(config, create_mesh())
    _, ours = padded(trained.params, trained.stats)
    _, theirs = evaluator(trained.params, trained.stats)
    a, b = np.argsort(ours.ids), np.argsort(theirs.ids)
    np.testing.assert_array_equal(ours.ids[a], theirs.ids[b])
    np.testing.assert_allclose(ours.keypoints[a], theirs.keypoints[b], atol=1e-2)
    np.testing.assert_allclose(ours.keypoint_scores[a], theirs.keypoint_scores[b], atol=1e-4)


def test_keypoints_come_back_to_image_pixels(evaluator):
    """The codec's best answer to the true keypoints lies on them, in the image's pixels."""
    for batch in evaluator.data:
        keypoints, _ = evaluator._best_possible(batch)
        predictions = evaluator._predictions(batch, keypoints, np.ones(keypoints.shape[:2]))
        for points, row in zip(predictions.keypoints, np.flatnonzero(batch["valid"]), strict=True):
            instance = np.flatnonzero(evaluator.data.instances.instance_id == batch["instance_id"][row])[0]
            truth = evaluator.data.instances.points(int(instance))
            inside = (batch["keypoints"][row] > 8).all(-1) & (batch["keypoints"][row] < [87, 119]).all(-1)
            shown = np.asarray((truth[:, 2] > 0) & inside)
            zoom = batch["scale"][row][0] / 96
            np.testing.assert_allclose(points[shown], truth[shown, :2], atol=1.5 * zoom)
