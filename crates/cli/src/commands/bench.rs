//! `pulid bench`: kernels at real network sizes, the UNet of a model, and whole images.

mod kernels;
mod network;
mod picture;
mod roofline;

use super::models::{Models, ModelsArgs};
use super::{DeviceArgs, remember_choices};
use pulid::runtime::Runtime;
use pulid_engine::{DeviceOptions, Peaks};
use pulid_ops::Storage;
use pulid_tensor::{Error, Result};
use std::path::PathBuf;

/// Flags of `pulid bench`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid bench --device llvmpipe --filter matmul\n  \
    pulid bench --filter attention --variants all --json\n  \
    pulid bench --case 'matmul/m=8192;k=640;n=640;bias' --case 'conv2d/x=2x32x32x1280;kernel=3x3;out=1280' --dtype f16,f32\n  \
    pulid bench --filter conv2d --roofline\n  \
    pulid bench --model models/mini/sdxl\n  \
    pulid bench --picture --id examples/faces/ada.jpg")]
pub struct Args {
    /// Only kernels whose `operator/case` contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// This kernel at this size instead of the usual ones; may be given again: `matmul/m=;k=;n=`, `conv2d/x=NxHxWxC;kernel=RxC;out=`
    /// (`;stride=`), `attention/b=;tq=;tk=;h=;d=`, `group_norm/x=` (`;groups=`), `layer_norm/x=`; `;bias`, `;residual`, `;gelu`,
    /// `;silu` and `;gated` follow where they apply
    #[arg(long, value_name = "CASE", conflicts_with = "filter")]
    case: Vec<String>,
    /// What values and weights are stored in: `f32`, `f16`, `w16` (f16 weights), `q8`, `q4`, `f16+q8`, `f16+q4`; kernels take a list
    #[arg(long, value_delimiter = ',', default_value = "f32", value_parser = parse_storage)]
    dtype: Vec<Storage>,
    /// `chosen`: what networks run; `all`: also the others (the plain ones take long at these sizes); `fast`: all but the plainest;
    /// or names
    #[arg(long, default_value = "chosen")]
    variants: String,
    /// Measure first what the device reaches at its best (a copy, multiply-adds, cooperative matrices), and show which share of that each
    /// kernel reaches
    #[arg(long, conflicts_with_all = ["model", "picture"])]
    roofline: bool,
    /// Time the UNet of this folder in diffusers' SDXL layout instead, and show where its time goes
    #[arg(long)]
    model: Option<PathBuf>,
    /// Time `pulid generate` from its start to the written image instead: with empty caches, and again
    #[arg(long, conflicts_with_all = ["filter", "case", "dtype", "variants", "size", "repeats", "lines"])]
    picture: bool,
    /// With --picture: a photo of the person in it
    #[arg(long, requires = "picture")]
    id: Option<PathBuf>,
    /// With --model: run the UNet with an identity
    #[arg(long, requires = "model")]
    identity: bool,
    /// With --model: the VAE's decoder instead of the UNet
    #[arg(long, requires = "model", conflicts_with = "identity")]
    decoder: bool,
    /// With --model: pixels of a side, from its `generation_defaults.json` or 1024 if not given
    #[arg(long, requires = "model")]
    size: Option<usize>,
    /// Timed repetitions, after one warm-up; the median counts
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print each kernel's figures as a line of JSON, as soon as they are known
    #[arg(long, conflicts_with_all = ["json", "model"])]
    lines: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

fn parse_storage(text: &str) -> std::result::Result<Storage, String> {
    Storage::ALL
        .into_iter()
        .find(|s| s.name() == text)
        .ok_or_else(|| format!("expected one of {}", Storage::ALL.map(Storage::name).join(", ")))
}

impl Args {
    /// Whether standard output is for programs.
    fn quiet(&self) -> bool {
        self.json || self.lines
    }

    /// The models folder: the mini models', unless PULID_MODELS names another.
    fn models(&self) -> Result<Models> {
        ModelsArgs::from_env().open(self.model.as_deref(), None)
    }
}

/// What was measured.
#[derive(serde::Serialize)]
struct Report {
    device: String,
    driver: String,
    backend: String,
    repeats: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peaks: Option<Peaks>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<kernels::Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<network::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<picture::Figures>,
}

/// Times the benchmark cases, a model's UNet or whole images.
pub fn run(args: &Args) -> Result<()> {
    pollster::block_on(async {
        let options = DeviceOptions { timestamps: true, ..DeviceOptions::default() };
        let runtime = args.device.open_with(options).await?;
        let Runtime::Gpu { device, .. } = &runtime else {
            return Err(Error::invalid("--device", "the reference is no device to measure"));
        };
        let s = device.summary();
        let repeats = if args.picture { 1 } else { args.repeats.max(1) };
        if !args.quiet() {
            let dtypes: Vec<_> = args.dtype.iter().map(|d| d.name()).collect();
            let how = match args.picture {
                true => "whole runs of the program".to_owned(),
                false => format!("median of {repeats} runs, {}", dtypes.join(" and ")),
            };
            say!("{} ({}, {}), {how}", s.name, s.driver, s.backend);
        }
        let mut report = Report {
            device: s.name.clone(),
            driver: s.driver.clone(),
            backend: s.backend.clone(),
            repeats,
            peaks: None,
            kernels: Vec::new(),
            network: None,
            picture: None,
        };
        if args.roofline {
            let peaks = pulid_engine::peaks(device).await?;
            if !args.quiet() {
                say!("{}", roofline::describe(&peaks));
            }
            report.peaks = Some(peaks);
        }
        match (args.picture, &args.model) {
            (true, _) => report.picture = Some(picture::measure(args, runtime.clone()).await?),
            (false, Some(model)) => report.network = Some(network::measure(&runtime, model, args).await?),
            (false, None) => report.kernels = kernels::measure(&runtime, args, report.peaks.as_ref()).await?,
        }
        remember_choices(&runtime);
        if args.json {
            let text = serde_json::to_string_pretty(&report).map_err(|e| Error::invalid("--json", e.to_string()))?;
            say!("{text}");
        }
        Ok(())
    })
}

/// The middle one.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
