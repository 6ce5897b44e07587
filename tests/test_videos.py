"""Videos as cameras write them, and the people in them from frame to frame."""

import dataclasses
import re
import shutil
import struct

import cv2
import numpy as np
import pytest
from etils import epath

from benchmarks import tracking
from data_pipelines.errors import InputError
from data_pipelines.keypoints import COCO
from hrnet_jax.inference.boxes import read_boxes
from hrnet_jax.inference.people import VideoOptions
from hrnet_jax.inference.picture_writer import Pictures
from hrnet_jax.inference.smoothing import Smoother
from hrnet_jax.inference.sources import Source
from hrnet_jax.inference.tracks import Tracker
from hrnet_jax.predict import Look, predict
from tests.helpers import moving_square, records, write

LOOK = Look(threshold=0.1, labels=COCO)
BOX = [1.0, 2.0, 3.0, 4.0]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Seven frames that a bright square moves through."""
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (96, 64))
    for n in range(7):
        frame = np.full((64, 96, 3), 30, np.uint8)
        frame[20:50, 10 * n : 10 * n + 20] = 230
        writer.write(frame)
    writer.release()
    return path


def test_a_video_becomes_records_and_a_video(predictor, video, tmp_path):
    source = Source.find(video, tmp_path, 50.0)
    assert (source.total, source.frames_a_second) == (7, 12.0)
    boxes = read_boxes(write(tmp_path / "b.json", {"0": [[0, 20, 20, 30]], "4": [[1, 2, 50, 60], BOX]}), COCO)
    assert predict(predictor, source, tmp_path, boxes, Look(0.1, COCO, heatmaps=True)) == (7, 3, 0, 5)
    written = records(tmp_path)
    assert [record["frame"] for record in written] == list(range(7))
    assert [len(record["people"]) for record in written] == [1, 0, 0, 0, 2, 0, 0]
    assert written[0]["file"] == "clip.avi"
    drawn = cv2.VideoCapture(str(tmp_path / "drawn.mp4"))
    frames = [drawn.read()[1] for _ in range(7)]
    assert not drawn.read()[0]
    assert drawn.get(cv2.CAP_PROP_FPS) == 12.0
    assert frames[0].shape == (64, 96, 3)
    assert [frame[35, 10 * n + 10].mean() > 150 for n, frame in enumerate(frames[1:4])] == [True] * 3


def edited(path, box, change, *parents):
    """Replaces the content of an MP4 file's first `box`, which lies at the end of each of its parents."""
    data = bytearray(path.read_bytes())
    start = data.index(box)
    end = start - 4 + int.from_bytes(data[start - 4 : start], "big")
    content = change(bytes(data[start + 4 : end]))
    growth = len(content) - (end - start - 4)
    data[start + 4 : end] = content
    for name in (box, *parents):
        place = data.index(name) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + growth).to_bytes(4, "big")
    path.write_bytes(data)
    return path


ONE = 1 << 16  # in an MP4's matrix


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [((0, ONE, -ONE, 0), -1), ((-ONE, 0, 0, -ONE), 2), ((0, -ONE, ONE, 0), 1)],
    ids=["clockwise", "upside down", "anticlockwise"],
)
def test_a_phones_video_is_upright(predictor, tmp_path, matrix, turn):
    flat = moving_square(tmp_path / "flat.mp4")
    shutil.copy(flat, tmp_path / "phone.mp4")
    plain, turned = (struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) for a, b, c, d in ((ONE, 0, 0, ONE), matrix))
    phone = edited(tmp_path / "phone.mp4", b"tkhd", lambda content: content.replace(plain, turned))
    expected, shots = ([*Source.find(p, tmp_path, 50.0).shots(50.0, pytest.fail)] for p in (flat, phone))
    assert len(shots) == 8
    for shot, known in zip(shots, expected, strict=True):
        np.testing.assert_array_equal(shot.read(), np.rot90(known.read(), turn))
    size = shots[0].read().shape[:2]
    assert predict(predictor, Source.find(phone, tmp_path, 50.0), tmp_path / "o", None, LOOK) == (8, 8, 0, 0)
    assert (records(tmp_path / "o")[0]["height"], records(tmp_path / "o")[0]["width"]) == size
    assert cv2.VideoCapture(str(tmp_path / "o/drawn.mp4")).read()[1].shape[:2] == size
    with pytest.raises(InputError, match=f"frames of {size[1]}x{size[0]}, above"):
        Source.find(phone, tmp_path, 0.001)


@pytest.mark.parametrize("rate", [0.0004, 7.123, 30000 / 1001, 65.5349, 66.667, 240.123, 9999.0])
def test_frame_rates_of_any_kind_are_drawn(predictor, tmp_path, rate):
    source = Source.find(moving_square(tmp_path / "clip.avi", "MJPG", max(rate, 0.01), frames=2), tmp_path, 50.0)
    source = dataclasses.replace(source, frames_a_second=rate)
    assert predict(predictor, source, tmp_path / "o", None, LOOK) == (2, 2, 0, 0)
    drawn = cv2.VideoCapture(str(tmp_path / "o/drawn.mp4")).get(cv2.CAP_PROP_FPS)
    assert drawn == pytest.approx(max(rate, 0.002), rel=1e-4)


def test_a_variable_frame_rate_is_drawn_at_its_mean(predictor, tmp_path):
    """Frames of a phone or a browser, whose times vary: the rate and number that OpenCV estimates are wrong."""
    path = moving_square(tmp_path / "clip.mkv", "MJPG", rate=30.0, frames=40)
    assert Source.find(path, tmp_path, 50.0).frames_a_second == 30.0
    data = bytearray(path.read_bytes())
    duration = data.index(b"\x23\xe3\x83")  # of every frame: made void
    data[duration : duration + 8] = b"\xec\x86" + bytes(6)
    blocks = list(re.finditer(rb"\xa3..\x81(..)\x80\xff\xd8", bytes(data), re.DOTALL))
    assert len(blocks) == 40
    for number, block in enumerate(blocks):
        time = int.from_bytes(block[1], "big") + number * 7 % 23  # milliseconds
        data[block.start(1) : block.end(1)] = time.to_bytes(2, "big")
    path.write_bytes(data)
    source = Source.find(path, tmp_path, 50.0)
    assert source.total == 40
    assert source.frames_a_second == pytest.approx(39 / 1.32, rel=0.01)
    stated = cv2.VideoCapture(str(path))
    assert stated.get(cv2.CAP_PROP_FPS) > 40
    assert stated.get(cv2.CAP_PROP_FRAME_COUNT) > 50
    assert predict(predictor, source, tmp_path / "o", None, None) == (40, 40, 0, 0)


def test_a_broken_end_is_told(predictor, tmp_path, caplog):
    path = moving_square(tmp_path / "clip.avi", "MJPG", rate=5.0, frames=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images, people, unusable, _ = predict(predictor, Source.find(path, tmp_path, 50.0), tmp_path / "o", None, LOOK)
    assert 5 < images == people < 25
    assert unusable == 1
    assert f"clip.avi: ends after {images} of 40 frames" in caplog.text
    assert cv2.VideoCapture(str(tmp_path / "o/drawn.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == images
    moved = moving_square(tmp_path / "clip.mp4", frames=40)
    moved.write_bytes(moved.read_bytes()[: moved.stat().st_size // 2])
    with pytest.raises(InputError, match="clip.mp4: not a video that can be read"):
        Source.find(moved, tmp_path, 50.0)


@pytest.mark.parametrize(("name", "codec"), [("clip.mkv", "MJPG"), ("clip.webm", "VP80"), ("clip.mp4", "mp4v")])
def test_frames_before_a_broken_end_are_predicted(predictor, tmp_path, caplog, name, codec):
    """A recording that was cut off, or a download; an MP4 file only if its index is at its beginning."""
    path = moving_square(tmp_path / name, codec, rate=5.0, frames=60)
    if name.endswith("mp4"):
        index_first(path)
        assert Source.find(path, tmp_path, 50.0).total == 60
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    images, people, unusable, _ = predict(predictor, Source.find(path, tmp_path, 50.0), tmp_path / "o", None, None)
    assert 10 < images == people < 60
    assert unusable == 1
    assert f"{name}: ends after {images} of" in caplog.text


def index_first(path):
    """Moves an MP4 file's index before its frames, as servers and cameras of streams write it."""
    data = path.read_bytes()
    frames, index = data.index(b"mdat") - 4, data.index(b"moov") - 4
    moved = bytearray(data[index:])
    table = moved.index(b"stco") + 8  # behind it: the number of chunks, and their places
    for place in range(table + 4, table + 4 + 4 * int.from_bytes(moved[table : table + 4], "big"), 4):
        start = int.from_bytes(moved[place : place + 4], "big") + len(moved)
        moved[place : place + 4] = start.to_bytes(4, "big")
    path.write_bytes(data[:frames] + moved + data[frames:index])


@pytest.mark.parametrize("name", ["a\nb \x1b[31m.avi", "ビデオ 🎥.avi", "-x'\"%20;.avi"])
def test_videos_have_any_name(predictor, tmp_path, name):
    plain = moving_square(tmp_path / "plain.avi", "MJPG", frames=2)
    path = plain.rename(tmp_path / name)
    assert predict(predictor, Source.find(path, tmp_path, 50.0), tmp_path / "o", None, LOOK) == (2, 2, 0, 0)
    assert [record["file"] for record in records(tmp_path / "o")] == [name] * 2
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not a video that can be read"):
        Source.find(path, tmp_path, 50.0)


def test_streams_are_refused(tmp_path):
    with pytest.raises(InputError, match="rtsp://camera/1: streams are not read; record it to a file"):
        Source.find("rtsp://camera/1", tmp_path, 50.0)


def test_a_video_without_frames_gets_one_line(tmp_path):
    path = moving_square(tmp_path / "clip.avi", "MJPG")
    data = path.read_bytes()
    start = data.index(b"movi") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(InputError, match="clip.avi: not a video that can be read"):
        Source.find(path, tmp_path, 50.0)


def test_odd_sizes_and_sizes_that_change_are_drawn(predictor, tmp_path):
    source = Source.find(moving_square(tmp_path / "clip.avi", "MJPG", size=(97, 65)), tmp_path, 50.0)
    assert predict(predictor, source, tmp_path / "o", None, LOOK) == (8, 8, 0, 0)
    pictures = Pictures(epath.Path(tmp_path / "p"), 25.0)
    with pictures:
        for height in (64, 64, 80):
            pictures.add("", np.full((height, 96, 3), height, np.uint8))
    assert not pictures.problem
    drawn = cv2.VideoCapture(str(tmp_path / "p/drawn.mp4"))
    assert [drawn.read()[1].shape for _ in range(3)] == [(64, 96, 3)] * 3


def test_videos_that_are_none_get_one_line(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(video.read_bytes()[:100])
    with pytest.raises(InputError, match="broken.mp4: not a video"):
        Source.find(tmp_path / "broken.mp4", tmp_path, 50.0)
    with pytest.raises(InputError, match="frames of 96x64, above max_megapixels=0.001"):
        Source.find(video, tmp_path, 0.001)


# People from frame to frame


def walking(rows, frames=40, speed=3.0):
    """People of a fixed pose who start at x of each row, with keypoints around (x, y), for each frame."""
    pose = np.random.default_rng(3).uniform(-1, 1, (17, 2)) * [15, 40]
    return [
        [
            {
                "keypoints": pose + [x + direction * speed * frame, y],
                "scores": np.full(17, 0.8),
                "bbox": np.array([x + direction * speed * frame - 18, y - 45, 36, 90]),
                "box_score": 0.9,
            }
            for x, y, direction in rows
        ]
        for frame in range(frames)
    ]


def test_identities_do_not_depend_on_the_order():
    tracker, rng = Tracker(COCO), np.random.default_rng(0)
    for people in walking([(50, 100, 1), (400, 120, -1), (60, 300, 1)]):
        order = rng.permutation(3)
        ids = tracker.update([people[i] for i in order])
        if people[0]["bbox"][0] == 32:
            first = dict(zip(order.tolist(), ids, strict=True))
        assert dict(zip(order.tolist(), ids, strict=True)) == first
    assert sorted(first.values()) == [1, 2, 3]
    assert tracker.update([]) == []


def test_people_who_cross_keep_their_identities():
    tracker = Tracker(COCO)
    seen = [tracker.update(people) for people in walking([(100, 100, 1), (220, 104, -1)])]
    assert seen == [[1, 2]] * 40


def test_people_return_with_their_identity_within_a_second():
    frames = walking([(100, 100, 1)], frames=120)
    tracker = Tracker(COCO, frames_a_second=20.0)
    seen = {n: tracker.update(frames[n] if n < 30 or 49 <= n < 60 or n >= 80 else []) for n in range(100)}
    assert {seen[n][0] for n in (*range(30), *range(49, 60))} == {1}  # the 20th frame after frame 29 is in time
    assert {seen[n][0] for n in range(80, 100)} == {2}


def test_the_benchmarks_bars_hold():
    """Without crossings nobody is mistaken for another; smoothing takes a third of the jitter for half a frame."""
    for kind in ("standing", "apart", "exits and returns"):
        found = tracking.measure(kind, scenes=1)
        assert (found["people"], found["switches"]) == (3, 0)
        assert found["new"] == (3 if kind == "exits and returns" else 0)
        assert found["smooth"]["jitter"] < 0.67 * found["raw"]["jitter"]
        if kind != "standing":  # whose velocity is too small to tell a lag from noise
            assert abs(found["raw"]["lag"]) < 1 < found["smooth"]["lag"] < 20
    assert tracking.measure("meetings", scenes=2)["switches"] > 0  # the benchmark can count


def test_the_filter_is_that_of_the_paper():
    """Each coordinate's arithmetic as in Casiez et al., algorithm 1, with the speed of the point."""
    rng = np.random.default_rng(0)
    points = np.cumsum(rng.normal(size=(30, 17, 2)), axis=0)
    smoother, size = Smoother(frames_a_second=10.0), 40.0
    x, dx = points[0], np.zeros((17, 2))
    for n, now in enumerate(points):
        if n:
            dx = dx + alpha(1.0) * ((now - x) * 10 - dx)
            cutoff = 1.0 + 10.0 * np.hypot(*dx.T)[:, None] / size
            x = x + alpha(cutoff) * (now - x)
        (person,) = smoother.update([{"keypoints": now, "bbox": np.array([0, 0, 80.0, 20.0])}], [7])
        np.testing.assert_allclose(person["keypoints"], x)


def alpha(cutoff):
    return 1 / (1 + 10 / (2 * np.pi * cutoff))


def test_each_track_is_smoothed_by_itself_whatever_its_size():
    rng = np.random.default_rng(0)
    paths = {2: rng.normal(size=(20, 17, 2)), 5: rng.normal(size=(20, 17, 2))}
    together, alone, large = Smoother(), Smoother(), Smoother()
    for n in range(20):
        there = [key for key in paths if key == 2 or n % 3]  # another comes and goes
        box = np.array([0, 0, 9.0, 25.0])
        found = together.update([{"keypoints": paths[key][n], "bbox": box} for key in there], there)
        (expected,) = alone.update([{"keypoints": paths[2][n], "bbox": box}], [2])
        (zoomed,) = large.update([{"keypoints": 10 * paths[2][n], "bbox": 10 * box}], [2])
        np.testing.assert_array_equal(found[0]["keypoints"], expected["keypoints"])
        np.testing.assert_allclose(zoomed["keypoints"], 10 * expected["keypoints"])
    assert not np.array_equal(expected["keypoints"], paths[2][-1])


def test_people_of_a_video_have_identities_and_smooth_keypoints(predictor, video, tmp_path):
    boxes = {str(n): [[max(0, 10 * n - 5), 15, 40, 45]] for n in range(7)}
    boxes["5"].append([2, 2, 20, 30])
    file, source = read_boxes(write(tmp_path / "b.json", boxes), COCO), Source.find(video, tmp_path, 50.0)
    raw, tracked, smooth = (
        people_of(predict, predictor, source, tmp_path, file, options)
        for options in (VideoOptions(track=False), VideoOptions(smooth=False), None)
    )
    assert [[person["track_id"] for person in people] for people in smooth] == [[1]] * 5 + [[1, 2], [1]]
    assert all("track_id" not in person for people in raw for person in people)
    for ours, theirs in zip(tracked, raw, strict=True):
        assert [{k: v for k, v in person.items() if k != "track_id"} for person in ours] == theirs
    first, *later = ([people[0]["keypoints"] for people in found] for found in (raw, smooth))
    assert later[0][0] == first[0]
    assert all(ours != theirs for ours, theirs in zip(later[0][1:], first[1:], strict=True))
    drawn = cv2.VideoCapture(str(tmp_path / "drawn.mp4"))
    assert drawn.read()[1][15, 10:30].max(axis=1).min() > 90  # the upper side of the first box, on grey 30


def people_of(predict, predictor, source, folder, file, options):
    predict(predictor, source, folder, file, LOOK, options)
    return [record["people"] for record in records(folder)]


def test_between_detections_boxes_follow_the_keypoints(predictor, video, tmp_path, monkeypatch):
    asked = []

    def detector(images):
        asked.append(len(images))
        return [([[5, 5, 50, 50], [60, 20, 30, 40]], [0.75, 0.5])] * len(images)

    monkeypatch.setattr(predictor, "detector", detector)
    source = Source.find(video, tmp_path, 50.0)
    found = people_of(predict, predictor, source, tmp_path, None, VideoOptions(smooth=False, detect_every=4))
    assert asked == [1, 1]
    assert [len(people) for people in found] == [2] * 7
    for number, people in enumerate(found):
        assert [person["box_score"] for person in people] == [0.75, 0.5]
        for at, person in enumerate(people):
            expected = np.array([[5, 5, 50, 50], [60, 20, 30, 40]][at], float)
            if number % 4 > 1:
                expected[:2] += mean_of(found[number - 1][at]) - mean_of(found[number - number % 4][at])
            np.testing.assert_allclose(person["bbox"], expected, atol=0.05)
    asked.clear()
    people_of(predict, predictor, source, tmp_path, None, None)
    assert asked == [7]  # in batches of eight frames


def mean_of(person):
    return np.average(person["keypoints"], axis=0, weights=np.maximum(person["scores"], 1e-6))


def test_people_who_leave_are_not_followed(predictor, video, tmp_path, monkeypatch):
    """Keypoints that move by 20 pixels a frame, and the boxes after them."""
    people, shown = predictor.people, []

    def moving(images, heatmaps):
        for item, found in people(images, heatmaps=heatmaps):
            shown.append(item.boxes.tolist())
            for person in found:
                person["keypoints"] = np.full((17, 2), 20.0 * len(shown), np.float32)
            yield item, found

    monkeypatch.setattr(predictor, "people", moving)
    monkeypatch.setattr(predictor, "detector", lambda images: [([[40, 5, 20, 20], [-150, -150, 160, 160]], [1, 1])])
    source = Source.find(video, tmp_path, 50.0)
    people_of(predict, predictor, source, tmp_path, None, VideoOptions(track=False, detect_every=7))
    assert [boxes[0][0] for boxes in shown] == [40, 40, 60, 80, -90, -70, -50]  # the first leaves 96 pixels
    assert [len(boxes) for boxes in shown] == [2, 2, 2, 2, 1, 1, 1]
