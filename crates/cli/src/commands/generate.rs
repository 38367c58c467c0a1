use super::identity::{check_folder, read_photos};
use super::models::{Models, ModelsArgs};
use super::warm;
use super::{DeviceArgs, DtypeArgs, check_output, remember_choices};
use crate::progress::Terminal;
use pulid::defaults::{Defaults, Settings};
use pulid::identity::{ExtractOptions, FaceModels, Identity, extract};
use pulid::image::{PngMetadata, encode_png, write_atomically};
use pulid::preset::Preset;
use pulid::runtime::Runtime;
use pulid::sampler::{FinalSigma, SamplerKind, Spacing, StepWindow};
use pulid::text_to_image::{GenerateOptions, IdentityTokens, IdentityUse, SdxlModel, check_memory, generate};
use pulid_models::pulid::{IdentitySettings, Ortho};
use pulid_tensor::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Flags of `pulid generate`. What is not given comes from the preset, then from the model's `generation_defaults.json`.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// 1 to 4 photos of one person (JPEG, PNG, WebP); the largest face of each counts
    #[arg(long, num_args = 1.., value_name = "PHOTO", conflicts_with = "identity")]
    id: Vec<PathBuf>,
    /// An identity file, as `pulid embed` writes it; with neither this nor photos the picture shows nobody in particular
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// What the picture shows
    #[arg(long)]
    prompt: String,
    /// What the picture does not show
    #[arg(long)]
    negative_prompt: Option<String>,
    /// A folder in diffusers' SDXL layout, or a single file with a whole SDXL (.safetensors, .ckpt), or what
    /// `pulid pull` fetched: juggernaut, dreamshaper-lightning, sdxl-lightning or a repository OWNER/NAME [default: sdxl of the
    /// models folder, or the preset's own base if it was fetched]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Another UNet for the model: a file or a folder, for example SDXL-Lightning's UNet over SDXL's base
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
    /// Width in pixels
    #[arg(long)]
    width: Option<usize>,
    /// Height in pixels
    #[arg(long)]
    height: Option<usize>,
    /// Denoising steps
    #[arg(long)]
    steps: Option<usize>,
    /// Classifier-free guidance; 1 is without
    #[arg(long)]
    guidance: Option<f32>,
    /// Strength of the identity; 0 is without
    #[arg(long, allow_negative_numbers = true)]
    id_scale: Option<f32>,
    /// Zero tokens that draw attention away from the identity: more follow the prompt more
    #[arg(long)]
    num_zero: Option<usize>,
    /// Projection of the identity features: off, v1 or v2
    #[arg(long)]
    ortho: Option<Ortho>,
    /// Fraction of the steps at which the identity sets in
    #[arg(long, default_value_t = 0.0)]
    id_start: f64,
    /// Fraction of the steps at which the identity ends
    #[arg(long, default_value_t = 1.0)]
    id_end: f64,
    /// Solver: dpmpp_2m, dpmpp_sde or euler
    #[arg(long)]
    sampler: Option<SamplerKind>,
    /// Noise levels: karras or trailing
    #[arg(long)]
    spacing: Option<Spacing>,
    /// Noise left by the last step: zero, or sigma_min as diffusers 0.25 ends `dpmpp_2m` with `trailing`
    #[arg(long, default_value_t = FinalSigma::Zero)]
    final_sigma: FinalSigma,
    /// Seed; the same as in PyTorch's CPU generator
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    storage: DtypeArgs,
    /// With --id: write pictures of the faces, crop, mask and features into this folder
    #[arg(long, value_name = "DIR", requires = "id")]
    debug_dir: Option<PathBuf>,
    /// Also write the latents [B, 4, h, w] as the sampler leaves them (safetensors)
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// The PNG to write; a batch adds -0, -1, ... to the name
    #[arg(long, default_value = "pulid.png")]
    output: PathBuf,
    /// Leave the parameters out of the PNG
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
        text += &format!("  {:<14} {}\n", preset.name(), preset.settings());
    }
    text + "v1-* take a PuLID v1 file and SDXL-Lightning, v1.1-* a v1.1 file; v1.1-lightning a distilled SDXL."
}

/// Makes pictures.
pub fn run(args: &Args) -> Result<()> {
    for path in std::iter::once(&args.output).chain(&args.save_latents) {
        check_output(path)?;
    }
    args.debug_dir.as_deref().map_or(Ok(()), check_folder)?;
    let models = args.models.open(args.model.as_deref(), args.preset)?;
    let model = open_model(args, &models)?;
    let defaults = Defaults::read(model.folder())?.under(args.preset.map(Preset::settings));
    let settings = defaults.settings(&flags(args), args.preset.is_some())?;
    let person = Person::open(args, &models, settings.identity)?;
    let mut options = options(args, settings);
    let terminal = Terminal::new(args.json);
    let (runtime, made) = pollster::block_on(async {
        let runtime = args.device.open().await?;
        check_memory(&runtime, &model, &options, &terminal).await?;
        if let Some(person) = person {
            let warming = match person.source {
                Source::Photos { .. } => warm::start(&args.device, &runtime, &model, &options),
                Source::Tokens(_) => None,
            };
            options.identity = Some(person.read(&runtime, &terminal).await?);
            // Both would compile the same kernels otherwise.
            if let Some(warming) = warming {
                warming.finish();
            }
        }
        let made = generate(&runtime, &model, &options, &terminal).await?;
        Ok::<_, Error>((runtime, made))
    })?;
    let seconds = terminal.finish();

    let parameters = options.parameters(model.path());
    let metadata = PngMetadata { parameters: (!args.no_metadata).then(|| parameters.clone()), generated: true };
    let files = made.images.iter().map(|i| encode_png(i, &metadata)).collect::<Result<Vec<_>>>()?;
    let mut written = Vec::new();
    for (index, bytes) in files.iter().enumerate() {
        let path = if files.len() == 1 { args.output.clone() } else { numbered(&args.output, index) };
        write_atomically(&path, bytes)?;
        written.push(path);
    }
    if let Some(path) = &args.save_latents {
        pulid_checkpoint::write_safetensors(path, [("latents", &made.latents)], &BTreeMap::new())?;
    }
    remember_choices(&runtime);
    if args.json {
        let report = serde_json::json!({
            "device": runtime.name(),
            "files": written,
            "latents": args.save_latents,
            "parameters": parameters,
            "seconds": seconds.into_iter().collect::<BTreeMap<_, _>>(),
        });
        say!("{report}");
    } else {
        for path in written {
            say!("{}", path.display());
        }
    }
    Ok(())
}

fn open_model(args: &Args, models: &Models) -> Result<SdxlModel> {
    let (path, over) = models.model(args.model.as_deref())?;
    let mut model = SdxlModel::open(path)?;
    if let Some(folder) = &args.config {
        model = model.with_config(folder)?;
    }
    Ok(match args.unet.as_ref().or(over.as_ref()) {
        Some(path) => model.with_unet(path),
        None => model,
    })
}

/// What the flags say.
fn flags(args: &Args) -> Defaults {
    Defaults {
        width: args.width,
        height: args.height,
        steps: args.steps,
        guidance_scale: args.guidance,
        sampler: args.sampler,
        spacing: args.spacing,
        id_scale: args.id_scale,
        num_zero: args.num_zero,
        ortho: args.ortho.map(|o| o.to_string()),
        negative_prompt: args.negative_prompt.clone(),
        latent_rgb: None,
    }
}

fn options(args: &Args, settings: Settings) -> GenerateOptions {
    let mut options = settings.options(&args.prompt, args.seed);
    options.sampler.final_sigma = args.final_sigma;
    GenerateOptions { batch: args.batch, dtype: args.storage.dtype, quantize: args.storage.quantize, ..options }
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
    Photos { models: FaceModels, photos: Vec<(String, Vec<u8>)>, debug_dir: Option<PathBuf>, id_mix: bool },
    Tokens(IdentityTokens),
}

impl Person {
    /// Reads files and settings; `None` when the flags name no person.
    fn open(args: &Args, models: &Models, settings: IdentitySettings) -> Result<Option<Person>> {
        let window = StepWindow::new(args.id_start, args.id_end)?;
        let source = match &args.identity {
            Some(file) => Source::Tokens(Identity::load_tokens(file)?),
            None if args.id.is_empty() => {
                // Nobody needs the adapter then; a preset that does not fit it is a mistake all the same.
                if args.adapter.is_some() && args.preset.is_some() {
                    models.adapter(args.adapter.as_deref())?;
                }
                return Ok(None);
            }
            None => Source::Photos {
                models: models.face_models()?,
                photos: read_photos(&args.id)?,
                debug_dir: args.debug_dir.clone(),
                id_mix: args.id_mix,
            },
        };
        let adapter = models.adapter(args.adapter.as_deref())?;
        Ok(Some(Person { source, adapter, settings, window }))
    }

    async fn read(self, runtime: &Runtime, terminal: &Terminal) -> Result<IdentityUse> {
        let tokens = match self.source {
            Source::Tokens(tokens) => tokens,
            Source::Photos { models, photos, debug_dir, id_mix } => {
                let options = ExtractOptions { id_mix, debug_dir: debug_dir.as_deref() };
                extract(runtime, &models, &self.adapter, &photos, &options, terminal).await?.tokens
            }
        };
        Ok(IdentityUse { tokens, adapter: self.adapter, settings: self.settings, window: self.window })
    }
}

fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or("png".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}
