"""Detectors: tiny models of the real classes, saved to the disk; one's own; and what the predictor makes of them."""

import ast
import json
import re
import shutil
import sys

import cv2
import numpy as np
import pytest

from data_pipelines.errors import InputError, extra
from data_pipelines.keypoints import COCO
from hrnet_jax.inference import detectors
from hrnet_jax.inference.detectors import create, detect, in_batches
from hrnet_jax.inference.people import VideoOptions
from hrnet_jax.inference.predictor import load
from hrnet_jax.inference.sources import Source
from hrnet_jax.predict import Look, predict
from tests.helpers import image, mistake, records
from tests.test_layout import layout

LIBRARIES = {"torch", "transformers", "onnx", "onnxruntime"}


@pytest.fixture(scope="module")
def images():
    return [image(90, 120, 0), image(60, 44, 1), image(90, 120, 2), image(200, 40, 3)]


# Models of Hugging Face transformers


@pytest.fixture(scope="module", params=["RT-DETRv2", "YOLOS"])
def model(request, tmp_path_factory):
    """The folder of an untrained network, and what it sees of one image: labels [n], scores [n], boxes cxcywh [n,4]."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {"id2label": {0: "cat", 1: "Person"}, "label2id": {"cat": 0, "Person": 1}}
    if request.param == "RT-DETRv2":
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8] * 4,
            depths=[1] * 4,
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        config = transformers.RTDetrV2Config(
            backbone_config=backbone,
            d_model=16,
            num_queries=20,
            num_denoising=0,
            encoder_hidden_dim=16,
            encoder_in_channels=[8] * 3,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_in_channels=[16] * 3,
            decoder_ffn_dim=16,
            decoder_layers=2,
            decoder_attention_heads=2,
            **names,
        )
        network = transformers.RTDetrV2ForObjectDetection(config)
        processor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
    else:
        config = transformers.YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[64, 64],
            patch_size=16,
            num_detection_tokens=20,
            initializer_range=1.0,
            **names,
        )
        network = transformers.YolosForObjectDetection(config)
        torch.nn.init.normal_(network.vit.embeddings.detection_tokens)  # which are all alike
        processor = transformers.YolosImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96})
    folder = tmp_path_factory.mktemp("detector")
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)

    def seen(pixels):
        with torch.inference_mode():
            answer = network(**processor(images=pixels, return_tensors="pt", input_data_format="channels_last"))
        logits, boxes = answer.logits[0], answer.pred_boxes[0]
        if request.param == "YOLOS":
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)
            return labels.numpy(), scores.numpy(), boxes.numpy()
        scores, places = logits.sigmoid().flatten().topk(20)
        return (places % 2).numpy(), scores.numpy(), boxes[places // 2].numpy()

    return folder, seen


def test_people_are_found_by_the_name_of_their_class(model, images):
    folder, seen = model
    counts = {}
    for kind, label in (("person", 1), ("cat", 0)):
        found = create(folder, threshold=-1.0, kind=kind)(images)
        counts[kind] = sum(len(scores) for _, scores in found)
        for pixels, (boxes, scores) in zip(images, found, strict=True):
            labels, expected, centred = seen(pixels)
            ours = labels == label
            height, width = pixels.shape[:2]
            xywh = np.column_stack([centred[:, :2] - centred[:, 2:] / 2, centred[:, 2:]]) * ([width, height] * 2)
            np.testing.assert_allclose(scores, expected[ours], atol=1e-5)
            np.testing.assert_allclose(boxes, xywh[ours], atol=1e-2)
    assert min(counts.values()) > 0
    half = float(np.median([score for _, scores in create(folder, threshold=-1.0)(images) for score in scores]))
    assert 0 < sum(len(scores) for _, scores in create(folder, threshold=half)(images)) < counts["person"]
    assert create(folder)([]) == []


def test_classes_and_folders_that_are_none_get_one_line(model, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has no class 'horse', but cat; Person"):
        create(model[0], kind="horse")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not an object-detection model of transformers") as told:
        create(tmp_path)
    assert "\n" not in str(told.value)
    shutil.copytree(model[0], tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut: not an object-detection model"):
        create(tmp_path / "cut")


def test_without_a_network_it_is_told_what_to_fetch(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"run `hf download {detectors.DEFAULT} --local-dir FOLDER`") as told:
        create("default")
    assert "\n" not in str(told.value)


# ONNX files


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """Makes a file with three fixed boxes of classes 0, 1, 0; their scores are the means of the input's channels."""
    onnx, helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")

    def make(batch="batch", size=(64, 96), name="end2end.onnx", outputs=("dets", "labels")):
        boxes = np.array([[[9.6, 5.8, 48, 29], [0, 0, 20, 20], [48, 29, 96, 58]]], np.float32)
        constants = {
            "boxes": boxes,
            "classes": np.array([[0, 1, 0]], np.int64),
            "axes": np.array([2, 3], np.int64),
            "last": np.array([2], np.int64),
            "scale": np.array(1 / 255, np.float32),
        }
        nodes = [
            helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["scores"]),
            helper.make_node("Unsqueeze", ["scores", "last"], ["column"]),
            helper.make_node("Sub", ["column", "column"], ["zero"]),
            helper.make_node("Add", ["zero", "boxes"], ["tables"]),
            helper.make_node("Concat", ["tables", "column"], [outputs[0]], axis=2),
            helper.make_node("Sub", ["scores", "scores"], ["nothing"]),
            helper.make_node("Cast", ["nothing"], ["none"], to=onnx.TensorProto.INT64),
            helper.make_node("Add", ["none", "classes"], [outputs[1]]),
        ]
        graph = helper.make_graph(
            nodes,
            "detector",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, 3, *size])],
            [
                helper.make_tensor_value_info(outputs[0], onnx.TensorProto.FLOAT, [batch, 3, 5]),
                helper.make_tensor_value_info(outputs[1], onnx.TensorProto.INT64, [batch, 3]),
            ],
            [onnx.numpy_helper.from_array(array, key) for key, array in constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path_factory.mktemp("onnx") / name
        onnx.save(made, path)
        return path

    return make


def plain(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_an_onnx_file_is_given_the_pixels_of_its_family(onnx_file, batch):
    path = onnx_file(batch)
    pictures = [plain(60, 100, (255, 20, 51)), plain(128, 64, (0, 0, 0)), plain(64, 96, (0, 0, 255))]
    found = create(f"yolox:{path}", threshold=0.0)(pictures)
    # The first is resized by 0.96 to 58x96 of 64x96 pixels, the second by 0.5 to 64x32; grey 114 fills the rest.
    share = 58 / 64
    expected = [[share * 51 + (1 - share) * 114, share * 255 + (1 - share) * 114], [114 * 2 / 3] * 2, [255, 0]]
    for (boxes, scores), means in zip(found, expected, strict=True):  # blue, then red: BGR
        np.testing.assert_allclose(scores, np.array(means) / 255, rtol=1e-4)
        assert boxes.shape == (2, 4)
    np.testing.assert_allclose(found[0][0], [[10, 6, 40, 24], [50, 30, 50, 30]], rtol=1e-5)
    np.testing.assert_allclose(found[1][0][0], [19.2, 11.6, 76.8, 46.4], rtol=1e-5)
    ((boxes, scores),) = create(f"rtmdet:{path}", threshold=0.0)(pictures[2:])
    np.testing.assert_allclose(scores, [(255 - 103.53) / 57.375 / 255], rtol=1e-4)  # red is below 0
    ((boxes, scores),) = create(f"yolox:{path}", threshold=0.0, kind="1")(pictures[:1])
    np.testing.assert_allclose(scores, [(share * 20 + (1 - share) * 114) / 255], rtol=1e-4)
    assert len(create(f"yolox:{path}", threshold=0.3)(pictures[:1])[0][1]) == 1


def test_an_onnx_file_of_any_size_is_given_640_pixels(onnx_file):
    path = onnx_file(size=("height", "width"))
    ((_, scores),) = create(f"yolox:{path}", threshold=0.0)([plain(32, 64, (0, 0, 0))])
    np.testing.assert_allclose(scores, [57 / 255] * 2, rtol=1e-4)  # half of it grey


def test_onnx_files_that_are_none_get_one_line(onnx_file, tmp_path):
    path = onnx_file()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:40])
    for name, kind, message in (
        (path, "person", f"say whether its input is RTMDet's or YOLOX's: rtmdet:{path} or yolox:{path}"),
        (f"yolox:{path}", "horse", "has no names of classes; give the number of 'horse'"),
        (f"yolox:{broken}", "person", "broken.onnx: not an ONNX file with one input"),
        (f"yolox:{tmp_path}/none.onnx", "person", "none.onnx: no such file"),
        (f"yolox:{onnx_file(outputs=('boxes_', 'labels'))}", "person", "has no outputs `dets`"),
    ):
        with pytest.raises(InputError, match=message) as told:
            create(name, kind=kind)
        assert "\n" not in str(told.value)


# Without the extras


@pytest.mark.parametrize(
    ("name", "library", "part"), [("default", "transformers", "detect"), ("yolox:a.onnx", "onnxruntime", "onnx")]
)
def test_a_missing_extra_is_named(monkeypatch, name, library, part):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"needs .*{library}.*: {re.escape(extra(part))}"):
        create(name)
    with pytest.raises(InputError, match=re.escape(extra(part))):
        load("runs/none", detector=name)


def test_nothing_else_needs_them():
    """Only the modules of the ONNX export import such libraries when imported, and training imports none of them."""
    for module, path in layout.MODULES.items():
        if module.startswith("hrnet_jax.onnx"):
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not LIBRARIES & {name.partition(".")[0] for name in names}, path
    needed, todo = set(), ["hrnet_jax.train", "hrnet_jax.evaluate", "hrnet_jax.export"]
    while todo:
        needed.add(name := todo.pop())
        todo += layout.imported(name) - needed
    assert len(needed) > 30
    assert not any(name.startswith("hrnet_jax.onnx") for name in needed)
    assert not needed & {f"hrnet_jax.inference.{name}" for name in ("detectors", "tracks", "smoothing", "people")}


# What is made of a detector


def bright(images):
    """A detector of one's own: the bounding box of what is white, with a score of 0.8."""
    found = [np.argwhere(pixels.min(axis=-1) > 250)[:, ::-1] for pixels in images]
    return [([[*p.min(0), *np.ptp(p, axis=0) + 1]], [0.8]) if len(p) else ([], []) for p in found]


def spots(*boxes):
    pictures = []
    for box in boxes:
        picture = image(70, 90) // 2
        if box:
            x, y, width, height = box
            picture[y : y + height, x : x + width] = 255
        pictures.append(picture)
    return pictures


def test_the_predictor_finds_people_by_itself(predictor, monkeypatch):
    asked = []

    def detector(images):
        asked.append(len(images))
        return bright(images)

    monkeypatch.setattr(predictor, "detector", detector)
    boxes = [[20, 10, 30, 50], None, [5, 5, 40, 40]]
    pictures = spots(*boxes) * 4
    given = [None, None, [[1, 2, 30, 40]]] * 4
    found = predictor(pictures, given)
    assert [[(p["bbox"].tolist(), p["box_score"]) for p in people] for people in found] == [
        [([20, 10, 30, 50], 0.8)],
        [],
        [([1, 2, 30, 40], 1.0)],
    ] * 4
    assert sum(asked) == 8
    assert max(asked) > 1
    monkeypatch.setattr(predictor, "detector", None)
    ((expected,),) = predictor(pictures[0], [[20, 10, 30, 50]])
    np.testing.assert_allclose(found[0][0]["scores"], expected["scores"], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(predictor, "detector", detector)
    ((person,),) = predictor(pictures[0])  # one image, no list
    assert person["bbox"].tolist() == [20, 10, 30, 50]
    (record,) = predictor.to_coco([[person]])
    assert record["score"] == pytest.approx(0.8 * person["scores"].mean())


def test_batches_keep_the_order_and_skip_what_has_boxes():
    sizes = []

    def detector(images):
        sizes.append(len(images))
        return [([[0, 0, 5, 5]], [pixels[0, 0, 0] / 255]) for pixels in images]

    items = list(range(20))
    found = list(in_batches(detector, iter(items), lambda n: None if n % 5 == 0 else plain(9, 9, n)))
    assert [item for item, _, _ in found] == items
    assert [scores and round(scores[0] * 255) for _, _, scores in found] == [n if n % 5 else None for n in items]
    assert sum(sizes) == 16
    assert max(sizes) <= detectors.BATCH
    assert list(in_batches(detector, [], lambda n: None)) == []
    sizes.clear()
    list(in_batches(detector, range(5), lambda n: np.broadcast_to(np.uint8(n), (3000, 4000, 3))))
    assert sizes == [3, 2]  # of 12 megapixels each


def test_boxes_outside_the_image_are_dropped():
    boxes = [[0, 0, 5, 5], [30, 5, 5, 5], [-9, 0, 8, 8], [-5, -5, 10, 10], [5, 5, 0, 4], [5, 5, 4, -1]]
    ((kept, scores),) = detect(lambda images: [(boxes, np.arange(6.0))], [plain(20, 30, 0)])
    assert kept.tolist() == [boxes[0], boxes[3]]
    assert scores == [0, 3]


@pytest.mark.parametrize(
    "answer",
    [None, [], [1], [([[1, 2, 3]], [1])], [([[1, 2, 3, 4]], [1, 2])], [([[1, 2, 3, np.nan]], [1])], [("a", "b")]],
)
def test_detectors_that_return_something_else_get_one_line(predictor, monkeypatch, answer):
    monkeypatch.setattr(predictor, "detector", lambda images: answer)
    with pytest.raises(InputError, match="detector: ") as told:
        predictor(image())
    assert "\n" not in str(told.value)


def test_a_folder_is_predicted_with_a_detector(predictor, monkeypatch, tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    boxes = [[20, 10, 30, 50], None, [5, 5, 40, 40]]
    for number, picture in enumerate(spots(*boxes)):
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), picture)
    (tmp_path / "photos/1b.png").write_bytes(b"none")
    monkeypatch.setattr(predictor, "detector", bright)
    source = Source.find(tmp_path / "photos", tmp_path, 50.0)
    assert predict(predictor, source, tmp_path, None, Look(0.1, COCO), VideoOptions(detect_every=2)) == (3, 2, 1, 1)
    found = records(tmp_path)
    assert [record["file"] for record in found] == ["0.png", "1.png", "2.png"]
    assert [[p["bbox"] for p in record["people"]] for record in found] == [[boxes[0]], [], [boxes[2]]]
    assert {person["box_score"] for record in found for person in record["people"]} == {0.8}
    assert not any("track_id" in person for record in found for person in record["people"])
    assert "1b.png" in caplog.text
    assert len(list((tmp_path / "drawn").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "default", "--boxes", "b.json"], "--boxes and --detector: only one of them"),
        (["--detect_every", "0"], "--detect_every=0: must be 1 or more"),
        (["--detector", "end2end.onnx"], "end2end.onnx: say whether its input is RTMDet's or YOLOX's"),
    ],
)
def test_options_that_make_no_sense_get_one_line(folder, tmp_path, arguments, message):
    cv2.imwrite(str(tmp_path / "a.png"), image())
    command = ("--checkpoint", folder, "--images", tmp_path / "a.png", "--output", tmp_path / "o")
    assert message in mistake("hrnet_jax.predict", *command, *arguments)


def test_a_real_photograph_with_a_stand_in_detector(predictor, shared, monkeypatch, tmp_path):
    """Detector, tracker and predictor together, on a photograph that moves by 4 pixels a frame."""
    annotations = json.loads((shared / "data/coco_val4/annotations/person_keypoints_val2017.json").read_text())
    path = shared / "data/coco_val4/val2017/000000000785.jpg"
    box = next(a["bbox"] for a in annotations["annotations"] if a["image_id"] == 785 and not a["iscrowd"])
    photograph, clip = cv2.imread(str(path)), str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(clip, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25.0, photograph.shape[1::-1])
    moved = [4 * number for number in range(6)]
    for pixels in moved:
        writer.write(np.roll(photograph, pixels, axis=1))
    writer.release()
    frames = iter(moved)
    monkeypatch.setattr(
        predictor, "detector", lambda images: [([[box[0] + next(frames), *box[1:]]], [0.9]) for _ in images]
    )
    source = Source.find(clip, tmp_path, 50.0)
    assert predict(predictor, source, tmp_path, None, Look(0.1, COCO)) == (6, 6, 0, 0)
    found = [record["people"] for record in records(tmp_path)]
    assert [[person["track_id"] for person in people] for people in found] == [[1]] * 6
    assert [people[0]["bbox"][0] - found[0][0]["bbox"][0] for people in found] == pytest.approx(moved)
