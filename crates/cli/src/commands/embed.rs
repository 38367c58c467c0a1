use super::identity::{FaceArgs, check_no_folder, claim_debug_images, read_photos, write_debug_images};
use super::models::ModelsArgs;
use super::{DeviceArgs, check_report, claim_tensors, outputs, remember_choices};
use crate::progress::Terminal;
use pulid::identity::{ExtractOptions, extract, unread_of_adapter};
use pulid::runtime::Reporter;
use pulid_tensor::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Flags of `pulid embed`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid embed ada-1.jpg ada-2.jpg --output ada.safetensors\n  \
    pulid embed ada.jpg --output ada.safetensors --debug-dir seen\n\n\
    The file holds `id_embedding` and `uncond_id_embedding` for `pulid generate --identity`, and `face_embedding`, the\n\
    recogniser's vector of each photo: the cosine of two tells whether they show the same person.")]
pub struct Args {
    /// 1 to 4 photos of one person (JPEG, PNG, WebP)
    #[arg(required = true, value_name = "PHOTO")]
    photos: Vec<PathBuf>,
    /// The identity file to write (safetensors); `-` is standard output, without --json
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// A PuLID file, v1 or v1.1 [default: the models folder's own, v1.1 before v1]
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsArgs,
    /// PuLID v1: the photos show several people, to be mixed, and all their tokens count alike. Without it further photos
    /// show the first one's person again and add five tokens each
    #[arg(long)]
    id_mix: bool,
    #[command(flatten)]
    face: FaceArgs,
    /// Write images of the faces, crop, mask and features into this folder
    #[arg(long, value_name = "DIR")]
    debug_dir: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print a JSON report instead of progress
    #[arg(long)]
    json: bool,
}

/// Reads a person from photos.
pub fn run(args: &Args) -> Result<()> {
    args.photos.iter().try_for_each(|photo| check_no_folder(photo))?;
    let mut files = outputs(args.photos.iter().chain(&args.adapter))?;
    claim_tensors(&mut files, &args.output)?;
    if let Some(folder) = &args.debug_dir {
        claim_debug_images(&mut files, folder, args.photos.len())?;
    }
    check_report(&files, args.json)?;
    let models = args.models.open(None, None)?;
    let faces = models.face_models()?;
    let adapter = models.adapter(args.adapter.as_deref())?;
    faces.files().iter().chain([&adapter]).try_for_each(|path| files.reads(path))?;
    let photos = read_photos(&args.photos)?;
    let terminal = Terminal::new(args.json);
    if let Some(unread) = unread_of_adapter(&adapter, None)? {
        terminal.note(&unread.to_string());
    }
    let (runtime, identity) = pollster::block_on(async {
        let runtime = args.device.open().await?;
        let options = ExtractOptions { id_mix: args.id_mix, face: args.face.choice(), debug: args.debug_dir.is_some() };
        let identity = extract(&runtime, &faces, &adapter, &photos, &options, &terminal).await?;
        Ok::<_, Error>((runtime, identity))
    })?;
    let seconds = terminal.finish();
    files.write_bytes(&args.output, &identity.to_bytes()?)?;
    if let Some(folder) = &args.debug_dir {
        write_debug_images(&mut files, folder, &identity.debug_images)?;
    }
    let silent = files.takes_stdout();
    files.commit()?;
    remember_choices(&runtime);
    if args.json {
        let report = serde_json::json!({
            "device": runtime.name(),
            "file": args.output,
            "photos": identity.photos,
            "adapter_sha256": identity.adapter_sha256,
            "tokens": identity.tokens.id_embedding.shape().extents(),
            "notes": terminal.notes(),
            "seconds": seconds.into_iter().collect::<BTreeMap<_, _>>(),
        });
        say!("{report}");
    } else if !silent {
        say!("{}", args.output.display());
    }
    Ok(())
}
