use super::identity::read_photo;
use super::models::ModelsArgs;
use super::{DeviceArgs, outputs, remember_choices};
use crate::progress::Terminal;
use pulid::face::{Face, centre_most_face};
use pulid::identity::{DetectOptions, DetectorKind, detect};
use pulid::image::decode_photo;
use pulid_tensor::{Error, Result};
use std::path::PathBuf;

/// Flags of `pulid faces`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pulid faces family.jpg --json\n\n\
    Coordinates are pixels of the upright photo, from its upper left corner. The largest face is the one that\n\
    `pulid embed` and `pulid generate --id` take unless --face names another, for example by its number here. Where the models folder has facexlib's detector\n\
    (detection_Resnet50_Final), they recognise the largest face and show the vision tower the one nearest to the\n\
    photo's middle that `--detector retinaface` lists. Without any face the exit code is 2.")]
pub struct Args {
    /// A photo (JPEG, PNG, WebP)
    photo: PathBuf,
    #[command(flatten)]
    models: ModelsArgs,
    /// The detector: scrfd (insightface's) or retinaface (facexlib's)
    #[arg(long, default_value = "scrfd", value_parser = parse_detector)]
    detector: DetectorKind,
    /// The least score of a face, 0 to 1 [default: 0.5 for scrfd, 0.97 for retinaface]
    #[arg(long)]
    threshold: Option<f32>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: photo, width, height and faces with bbox [x0, y0, x1, y1], score, five landmarks, largest and central
    #[arg(long)]
    json: bool,
}

fn parse_detector(text: &str) -> std::result::Result<DetectorKind, String> {
    match text {
        "scrfd" => Ok(DetectorKind::Scrfd),
        "retinaface" => Ok(DetectorKind::RetinaFace),
        _ => Err("accepted are scrfd and retinaface".into()),
    }
}

/// Lists the faces of a photo, best score first.
pub fn run(args: &Args) -> Result<()> {
    let models = args.models.open(None, None)?.face_models()?;
    outputs(models.files().iter().chain([&args.photo]))?;
    let (name, bytes) = read_photo(&args.photo)?;
    let photo = decode_photo(&name, &bytes)?;
    let terminal = Terminal::new(args.json);
    let (runtime, faces, best) = pollster::block_on(async {
        let runtime = args.device.open().await?;
        let options = DetectOptions { detector: args.detector, threshold: args.threshold };
        let faces = detect(&runtime, &models, &name, &photo, options, &terminal).await?;
        let mut best = faces.first().cloned();
        if faces.is_empty() && args.threshold.is_some() {
            // Whether the threshold is the reason.
            let usual = DetectOptions { threshold: None, ..options };
            best = detect(&runtime, &models, &name, &photo, usual, &terminal).await?.into_iter().next();
        }
        Ok::<_, Error>((runtime, faces, best))
    })?;
    terminal.finish();
    remember_choices(&runtime);
    let largest = faces.iter().enumerate().max_by(|a, b| a.1.area().total_cmp(&b.1.area())).map(|(i, _)| i);
    let central = centre_most_face(&faces, photo.dimensions());
    if args.json {
        let of = |i: usize, face: &Face| as_json(face, Some(i) == largest, Some(i) == central);
        let list: Vec<_> = faces.iter().enumerate().map(|(i, f)| of(i, f)).collect();
        let (width, height) = photo.dimensions();
        say!("{}", serde_json::json!({ "photo": name, "width": width, "height": height, "faces": list }));
    } else {
        for (i, face) in faces.iter().enumerate() {
            let number = if faces.len() > 1 { format!("{}: ", i + 1) } else { String::new() };
            let ([x0, y0, ..], (width, height)) = (face.bbox, face.size());
            let note = match args.detector {
                DetectorKind::Scrfd if Some(i) == largest => "  (the largest)",
                DetectorKind::RetinaFace if Some(i) == central => "  (nearest to the middle)",
                _ => "",
            };
            say!("{number}{width:.0} x {height:.0} pixels at ({x0:.0}, {y0:.0}), score {:.2}{note}", face.score);
        }
    }
    match (best, args.threshold) {
        _ if !faces.is_empty() => Ok(()),
        (Some(best), Some(threshold)) => Err(Error::photo(
            name,
            format!(
                "no face scores {threshold} or more; the best has {:.2}: lower --threshold",
                // Rounded down, so that it is itself a threshold that would do.
                (best.score * 100.0).floor() / 100.0
            ),
        )),
        _ => {
            let advice =
                "it shows no face; use one that shows a face clearly, from the front, with some room around it";
            Err(Error::photo(name, advice))
        }
    }
}

fn as_json(face: &Face, largest: bool, central: bool) -> serde_json::Value {
    let Face { bbox, score, landmarks } = face;
    serde_json::json!({
        "bbox": bbox, "score": score, "landmarks": landmarks, "largest": largest, "central": central
    })
}
