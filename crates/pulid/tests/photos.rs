//! facexlib's detector and the crops on photographs, against the goldens in `tests/goldens/photos`.

use pulid::face::{
    Face, Landmarks, RETINAFACE_SCORE_THRESHOLD, arcface_crop, centre_most_face, decode_retinaface, estimate_lmeds,
    facexlib_crop, retinaface_candidates, retinaface_input,
};
use pulid::image::{RgbImage, decode_photo};
use pulid::runtime::{Loaded, Runtime};
use pulid_checkpoint::Checkpoint;
use pulid_engine::{DeviceOptions, Silent};
use pulid_models::Precision;
use pulid_models::face::RetinaFace;
use pulid_tensor::HostTensor;
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    photo: String,
    candidates: Vec<Detection>,
    kept: Vec<Detection>,
    faces: Vec<Detection>,
    chosen: usize,
    matrix: [[f64; 3]; 2],
}

#[derive(Deserialize)]
struct Detection {
    #[serde(rename = "box")]
    bbox: [f32; 4],
    score: f32,
    landmarks: Landmarks,
}

impl Case {
    fn photo(&self) -> RgbImage {
        image(&self.photo)
    }

    fn landmarks(&self) -> &Landmarks {
        &self.faces[self.chosen].landmarks
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/photos")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("photos.json")).unwrap();
    serde_json::from_str::<Golden>(&text).unwrap().cases
}

fn image(file: &str) -> RgbImage {
    decode_photo(file, &std::fs::read(folder().join(file)).unwrap()).unwrap()
}

/// The network's three outputs for a photo.
fn outputs(runtime: &Runtime, detector: &RetinaFace, photo: &RgbImage) -> [HostTensor; 3] {
    let graph = detector.graph(1, photo.height() as usize, photo.width() as usize).unwrap();
    pollster::block_on(async {
        let mut network: Loaded = runtime.load(&graph, &Silent).await.unwrap();
        network.write("image", &retinaface_input(photo)).unwrap();
        let mut outputs = network.run(&Silent).await.unwrap();
        ["loc", "conf", "landms"].map(|name| outputs.remove(name).unwrap())
    })
}

/// Coordinates to a hundredth of a pixel, scores to 1e-4. Where two scores are that close, either may come first.
fn assert_same(ours: &[Face], theirs: &[Detection], name: &str) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let mut left: Vec<&Detection> = theirs.iter().collect();
    for (i, face) in ours.iter().enumerate() {
        let numbers = |bbox: &[f32; 4], landmarks: &Landmarks| [&bbox[..], landmarks.as_flattened()].concat();
        let own = numbers(&face.bbox, &face.landmarks);
        let fits = |d: &&Detection| {
            let near = numbers(&d.bbox, &d.landmarks).iter().zip(&own).all(|(a, b)| (a - b).abs() <= 0.01);
            near && (d.score - face.score).abs() < 1e-4
        };
        let found = left.iter().position(fits);
        let found = found.unwrap_or_else(|| panic!("{name}: {face:?} at {i} is none of facexlib's"));
        assert!((theirs[i].score - face.score).abs() < 1e-4, "{name}: {i} is out of order");
        left.remove(found);
    }
}

#[test]
fn detections_are_facexlib_s() {
    let runtime = pollster::block_on(Runtime::open("auto", DeviceOptions::default())).unwrap();
    let weights = Checkpoint::open(folder().join("detection_Resnet50_Final.safetensors")).unwrap();
    let detector = RetinaFace::new(&weights, Precision::F32).unwrap();
    let cases = cases();
    assert!(cases.len() >= 6);
    for case in &cases {
        let photo = case.photo();
        let [loc, conf, landms] = outputs(&runtime, &detector, &photo);
        let outputs = [&loc, &conf, &landms];
        let (name, size) = (&case.name, photo.dimensions());
        assert_same(&retinaface_candidates(outputs, size, 0.5).unwrap(), &case.candidates, name);
        assert_same(&decode_retinaface(outputs, size, 0.5).unwrap(), &case.kept, name);
        let faces = decode_retinaface(outputs, size, RETINAFACE_SCORE_THRESHOLD).unwrap();
        assert_same(&faces, &case.faces, name);
        assert_eq!(centre_most_face(&faces, size), Some(case.chosen), "{name}");
    }
    // Suppression and the choice of the face in the middle have to matter.
    assert!(cases.iter().all(|c| c.kept.len() < c.candidates.len()));
    let area = |d: &Detection| (d.bbox[2] - d.bbox[0]) * (d.bbox[3] - d.bbox[1]);
    assert!(cases.iter().any(|c| c.faces.iter().any(|face| area(face) > area(&c.faces[c.chosen]))));
}

/// The crops are OpenCV's but for a pixel here and there whose place falls on the other side of a rounding.
fn assert_crop(ours: &RgbImage, theirs: &RgbImage, name: &str) {
    assert_eq!(ours.dimensions(), theirs.dimensions());
    let each = ours.iter().zip(theirs.iter()).map(|(a, b)| a.abs_diff(*b));
    let share = |least: u8| each.clone().filter(|&d| d >= least).count() as f64 / ours.len() as f64;
    let (different, apart) = (share(1), share(2));
    println!("{name}: {different:.5} differ, {apart:.5} by more than 1 of 255");
    assert!(different <= 1e-3 && apart <= 1e-4, "{name}: {different} differ, {apart} by more than 1 of 255");
}

#[test]
fn crops_are_opencv_s() {
    for case in cases() {
        let (photo, landmarks) = (case.photo(), case.landmarks());
        let transform = estimate_lmeds(landmarks, &pulid::face::FACEXLIB_TEMPLATE).unwrap();
        let ours = [[transform.a, -transform.b, transform.tx], [transform.b, transform.a, transform.ty]];
        for (a, b) in ours.as_flattened().iter().zip(case.matrix.as_flattened()) {
            assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{}: {ours:?} for {:?}", case.name, case.matrix);
        }
        let crop = facexlib_crop(&case.name, &photo, landmarks, 512).unwrap();
        let sparse = RgbImage::from_fn(128, 128, |x, y| *crop.get_pixel(4 * x + 2, 4 * y + 1));
        assert_crop(&sparse, &image(&format!("{}-facexlib.png", case.name)), &format!("{} facexlib", case.name));
        let crop = arcface_crop(&case.name, &photo, landmarks).unwrap();
        assert_crop(&crop, &image(&format!("{}-arcface.png", case.name)), &format!("{} arcface", case.name));
    }
}
