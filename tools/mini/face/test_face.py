"""Tests of what the face networks' training rests on. Run: python -m unittest test_face (a minute, no data needed)."""

import pathlib
import unittest

import numpy as np
import onnxruntime
import torch

import scrfd
from bisenet import BiSeNet, enlarged_at
from data import ARCFACE_112, similarity
from export import facexlib_twin, relative
from iresnet import IResNet
from steady_recogniser import GROWTH, SHIFT, TURN, disturbed, misplaced
from training import verification


class Alignment(unittest.TestCase):
    def test_similarity_recovers_rotation_scale_and_shift(self):
        angle, scale, shift = 0.4, 2.5, np.array([7.0, -3.0])
        rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = ARCFACE_112 @ rotation.T + shift
        back = similarity(moved, ARCFACE_112)
        np.testing.assert_allclose(moved @ back[:, :2].T + back[:, 2], ARCFACE_112, atol=1e-3)

    def test_similarity_is_the_least_squares_one(self):
        rng = np.random.default_rng(0)
        source = ARCFACE_112 + rng.normal(0, 4, (5, 2))
        best = similarity(source, ARCFACE_112)

        def error(m):
            return ((source @ m[:, :2].T + m[:, 2] - ARCFACE_112) ** 2).sum()

        for _ in range(50):
            a, b, x, y = rng.normal(0, 0.01, 4)
            other = best + np.array([[a, -b, x], [b, a, y]])
            self.assertGreaterEqual(error(other), error(best) - 1e-3)


class Detector(unittest.TestCase):
    def test_nine_outputs_have_insightfaces_shapes(self):
        outputs = scrfd.Scrfd().eval()(torch.zeros(1, 3, 96, 64))
        locations = [96 * 64 // s**2 for s in scrfd.STRIDES]
        wanted = [(2 * n, width) for width in (1, 4, 10) for n in locations]
        self.assertEqual([tuple(o.shape) for o in outputs], wanted)

    def test_exact_predictions_decode_to_the_faces_and_cost_nothing(self):
        faces = torch.tensor([[60.0, 40.0, 180.0, 200.0], [200.0, 180.0, 240.0, 230.0]])
        points = torch.rand(2, 5, 2) * 40 + faces[:, None, :2]
        centres, strides, sizes = scrfd.anchors(256, 256)
        target, ignored = scrfd.assign(faces, centres, sizes, strides)
        self.assertEqual(set(target.unique().tolist()), {-1, 0, 1})
        self.assertFalse((ignored & (target >= 0)).any())
        face = faces[target.clamp(min=0)]
        box = torch.cat([centres - face[:, :2], face[:, 2:] - centres], 1) / strides[:, None]
        point = (points[target.clamp(min=0)] - centres[:, None]).reshape(-1, 10) / strides[:, None]
        logit = torch.where(target >= 0, 12.0, -12.0)
        ends = np.cumsum([2 * (256 // s) ** 2 for s in scrfd.STRIDES])[:-1].tolist()
        parts = [t.tensor_split(ends) for t in (logit.sigmoid()[:, None], box, point)]
        score, boxes, found = scrfd.decode([p for part in parts for p in part], 256, 256)
        self.assertEqual(len(score), 2)
        for b, p in zip(boxes, found):
            index = int((faces - b).abs().sum(1).argmin())
            torch.testing.assert_close(b, faces[index], atol=1e-3, rtol=0)
            torch.testing.assert_close(p, points[index], atol=1e-3, rtol=0)
        maps = []
        for stride, s, b, p in zip(scrfd.STRIDES, logit.tensor_split(ends), *parts[1:]):
            n = 256 // stride
            maps.append([t.reshape(n, n, -1).permute(2, 0, 1)[None] for t in (s[:, None], b, p)])
        for value in scrfd.loss(maps, [faces], [points.reshape(2, 10)], 256, 256):
            self.assertLess(float(value), 1e-3)

    def test_a_batch_is_assigned_as_its_pictures_are(self):
        torch.manual_seed(0)
        centre, extent = torch.rand(3, 4, 2) * 256, torch.rand(3, 4, 2) * 150 + 8
        faces = torch.cat([centre - extent / 2, centre + extent / 2], 2)
        count = torch.tensor([4, 0, 2])
        where = scrfd.anchors(256, 256)
        target, ignored = scrfd.assign(faces, where[0], where[2], where[1], count)
        for index, n in enumerate(count.tolist()):
            alone = scrfd.assign(faces[index, :n], where[0], where[2], where[1])
            self.assertTrue(torch.equal(target[index], alone[0]) and torch.equal(ignored[index], alone[1]))
        self.assertGreater(int((target[0] >= 0).sum()), 4)
        self.assertGreater(int(ignored[2].sum()), 10)

    def test_the_published_file_becomes_the_network_again(self):
        path = pathlib.Path(__file__).resolve().parents[3] / "models/mini/antelopev2/scrfd_10g_bnkps.onnx"
        x = torch.rand(1, 3, 128, 192) * 2 - 1
        with torch.no_grad():
            found = scrfd.published(path)(x)
        wanted = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input.1": x.numpy()})
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a, torch.from_numpy(b), atol=2e-4, rtol=1e-3)

    def test_folding_the_units_changes_nothing(self):
        torch.manual_seed(0)
        model = scrfd.Scrfd().eval()
        x = torch.randn(1, 3, 64, 64)
        before = model(x)
        for head in model.heads:
            head.fold()
        for a, b in zip(before, model(x)):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


class Parser(unittest.TestCase):
    def test_same_function_and_key_names_as_facexlib(self):
        torch.manual_seed(0)
        model = BiSeNet().eval()
        x = torch.randn(1, 3, 96, 128)
        tensors = {k: v for k, v in model.state_dict().items() if "num_batches_tracked" not in k}
        with torch.no_grad():
            self.assertLess(relative(model(x), facexlib_twin(tensors)(x)[0]), 1e-4)

    def test_training_samples_the_enlarged_map(self):
        maps = torch.randn(2, 3, 16, 16)
        full = torch.nn.functional.interpolate(maps, (128, 128), mode="bilinear", align_corners=True)
        rows, columns = torch.arange(1, 128, 2), torch.arange(0, 128, 5)
        torch.testing.assert_close(enlarged_at(maps, 128, rows, columns), full[:, :, rows][:, :, :, columns], atol=1e-5, rtol=0)


class Recogniser(unittest.TestCase):
    def test_size_and_shape(self):
        model = IResNet().eval()
        self.assertEqual(tuple(model(torch.zeros(2, 3, 112, 112)).shape), (2, 512))
        self.assertLess(sum(p.numel() for p in model.parameters()), 1.3e6)

    def test_verification_figures_of_known_features(self):
        people = np.array([0, 0, 1, 1])
        apart = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
        self.assertEqual(verification(apart, people)["auc"], 1.0)
        self.assertEqual(verification(apart, people)["rank1"], 1.0)
        crossed = verification(apart[[0, 2, 1, 3]], people)
        self.assertLess(crossed["auc"], 0.5)
        self.assertEqual(crossed["rank1"], 0.0)

    def test_misplaced_landmarks_are_moved_turned_and_grown_by_what_is_written(self):
        rng = np.random.default_rng(3)
        moved = np.stack([misplaced(ARCFACE_112, rng) for _ in range(2000)])
        eyes = np.linalg.norm(ARCFACE_112[1] - ARCFACE_112[0])
        matrices = np.stack([similarity(ARCFACE_112, points) for points in moved])
        sizes = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
        self.assertAlmostEqual(np.log(sizes).std() / GROWTH, 1, delta=0.15)
        self.assertAlmostEqual(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]).std() / TURN, 1, delta=0.2)
        self.assertAlmostEqual((moved.mean(1) - ARCFACE_112.mean(0)).std() / eyes / SHIFT, 1, delta=0.1)

    def test_most_pictures_are_disturbed_and_stay_pictures(self):
        torch.manual_seed(4)
        rng = np.random.default_rng(4)
        pictures = list(rng.integers(0, 256, (200, 64, 64, 3), np.uint8))
        seen = disturbed(pictures, rng)
        self.assertEqual(tuple(seen.shape), (200, 3, 64, 64))
        self.assertTrue(bool(((seen >= 0) & (seen <= 1)).all()))
        same = (seen * 255).round().byte().permute(0, 2, 3, 1).numpy() == np.stack(pictures)
        self.assertAlmostEqual(same.all((1, 2, 3)).mean(), 0.3, delta=0.15)


if __name__ == "__main__":
    unittest.main()
