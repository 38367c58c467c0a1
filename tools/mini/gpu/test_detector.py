"""Tests of what the detector's training on composed scenes rests on. Run: python -m unittest test_detector (half a minute, no data needed)."""

import sys
import tempfile
import unittest
from pathlib import Path

import cv2
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "face")]

import composition  # noqa: E402
import degradation  # noqa: E402
import textures  # noqa: E402
from detector import PUBLISHED, figures, load, save, spread_norms  # noqa: E402
from scrfd import Scrfd, published  # noqa: E402


def made_up(folder, count=4):
    """Renders of one white square in a face's place, with a coloured dot of two pixels at each landmark."""
    images, labels = np.full((count, 128, 128, 3), 20, np.uint8), np.zeros((count, 128, 128), np.uint8)
    points = np.array([[44, 50], [80, 52], [66, 70], [50, 88], [76, 90]], np.float32)
    labels[:, 30:110, 30:96] = 1
    images[labels > 0] = 255
    for x, y in points.astype(int):
        images[:, y - 1 : y + 2, x - 1 : x + 2] = (255, 0, 0)
    np.savez(folder / "shard-00000.npz", images=images, labels=labels, landmarks=np.repeat(points[None], count, 0),
             bbox=np.repeat(np.array([[30, 30, 95, 109]], np.float32), count, 0), style=np.zeros(count, np.int64))
    data = composition.Pictures(folder, torch.device("cpu"), 16)
    data.refresh()
    return data


class Scenes(unittest.TestCase):
    def test_boxes_and_points_lie_where_the_face_was_drawn(self):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            composer = composition.Composer(made_up(Path(folder)), 320)
        rng, mirrored = np.random.default_rng(0), set()
        for _ in range(6):
            plan = composition.Plan("portrait", composer.data, 320, rng)
            plan.pieces[0].plain = True
            mirrored.add(plan.pieces[0].mirrored)
            patch = composer.patches(plan.pieces, torch.from_numpy(composer.data.points[:1]))
            scene = composer.paste(torch.zeros(1, 3, 320, 320), patch, plan.pieces)[0]
            scale = float(np.sqrt(np.linalg.det(plan.pieces[0].matrix[:, :2])))
            for x, y in plan.points[0].reshape(5, 2):
                if scale > 0.7 and 2 < x < 317 and 2 < y < 317:
                    r, g, _ = scene[:, round(float(y)), round(float(x))]
                    self.assertGreater(float(r - g), 0.4)
            middle = (plan.boxes[0][:2] + plan.boxes[0][2:]) / 2
            self.assertGreater(float(scene[:, int(middle[1] + 4 * scale), int(middle[0]) - int(8 * scale)].mean()), 0.8)
        self.assertEqual(mirrored, {True, False})

    def test_a_batch_has_pictures_boxes_and_negatives(self):
        torch.manual_seed(1)
        with tempfile.TemporaryDirectory() as folder:
            composer = composition.Composer(made_up(Path(folder)), 320, torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
        batch = composer.batch(12, np.random.default_rng(1))
        self.assertEqual(tuple(batch.pictures.shape), (12, 3, 320, 320))
        self.assertTrue(bool(torch.isfinite(batch.pictures).all()) and float(batch.pictures.min()) >= 0 and float(batch.pictures.max()) <= 1)
        for kind, n in zip(batch.kinds, batch.count.tolist()):
            self.assertEqual(kind == "negative", n == 0)
        self.assertTrue({"negative", "group", "portrait"} <= set(batch.kinds))

    def test_figures_of_the_true_boxes_of_no_detector_are_zero(self):
        torch.manual_seed(2)
        with tempfile.TemporaryDirectory() as folder:
            composer = composition.Composer(made_up(Path(folder)), 320)
        silent = Scrfd()
        for head in silent.heads:
            torch.nn.init.constant_(head.score.bias, -50.0)
        found = figures(silent, [composer.batch(2, np.random.default_rng(2), "portrait")])
        self.assertEqual((found["recall"]["portrait"], found["alarms_per_scene"]["portrait"], found["faces"]), (0, 0, 2))


class Degradation(unittest.TestCase):
    def test_jpeg_loses_what_libjpeg_loses(self):
        torch.manual_seed(0)
        coloured = (textures.cells(1, 128, torch.device("cpu")) * 0.7 + 0.15).clamp(0, 1)
        # In colour the two round the planes' means and what they enlarge at other places: half a level.
        for picture, bound in ((coloured, 0.9), (coloured.mean(1, keepdim=True).expand(1, 3, -1, -1), 0.25)):
            image = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
            for quality in (20, 60, 90):
                options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
                theirs = cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1], options)[1], cv2.IMREAD_COLOR_RGB).astype(np.float32)
                x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
                ours = degradation.jpeg(x, torch.tensor([float(quality)]), torch.ones(1, 1, 1, 1, dtype=torch.bool))[0].permute(1, 2, 0).numpy() * 255
                lost, apart = np.abs(theirs - image).mean(), np.abs(theirs - ours).mean()
                self.assertLess(apart, bound, f"quality {quality}: {lost=} {apart=}")
                self.assertLess(abs(np.abs(ours - image).mean() - lost), 0.03 * lost + 0.02)

    def test_blur_is_opencvs(self):
        x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        found = degradation.blur(x, torch.tensor([1.5, 3.0]).view(2, 1, 1, 1))
        for index, sigma in enumerate((1.5, 3.0)):
            wanted = cv2.GaussianBlur(x[index].permute(1, 2, 0).numpy(), (17, 17), sigma, borderType=cv2.BORDER_REPLICATE)
            np.testing.assert_allclose(found[index].permute(1, 2, 0).numpy(), wanted, atol=5e-3)


class Norms(unittest.TestCase):
    def test_spreading_the_norms_changes_nothing_and_a_checkpoint_brings_them_back(self):
        torch.manual_seed(0)
        model, x = published(PUBLISHED), torch.rand(1, 3, 96, 128) * 2 - 1
        with torch.no_grad():
            wanted = model(x)
        spread_norms(model, [torch.rand(2, 3, 96, 96) * 2 - 1 for _ in range(3)])
        self.assertGreater(float((model.stem[0][1].running_var - 1).abs().max()), 0.1)
        again = Scrfd()
        with tempfile.TemporaryDirectory() as folder:
            save(model, Path(folder) / "detector.safetensors")
            self.assertTrue(load(again, Path(folder) / "detector.safetensors"))
        for network in (model, again):
            with torch.no_grad():
                for a, b in zip(network.eval()(x), wanted):
                    torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


if __name__ == "__main__":
    unittest.main()
