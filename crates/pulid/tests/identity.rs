//! Photos to identities with the mini models. `PULID_MODELS` names another folder of the same layout.

use pulid::face::Face;
use pulid::identity::{DetectOptions, ExtractOptions, FaceModels, Identity, debug_image_names, detect, extract};
use pulid::image::{ImageMetadata, RgbImage, decode_photo, encode_png};
use pulid::runtime::{Reporter, Runtime};
use pulid_checkpoint::Checkpoint;
use pulid_engine::{DeviceOptions, Silent};
use pulid_tensor::{Error, HostTensor};
use std::path::{Path, PathBuf};

type Photo = (String, Vec<u8>);

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn models() -> PathBuf {
    std::env::var_os("PULID_MODELS").map_or_else(|| repository("models/mini"), PathBuf::from)
}

fn portrait(name: &str) -> Photo {
    let bytes = std::fs::read(repository("examples/faces").join(name)).unwrap();
    (name.to_owned(), bytes)
}

fn png(name: &str, image: &RgbImage) -> Photo {
    (name.to_owned(), encode_png(image, &ImageMetadata::default()).unwrap())
}

/// Another photo of the same person: from the other side, darker, in another format.
fn another_photo(of: &Photo) -> Photo {
    let mut image = ::image::imageops::flip_horizontal(&decode_photo(&of.0, &of.1).unwrap());
    for value in image.iter_mut() {
        *value = (f32::from(*value) * 0.85) as u8;
    }
    png("another.png", &image)
}

struct Setup {
    runtime: Runtime,
    models: FaceModels,
    adapter: PathBuf,
}

impl Setup {
    fn new() -> Setup {
        Setup {
            runtime: pollster::block_on(Runtime::open("auto", DeviceOptions::default())).unwrap(),
            models: FaceModels::open(models()).unwrap(),
            adapter: models().join("pulid_v1.1.safetensors"),
        }
    }

    fn extract(&self, photos: &[Photo]) -> pulid_tensor::Result<Identity> {
        self.extract_with(photos, &ExtractOptions::default())
    }

    fn extract_with(&self, photos: &[Photo], options: &ExtractOptions) -> pulid_tensor::Result<Identity> {
        pollster::block_on(extract(&self.runtime, &self.models, &self.adapter, photos, options, &Silent))
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn rows(t: &HostTensor) -> Vec<&[f32]> {
    t.as_f32().unwrap().chunks(t.shape().last()).collect()
}

#[test]
fn a_person_is_read_from_one_and_from_several_photos() {
    let setup = Setup::new();
    let (ada, ben) = (portrait("ada.jpg"), portrait("ben.jpg"));
    let folder = tempfile::tempdir().unwrap();
    let options = ExtractOptions { debug: true, ..ExtractOptions::default() };
    let one = setup.extract_with(std::slice::from_ref(&ada), &options).unwrap();
    let three = setup.extract(&[ada.clone(), another_photo(&ada), ben]).unwrap();

    // The recogniser tells the same person from another one, whatever the photo.
    let faces = rows(&three.face_embedding);
    assert_eq!(three.face_embedding.shape().extents(), [3, 512]);
    let (same, other) = (cosine(faces[0], faces[1]), cosine(faces[0], faces[2]));
    assert!(same > 0.5 && same > other + 0.3, "same {same}, other {other}");
    // A photo's embedding does not depend on the photos beside it.
    assert!(cosine(rows(&one.face_embedding)[0], faces[0]) > 0.9999);

    let tokens = &one.tokens;
    assert_eq!(tokens.id_embedding.shape().rank(), 3);
    assert_eq!(tokens.id_embedding.shape(), three.tokens.id_embedding.shape());
    assert_eq!(tokens.id_embedding.shape(), tokens.uncond_id_embedding.shape());
    // The unconditional tokens are not the person's, and more photos say more than one.
    assert_ne!(tokens.id_embedding, tokens.uncond_id_embedding);
    assert_ne!(tokens.id_embedding, three.tokens.id_embedding);
    assert_eq!(three.photos, ["ada.jpg", "another.png", "ben.jpg"]);

    // The mini models have no facexlib detector, which would draw one more.
    let drawn: Vec<_> = one.debug_images.iter().map(|p| p.name.clone()).collect();
    let expected = debug_image_names(1).into_iter().filter(|name| name != "1_faces_retinaface.png");
    assert_eq!(drawn, expected.collect::<Vec<_>>());
    assert_eq!(drawn.len(), 9);
    assert!(three.debug_images.is_empty(), "nobody asked for them");
    let read = |name: &str| {
        let picture = one.debug_images.iter().find(|p| p.name == name).unwrap();
        decode_photo(name, &picture.to_png().unwrap()).unwrap()
    };
    let (crop, gray) = (read("1_crop.png"), read("1_gray.png"));
    assert_eq!(crop.dimensions(), gray.dimensions());
    // White around the face, and a face within.
    let white = gray.pixels().filter(|p| p.0 == [255; 3]).count() as f64 / f64::from(gray.width() * gray.height());
    assert!((0.1..0.9).contains(&white), "{white}");
    assert_eq!(gray.get_pixel(0, 0).0, [255; 3]);
    assert_ne!(gray.get_pixel(gray.width() / 2, gray.height() * 6 / 10).0, [255; 3]);

    let path = folder.path().join("ada.safetensors");
    one.save(&path).unwrap();
    assert_eq!(Identity::load_tokens(&path).unwrap().id_embedding, tokens.id_embedding);
}

/// Notes that are said.
#[derive(Default)]
struct Notes(std::cell::RefCell<Vec<String>>);

impl pulid_engine::Observer for Notes {}

impl Reporter for Notes {
    fn note(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }
}

#[test]
fn a_face_that_fills_the_photo_is_found_all_the_same() {
    let setup = Setup::new();
    let find = |photo: &RgbImage| {
        let options = DetectOptions::default();
        pollster::block_on(detect(&setup.runtime, &setup.models, "close", photo, options, &Silent)).unwrap()
    };
    // Of others the mini detector finds something in the cut photo at once, right or wrong.
    for name in ["ben.jpg", "eva.jpg"] {
        let (name, bytes) = portrait(name);
        let photo = decode_photo(&name, &bytes).unwrap();
        let whole = find(&photo).remove(0);
        let [left, top, right, bottom] = whole.bbox;
        let (width, height) = ((right - left) as u32, (bottom - top) as u32);
        // The face and nothing around it, 900 pixels high.
        let part = ::image::imageops::crop_imm(&photo, left as u32, top as u32, width, height).to_image();
        let close =
            ::image::imageops::resize(&part, 900 * width / height, 900, ::image::imageops::FilterType::CatmullRom);
        let found = find(&close);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        // Eyes, nose and mouth are where they are in the whole photo, to a tenth of the face.
        let scale = height as f32 / 900.0;
        for (near, far) in found[0].landmarks.iter().zip(whole.landmarks) {
            let off = (near[0] * scale + left.floor() - far[0]).hypot(near[1] * scale + top.floor() - far[1]);
            assert!(off < 0.1 * width as f32, "{name}: {found:?} and {whole:?}: off by {off} of {width}");
        }
        setup.extract(&[png("close.png", &close)]).unwrap();
    }
}

#[test]
fn of_several_faces_the_one_that_is_named_is_read() {
    let setup = Setup::new();
    let [eva, finn] = ["eva.jpg", "finn.jpg"].map(portrait);
    let [left, right] = [&eva, &finn].map(|(name, bytes)| decode_photo(name, bytes).unwrap());
    let mut both =
        RgbImage::from_pixel(left.width() + right.width(), left.height().max(right.height()), ::image::Rgb([120; 3]));
    ::image::imageops::replace(&mut both, &left, 0, 0);
    ::image::imageops::replace(&mut both, &right, left.width().into(), 0);
    let both = png("both.png", &both);
    let own = [&eva, &finn].map(|photo| setup.extract(std::slice::from_ref(photo)).unwrap().face_embedding);
    for (face, who) in [("left", 0), ("right", 1)] {
        let (notes, face) = (Notes::default(), face.parse().unwrap());
        let options = ExtractOptions { face, ..ExtractOptions::default() };
        let read =
            extract(&setup.runtime, &setup.models, &setup.adapter, std::slice::from_ref(&both), &options, &notes);
        let read = pollster::block_on(read).unwrap().face_embedding;
        let like = own.each_ref().map(|own| cosine(own.as_f32().unwrap(), read.as_f32().unwrap()));
        assert!(like[who] > 0.3 && like[who] > like[1 - who] + 0.3, "{face:?}: {like:?}");
        let notes = notes.0.into_inner();
        assert!(notes.len() == 1 && notes[0].contains("both.png shows 2 faces; the "), "{notes:?}");
    }
}

#[test]
fn faces_are_listed_in_the_photo_s_pixels() {
    let setup = Setup::new();
    let (eva, finn) = (portrait("eva.jpg"), portrait("finn.jpg"));
    let [eva, finn] = [eva, finn].map(|(name, bytes)| decode_photo(&name, &bytes).unwrap());
    let find = |photo: &RgbImage| {
        let options = DetectOptions::default();
        pollster::block_on(detect(&setup.runtime, &setup.models, "both", photo, options, &Silent)).unwrap()
    };
    let alone = find(&eva);
    assert_eq!(alone.len(), 1, "{alone:?}");

    // Side by side above 1024 pixels, so that the photo is shrunk on the way.
    let mut both = RgbImage::from_pixel(1400, 700, ::image::Rgb([120, 120, 120]));
    ::image::imageops::replace(&mut both, &eva, 100, 80);
    ::image::imageops::replace(&mut both, &finn, 780, 80);
    let mut faces = find(&both);
    assert_eq!(faces.len(), 2, "{faces:?}");
    faces.sort_by(|a, b| a.bbox[0].total_cmp(&b.bbox[0]));
    let middle = |face: &Face| [(face.bbox[0] + face.bbox[2]) / 2.0, (face.bbox[1] + face.bbox[3]) / 2.0];
    // Faces are some 150 pixels wide; left in the shrunk photo's pixels, the second one would be 270 pixels off.
    for (face, (own, left)) in faces.iter().zip([(&alone, 100.0), (&find(&finn), 780.0)]) {
        let (found, expected) = (middle(face), middle(&own[0]));
        let off = (found[0] - expected[0] - left).hypot(found[1] - expected[1] - 80.0);
        assert!(off < 40.0, "{face:?} for {:?} moved by ({left}, 80)", own[0]);
    }
}

#[test]
fn unusable_photos_are_refused() {
    let setup = Setup::new();
    let ada = portrait("ada.jpg");
    let refused = |photo: Photo, word: &str| {
        let name = photo.0.clone();
        let error = setup.extract(&[ada.clone(), photo]).unwrap_err();
        assert!(matches!(&error, Error::Photo { name: n, .. } if *n == name), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    let wall = RgbImage::from_fn(200, 200, |x, _| ::image::Rgb([100 + (x / 4) as u8, 120, 140]));
    refused(png("wall.png", &wall), "no face");
    refused(("cut.jpg".into(), ada.1[..ada.1.len() / 2].to_vec()), "");
    refused(("notes.txt".into(), b"not a photo".to_vec()), "");

    let none = setup.extract(&[]).unwrap_err();
    assert!(matches!(none, Error::Invalid { .. }), "{none}");
    let many = setup.extract(&vec![ada; 5]).unwrap_err();
    assert!(matches!(many, Error::Invalid { .. }), "{many}");
}

#[test]
fn another_file_is_no_adapter() {
    let mut setup = Setup::new();
    setup.adapter = models().join("eva_clip.safetensors");
    assert!(setup.extract(&[portrait("ada.jpg")]).is_err());
    setup.adapter = models().join("missing.safetensors");
    let message = setup.extract(&[portrait("ada.jpg")]).unwrap_err().to_string();
    assert!(message.contains("missing.safetensors"), "{message}");
}

/// What the encoder is told of a photo beside hidden states, by the largest difference over the reference's deviation.
#[test]
fn conditions_are_those_of_the_reference() {
    let goldens = repository("tests/goldens");
    let folder = tempfile::tempdir().unwrap();
    let names = ["antelopev2/scrfd_10g_bnkps.onnx", "antelopev2/glintr100.onnx", "parsing_bisenet.safetensors"];
    std::fs::create_dir(folder.path().join("antelopev2")).unwrap();
    for name in names.into_iter().chain(["eva_clip.safetensors", "eva_clip.json"]) {
        std::fs::copy(repository("models/mini").join(name), folder.path().join(name)).unwrap();
    }
    let detector = "detection_Resnet50_Final.safetensors";
    std::fs::copy(goldens.join("photos").join(detector), folder.path().join(detector)).unwrap();
    let setup = |models: &Path| Setup {
        models: FaceModels::open(models).unwrap(),
        adapter: repository("models/mini/pulid_v1.1.safetensors"),
        ..Setup::new()
    };
    let (one, both) = (setup(&repository("models/mini")), setup(folder.path()));
    let cases = [
        (&one, "one-photo", "identity/one-photo/ada.png"),
        (&both, "both-detectors", "photos/portrait.png"),
        (&both, "two-people", "photos/pair.png"),
        (&both, "only-facexlib", "photos/blue.png"),
    ];
    for (setup, case, photo) in cases {
        let bytes = std::fs::read(goldens.join(photo)).unwrap();
        let ours = setup.extract(&[(photo.to_owned(), bytes)]).unwrap().id_cond;
        let file = Checkpoint::open(goldens.join("identity").join(case).join("outputs.safetensors")).unwrap();
        let theirs = file.tensor("id_cond").unwrap();
        assert_eq!(ours.shape(), theirs.shape());
        // The face embedding and the class embedding of length 1 are of different sizes: each against its own deviation.
        let (ours, theirs) = (ours.as_f32().unwrap(), theirs.as_f32().unwrap());
        for (part, ours, theirs) in [("face", &ours[..512], &theirs[..512]), ("class", &ours[512..], &theirs[512..])] {
            let n = theirs.len() as f32;
            let mean = theirs.iter().sum::<f32>() / n;
            let deviation = (theirs.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
            let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{case} {part}: {:.1e}", worst / deviation);
            assert!(worst <= 1e-3 * deviation, "{case}: {part} embedding differs by {:.1e}", worst / deviation);
        }
    }
}
