use super::identity::{ModelsArgs, read_photo};
use super::{DeviceArgs, remember_choices};
use crate::progress::Terminal;
use pulid::face::Face;
use pulid::identity::detect;
use pulid::image::decode_photo;
use pulid_tensor::{Error, Result};
use std::path::PathBuf;

/// Flags of `pulid faces`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pulid faces family.jpg --json\n\n\
    Coordinates are pixels of the upright photo, from its upper left corner. The largest face is the one that\n\
    `pulid embed` and `pulid generate --id` take. Without any face the exit code is 2.")]
pub struct Args {
    /// A photo (JPEG, PNG, WebP)
    photo: PathBuf,
    #[command(flatten)]
    models: ModelsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: photo, width, height and faces with bbox [x0, y0, x1, y1], score, five landmarks and largest
    #[arg(long)]
    json: bool,
}

/// Lists the faces of a photo, best score first.
pub fn run(args: &Args) -> Result<()> {
    let models = args.models.face_models()?;
    let (name, bytes) = read_photo(&args.photo)?;
    let photo = decode_photo(&name, &bytes)?;
    let terminal = Terminal::new(args.json);
    let (runtime, faces) = pollster::block_on(async {
        let runtime = args.device.open().await?;
        let faces = detect(&runtime, &models, &name, &photo, &terminal).await?;
        Ok::<_, Error>((runtime, faces))
    })?;
    terminal.finish();
    remember_choices(&runtime);
    let largest = faces.iter().enumerate().max_by(|a, b| a.1.area().total_cmp(&b.1.area())).map(|(i, _)| i);
    if args.json {
        let list: Vec<_> = faces.iter().enumerate().map(|(i, f)| as_json(f, Some(i) == largest)).collect();
        let (width, height) = photo.dimensions();
        println!("{}", serde_json::json!({ "photo": name, "width": width, "height": height, "faces": list }));
    } else {
        for (i, face) in faces.iter().enumerate() {
            let ([x0, y0, ..], (width, height)) = (face.bbox, face.size());
            let note = if Some(i) == largest { "  (the largest)" } else { "" };
            println!("{width:.0} x {height:.0} pixels at ({x0:.0}, {y0:.0}), score {:.2}{note}", face.score);
        }
    }
    if faces.is_empty() {
        return Err(Error::photo(name, "it shows no face; use one that shows a face clearly, from the front"));
    }
    Ok(())
}

fn as_json(face: &Face, largest: bool) -> serde_json::Value {
    serde_json::json!({ "bbox": face.bbox, "score": face.score, "landmarks": face.landmarks, "largest": largest })
}
