use super::{DeviceArgs, check_output, remember_choices};
use crate::progress::Terminal;
use pulid::image::{PngMetadata, encode_png, parameters_text, write_atomically};
use pulid::sampler::{SamplerKind, SamplerOptions, Spacing, StepWindow};
use pulid::text_to_image::{GenerateOptions, IdentityTokens, IdentityUse, SdxlFolder, generate};
use pulid_checkpoint::Checkpoint;
use pulid_models::pulid::{IdentitySettings, Ortho};
use pulid_tensor::{DType, Error, HostTensor, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Flags of `pulid generate`. What is not given comes from the model's `generation_defaults.json`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid generate --model models/mini/sdxl --prompt 'oil painting, portrait of a person in a garden' --output a.png\n  \
    pulid generate --model DIR --adapter pulid_v1.1.safetensors --identity ada.safetensors --prompt 'neon portrait' --seed 7")]
pub struct Args {
    /// An identity file with `id_embedding` and `uncond_id_embedding`; without one the picture shows nobody in particular
    #[arg(long)]
    identity: Option<PathBuf>,
    /// What the picture shows
    #[arg(long)]
    prompt: String,
    /// What the picture does not show
    #[arg(long)]
    negative_prompt: Option<String>,
    /// A folder in diffusers' SDXL layout
    #[arg(long)]
    model: PathBuf,
    /// A PuLID file; needed with an identity
    #[arg(long)]
    adapter: Option<PathBuf>,
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
    /// Seed; the same as in PyTorch's CPU generator
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures at once
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
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

/// A model's own defaults, from `generation_defaults.json` in its folder or the one above.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Defaults {
    width: Option<usize>,
    height: Option<usize>,
    steps: Option<usize>,
    guidance_scale: Option<f32>,
    sampler: Option<SamplerKind>,
    spacing: Option<Spacing>,
    id_scale: Option<f32>,
    num_zero: Option<usize>,
    ortho: Option<String>,
    negative_prompt: Option<String>,
}

impl Defaults {
    fn read(model: &Path) -> Result<Defaults> {
        for folder in [Some(model), model.parent()].into_iter().flatten() {
            let path = folder.join("generation_defaults.json");
            match std::fs::read_to_string(&path) {
                Ok(text) => return serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
        Ok(Defaults::default())
    }
}

/// Makes pictures.
pub fn run(args: &Args) -> Result<()> {
    for path in std::iter::once(&args.output).chain(&args.save_latents) {
        check_output(path)?;
    }
    let model = SdxlFolder::open(&args.model)?;
    let options = options(args)?;
    let terminal = Terminal::new(args.json);
    let (runtime, made) = pollster::block_on(async {
        let runtime = args.device.open().await?;
        let made = generate(&runtime, &model, &options, &terminal).await?;
        Ok::<_, Error>((runtime, made))
    })?;
    let seconds = terminal.finish();

    let parameters = parameters(args, &options);
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
        println!("{report}");
    } else {
        for path in written {
            println!("{}", path.display());
        }
    }
    Ok(())
}

fn options(args: &Args) -> Result<GenerateOptions> {
    let defaults = Defaults::read(&args.model)?;
    // SDXL's own size and the official app's settings for undistilled models, where the model says nothing.
    let kind = args.sampler.or(defaults.sampler).unwrap_or(SamplerKind::DpmPp2M);
    // A model's spacing goes with its sampler; another sampler brings its own.
    let own_spacing = defaults.spacing.filter(|_| args.sampler.is_none());
    let sampler = SamplerOptions {
        kind,
        spacing: args.spacing.or(own_spacing).unwrap_or(kind.default_spacing()),
        steps: args.steps.or(defaults.steps).unwrap_or(25),
        seed: args.seed,
    };
    let identity = match (&args.identity, &args.adapter) {
        (None, _) => None,
        (Some(_), None) => return Err(Error::invalid("--identity", "needs --adapter with a PuLID file")),
        (Some(file), Some(adapter)) => {
            let own = IdentitySettings::default();
            let ortho = match (args.ortho, &defaults.ortho) {
                (Some(ortho), _) => ortho,
                (None, Some(text)) => text.parse()?,
                (None, None) => own.ortho,
            };
            Some(IdentityUse {
                tokens: read_identity(file)?,
                adapter: adapter.clone(),
                settings: IdentitySettings {
                    id_scale: args.id_scale.or(defaults.id_scale).unwrap_or(own.id_scale),
                    num_zero: args.num_zero.or(defaults.num_zero).unwrap_or(own.num_zero),
                    ortho,
                },
                window: StepWindow::new(args.id_start, args.id_end)?,
            })
        }
    };
    Ok(GenerateOptions {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative_prompt.clone().or(defaults.negative_prompt).unwrap_or_default(),
        width: args.width.or(defaults.width).unwrap_or(1024),
        height: args.height.or(defaults.height).unwrap_or(1024),
        batch: args.batch,
        guidance: args.guidance.or(defaults.guidance_scale).unwrap_or(7.0),
        seed: args.seed,
        sampler,
        dtype: args.device.dtype,
        identity,
    })
}

/// Reads `id_embedding` and `uncond_id_embedding`, each [1, N, E] or [N, E].
fn read_identity(path: &Path) -> Result<IdentityTokens> {
    let file = Checkpoint::open(path)?;
    let read = |key: &str| -> Result<HostTensor> {
        let tensor = file.tensor(key)?.cast(DType::F32);
        match *tensor.shape().extents() {
            [n, e] => tensor.reshape([1, n, e]),
            [1, _, _] => Ok(tensor),
            _ => Err(Error::file(path, format!("`{key}` has shape {}, expected [1, N, E]", tensor.shape()))),
        }
    };
    let tokens =
        IdentityTokens { id_embedding: read("id_embedding")?, uncond_id_embedding: read("uncond_id_embedding")? };
    if tokens.id_embedding.shape() != tokens.uncond_id_embedding.shape() {
        return Err(Error::file(path, "`id_embedding` and `uncond_id_embedding` have different shapes"));
    }
    Ok(tokens)
}

fn parameters(args: &Args, options: &GenerateOptions) -> String {
    let mut settings = vec![
        ("Steps", options.sampler.steps.to_string()),
        ("Sampler", options.sampler.kind.to_string()),
        ("Schedule type", options.sampler.spacing.to_string()),
        ("CFG scale", options.guidance.to_string()),
        ("Seed", options.seed.to_string()),
        ("Size", format!("{}x{}", options.width, options.height)),
        ("Model", args.model.file_name().unwrap_or_default().to_string_lossy().into_owned()),
    ];
    if let Some(identity) = &options.identity {
        let s = identity.settings;
        settings.push(("PuLID scale", s.id_scale.to_string()));
        settings.push(("PuLID zero tokens", s.num_zero.to_string()));
        settings.push(("PuLID projection", format!("{:?}", s.ortho).to_lowercase()));
    }
    settings.push(("Version", format!("pulid-wgpu {}", env!("CARGO_PKG_VERSION"))));
    parameters_text(&options.prompt, &options.negative_prompt, &settings)
}

fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or("png".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}
