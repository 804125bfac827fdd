"""Control maps: what public ControlNets were trained on, from any picture, keypoints, labels, depth."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hwaga.conditioning import control
from hwaga.conditioning.control import edges, pose, regions
from hwaga.conditioning.control.ade20k import COLOURS
from hwaga.errors import InputError
from hwaga.systems.controls import map_from, ready

FROM_A_PICTURE = [
    name for name, kind in control.KINDS.items() if not any(option.needed for option in kind.options.values())
]


def picture(height=48, width=40, seed=0):
    """A disc and a bar on a pale ground, a little noise over all, in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    image = torch.full((3, height, width), 0.9)
    image[:, (y - 18) ** 2 + (x - 18) ** 2 < 100] = torch.tensor([0.8, 0.2, 0.1])[:, None]
    image[:, 36:40, 6:34] = torch.tensor([0.1, 0.1, 0.4])[:, None, None]
    noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(seed))
    return (image + 0.02 * noise).clamp(0, 1)


def step(levels):
    """Black on the left, `levels` of 255 on the right."""
    image = torch.zeros(3, 8, 12)
    image[:, :, 6:] = levels / 255
    return image


# --------------------------------------------------------------------------------------------------------- what all keep


@pytest.mark.parametrize("kind", FROM_A_PICTURE)
def test_a_map_has_the_pictures_size_and_range_and_is_always_the_same(kind):
    image = picture()
    made = control.make(kind, image)
    assert made.shape == image.shape and made.dtype == torch.float32
    assert 0 <= made.min() and made.max() <= 1
    assert torch.equal(made, control.make(kind, image.clone()))


@pytest.mark.parametrize("kind", FROM_A_PICTURE)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_picture_of_one_colour_has_a_map(kind, value):
    made = control.make(kind, torch.full((3, 16, 16), value))
    assert torch.isfinite(made).all() and made.shape == (3, 16, 16)
    if kind in ("canny", "lineart", "scribble", "softedge", "mlsd", "silhouette"):
        assert not made.any()


@pytest.mark.parametrize("kind", ["canny", "lineart", "scribble", "softedge", "mlsd", "silhouette"])
def test_lines_and_areas_are_white_on_black_and_grey(kind):
    made = control.make(kind, picture())
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert 0 < made.mean() < 0.5


def test_every_kind_says_what_it_shows_and_what_can_be_set():
    for name, kind in control.KINDS.items():
        assert len(kind.line) > 10, name
        assert all(option.text.startswith(option.name) for option in kind.options.values())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("cany", {}, ("cany", "did you mean 'canny'")),
        ("canny", {"lo": 1}, ("lo", "low")),
        ("canny", {"low": -1}, ("low=-1", "0 to 10000")),
        ("canny", {"low": "much"}, ("low='much'",)),
        ("canny", {"low": True}, ("low=True",)),
        ("mlsd", {"votes": 2.5}, ("votes=2.5", "whole")),
        ("invert", {"low": 1}, ("low=", "no options")),
        ("pose", {}, ("pose", "keypoints=")),
        ("depth", {}, ("depth", "model=")),
        ("inpaint", {}, ("inpaint", "mask=")),
        ("depth", {"model": "nowhere"}, ("nowhere", "config.json")),
        ("depth", {"model": "nowhere", "says": "height"}, ("says='height'", "nearness")),
        ("segmentation", {"labels": "nowhere.png"}, ("nowhere.png", "no such file")),
        ("segmentation", {"labels": np.full((3, 3), 1)}, ("3 x 3", "48 x 40")),
        ("segmentation", {"labels": np.full((48, 40), 150)}, ("150", "149")),
        ("segmentation", {"labels": np.full((48, 40), 0.5)}, ("labels=float64", "whole numbers")),
        ("inpaint", {"mask": torch.ones(4, 4)}, ("4 x 4", "48 x 40")),
        ("pose", {"keypoints": "nowhere.json"}, ("nowhere.json", "no such file")),
        ("pose", {"keypoints": [[[1, 2, 1]] * 5]}, ("5 points", "17 (COCO)")),
        ("pose", {"keypoints": [[[1, 2, 0]] * 17]}, ("no point",)),
        ("pose", {"keypoints": {"people": [{"pose_keypoints_2d": [1, 2]}]}}, ("2 numbers",)),
        ("pose", {"keypoints": {"people": [{"pose_keypoints_2d": ["x"] * 54}]}}, ("must be numbers",)),
        ("pose", {"keypoints": []}, ("list of people",)),
        ("pose", {"keypoints": [1]}, ("table",)),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(kind, options, words):
    with pytest.raises(InputError) as error:
        control.make(kind, picture(), **options)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------- lines


def test_canny_has_opencvs_thresholds():
    """The gradient of a step of s levels is 4 s by Sobel's sums; edges begin strictly above `high`."""
    assert not edges.edges(*as_levels(step(50))).any()
    assert edges.edges(*as_levels(step(51))).any()
    assert not edges.edges(*as_levels(step(51)), low=204, high=204).any()
    assert edges.edges(*as_levels(step(51)), low=203, high=203).any()


def as_levels(image):
    return ((image * 255).round().byte().permute(1, 2, 0).numpy(),)


@pytest.mark.parametrize(
    ("low", "high", "count", "digest"), [(100, 200, 493, "42c48715f8974954"), (300, 700, 421, "3e131b5db8fc4e52")]
)
def test_canny_gives_the_very_pixels_of_opencv(low, high, count, digest):
    """Recorded from cv2.Canny (OpenCV 5.0.0), with three channels of different edges."""
    y, x = np.mgrid[:61, :53]
    channels = [
        (x * x + 3 * y * y) // 9 % 256,
        (7 * x + 5 * y) % 256,
        np.where((x - 25) ** 2 + (y - 30) ** 2 < 300, 200, 40),
    ]
    found = edges.edges(np.stack(channels, 2).astype(np.uint8), low, high)
    assert found.sum() == count and hashlib.sha256(np.packbits(found).tobytes()).hexdigest().startswith(digest)


def test_canny_draws_a_step_as_one_upright_line():
    made = control.make("canny", step(255))[0]
    assert made.sum() == 8 and (made.sum(0) > 0).sum() == 1  # one pixel a row, all in one column


def test_weak_edges_stay_only_where_they_hang_on_a_strong_one():
    """A step that fades from strong to weak stays whole; the same weak step alone is gone."""
    fading, weak = torch.zeros(3, 40, 12), torch.zeros(3, 40, 12)
    fading[:, :, 6:] = torch.linspace(80, 30, 40)[:, None] / 255
    weak[:, :, 6:] = 30 / 255
    assert (control.make("canny", fading)[0].sum(1) > 0).all()
    assert not control.make("canny", weak).any()
    assert control.make("canny", weak, low=50, high=100).any()


def test_the_order_of_cannys_thresholds_does_not_matter():
    image = picture()
    assert torch.equal(control.make("canny", image, low=60, high=180), control.make("canny", image, low=180, high=60))


def test_straight_lines_leave_a_circle_out():
    """Of the picture's edges those of the bar stay, those of the disc mostly not."""
    lines, every = control.make("mlsd", picture(), length=14)[0], control.make("canny", picture())[0]
    assert lines[34:].sum() > 20 and lines[:32].sum() < 0.5 * every[:32].sum()


def test_line_art_is_brighter_where_the_stroke_is_darker():
    image = torch.ones(3, 32, 32)
    image[:, 8, 4:28], image[:, 24, 4:28] = 0.2, 0.8
    made = control.make("lineart", image, sigma=3)[0]
    assert made[8, 16] > made[24, 16] > 0.05 and made[16, 16] < 0.05


def test_a_drawing_in_black_is_turned_into_white_lines():
    image = torch.ones(3, 8, 8)
    image[:, 4] = 0
    made = control.make("invert", image)
    assert made[:, 4].eq(1).all() and made[:, :4].eq(0).all()


# ----------------------------------------------------------------------------------------------------------------- areas


def test_a_silhouette_is_filled_and_does_not_leak():
    ring = torch.ones(3, 24, 24)
    ring[:, 6:18, 6:18] = 0.3
    ring[:, 9:15, 9:15] = 1.0  # a hole in the object, of the background's colour
    made = control.make("silhouette", ring)[0]
    expected = torch.zeros(24, 24)
    expected[6:18, 6:18] = 1
    assert torch.equal(made, expected)


def test_given_classes_have_the_colours_of_ade20k():
    labels = np.zeros((48, 40), np.int64)
    labels[:, 20:], labels[0, 0] = 12, 255
    made = (control.make("segmentation", picture(), labels=labels) * 255).round().byte()
    assert made[:, 5, 5].tolist() == [120, 120, 120] and made[:, 5, 30].tolist() == [150, 5, 61]  # wall, person
    assert made[:, 0, 0].tolist() == [0, 0, 0]
    assert len(COLOURS) == 150 and COLOURS[2] == (6, 230, 230) and COLOURS[149] == (92, 0, 255)


def test_classes_are_read_from_a_file(tmp_path):
    labels = np.random.default_rng(0).integers(0, 150, (48, 40)).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    one = control.make("segmentation", picture(), labels=tmp_path / "labels.png")
    assert torch.equal(one, control.make("segmentation", picture(), labels=labels))


def test_superpixels_keep_to_what_is_in_the_picture():
    made = control.make("segmentation", picture())
    assert torch.equal(made[:, 18, 18], made[:, 20, 20])  # inside the disc
    assert not torch.equal(made[:, 18, 18], made[:, 2, 2])
    assert (made * 255).round().byte()[:, 2, 2].tolist() == list(COLOURS[0])  # the ground is the largest


def test_blocks_have_the_mean_of_what_they_cover():
    image = picture(32, 32)
    made = control.make("colours", image, block=16)
    assert torch.allclose(made[:, 0, 0], image[:, :16, :16].mean((1, 2)), atol=1e-5)
    assert (made[:, :16, :16] == made[:, :1, :1]).all()


def test_tile_keeps_the_picture_or_what_a_smaller_one_keeps():
    image = picture()
    assert torch.equal(control.make("tile", image), image)
    small = control.make("tile", image, factor=4)
    assert small.shape == image.shape and (small - image).abs().mean() > 0.01


@pytest.mark.parametrize("form", ["tensor", "file", "array"])
def test_inpainting_marks_the_hole_with_minus_one(form, tmp_path):
    image, hole = picture(), torch.zeros(48, 40)
    hole[10:20, 10:30] = 1
    mask = {"tensor": hole, "array": (hole.numpy() * 255).astype(np.uint8), "file": tmp_path / "mask.png"}[form]
    Image.fromarray((hole.numpy() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    made = control.make("inpaint", image, mask=mask)
    assert (made[:, 10:20, 10:30] == -1).all() and torch.equal(made[:, 30:], image[:, 30:])


def test_shuffling_keeps_colours_and_loses_places():
    image = picture()
    one, other = control.make("shuffle", image, grain=16), control.make("shuffle", image, grain=16, seed=1)
    assert not torch.equal(one, other) and (one - image).abs().mean() > 0.05
    assert image.min() - 1e-5 <= one.min() and one.max() <= image.max() + 1e-5


# ------------------------------------------------------------------------------------------------------------------ pose


BODY = np.array([
    [32, 8], [32, 20], [24, 20], [20, 32], [18, 44], [40, 20], [44, 32], [46, 44], [27, 44], [26, 60], [26, 76], [37, 44],
    [38, 60], [38, 76], [30, 6], [34, 6], [28, 8], [36, 8],
], float)  # fmt: skip


def openpose(body=BODY, **more):
    seen = np.concatenate([body, np.ones((len(body), 1))], axis=1)
    return {"people": [{"pose_keypoints_2d": seen.reshape(-1).tolist(), **more}]}


def posed(keypoints, size=(84, 64), **options):
    return (control.make("pose", torch.zeros(3, *size), keypoints=keypoints, width=2, **options) * 255).round().byte()


def test_joints_and_limbs_have_openposes_colours():
    made = posed(openpose())
    assert made[:, 8, 32].tolist() == [255, 0, 0]  # nose: joint 0
    assert made[:, 44, 18].tolist() == [170, 255, 0]  # right wrist: joint 4
    middle = (BODY[2] + BODY[3]) / 2  # right upper arm: limb 2, at 0.6
    assert made[:, round(middle[1]), round(middle[0])].tolist() == [int(0.6 * c) for c in pose.COLOURS[2]]
    assert made[:, 0, 0].tolist() == [0, 0, 0] and len(pose.LIMBS) == 17 and len(pose.COLOURS) == 18


def test_cocos_seventeen_points_give_the_same_skeleton():
    """The neck lies between the shoulders, and left and right are where they were."""
    coco = np.empty((17, 3))
    for ours, theirs in enumerate(pose.COCO):
        if theirs is not None:
            coco[theirs] = [*BODY[ours], 2]
    assert torch.equal(posed([{"keypoints": coco.reshape(-1).tolist()}]), posed(openpose()))
    assert torch.equal(posed({"annotations": [{"keypoints": coco.reshape(-1).tolist()}]}), posed(openpose()))


def test_body_25_and_whole_bodies_give_the_same_skeleton():
    more = np.zeros((25, 2))
    more[list(pose.BODY_25)] = BODY
    assert torch.equal(posed(openpose(more)), posed(openpose()))
    whole = np.zeros((133, 3))
    for ours, theirs in enumerate(pose.COCO):
        if theirs is not None:
            whole[theirs] = [*BODY[ours], 1]
    whole[91:112] = [*BODY[7], 1]
    found = pose.people_of([{"keypoints": whole.reshape(-1).tolist()}], (84, 64))[0]
    assert np.allclose(found.body, BODY) and len(found.hands) == 2 and found.face.shape == (68, 2)
    assert np.allclose(found.hands[0], BODY[7]) and np.isnan(found.hands[1]).all()


def test_points_that_are_not_seen_are_not_drawn():
    keypoints = openpose()
    keypoints["people"][0]["pose_keypoints_2d"][4 * 3 + 2] = 0.0  # the right wrist
    made, whole = posed(keypoints), posed(openpose())
    assert made[:, 44, 18].tolist() == [0, 0, 0] and made.sum() < whole.sum()
    keypoints["people"][0]["pose_keypoints_2d"][4 * 3 + 2] = 0.3
    assert torch.equal(posed(keypoints), whole) and torch.equal(posed(keypoints, threshold=0.4), made)


def test_coordinates_are_scaled_from_the_files_canvas_and_from_shares():
    twice = openpose(2 * BODY) | {"canvas_width": 128, "canvas_height": 168}
    assert torch.equal(posed(twice), posed(openpose()))
    assert torch.equal(posed([twice]), posed(openpose()))
    coco = {"annotations": openpose(2 * BODY)["people"], "images": [{"width": 128, "height": 168}]}
    assert torch.equal(posed(coco), posed(openpose()))
    shares = openpose(BODY / np.array([64, 84]))
    assert (posed(shares) != posed(openpose())).float().mean() < 0.01  # to rounding


def test_hands_are_blue_joints_with_fingers_in_the_rainbows_colours():
    hand = np.array(
        [[10 + 4 * f, 10 + 4 * j] for f, j in [(0, 0), *((f, j) for f in range(5) for j in range(1, 5))]], float
    )
    flat = np.concatenate([hand, np.ones((21, 1))], axis=1).reshape(-1).tolist()
    made = posed(openpose(hand_left_keypoints_2d=flat))
    assert made[:, 26, 10].tolist() == [0, 0, 255]
    assert (
        len(pose.FINGERS) == 20
        and pose.FINGERS[0] == (0, 1)
        and pose.FINGERS[4] == (0, 5)
        and pose.FINGERS[19] == (19, 20)
    )
    assert pose.FINGER_COLOURS[0] == (255, 0, 0)
    with pytest.raises(InputError, match="21 are needed"):
        posed(openpose(hand_left_keypoints_2d=flat[:30]))


def test_keypoints_are_read_from_a_file(tmp_path):
    file = tmp_path / "pose.json"
    file.write_text(json.dumps(openpose()))
    assert torch.equal(posed(str(file)), posed(openpose()))


# ------------------------------------------------------------------------------------------------------ depth and normals


def ball():
    """The nearness of a ball before a wall, as a picture."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    near = np.sqrt(np.clip(0.64 - x**2 - y**2, 0, None)) / 0.8
    return torch.from_numpy(near).float().expand(3, -1, -1)


def test_normals_say_where_a_surface_faces():
    """Red what faces left, green what faces up, blue the viewer."""
    made = control.make("normals", ball())
    left, right, top, below = made[:, 32, 16], made[:, 32, 48], made[:, 16, 32], made[:, 48, 32]
    assert left[0] > 0.55 > 0.45 > right[0] and top[1] > 0.55 > 0.45 > below[1]
    wall = torch.tensor([0.5, 0.5, 1.0])
    assert (made[:, 1, 1] - wall).abs().max() < 0.01
    length = (made * 2 - 1).square().sum(0).sqrt()
    assert (length - 1).abs().max() < 0.02


def test_a_flat_background_and_a_strength_of_zero_face_the_viewer():
    flat = torch.tensor([127 / 255, 127 / 255, 1.0])[:, None, None]
    assert torch.allclose(control.make("normals", ball(), strength=0), flat.expand(3, 64, 64), atol=1e-6)
    cut, far = control.make("normals", ball(), background=0.8), ball()[0] < 0.79
    assert ((cut - flat).abs().max(0).values[far] < 1e-6).all() and (cut - flat).abs().max() > 0.1


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    """A depth-estimation model as small as can be, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "dpt"
    transformers.DPTForDepthEstimation(config).save_pretrained(folder)
    told = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def test_depth_is_what_the_folders_model_says_from_nearest_to_farthest(estimator):
    from transformers import DPTForDepthEstimation

    image = picture(32, 32)
    made = control.make("depth", image, model=estimator)[0]
    with torch.no_grad():
        said = DPTForDepthEstimation.from_pretrained(estimator).eval()(image[None] * 2 - 1).predicted_depth
    said = torch.nn.functional.interpolate(said[None], (32, 32), mode="bicubic", align_corners=False)[0, 0]
    assert made.min() == 0 and made.max() == 1
    assert (made - (said - said.min()) / (said.max() - said.min())).abs().max() < 1 / 255
    far = control.make("depth", image, model=str(estimator), says="distance")[0]
    assert far.flatten()[made.argmax()] < 1 / 255  # where a number that grows with the distance is largest


def test_depth_keeps_the_pictures_size_and_normals_come_from_it(estimator):
    image = picture(48, 40)
    assert control.make("depth", image, model=estimator).shape == (3, 48, 40)
    made = control.make("normals", image, model=estimator)
    assert made.shape == (3, 48, 40) and made[2].min() > 0.49  # nothing faces away


def test_a_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="no depth-estimation model"):
        control.make("depth", picture(), model=tmp_path)


# ------------------------------------------------------------------------------------------------------- maps of a call


def test_a_map_is_made_at_the_size_that_is_asked_for():
    assert map_from(picture(48, 40), "canny", size=(24, 20)).shape == (1, 3, 24, 20)
    assert map_from(picture(48, 40), "canny").shape == (1, 3, 48, 40)


def test_keypoints_are_of_the_pictures_own_size():
    image = torch.zeros(3, 84, 64)
    small = map_from(image, "pose", {"keypoints": openpose(), "width": 4}, (42, 32))
    assert small.shape == (1, 3, 42, 32) and small[0, :, 4, 16].argmax() == 0 and small[0, 0, 4, 16] > 0.5


def test_a_ready_map_may_have_a_hole():
    image, hole = picture(32, 32), torch.zeros(32, 32)
    hole[8:16, 8:24] = 1
    made = control.make("inpaint", image, mask=hole)
    assert torch.equal(ready("control", made, (32, 32))[0], made)
    half = ready("control", made, (16, 16))[0]
    assert (half[:, 4:8, 4:12] == -1).all() and half[:, 12:].min() >= 0
    broken = made.clone()
    broken[0, 10, 10] = 0.5
    with pytest.raises(InputError, match="-1 in one channel"):
        ready("control", broken, (32, 32))
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        ready("control", made * 2, (32, 32))


def test_a_map_is_smaller_than_no_picture():
    with pytest.raises(InputError, match="3 x 3 is the least"):
        control.make("canny", torch.zeros(3, 2, 9))
    assert math.isclose(float(control.make("canny", torch.zeros(3, 3, 3)).sum()), 0)
    assert regions.foreground(np.zeros((3, 3, 3), np.uint8)).sum() == 0
