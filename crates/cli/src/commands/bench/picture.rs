//! Whole images: as `pulid generate` makes them, from its start to the written file, and one after another in one pipeline.

use super::Args;
use crate::commands::identity::read_photos;
use crate::progress::cancelled;
use pulid::identity::ExtractOptions;
use pulid::pipeline::{IdentityUse, Pipeline, SdxlModel};
use pulid::runtime::{Keep, Runtime};
use pulid::sampler::StepWindow;
use pulid::settings::{Choices, ModelDefaults, Settings};
use pulid_engine::Silent;
use pulid_tensor::{Error, Result};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PROMPT: &str = "an oil painting of a person, smiling, in a garden, warm light";
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Where this program and the drivers keep what a second run need not do again.
const CACHES: [&str; 3] = ["PULID_CACHE", "MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH"];

/// Two runs of the program, then two images of one pipeline.
#[derive(serde::Serialize)]
pub(super) struct Figures {
    /// Whether a photo was read.
    identity: bool,
    /// With empty caches: shaders are compiled, kernel variants measured.
    first_seconds: f64,
    again_seconds: f64,
    /// The larger of the two runs' peaks; none where the system does not tell.
    peak_resident_bytes: Option<u64>,
    /// In one pipeline that keeps its networks, the photo read anew for each image; the driver's caches are as they were.
    pipeline: [Image; 2],
}

/// What one image of a pipeline took.
#[derive(serde::Serialize)]
struct Image {
    seconds: f64,
    uploaded_bytes: u64,
    compiled_kernels: u64,
}

/// Makes two images in a folder of their own.
pub(super) async fn measure(args: &Args, runtime: Runtime) -> Result<Figures> {
    let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let (first, first_peak) = run(args, folder.path())?;
    let (again, again_peak) = run(args, folder.path())?;
    let figures = Figures {
        identity: args.id.is_some(),
        first_seconds: first.as_secs_f64(),
        again_seconds: again.as_secs_f64(),
        peak_resident_bytes: first_peak.max(again_peak),
        pipeline: in_one_pipeline(args, runtime).await?,
    };
    if !args.json {
        say!("{:>10.2} s the first image, with empty caches", figures.first_seconds);
        say!("{:>10.2} s the next", figures.again_seconds);
        match figures.peak_resident_bytes {
            Some(bytes) => say!("{:>10.1} MB of memory at its peak", bytes as f64 / 1e6),
            None => say!("{:>10} memory: this system does not tell", "-"),
        }
        for (image, which) in figures.pipeline.iter().zip(["first", "second"]) {
            let (mb, kernels) = (image.uploaded_bytes as f64 / 1e6, image.compiled_kernels);
            say!(
                "{:>10.2} s the {which} in one pipeline: {mb:.1} MB uploaded, {kernels} kernels compiled",
                image.seconds
            );
        }
    }
    Ok(figures)
}

/// Two images by one pipeline: what the second one need not do again.
async fn in_one_pipeline(args: &Args, runtime: Runtime) -> Result<[Image; 2]> {
    let models = args.models()?;
    let model = SdxlModel::open(models.model(args.model.as_deref())?.0)?;
    let settings = Settings::merge(Choices::default(), None, ModelDefaults::of(&model)?.all())?;
    let photo = args.id.as_ref().map_or(Ok(Vec::new()), |path| read_photos(std::slice::from_ref(path)))?;
    let pipeline = Pipeline::open(runtime.keeping(Keep::Fitting), model, settings.storage())?;
    let image = async || {
        let (start, before) = (Instant::now(), pipeline.runtime().device_memory());
        let mut options = settings.options(PROMPT);
        if !photo.is_empty() {
            let adapter = models.adapter(None)?;
            let (faces, how) = (models.face_models()?, ExtractOptions::default());
            let tokens = pipeline.identify(&faces, &adapter, &photo, &how, &Silent).await?.tokens;
            let (settings, window) = (settings.identity(), StepWindow::ALL);
            options.identity = Some(IdentityUse { tokens, adapter, settings, window });
        }
        pipeline.generate(&options, &Silent).await?;
        let after = pipeline.runtime().device_memory();
        Ok::<_, Error>(Image {
            seconds: start.elapsed().as_secs_f64(),
            uploaded_bytes: after.uploaded_bytes - before.uploaded_bytes,
            compiled_kernels: after.compiled_kernels - before.compiled_kernels,
        })
    };
    Ok([image().await?, image().await?])
}

fn run(args: &Args, folder: &Path) -> Result<(Duration, Option<u64>)> {
    let trouble = |detail: String| Error::invalid("--picture", detail);
    let program = std::env::current_exe().map_err(|e| trouble(format!("this program's own file is unknown: {e}")))?;
    let log = folder.join("log.txt");
    let file = std::fs::File::create(&log).map_err(|e| Error::io(&log, e))?;
    let mut command = Command::new(program);
    command.args(["generate", "--prompt", PROMPT, "--output"]).arg(folder.join("picture.png"));
    command.args(["--device", &args.device.device, "--autotune", &args.device.autotune]);
    command.args(["--max-binding", &args.device.max_binding.to_string()]);
    if let Some(bytes) = args.device.memory {
        command.args(["--memory", &format!("{bytes}B")]);
    }
    for (flag, path) in [("--model", &args.model), ("--id", &args.id)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    for name in CACHES {
        command.env(name, folder.join(name));
    }
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .map_err(|e| trouble(format!("pulid generate does not start: {e}")))?;
    let (status, peak) = watch(&mut child).map_err(|e| trouble(format!("pulid generate cannot be waited for: {e}")))?;
    let took = start.elapsed();
    if cancelled() {
        return Err(Error::Cancelled);
    }
    if !status.success() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        return Err(trouble(format!("pulid generate ended with {status}: {}", said.trim())));
    }
    Ok((took, peak))
}

/// Waits for the program's end; its peak of resident memory where Linux tells.
fn watch(child: &mut Child) -> std::io::Result<(ExitStatus, Option<u64>)> {
    let mut peak = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, peak));
        }
        if cancelled() {
            child.kill()?;
        }
        peak = peak.max(peak_resident(child.id()));
        std::thread::sleep(LOOK);
    }
}

/// The peak so far of a process that runs, in bytes.
fn peak_resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
