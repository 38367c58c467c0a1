use super::identity::read_photo;
use super::models::ModelsArgs;
use super::{DeviceArgs, outputs, remember_choices};
use crate::progress::Terminal;
use pulid::face::{Face, centre_most_face, surely_largest};
use pulid::identity::{DetectOptions, DetectorKind, detect};
use pulid::image::decode_photo;
use pulid_tensor::{Error, Result};
use std::path::PathBuf;

/// Flags of `pulid faces`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pulid faces family.jpg --json\n\n\
    Coordinates are pixels of the upright photo, from its upper left corner. The largest face, of those whose score\n\
    is at least two thirds of the best, is the one that `pulid embed` and `pulid generate --id` take unless --face names\n\
    another, for example by its number here. Where the models folder has facexlib's detector (detection_Resnet50_Final),\n\
    they recognise that face and show the vision tower the one nearest to the photo's middle that\n\
    `--detector retinaface` lists. Without any face the exit code is 2.")]
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
    /// Print JSON: photo, width, height and faces with bbox [x0, y0, x1, y1], score, five landmarks, largest, central and
    /// taken (by default)
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
    let taken = match args.detector {
        DetectorKind::Scrfd => surely_largest(&faces),
        DetectorKind::RetinaFace => central,
    };
    if args.json {
        let list: Vec<_> = (faces.iter().enumerate())
            .map(|(i, Face { bbox, score, landmarks })| {
                let [largest, central, taken] = [largest, central, taken].map(|which| which == Some(i));
                serde_json::json!({
                    "bbox": bbox, "score": score, "landmarks": landmarks, "largest": largest, "central": central, "taken": taken
                })
            })
            .collect();
        let (width, height) = photo.dimensions();
        say!("{}", serde_json::json!({ "photo": name, "width": width, "height": height, "faces": list }));
    } else {
        for (i, face) in faces.iter().enumerate() {
            let number = if faces.len() > 1 { format!("{}: ", i + 1) } else { String::new() };
            let ([x0, y0, ..], (width, height)) = (face.bbox, face.size());
            let note = match args.detector {
                _ if Some(i) != taken => "",
                DetectorKind::Scrfd if Some(i) == largest => "  (the largest)",
                DetectorKind::Scrfd => "  (the largest of those nearly as sure as the surest)",
                DetectorKind::RetinaFace => "  (nearest to the middle)",
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
