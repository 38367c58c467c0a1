use super::identity::{FaceArgs, check_no_folder, claim_debug_images, read_photos, write_debug_images};
use super::models::{Models, ModelsArgs};
use super::settings::{SettingsArgs, as_flags};
use super::warm;
use super::{DeviceArgs, check_report, claim_tensors, outputs, remember_choices};
use crate::progress::Terminal;
use pulid::identity::{
    DebugImage, ExtractOptions, FaceModels, Identity, blank_tokens, check_adapter, unread_of_adapter,
};
use pulid::image::{ImageFormat, ImageMetadata, encode_image};
use pulid::pipeline::{GenerateOptions, IdentityTokens, IdentityUse, Pipeline, SdxlModel, check_options, examine};
use pulid::preset::Preset;
use pulid::runtime::Reporter;
use pulid::sampler::StepWindow;
use pulid::settings::{ModelDefaults, Settings};
use pulid_checkpoint::{Checkpoint, FileSet, safetensors};
use pulid_models::Precision;
use pulid_models::pulid::{IdentityAdapter, IdentitySettings};
use pulid_tensor::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Flags of `pulid generate`. What is not given comes from the preset, then from the model's `generation_defaults.json`.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// 1 to 4 photos of one person (JPEG, PNG, WebP)
    #[arg(long, num_args = 1.., value_name = "PHOTO", conflicts_with = "identity")]
    id: Vec<PathBuf>,
    /// An identity file, as `pulid embed` writes it; with neither this nor photos no identity enters the image
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// What the image shows
    #[arg(long)]
    prompt: String,
    /// A folder in diffusers' SDXL layout, or a single file with a whole SDXL (.safetensors, .ckpt, .gguf), or what
    /// `pulid pull` fetched: juggernaut, dreamshaper-lightning, sdxl-lightning or a repository OWNER/NAME [default: sdxl of the
    /// models folder, or the preset's own base if it was fetched]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Another UNet for the model: a file (.safetensors, .ckpt, .gguf) or a folder, for example SDXL-Lightning's UNet over SDXL's base
    #[arg(long, value_name = "PATH")]
    unet: Option<PathBuf>,
    /// A folder in diffusers' layout whose configurations, scheduler and tokenizers are taken; weights are not needed there
    /// [default: the model's folder; of a single file the folder of its name without the extension, else SDXL's own]
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// A PuLID file, v1 or v1.1 [default: the models folder's own of the preset's version, else v1.1 before v1]
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsArgs,
    /// The official applications' settings by name, see below; every flag wins over it
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    /// With --id, PuLID v1: the photos show several people, to be mixed, and all their tokens count alike. Without it
    /// further photos show the first one's person again and add five tokens each
    #[arg(long, requires = "id")]
    id_mix: bool,
    #[command(flatten)]
    face: FaceArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// With --id: write images of the faces, crop, mask and features into this folder
    #[arg(long, value_name = "DIR", requires = "id")]
    debug_dir: Option<PathBuf>,
    /// Also write the latents [B, 4, h, w] as the sampler leaves them (safetensors); `-` is standard output
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// The image to write, in the format that the name asks for: .png, .jpg (quality 95) or .webp (lossless). A batch adds -0, -1, ... to
    /// the name; `-` is standard output, as PNG, for one image and without --json
    #[arg(long, default_value = "pulid.png")]
    output: PathBuf,
    /// Leave the parameters out of the image's file
    #[arg(long)]
    no_metadata: bool,
    /// Print a JSON report instead of progress
    #[arg(long)]
    json: bool,
}

fn after_help() -> String {
    let mut text = String::from(
        "Examples:\n  \
        pulid generate --id ada.jpg --prompt 'an oil painting of a person, in a garden' --output ada.png\n  \
        pulid generate --identity ada.safetensors --prompt 'a neon picture of a person' --seed 7 --batch 4\n  \
        pulid generate --model DIR --models-dir DIR --preset v1.1-lightning --id a.jpg b.jpg --prompt 'portrait'\n  \
        pulid generate --model juggernaut.safetensors --unet sdxl_lightning_4step_unet.safetensors --prompt 'a lake'\n  \
        pulid generate --prompt 'a watercolor painting of a person, in the snow'\n\n\
        Presets, each of them short for\n",
    );
    for preset in Preset::ALL {
        text += &format!("  {:<14} {}\n", preset.name(), as_flags(&preset.settings()));
    }
    text + "v1-* take a PuLID v1 file and SDXL-Lightning, v1.1-* a v1.1 file; v1.1-lightning a distilled SDXL."
}

/// Makes images.
pub fn run(args: &Args) -> Result<()> {
    args.face.check(&args.id)?;
    args.id.iter().try_for_each(|photo| check_no_folder(photo))?;
    let models = args.models.open(args.model.as_deref(), args.preset)?;
    let model = models.open_model(args.model.as_deref(), args.config.as_deref(), args.unet.as_deref())?;
    let defaults = ModelDefaults::of(&model)?;
    let settings = Settings::merge(args.settings.0.clone(), args.preset, defaults.all())?;
    let mut options = settings.options(&args.prompt);
    check_options(&model, &options)?;
    let mut notes = examine(&model)?;
    notes.extend(defaults.notes(&args.settings.0, args.preset));
    let mut files = outputs(args.id.iter().chain(&args.identity).chain(&args.unet).chain(&args.config))?;
    models.inputs(&model, args.adapter.as_deref()).iter().try_for_each(|path| files.reads(path))?;
    let images = image_paths(&files, &args.output, options.images())?;
    let formats = images.iter().map(|path| format_of(&files, path)).collect::<Result<Vec<_>>>()?;
    images.iter().try_for_each(|path| files.claim(path))?;
    args.save_latents.iter().try_for_each(|path| claim_tensors(&mut files, path))?;
    if let Some(folder) = &args.debug_dir {
        claim_debug_images(&mut files, folder, args.id.len())?;
    }
    check_report(&files, args.json)?;
    let metadata =
        |parameters: String| ImageMetadata { parameters: (!args.no_metadata).then_some(parameters), generated: true };
    let size = [options.width, options.height];
    formats.iter().try_for_each(|format| format.check(size, &metadata(options.parameters(model.path(), 0))))?;
    let person = Person::open(args, &models, &model, &settings, &mut notes)?;
    let terminal = Terminal::new(args.json);
    notes.iter().for_each(|note| terminal.note(note));
    let (pipeline, made, seen) = pollster::block_on(async {
        let storage = settings.storage();
        let pipeline = Pipeline::open(args.device.open().await?, model.clone(), storage)?;
        pipeline.check_memory(&options, &terminal).await?;
        let mut seen = Vec::new();
        if let Some(person) = person {
            let warming = match &person.source {
                Source::Photos { .. } => warm::start(&args.device, &pipeline, storage, person.planned(&options)?),
                Source::Tokens(_) => None,
            };
            let (identity, drawn) = person.read(&pipeline, &terminal).await?;
            (options.identity, seen) = (Some(identity), drawn);
            // Both would compile the same kernels otherwise.
            if let Some(warming) = warming {
                warming.finish();
            }
        }
        let made = pipeline.generate(&options, &terminal).await?;
        Ok::<_, Error>((pipeline, made, seen))
    })?;
    let seconds = terminal.finish();
    let memory = pipeline.runtime().device_memory();

    let parameters: Vec<_> = (0..images.len()).map(|i| options.parameters(pipeline.model().path(), i)).collect();
    for (((path, format), image), parameters) in images.iter().zip(formats).zip(&made.images).zip(&parameters) {
        files.write_bytes(path, &encode_image(format, image, &metadata(parameters.clone()))?)?;
    }
    if let Some(path) = &args.save_latents {
        files.write_bytes(path, &safetensors::to_bytes([("latents", &made.latents)], &BTreeMap::new())?)?;
    }
    if let Some(folder) = &args.debug_dir {
        write_debug_images(&mut files, folder, &seen)?;
    }
    let silent = files.takes_stdout();
    files.commit()?;
    remember_choices(pipeline.runtime());
    if args.json {
        let report = serde_json::json!({
            "device": pipeline.runtime().name(),
            "files": images,
            "latents": args.save_latents,
            "uploaded_bytes": memory.uploaded_bytes,
            "compiled_kernels": memory.compiled_kernels,
            // The first image's, and each one's.
            "parameters": parameters.first(),
            "images": images.iter().zip(&parameters).map(|(file, parameters)| {
                serde_json::json!({"file": file, "parameters": parameters})
            }).collect::<Vec<_>>(),
            "notes": terminal.notes(),
            "seconds": seconds.into_iter().collect::<BTreeMap<_, _>>(),
        });
        say!("{report}");
    } else if !silent {
        for path in images {
            say!("{}", path.display());
        }
    }
    Ok(())
}

/// The person to show, as far as it is known before a device is open.
struct Person {
    source: Source,
    adapter: PathBuf,
    settings: IdentitySettings,
    window: StepWindow,
}

/// Where identity tokens come from.
enum Source {
    Photos { models: FaceModels, photos: Vec<(String, Vec<u8>)>, options: ExtractOptions },
    Tokens(IdentityTokens),
}

impl Person {
    /// Reads settings, then files, photos last, and adds to the notes what is odd about them; `None` when the flags name no person.
    fn open(
        args: &Args,
        models: &Models,
        model: &SdxlModel,
        settings: &Settings,
        notes: &mut Vec<String>,
    ) -> Result<Option<Person>> {
        let (window, settings) = (settings.window()?, settings.identity());
        let shown = args.identity.is_some() || !args.id.is_empty();
        // Nobody needs the adapter without a person; one that is named and no PuLID, or not the preset's, is a mistake all the same.
        if !shown && args.adapter.is_none() {
            return Ok(None);
        }
        let adapter = models.adapter(args.adapter.as_deref())?;
        if settings.id_scale != 0.0 || args.adapter.is_some() {
            // The UNet takes it up much later.
            let file = Checkpoint::open(&adapter)?;
            IdentityAdapter::new(&file, Precision::F32)?;
            let layers = model.unet(Precision::F32)?.identity_layers()?;
            notes.extend(unread_of_adapter(&adapter, Some(&layers))?.map(|unread| unread.to_string()));
        }
        if !shown {
            return Ok(None);
        }
        let source = match &args.identity {
            Some(file) => {
                let tokens = Identity::load_tokens(file)?;
                notes.extend(Identity::unread(file)?.map(|unread| unread.to_string()));
                if settings.id_scale != 0.0 {
                    notes.extend(check_adapter(file, &tokens, &adapter)?);
                }
                Source::Tokens(tokens)
            }
            None => Source::Photos {
                models: models.face_models()?,
                photos: read_photos(&args.id)?,
                options: ExtractOptions {
                    id_mix: args.id_mix,
                    face: args.face.choice(),
                    debug: args.debug_dir.is_some(),
                },
            },
        };
        Ok(Some(Person { source, adapter, settings, window }))
    }

    /// The options with a person of whom nothing is known yet but the shape.
    fn planned(&self, options: &GenerateOptions) -> Result<GenerateOptions> {
        let (adapter, settings, window) = (self.adapter.clone(), self.settings, self.window);
        let identity = IdentityUse { tokens: blank_tokens(&adapter)?, adapter, settings, window };
        Ok(GenerateOptions { identity: Some(identity), ..options.clone() })
    }

    /// The person for the UNet, and what the networks saw if that is wanted.
    async fn read(self, pipeline: &Pipeline, terminal: &Terminal) -> Result<(IdentityUse, Vec<DebugImage>)> {
        let Person { source, adapter, settings, window } = self;
        let (tokens, seen) = match source {
            Source::Tokens(tokens) => (tokens, Vec::new()),
            Source::Photos { models, photos, options } => {
                let read = pipeline.identify(&models, &adapter, &photos, &options, terminal).await?;
                (read.tokens, read.debug_images)
            }
        };
        Ok((IdentityUse { tokens, adapter, settings, window }, seen))
    }
}

/// Where the images go: one has the name as it was given, several are numbered.
///
/// # Errors
/// Several images for what takes one.
fn image_paths(files: &FileSet, output: &Path, batch: usize) -> Result<Vec<PathBuf>> {
    match batch {
        1 => Ok(vec![output.to_owned()]),
        several if files.is_stream(output)? => {
            let detail = format!("takes one image, not the {several} of a batch; name a file, which is numbered");
            Err(Error::file(output, detail))
        }
        several => Ok((0..several).map(|index| numbered(output, index)).collect()),
    }
}

/// The format that an image's name asks for: of a link the name of the file that it leads to, where that has one.
fn format_of(files: &FileSet, path: &Path) -> Result<ImageFormat> {
    if files.is_stream(path)? {
        // A pipe may be named after a format; standard output is not.
        return Ok(ImageFormat::of(path).unwrap_or(ImageFormat::Png));
    }
    let led_to = files.led_to(path)?.and_then(|file| ImageFormat::of(&file).ok());
    led_to.map_or_else(|| ImageFormat::of(path), Ok)
}

fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or("png".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}
