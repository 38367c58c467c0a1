mod branch;

use super::identity::{check_no_folder, read_photo};
use super::models::ModelsArgs;
use super::profile::{by_network, say_shares};
use super::{DeviceArgs, remember_choices};
use crate::progress::{Terminal, keep_word};
use branch::LossArgs;
use clap::ValueEnum;
use pulid::identity::{FaceModels, open_recogniser};
use pulid::pipeline::{Pipeline, SdxlModel, Storage};
use pulid::runtime::{Keep, Reporter, Runtime};
use pulid::settings::{Choices, ModelDefaults, Settings};
use pulid_checkpoint::Checkpoint;
use pulid_engine::DeviceOptions;
use pulid_models::pulid::{IdentitySettings, TrainedAdapter};
use pulid_tensor::{DType, Error, Result};
use pulid_train::{
    Dry, Pair, Preparing, Progress, Recompute, Rule, Run, Sampling, Schedule, TrainOptions, Watcher, check_branch,
    check_data, check_devices, plan_on, prepare, reopen,
};
use std::path::{Path, PathBuf};

/// Flags of `pulid train`.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    pulid train prepare --data photos --out cache --resolution 512\n  \
    pulid train --data cache --out run --from pulid_v1.1.safetensors --resolution 512 --steps 20000\n  \
    pulid train --data cache --out next --from run/adapter-20000.safetensors --stage 3 --branch-unet sdxl_lightning_4step_unet.safetensors \\\n    \
      --resolution 512 --branch-resolution 768 --steps 10000\n  \
    pulid train --resume run\n\n\
    Stage 1 trains the identity encoder and the identity attention by the diffusion loss; stages 2 and 3 add losses of identity and alignment on\n\
    pictures that a model of few steps (--branch-model, --branch-unet) makes meanwhile. Data are folders of images with .txt captions\n\
    (a subfolder is a person), .jsonl files of {\"image_file\", \"text\"} or webdataset .tar files. Use photos of people who agreed to it.\n\n\
    The run's folder holds run.toml, metrics.jsonl, TensorBoard's events, samples/STEP.png, adapter-STEP.safetensors (for `pulid generate\n\
    --adapter`) and state-STEP/. Ctrl-C writes a checkpoint; --resume goes on from the newest one."
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: Box<TrainArgs>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Find the faces of training images and keep what every step needs of them
    Prepare(Box<PrepareArgs>),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PairArg {
    /// From the very image
    Same,
    /// From another image of the person, where there is one
    Other,
    /// From either
    Mix,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    Constant,
    Cosine,
    Linear,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OptimizerArg {
    /// AdamW
    #[value(name = "adamw")]
    AdamW,
    /// Muon for matrices, which remembers half as much of them, and AdamW for the rest
    Muon,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RecomputeArg {
    /// Where memory asks for it
    Auto,
    /// Store everything, of the branch's last steps too
    Off,
    /// Compute blocks again, and the branch's last steps
    Block,
}

/// Flags of what run.toml holds, but for the number of steps.
const SETTINGS: [&str; 51] = [
    "data",
    "model",
    "models_dir",
    "unet",
    "from",
    "like",
    "resolution",
    "buckets",
    "batch",
    "accumulate",
    "snr_gamma",
    "stratified_timesteps",
    "optimizer",
    "lr",
    "weight_decay",
    "warmup",
    "schedule",
    "clip",
    "ema",
    "pair",
    "drop_text",
    "drop_id",
    "drop_both",
    "num_zero",
    "ortho",
    "seed",
    "dtype",
    "quantize",
    "checkpointing",
    "save_every",
    "keep",
    "sample_every",
    "prompts",
    "photos",
    "log",
    "export_steps",
    "stage",
    "diff",
    "id",
    "align_sem",
    "align_layout",
    "id_from",
    "branch_model",
    "branch_unet",
    "branch_resolution",
    "branch_steps",
    "backprop_steps",
    "align_steps",
    "align_norm",
    "align_prompts",
    "recogniser",
];

#[derive(clap::Args)]
struct TrainArgs {
    /// What `train prepare` wrote, or a folder, .jsonl or .tar of images, which is prepared in the run's folder first
    #[arg(long, value_name = "PATH", required_unless_present_any = ["resume", "config", "plan"])]
    data: Option<PathBuf>,
    /// The run's folder, which must be new
    #[arg(long, value_name = "DIR", required_unless_present_any = ["resume", "dry_run", "plan"], conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with a run from its newest checkpoint, with its own settings; --steps changes how many there are
    #[arg(long, value_name = "RUN", conflicts_with_all = SETTINGS)]
    resume: Option<PathBuf>,
    /// All settings from a file in the form of a run's run.toml, in place of their flags; --steps changes how many there are
    #[arg(long, value_name = "FILE", conflicts_with = "resume", conflicts_with_all = SETTINGS)]
    config: Option<PathBuf>,
    /// The base model, as in `pulid generate`
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Another UNet for the model
    #[arg(long, value_name = "PATH")]
    unet: Option<PathBuf>,
    /// The PuLID file to start from, v1 or v1.1; `none` draws new values, with the extents of --like
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// With --from none: the PuLID file whose extents the new one has [default: the models folder's own]
    #[arg(long, value_name = "FILE")]
    like: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsArgs,
    #[command(flatten)]
    losses: LossArgs,
    /// Steps in all
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Pixels of a side of the training images
    #[arg(long, value_name = "PIXELS", default_value = "512")]
    resolution: usize,
    /// The images keep about their shape, with such a square's area, as in `train prepare`
    #[arg(long)]
    buckets: bool,
    /// Images that go through the networks at once
    #[arg(long, value_name = "N", default_value = "1")]
    batch: usize,
    /// Such batches whose gradients make a step
    #[arg(long, value_name = "N", default_value = "1")]
    accumulate: usize,
    /// The most that a timestep's ratio of signal to noise counts for in L_diff (Min-SNR weighting): 5 is usual; the smaller, the more the
    /// timesteps with much noise count, in which it is decided whom an image shows; 0 weighs all alike
    #[arg(long, value_name = "GAMMA", default_value = "0")]
    snr_gamma: f64,
    /// The timesteps of a step's images are spread evenly, one from each of as many equal parts of all of them, not drawn independently: steps
    /// differ less from one another
    #[arg(long)]
    stratified_timesteps: bool,
    /// How what is trained is changed
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: OptimizerArg,
    /// Learning rate
    #[arg(long, value_name = "RATE", default_value = "1e-4")]
    lr: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "W", default_value = "0.01")]
    weight_decay: f64,
    /// Steps in which the learning rate grows
    #[arg(long, value_name = "N", default_value = "0")]
    warmup: u64,
    /// How the learning rate changes afterwards
    #[arg(long, value_enum, default_value = "constant")]
    schedule: ScheduleArg,
    /// Largest norm of all gradients together; 0 for none
    #[arg(long, value_name = "NORM", default_value = "1")]
    clip: f64,
    /// Decay of a moving average of what is trained, written as adapter-STEP-ema.safetensors; 0 for none, 0.999 is usual
    #[arg(long, value_name = "DECAY", default_value = "0")]
    ema: f64,
    /// Where the identity comes from
    #[arg(long, value_enum, default_value = "same")]
    pair: PairArg,
    /// Share of samples whose caption alone is left out
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    drop_text: f64,
    /// Share of samples whose identity alone is left out
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    drop_id: f64,
    /// Share of samples that lose both
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    drop_both: f64,
    /// Zero tokens beside the identity's, as in `pulid generate`
    #[arg(long, value_name = "N", default_value = "20")]
    num_zero: usize,
    /// Treatment of the part along the text features
    #[arg(long, value_parser = ["off", "v1", "v2"], default_value = "v2")]
    ortho: String,
    /// Seed of all randomness
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Storage type of the frozen networks; what is trained is f32 always
    #[arg(long, value_parser = ["f16", "f32"], default_value = "f16")]
    dtype: String,
    /// Store the frozen UNets' matrices and filters as blocks of 8 or 4 bits; gradients pass them all the same
    #[arg(long, value_parser = ["q8", "q4"])]
    quantize: Option<String>,
    /// Whether values of the UNet are computed again in the backward pass
    #[arg(long, value_enum, default_value = "auto")]
    checkpointing: RecomputeArg,
    /// A checkpoint each so many steps; 0 at the end alone
    #[arg(long, value_name = "N", default_value = "500")]
    save_every: u64,
    /// Checkpoints that are kept
    #[arg(long, value_name = "N", default_value = "3")]
    keep: usize,
    /// Sample images each so many steps, which makes a checkpoint too; 0 for none
    #[arg(long, value_name = "N", default_value = "0")]
    sample_every: u64,
    /// Prompts of the sample images: a text file, one a line
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Faces of the sample images: photos, or a folder of photos
    #[arg(long, value_name = "PATH", num_args = 1..)]
    photos: Vec<PathBuf>,
    /// Where metrics go besides the screen
    #[arg(long, value_delimiter = ',', value_parser = ["jsonl", "tensorboard"], default_value = "jsonl,tensorboard")]
    log: Vec<String>,
    /// Write the tensors of the first steps to RUN/steps/STEP.safetensors
    #[arg(long, value_name = "K", default_value = "0")]
    export_steps: u64,
    /// Print what the run would take and how long a step does, and write nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// With --dry-run: also where a step's time goes, by network and operator, on the first device
    #[arg(long, requires = "dry_run")]
    profile: bool,
    /// Print what the run would take of a discrete GPU's memory, by plans alone: no device is opened, no weight loaded, and --data may be
    /// left out. The GPU computes in half precision and binds what --max-binding says; --memory is all that it has
    #[arg(long, conflicts_with_all = ["resume", "dry_run", "out"])]
    plan: bool,
    /// Print a JSON report instead of progress
    #[arg(long)]
    json: bool,
    /// Several devices, each as --device names one: a step's batches (--accumulate) are computed on all of them side by side. The first
    /// also holds what is trained; one may stand there twice
    #[arg(long, value_name = "NAME", num_args = 1.., conflicts_with = "device")]
    devices: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Flags of `pulid train prepare`.
#[derive(clap::Args)]
struct PrepareArgs {
    /// A folder of images with .txt captions, a .jsonl or a .tar
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// The cache to write, or to go on with
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The base model, whose VAE and text encoders are used
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsArgs,
    /// Pixels of a side of the training images
    #[arg(long, value_name = "PIXELS", default_value = "512")]
    resolution: usize,
    /// Cut each image to the nearest in shape of some sizes with such a square's area, sides in multiples of 64, in place of a square
    #[arg(long)]
    buckets: bool,
    /// Storage type of text encoders and of what is kept of text and vision tower
    #[arg(long, value_parser = ["f16", "f32"], default_value = "f16")]
    dtype: String,
    /// Print a JSON report instead of progress
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Trains, or prepares data for it.
pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Some(Command::Prepare(args)) => run_prepare(args),
        None => run_train(&args.train),
    }
}

fn dtype_of(word: &str) -> DType {
    if word == "f32" { DType::F32 } else { DType::F16 }
}

fn run_prepare(args: &PrepareArgs) -> Result<()> {
    let models = args.models.open(args.model.as_deref(), None)?;
    let model = models.open_model(args.model.as_deref(), None, None)?;
    let faces = models.face_models()?;
    let listing = pulid_train::data::list(&args.data)?;
    let terminal = Terminal::new(args.json);
    let dtype = dtype_of(&args.dtype);
    let (runtime, prepared) = pollster::block_on(async {
        let runtime = args.device.open().await?.keeping(Keep::Fitting);
        let pipeline = Pipeline::open(runtime.clone(), model, Storage { dtype, quantize: None })?;
        let preparing =
            Preparing { pipeline: &pipeline, faces: &faces, resolution: args.resolution, buckets: args.buckets, dtype };
        let prepared = prepare(&listing, &args.out, &preparing, &terminal).await;
        if matches!(prepared, Err(Error::Cancelled)) {
            keep_word(format!("what was prepared is in {}; the same command goes on after it", args.out.display()));
        }
        Ok::<_, Error>((runtime, prepared?))
    })?;
    terminal.finish();
    remember_choices(&runtime);
    let (images, rejected) = (prepared.cache.entries().len(), prepared.cache.rejected());
    if args.json {
        let report = serde_json::json!({
            "cache": args.out, "images": images, "prepared": prepared.taken, "rejected": rejected, "notes": terminal.notes(),
        });
        say!("{report}");
    } else {
        say!("{}: {images} images, {} of them new; {} rejected", args.out.display(), prepared.taken, rejected.len());
    }
    Ok(())
}

fn run_train(args: &TrainArgs) -> Result<()> {
    let (options, resumed, folder) = match &args.resume {
        Some(run) => {
            let (mut options, resumed) = reopen(run)?;
            options.steps = args.steps.unwrap_or(options.steps);
            (options, resumed, run.clone())
        }
        None => {
            let options = match &args.config {
                Some(config) => configured(config, args.steps)?,
                None => new_options(args)?,
            };
            (options, None, args.out.clone().unwrap_or_default())
        }
    };
    options.check()?;
    check_devices(args.devices.len().max(1), &options)?;
    if args.resume.is_none() && !(args.plan && args.data.is_none()) {
        check_data(&options)?;
    }
    let mut model = SdxlModel::open(&options.model)?;
    if let Some(unet) = &options.unet {
        model = model.with_unet(unet);
    }
    check_branch(&options, &model)?;
    let faces = match args.resume.is_some() || args.config.is_some() {
        // Where they were when the run began, or are said to be.
        true => FaceModels::open(&options.faces)?,
        false => args.models.open(args.model.as_deref(), None)?.face_models()?,
    };
    let sampling = sampling(&model, &options)?;
    if let Some(resumed) = &resumed
        && resumed.state.step >= options.steps
    {
        let detail = format!("is done: its {} steps are trained; --steps asks for more", resumed.state.step);
        return Err(Error::file(&folder, detail));
    }
    if args.plan {
        let (capabilities, terminal) = (args.device.discrete(), Terminal::new(args.json));
        let screen = Screen(&terminal);
        let memory = args.device.memory;
        let plan = pollster::block_on(plan_on(&capabilities, memory, &model, &faces, &options, &screen))?;
        terminal.finish();
        return say_plan(&plan, None, args.json);
    }
    if args.resume.is_none() && !args.dry_run {
        pulid_train::run::RunFolder::create(&folder, &options)?;
    }
    // Nothing of a dry run is kept, prepared images neither.
    let scratch = args.dry_run.then(tempfile::tempdir).transpose().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let folder = scratch.as_ref().map_or(folder, |scratch| scratch.path().to_owned());
    let terminal = Terminal::new(args.json);
    let screen = Screen(&terminal);
    pollster::block_on(async {
        let (first, more) = match args.devices.split_first() {
            Some((first, more)) => (first.as_str(), more),
            None => (args.device.device.as_str(), &[][..]),
        };
        let runtime = args.device.open_named(first, DeviceOptions::default()).await?.keeping(Keep::Fitting);
        let mut others = Vec::new();
        for name in more {
            let other = args.device.open_named(name, DeviceOptions::default()).await?;
            let other = others.iter().fold(other.sharing_choices(&runtime), |one, before| one.sharing_choices(before));
            others.push(other.keeping(Keep::Fitting));
        }
        let pipeline = Pipeline::open(runtime.clone(), model, options.storage()?)?;
        let run = Run {
            pipeline: &pipeline,
            others: &others,
            faces: &faces,
            options: &options,
            folder: folder.clone(),
            sampling,
        };
        let remember = || std::iter::once(&runtime).chain(&others).for_each(remember_choices);
        if args.dry_run {
            let dry = run.dry(args.profile, &screen).await?;
            terminal.finish();
            remember();
            return say_plan(&dry.plan, Some((&dry, runtime.device_memory().held())), args.json);
        }
        let begun = resumed.as_ref().map(|resumed| resumed.state.step);
        let finished = run.train(resumed, &screen).await;
        terminal.finish();
        remember();
        match finished {
            Ok(done) if args.json => {
                let report = serde_json::json!({
                    "device": runtime.name(), "further_devices": others.iter().map(Runtime::name).collect::<Vec<_>>(), "run": folder, "resumed_at": begun, "step": done.step, "adapter": done.adapter,
                    "last": done.last, "notes": terminal.notes(),
                });
                say!("{report}");
                Ok(())
            }
            Ok(done) => {
                say!("{}", done.adapter.display());
                Ok(())
            }
            Err(stopped) => {
                let shown = folder.display();
                let word = match stopped.kept {
                    Some(step) => format!("step {step} is kept; `pulid train --resume {shown}` goes on from there"),
                    None => format!("no step is kept; `pulid train --resume {shown}` begins the run again"),
                };
                match &stopped.error {
                    Error::Cancelled => keep_word(word),
                    _ => note!("note: {word}"),
                }
                Err(stopped.error)
            }
        }
    })
}

fn new_options(args: &TrainArgs) -> Result<TrainOptions> {
    let models = args.models.open(args.model.as_deref(), None)?;
    let model = models.open_model(args.model.as_deref(), None, args.unet.as_deref())?;
    let given = args.from.as_deref();
    let none = given == Some(Path::new("none"));
    if args.like.is_some() && !none {
        return Err(Error::invalid("--like", "gives extents for `--from none` alone"));
    }
    let from = models.adapter(if none { args.like.as_deref() } else { given })?;
    TrainedAdapter::new(&Checkpoint::open(&from)?)?;
    // A plan alone needs neither.
    let data = args.data.clone().unwrap_or_else(|| "data".into());
    let steps = args.steps.or(args.plan.then_some(1));
    let steps = steps.ok_or_else(|| Error::invalid("--steps", "is missing: how many steps are to be trained?"))?;
    Ok(TrainOptions {
        data: whole(&data)?,
        model: whole(model.path())?,
        unet: model.other_unet().map(whole).transpose()?,
        from: whole(&from)?,
        from_none: none,
        faces: whole(models.face_models()?.path())?,
        steps,
        resolution: args.resolution,
        buckets: args.buckets,
        batch: args.batch,
        accumulate: args.accumulate,
        snr_gamma: args.snr_gamma,
        stratified_timesteps: args.stratified_timesteps,
        lr: args.lr,
        weight_decay: args.weight_decay,
        warmup: args.warmup,
        schedule: match args.schedule {
            ScheduleArg::Constant => Schedule::Constant,
            ScheduleArg::Cosine => Schedule::Cosine,
            ScheduleArg::Linear => Schedule::Linear,
        },
        clip: args.clip,
        pair: match args.pair {
            PairArg::Same => Pair::Same,
            PairArg::Other => Pair::Other,
            PairArg::Mix => Pair::Mix,
        },
        drop_text: args.drop_text,
        drop_id: args.drop_id,
        drop_both: args.drop_both,
        num_zero: args.num_zero,
        ortho: args.ortho.clone(),
        seed: args.seed,
        dtype: args.dtype.clone(),
        quantize: args.quantize.clone(),
        checkpointing: match args.checkpointing {
            RecomputeArg::Auto => Recompute::Auto,
            RecomputeArg::Off => Recompute::Off,
            RecomputeArg::Block => Recompute::Block,
        },
        save_every: args.save_every,
        keep: args.keep,
        sample_every: args.sample_every,
        prompts: args.prompts.as_deref().map(read_prompts).transpose()?.unwrap_or_default(),
        photos: photos(&args.photos)?,
        export_steps: args.export_steps,
        tensorboard: args.log.iter().any(|log| log == "tensorboard"),
        optimizer: match args.optimizer {
            OptimizerArg::AdamW => Rule::AdamW,
            OptimizerArg::Muon => Rule::Muon,
        },
        ema: args.ema,
        weights: args.losses.weights(),
        branch: args.losses.branch(&args.models, args.model.as_deref(), args.unet.as_deref(), args.resolution)?,
        one_step: args.losses.one_step(&args.models, args.model.as_deref())?,
    })
}

/// The settings of a file. Paths in it are relative to the folder where the program is started, as those of flags.
fn configured(path: &Path, steps: Option<u64>) -> Result<TrainOptions> {
    let mut options = TrainOptions::read(path)?;
    options.steps = steps.unwrap_or(options.steps);
    options.paths_mut().try_for_each(|path| {
        *path = whole(path)?;
        Ok::<_, Error>(())
    })?;
    TrainedAdapter::new(&Checkpoint::open(&options.from)?)?;
    let of_branch = options.branch.as_ref().map(|branch| &branch.recogniser);
    let recogniser = options.one_step.as_ref().map(|one_step| &one_step.recogniser).or(of_branch);
    if let Some(recogniser) = recogniser.filter(|_| options.weights.id > 0.0) {
        open_recogniser(recogniser)?;
    }
    Ok(options)
}

/// A path that holds wherever the run is resumed from.
fn whole(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(path, e))
}

/// The lines of a file that are not empty.
fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let text = pulid_checkpoint::files::read_to_string(path)?;
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(Error::file(path, "holds no prompt; one a line is expected"));
    }
    Ok(prompts)
}

/// Photos that are named, and those of folders that are.
fn photos(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let items = pulid_train::data::list(path)?.items;
            let files = items.into_iter().filter_map(|item| match item.place {
                pulid_train::data::Place::File(path) => Some(path),
                pulid_train::data::Place::Archive { .. } => None,
            });
            found.extend(files);
        } else {
            found.push(path.clone());
        }
    }
    found.iter().map(|path| whole(path)).collect()
}

fn sampling(model: &SdxlModel, options: &TrainOptions) -> Result<Sampling> {
    let choices = Choices { batch: Some(1), dtype: Some(options.dtype()?), ..Choices::default() };
    let settings = Settings::merge(choices, None, ModelDefaults::of(model)?.all())?;
    let identity = IdentitySettings { num_zero: options.num_zero, ortho: options.ortho()?, ..settings.identity() };
    let wanted = options.sample_every > 0;
    let asked = !options.prompts.is_empty() && !options.photos.is_empty();
    if wanted && !asked {
        return Err(Error::invalid(
            "--sample-every",
            "needs `--prompts` and `--photos`, which say what sample images show",
        ));
    }
    let mut photos = Vec::new();
    for path in options.photos.iter().filter(|_| wanted) {
        check_no_folder(path)?;
        photos.push(read_photo(path)?);
    }
    let prompts = if wanted { options.prompts.clone() } else { Vec::new() };
    let sampling = Sampling { options: settings.options(""), settings: identity, prompts, photos };
    sampling.check()?;
    Ok(sampling)
}

/// Tells a plan and, where steps were measured, the seconds of one and the bytes that the device held.
fn say_plan(plan: &pulid_train::Plan, measured: Option<(&Dry, u64)>, json: bool) -> Result<()> {
    if json {
        let (dry, held) = measured.unzip();
        let mut report =
            serde_json::json!({"plan": plan, "seconds_a_step": dry.map(|dry| dry.seconds_a_step), "memory": held});
        if let Some(dry) = dry.filter(|dry| !dry.operators.is_empty()) {
            let networks = by_network(&dry.operators).into_iter();
            let networks = networks.map(|(network, milliseconds, operators)| {
                serde_json::json!({"network": network, "milliseconds": milliseconds, "operators": operators})
            });
            report["profile"] = networks.collect();
        }
        say!("{report}");
        return Ok(());
    }
    let images = if plan.images > 0 { format!(" on {} images", plan.images) } else { String::new() };
    say!("{}: {} numbers in {} tensors are trained{images}", plan.adapter, plan.parameters, plan.tensors);
    for ([height, width], images) in plan.sizes.iter().filter(|_| plan.sizes.len() > 1) {
        say!("{images:>8} images at {width} x {height}");
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    for (part, bytes) in &plan.memory {
        say!("{:>8} MiB  {part}", mib(*bytes as u64));
    }
    say!("{:>8} MiB  planned in all, for images of one size", mib(plan.total as u64));
    if let Some((_, held)) = measured {
        say!("{:>8} MiB  held on the device in all", mib(held));
    }
    if plan.recomputed {
        say!("blocks are computed again in the backward pass");
    }
    let Some((dry, _)) = measured else { return Ok(()) };
    say!("{:.3} s a step", dry.seconds_a_step);
    for (network, milliseconds, operators) in by_network(&dry.operators) {
        say!("\n{milliseconds:>10.3} ms a step in {network}");
        say_shares(&operators);
    }
    Ok(())
}

/// Shows training on the terminal.
struct Screen<'a>(&'a Terminal);

impl pulid_engine::Observer for Screen<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }

    fn progress(&self, done: u64, total: u64) {
        self.0.progress(done, total);
    }
}

impl Reporter for Screen<'_> {
    fn stage(&self, name: &str) {
        self.0.stage(name);
    }

    fn note(&self, text: &str) {
        self.0.note(text);
    }

    fn step(&self, step: usize, steps: usize) {
        self.0.step(step, steps);
    }
}

impl Watcher for Screen<'_> {
    fn trained(&self, progress: &Progress) {
        let Progress { metrics, steps, seconds_left, memory } = progress;
        let losses: Vec<String> = metrics.losses.each().map(|(name, loss)| format!("{name} {loss:.4}")).collect();
        let message = format!(
            "loss {}, {:.2} images/s, {} left, {:.1} GiB",
            losses.join(", "),
            metrics.images_per_second,
            indicatif::HumanDuration(std::time::Duration::try_from_secs_f64(*seconds_left).unwrap_or_default()),
            *memory as f64 / f64::from(1 << 30),
        );
        self.0.counted(&message, metrics.step, *steps);
    }
}
