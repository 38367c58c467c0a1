"""Goldens of the way from photos to identity tokens with the mini models in models/mini.

Witness: onnxruntime (detector, recogniser), OpenCV (letterbox, LMEDS, warping), scikit-image (similarity), facexlib (its detector and
the choice of the face), PyTorch (parser, bicubic resize, tower, IDFormer, IDEncoder), put together as insightface, facexlib and
PuLID's pipelines do. Photos are PNG: JPEG decoders differ. Run it with OpenCV 4.12, as the upstream pipelines do with some OpenCV 4:
OpenCV 5 warps at another precision.

The mini models have no RetinaFace and no PuLID v1: the cases that need them take the detector of tests/goldens/photos and an IDEncoder
with random weights.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "goldens"), str(ROOT / "tools" / "mini" / "face")]
sys.path.insert(0, str(ROOT / "tests" / "goldens" / "retinaface"))

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from bisenet import MEAN, STD, BiSeNet
from common import check_outputs, deterministic, randomise, save_tensors, save_weights, versions, write_json
from facexlib.utils import face_restoration_helper
from pulid_reference import EvaClipTower, IDEncoder, IDFormer
from safetensors.torch import load_file
from skimage.transform import SimilarityTransform

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ROOT / "models" / "mini"
SIDE = 640
ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32)
FACEXLIB = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]]
)
CROP = 128
WHITE = (0, 16, 18, 7, 8, 9, 14, 15)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CASES = {"one-photo": ["ada"], "two-photos": ["cleo", "dan"], "four-photos": ["ben", "eva", "hugo", "omar"]}
PHOTOS = ROOT / "tests" / "goldens" / "photos"
RETINAFACE = "detection_Resnet50_Final.safetensors"
SEED = 9300
# name: photos (of this folder or of `photos`), whether facexlib's detector is at hand, whether PuLID v1 encodes, identity mix
EXTENDED = {
    "both-detectors": (["photos/portrait"], True, False, False),
    "two-people": (["photos/pair"], True, False, False),
    "only-facexlib": (["photos/blue"], True, False, False),
    "v1-one-photo": (["identity/one-photo/ada"], False, True, False),
    "v1-three-photos": (["photos/portrait", "identity/two-photos/cleo", "photos/smiling"], True, True, False),
    "v1-mix": (["identity/two-photos/cleo", "identity/two-photos/dan"], False, True, True),
}


def session(name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(MODELS / "antelopev2" / name), providers=["CPUExecutionProvider"])


def largest_face(detector, image: np.ndarray):
    """insightface's SCRFD: box [4], landmarks [5,2] and score of the largest face of a BGR picture."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (SIDE, int(SIDE * height / width)) if width >= height else (int(SIDE * width / height), SIDE)
    padded = np.zeros((SIDE, SIDE, 3), np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(image, size)
    blob = cv2.dnn.blobFromImage(padded, 1 / 128, (SIDE, SIDE), (127.5,) * 3, swapRB=True)
    outputs = detector.run(None, {detector.get_inputs()[0].name: blob})
    scale = size[1] / height
    scores, boxes, points = [], [], []
    for index, stride in enumerate((8, 16, 32)):
        score, box, point = (outputs[index + 3 * part].reshape(-1, n) for part, n in ((0, 1), (1, 4), (2, 10)))
        cells = SIDE // stride
        centres = np.stack(np.mgrid[:cells, :cells][::-1], -1).reshape(-1, 2).astype(np.float32) * stride
        centres = np.repeat(centres, len(score) // len(centres), 0)
        keep = score[:, 0] >= 0.5
        centres, box, point = centres[keep], box[keep] * stride, point[keep].reshape(-1, 5, 2) * stride
        scores.append(score[keep, 0])
        boxes.append(np.concatenate([centres - box[:, :2], centres + box[:, 2:]], 1) / scale)
        points.append((centres[:, None] + point) / scale)
    scores, boxes, points = (np.concatenate(part) for part in (scores, boxes, points))
    if len(scores) == 0:
        return None
    order, kept = scores.argsort()[::-1], []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        inter = np.clip(np.minimum(boxes[rest, 2:], boxes[best, 2:]) - np.maximum(boxes[rest, :2], boxes[best, :2]) + 1, 0, None).prod(1)
        area = lambda b: (b[..., 2:] - b[..., :2] + 1).prod(-1)
        order = rest[inter / (area(boxes[rest]) + area(boxes[best]) - inter) <= 0.4]
    chosen = max(kept, key=lambda i: (boxes[i, 2:] - boxes[i, :2]).prod())
    return boxes[chosen], points[chosen].astype(np.float32), scores[chosen]


def read(name: str) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(MODELS / name).items()}


class Networks:
    def __init__(self):
        self.detector, self.recogniser = session("scrfd_10g_bnkps.onnx"), session("glintr100.onnx")
        self.parser = BiSeNet().eval()
        self.parser.load_state_dict(read("parsing_bisenet.safetensors"), strict=False)
        c = json.loads((MODELS / "eva_clip.json").read_text())
        self.side = c["image_size"]
        self.tower = EvaClipTower(
            c["image_size"], c["patch_size"], c["width"], c["layers"], c["heads"], c["mlp_hidden"], c["output_dim"], c["pretrained_grid"]
        ).eval()
        self.tower.load_official(read("eva_clip.safetensors"))
        former = {k.removeprefix("id_adapter."): v for k, v in read("pulid_v1.1.safetensors").items() if k.startswith("id_adapter.")}
        self.former = IDFormer.from_state_dict(former).eval()
        width, states = self.former.id_embedding_mapping[0].in_features, self.former.mapping_0[0].in_features
        self.encoder = randomise(IDEncoder(width, self.former.proj_out.shape[1], 5, states, 16), SEED)
        self.helper = helper()

    def embedding(self, picture: np.ndarray) -> torch.Tensor:
        """insightface's get_feat, which shrinks what is larger than the network's input."""
        blob = cv2.dnn.blobFromImage(picture, 1 / 127.5, (112, 112), (127.5,) * 3, swapRB=True)
        return torch.from_numpy(self.recogniser.run(None, {self.recogniser.get_inputs()[0].name: blob})[0])

    def features(self, image: np.ndarray, both: bool = False):
        """Of a BGR photo: landmarks, the raw face embedding, the class embedding and the hidden states.

        Without facexlib's detector insightface's landmarks place both crops.
        """
        found = largest_face(self.detector, image)
        if both:
            self.helper.clean_all()
            self.helper.read_image(image)
            assert self.helper.get_face_landmarks_5(only_center_face=True) == 1
            self.helper.align_warp_face()
            points, crop = self.helper.all_landmarks_5[0], self.helper.cropped_faces[0]
        else:
            points = found[1]
            matrix = cv2.estimateAffinePartial2D(points, FACEXLIB * (CROP / 512), method=cv2.LMEDS)[0]
            crop = cv2.warpAffine(image, matrix, (CROP, CROP), borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
        if found is None:
            face = self.embedding(crop)
        else:
            transform = SimilarityTransform.from_estimate(found[1], ARCFACE)
            face = self.embedding(cv2.warpAffine(image, transform.params[:2], (112, 112), borderValue=0.0))
        x = torch.from_numpy(crop[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        logits = self.parser((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
        background = torch.isin(logits.argmax(1, keepdim=True), torch.tensor(WHITE))
        gray = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).expand_as(x)
        seen = torch.where(background, torch.ones_like(x), gray)
        seen = F.interpolate(seen, (self.side, self.side), mode="bicubic", align_corners=False, antialias=False)
        cls, hidden = self.tower((seen - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None])
        return points, face, F.normalize(cls, dim=-1), hidden

    def identity(self, photos: list[np.ndarray], both: bool = False, v1: bool = False, mix: bool = False) -> dict[str, torch.Tensor]:
        points, faces, classes, hidden = zip(*[self.features(photo, both) for photo in photos])
        condition = torch.cat([torch.cat([f, c], -1)[:, None] for f, c in zip(faces, classes)], 1)
        # The official pipelines show nobody in a single photo, however many there are.
        nothing = torch.zeros_like(condition[:, 0]), [torch.zeros_like(h) for h in hidden[0]]
        if v1:
            nobody = self.encoder(*nothing)
            persons = [self.encoder(condition[:, i], states) for i, states in enumerate(hidden)]
            kept = [slice(None) if mix or i == 0 else slice(5) for i in range(len(photos))]
            person = torch.cat([tokens[:, part] for tokens, part in zip(persons, kept)], 1)
            nobody = torch.cat([nobody[:, part] for part in kept], 1)
        else:
            person = self.former(condition, [torch.cat(parts, 1) for parts in zip(*hidden)])
            nobody = self.former(*nothing)
        return {
            "landmarks": torch.from_numpy(np.stack(points)),
            "face_embedding": torch.cat(faces),
            "id_cond": condition[0],
            "id_embedding": person,
            "uncond_id_embedding": nobody,
        }


def helper() -> face_restoration_helper.FaceRestoreHelper:
    """facexlib's helper as PuLID makes it, with the narrow detector, no parser and the mini family's crop."""
    from generate import CASES, detector

    network = detector(CASES["narrow-pyramid"][0])
    network.load_state_dict(load_file(PHOTOS / RETINAFACE), strict=False)
    face_restoration_helper.init_detection_model = lambda *_, **__: network.eval()
    face_restoration_helper.init_parsing_model = lambda *_, **__: None
    return face_restoration_helper.FaceRestoreHelper(
        upscale_factor=1, face_size=CROP, crop_ratio=(1, 1), det_model="retinaface_resnet50", save_ext="png", device="cpu"
    )


def main():
    deterministic()
    networks = Networks()
    for name, people in CASES.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        photos = []
        for person in people:
            portrait = cv2.imread(str(ROOT / "examples" / "faces" / f"{person}.jpg"))
            small = cv2.resize(portrait, (208, 192), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(folder / f"{person}.png"), small)
            photos.append(small)
        outputs = networks.identity(photos)
        check_outputs(f"identity/{name}", outputs)
        save_tensors(folder / "outputs.safetensors", outputs)
        note = "pulid embed PHOTOS with models/mini; landmarks in the photo's pixels"
        write_json(
            folder / "case.json",
            {"photos": [f"{p}.png" for p in people], "outputs": "outputs.safetensors", "versions": versions(), "note": note},
        )
        print(name, {k: tuple(v.shape) for k, v in outputs.items()})
    state = {f"id_adapter.{key}": value for key, value in networks.encoder.state_dict().items()}
    save_weights(HERE / "pulid_v1.safetensors", state)
    for name, (photos, both, v1, mix) in EXTENDED.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        pictures = [cv2.imread(str(HERE.parent / f"{photo}.png")) for photo in photos]
        seen = [largest_face(networks.detector, picture) is not None for picture in pictures]
        assert all(seen) == (name != "only-facexlib"), (name, seen)
        outputs = networks.identity(pictures, both, v1, mix)
        check_outputs(f"identity/{name}", outputs)
        save_tensors(folder / "outputs.safetensors", outputs)
        case = {
            "photos": [f"../../{photo}.png" for photo in photos],
            "retinaface": f"../../photos/{RETINAFACE}" if both else None,
            "adapter": "../pulid_v1.safetensors" if v1 else None,
            "id_mix": mix,
        }
        note = "pulid embed PHOTOS with models/mini, and the detector and adapter that are named; landmarks of the crop"
        write_json(folder / "case.json", {"embed": case, "outputs": "outputs.safetensors", "versions": versions(), "note": note})
        print(name, {k: tuple(v.shape) for k, v in outputs.items()})


if __name__ == "__main__":
    main()
