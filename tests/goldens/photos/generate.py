"""Goldens of facexlib's detector and of the crops on photographs: `python generate.py [FOLDER]`.

Witness: facexlib's own RetinaFace and FaceRestoreHelper, scikit-image and OpenCV 4.12 for the recogniser's crop. OpenCV 5 warps at
another precision than the OpenCV 4 of the official pipelines.

With FOLDER, photos and weights are made anew from it: `tests/test_images` of face_recognition 1.3.0's source package on PyPI, which are official
photographs of the White House, in the public domain as works of the United States' government. `astronaut` is NASA's picture
of Eileen Collins in scikit-image, in the public domain; `pair`, `portrait` and `blue` show portraits of examples/faces, CC0.

The detector's weights are published nowhere within reach, so a narrow one is trained here, on these few pictures alone; where the faces
are was found once with the MTCNN of facenet-pytorch 2.6.0 and is written down below.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "goldens"), str(ROOT / "tests" / "goldens" / "retinaface")]

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from common import deterministic, randomise, save_weights, versions
from facexlib.detection.retinaface_utils import PriorBox, decode, decode_landm, encode, encode_landm
from facexlib.utils import face_restoration_helper
from generate import detector as narrow_detector
from safetensors.torch import load_file
from skimage import data
from skimage.transform import SimilarityTransform

HERE = pathlib.Path(__file__).resolve().parent
FACES = ROOT / "examples" / "faces"
SEED = 9100
CHANNELS = 16
STEPS = 3000
ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
# name: source, region of it (left, top, right, bottom), factor
PHOTOS = {
    "astronaut": ("astronaut", (100, 20, 356, 276), 1.0),
    "speaker": ("obama2.jpg", (60, 150, 560, 750), 0.45),
    "smiling": ("obama.jpg", (250, 20, 740, 560), 0.5),
    "frowning": ("biden.jpg", (320, 80, 820, 700), 0.45),
    "beside-a-lamp": ("obama3.jpg", (540, 150, 1040, 750), 0.45),
}
# Of the sources: box and landmarks.
FOUND = {
    "astronaut": ((181.1, 62.2, 267.7, 172.1), ((205.0, 101.7), (246.8, 103.7), (224.7, 129.0), (201.7, 139.2), (245.3, 141.9))),
    "obama.jpg": ((367.5, 79.0, 616.4, 428.3), ((445.3, 214.7), (551.7, 214.2), (497.7, 277.7), (435.6, 324.8), (557.1, 320.5))),
    "biden.jpg": ((427.1, 167.0, 713.6, 560.4), ((535.2, 319.3), (655.4, 344.9), (597.8, 407.1), (518.9, 461.9), (625.0, 480.3))),
    "obama3.jpg": ((634.1, 249.3, 914.1, 612.5), ((738.0, 384.1), (860.9, 401.1), (810.7, 440.8), (733.4, 510.6), (845.3, 528.8))),
    "obama2.jpg": ((190.2, 213.3, 472.5, 638.7), ((251.4, 364.0), (374.9, 382.0), (285.2, 447.0), (247.4, 521.7), (351.0, 528.7))),
    "ada": ((218.0, 133.6, 359.4, 339.0), ((269.1, 214.7), (331.7, 211.2), (311.0, 254.5), (279.6, 292.2), (325.8, 290.7))),
    "cleo": ((173.1, 126.8, 358.4, 381.0), ((224.8, 234.4), (311.3, 232.6), (269.7, 278.3), (233.0, 319.1), (306.4, 317.7))),
    "dan": ((155.6, 94.8, 347.5, 343.0), ((228.7, 196.8), (316.5, 205.8), (277.9, 255.4), (225.8, 285.6), (298.9, 294.8))),
}  # fmt: skip


def moved(name: str, x: float, y: float, factor_x: float, factor_y: float | None = None):
    """Box and landmarks after a region that begins at (x, y) was scaled."""
    box, points = FOUND[name]
    factor = np.array([factor_x, factor_y or factor_x])
    shift = lambda p: (np.asarray(p) - [x, y]) * factor
    return np.concatenate([shift(box[:2]), shift(box[2:])]), shift(points)


def make_photos(folder: pathlib.Path) -> None:
    for name, (source, (left, top, right, bottom), factor) in PHOTOS.items():
        image = data.astronaut()[:, :, ::-1] if source == "astronaut" else cv2.imread(str(folder / source))
        image = np.ascontiguousarray(image[top:bottom, left:right])
        if factor != 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(HERE / f"{name}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    pair = np.full((200, 360, 3), (150, 160, 140), np.uint8)
    # The larger face stands aside, the smaller one in the middle.
    for person, size, (x, y) in (("cleo", 200, (0, 0)), ("dan", 150, (120, 50))):
        portrait = cv2.imread(str(FACES / f"{person}.jpg"))
        pair[y : y + size, x : x + size] = cv2.resize(portrait, (size, size), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(HERE / "pair.png"), pair, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    portrait = cv2.resize(cv2.imread(str(FACES / "ada.jpg")), (208, 192), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(HERE / "portrait.png"), portrait, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    # Red and blue exchanged: the mini models' own detector finds nobody there.
    cv2.imwrite(str(HERE / "blue.png"), portrait[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def true_faces() -> dict[str, list]:
    truth = {name: [moved(source, *region[:2], factor)] for name, (source, region, factor) in PHOTOS.items()}
    # Each portrait is scaled from 512 pixels, then placed.
    truth["pair"] = [moved("cleo", 0, 0, 200 / 512), moved("dan", -120 * 512 / 150, -50 * 512 / 150, 150 / 512)]
    truth["portrait"] = truth["blue"] = [moved("ada", 0, 0, 208 / 512, 192 / 512)]
    return truth


def prepared(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))[None] - torch.tensor([[[[104.0]], [[117.0]], [[123.0]]]])


def targets(network, image: np.ndarray, faces: list):
    """Anchors of the face, and what they should answer."""
    height, width = image.shape[:2]
    priors = PriorBox(network.cfg, image_size=(height, width)).forward()
    corners = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    labels, loc, points = torch.zeros(len(priors)), torch.zeros(len(priors), 4), torch.zeros(len(priors), 10)
    weight = torch.ones(len(priors))
    for box, landmarks in faces:
        box = torch.tensor(box / [width, height, width, height], dtype=torch.float32)
        landmarks = torch.tensor(landmarks / [width, height], dtype=torch.float32).reshape(1, 10)
        inter = (torch.minimum(corners[:, 2:], box[2:]) - torch.maximum(corners[:, :2], box[:2])).clamp(min=0).prod(1)
        union = (corners[:, 2:] - corners[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - inter
        overlap = inter / union
        weight[overlap > 0.25] = 0
        chosen = (overlap > 0.35) | (overlap == overlap.max())
        weight[chosen], labels[chosen] = 1, 1
        loc[chosen] = encode(box.expand(int(chosen.sum()), 4), priors[chosen], network.cfg["variance"])
        points[chosen] = encode_landm(landmarks.expand(int(chosen.sum()), 10), priors[chosen], network.cfg["variance"])
    return labels, weight, loc, points


@torch.enable_grad()
def trained(photos: dict[str, np.ndarray]) -> torch.nn.Module:
    network = randomise(narrow_detector(CHANNELS), SEED, gain=0.9, half=False)
    truth = true_faces()
    cases = [(prepared(image), *targets(network, image, truth[name])) for name, image in photos.items()]
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    network.phase = "train"
    torch.set_num_threads(1)
    for step in range(STEPS):
        image, labels, weight, loc, points = cases[step % len(cases)]
        found_loc, logits, found_points = network(image)
        face = labels > 0
        each = F.cross_entropy(logits[0], labels.long(), reduction="none") * weight
        hardest = each[~face].topk(200).values.mean()
        loss = 2 * each[face].mean() + hardest
        loss = loss + F.smooth_l1_loss(found_loc[0][face], loc[face]) + 4 * F.smooth_l1_loss(found_points[0][face], points[face])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == STEPS - 1:
            print("step", step, "loss", round(loss.item(), 4))
    network.phase = "test"
    return network.eval()


def helper(network) -> face_restoration_helper.FaceRestoreHelper:
    """facexlib's helper as PuLID makes it, with this detector and no parser."""
    face_restoration_helper.init_detection_model = lambda *_, **__: network
    face_restoration_helper.init_parsing_model = lambda *_, **__: None
    return face_restoration_helper.FaceRestoreHelper(
        upscale_factor=1, face_size=512, crop_ratio=(1, 1), det_model="retinaface_resnet50", save_ext="png", device="cpu"
    )


def candidates(network, image: np.ndarray, threshold: float) -> list[dict]:
    """Detections before any is suppressed, the best first."""
    height, width = image.shape[:2]
    loc, conf, landms = network(prepared(image))
    priors = PriorBox(network.cfg, image_size=(height, width)).forward()
    boxes = decode(loc[0], priors, network.cfg["variance"]) * torch.tensor([width, height] * 2)
    points = decode_landm(landms[0], priors, network.cfg["variance"]) * torch.tensor([width, height] * 5)
    scores = conf[0, :, 1]
    keep = torch.nonzero(scores > threshold)[:, 0]
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    return [face(torch.cat([boxes[i], scores[i : i + 1], points[i]]).numpy()) for i in keep]


def face(row: np.ndarray) -> dict:
    # Shortest decimals that give the same float32.
    row = [float(str(value)) for value in np.asarray(row, np.float32)]
    return {"box": row[:4], "score": row[4], "landmarks": np.reshape(row[5:], (5, 2)).tolist()}


def main() -> None:
    if not cv2.__version__.startswith("4."):
        print(f"left as they are: these need OpenCV 4.12, not {cv2.__version__}")
        return
    deterministic()
    if len(sys.argv) > 1:
        make_photos(pathlib.Path(sys.argv[1]))
    names = [*PHOTOS, "pair", "portrait", "blue"]
    photos = {name: cv2.imread(str(HERE / f"{name}.png")) for name in names}
    weights = HERE / "detection_Resnet50_Final.safetensors"
    if len(sys.argv) > 1 or not weights.exists():
        network = trained(photos)
        state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
        save_weights(weights, state, half=False)
    network = narrow_detector(CHANNELS).eval()
    network.load_state_dict(load_file(weights), strict=False)
    align, cases, truth = helper(network), [], true_faces()
    for name, image in photos.items():
        align.clean_all()
        align.read_image(image)
        assert align.get_face_landmarks_5(only_center_face=True) == 1, name
        align.align_warp_face()
        # The helper leaves the chosen face alone in its lists; ask the detector for all.
        all_faces = network.detect_faces(image, 0.97)
        chosen = int(np.abs(all_faces[:, :4] - align.det_faces[:4]).sum(1).argmin())
        landmarks = align.all_landmarks_5[0]
        off = np.abs(landmarks - truth[name][-1][1]).max()
        # It is no good detector, and need not be one; outliers give LMEDS something to do.
        assert off < 12, (name, off)
        crop = align.cropped_faces[0]
        transform = SimilarityTransform.from_estimate(landmarks, ARCFACE)
        small = cv2.warpAffine(image, transform.params[:2], (112, 112), borderValue=0.0)
        # Every fourth pixel of the crop tells as much.
        cv2.imwrite(str(HERE / f"{name}-facexlib.png"), crop[1::4, 2::4], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        cv2.imwrite(str(HERE / f"{name}-arcface.png"), small, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        before = candidates(network, image, 0.5)
        after = [face(row) for row in network.detect_faces(image, 0.5)]
        assert len(after) < len(before), name
        cases.append(
            {
                "name": name,
                "photo": f"{name}.png",
                "candidates": before,
                "kept": after,
                "faces": [face(row) for row in all_faces],
                "chosen": chosen,
                "matrix": align.affine_matrices[0].tolist(),
            }
        )
        print(name, image.shape, len(before), "candidates", len(after), "kept", len(all_faces), "faces; off by", round(float(off), 2))
    area = lambda f: (f["box"][2] - f["box"][0]) * (f["box"][3] - f["box"][1])
    assert any(area(c["faces"][c["chosen"]]) < max(map(area, c["faces"])) for c in cases), "the largest face is always chosen"
    note = (
        "Photos of 8 bits. candidates: above 0.5 before suppression; kept: after it; faces: as FaceRestoreHelper finds them, above "
        "0.97; chosen: the one nearest to the middle; matrix: OpenCV's LMEDS similarity onto the crop of 512, whose pixels "
        "[1::4, 2::4] are in NAME-facexlib.png. NAME-arcface.png: the crop of 112 from the chosen face's landmarks. All with the "
        "weights in detection_Resnet50_Final.safetensors."
    )
    value = {"cases": cases, "seed": SEED, "versions": {**versions(), "opencv": cv2.__version__}, "note": note}
    (HERE / "photos.json").write_text(json.dumps(value) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
