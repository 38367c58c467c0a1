"""The photo-to-identity path in PyTorch with the trained mini networks: what the adapter's training and the evaluation use.

    models = FaceModels(work)                      # checkpoints written by the training scripts
    face = models.find(image)                      # u8 [H,W,3] RGB -> largest face or None
    condition, hidden = models.identity(image, face.points)
    same = models.second(image, face.points)       # evaluation only
"""

import pathlib
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from bisenet import BiSeNet
from data import arcface_crop, facexlib_crop
from export import trained
from iresnet import IResNet
from scrfd import Scrfd, decode
from second_recogniser import INPUT_SIZE, SecondRecogniser
from train_detector import letterbox
from train_parser import normalised as parser_input
from train_tower import gray_face, tower
from train_tower import normalised as tower_input

MODELS = pathlib.Path(__file__).resolve().parents[3] / "models" / "mini"


@dataclass
class Face:
    score: float
    box: np.ndarray  # (x0, y0, x1, y1) in the photo's pixels
    points: np.ndarray  # [5,2] in the photo's pixels, ArcFace's order


class PublishedNetwork:
    """A published `.onnx` file with insightface's input: a picture in, all its outputs out."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, x):
        return self.session.run(None, {"input.1": x.numpy()})


class FaceModels:
    def __init__(self, work, crop=128):
        work = pathlib.Path(work)
        self.crop = crop
        # `recover.py` makes no checkpoint of the detector: without one, its published file is taken.
        checkpoint = work / "detector.pt"
        self.detector = trained(Scrfd(), checkpoint) if checkpoint.exists() else PublishedNetwork(MODELS / "antelopev2" / "scrfd_10g_bnkps.onnx")
        self.recogniser = trained(IResNet(), work / "recogniser.pt")
        self.parser = trained(BiSeNet(), work / "parser.pt")
        self.tower = trained(tower(), work / "tower.pt")
        second = work / "second_recogniser.pt"
        self.second_recogniser = trained(SecondRecogniser(), second) if second.exists() else None

    @torch.no_grad()
    def faces(self, image, threshold=0.5):
        picture, scale = letterbox(image)
        x = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127.5) / 128
        score, boxes, points = decode(self.detector(x), *picture.shape[:2], threshold)
        return [Face(float(s), b.numpy() / scale, p.numpy() / scale) for s, b, p in zip(score, boxes, points)]

    def find(self, image):
        """The largest face, or None."""
        return max(self.faces(image), key=lambda f: float(np.prod(f.box[2:] - f.box[:2])), default=None)

    @torch.no_grad()
    def embedding(self, image, points):
        """The raw recogniser embedding [512]."""
        crop = torch.from_numpy(arcface_crop(image, points)).permute(2, 0, 1)[None].float()
        return self.recogniser((crop - 127.5) / 127.5)[0]

    @torch.no_grad()
    def parsed(self, image, points):
        """The aligned crop u8 [S,S,3] and its labels u8 [S,S]."""
        crop = facexlib_crop(image, points, self.crop)
        return crop, self.parser(parser_input([crop])).argmax(1)[0].numpy().astype(np.uint8)

    @torch.no_grad()
    def identity(self, image, points):
        """PuLID's condition: [recogniser 512 (raw), tower 256 (unit length)] and the five hidden states [65,192]."""
        cls, hidden = self.tower(tower_input([gray_face(*self.parsed(image, points))]))
        return torch.cat([self.embedding(image, points), F.normalize(cls, dim=-1)[0]]), [h[0] for h in hidden]

    @torch.no_grad()
    def second(self, image, points):
        """The second recogniser's embedding [256], unit length; for evaluation only."""
        crop = facexlib_crop(image, points, INPUT_SIZE)
        return self.second_recogniser(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255 - 0.5)[0]


def read_photo(path):
    """A picture file as u8 [H,W,3] RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path}: not a picture that OpenCV reads")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
