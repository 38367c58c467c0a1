//! Whole pictures as `pulid generate` makes them, from its start to the written file.

use super::Args;
use crate::progress::cancelled;
use pulid_tensor::{Error, Result};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PROMPT: &str = "an oil painting of a person, smiling, in a garden, warm light";
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Where this program and the drivers keep what a second run need not do again.
const CACHES: [&str; 3] = ["PULID_CACHE", "MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH"];

/// Two runs of the program.
#[derive(serde::Serialize)]
pub(super) struct Figures {
    /// Whether a photo was read.
    identity: bool,
    /// With empty caches: shaders are compiled, kernel variants measured.
    first_seconds: f64,
    again_seconds: f64,
    /// The larger of the two runs' peaks; none where the system does not tell.
    peak_resident_bytes: Option<u64>,
}

/// Makes two pictures in a folder of their own.
pub(super) fn measure(args: &Args) -> Result<Figures> {
    let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let (first, first_peak) = run(args, folder.path())?;
    let (again, again_peak) = run(args, folder.path())?;
    let figures = Figures {
        identity: args.id.is_some(),
        first_seconds: first.as_secs_f64(),
        again_seconds: again.as_secs_f64(),
        peak_resident_bytes: first_peak.max(again_peak),
    };
    if !args.json {
        say!("{:>10.2} s the first picture, with empty caches", figures.first_seconds);
        say!("{:>10.2} s the next", figures.again_seconds);
        match figures.peak_resident_bytes {
            Some(bytes) => say!("{:>10.1} MB of memory at its peak", bytes as f64 / 1e6),
            None => say!("{:>10} memory: this system does not tell", "-"),
        }
    }
    Ok(figures)
}

fn run(args: &Args, folder: &Path) -> Result<(Duration, Option<u64>)> {
    let trouble = |detail: String| Error::invalid("--picture", detail);
    let program = std::env::current_exe().map_err(|e| trouble(format!("this program's own file is unknown: {e}")))?;
    let log = folder.join("log.txt");
    let file = std::fs::File::create(&log).map_err(|e| Error::io(&log, e))?;
    let mut command = Command::new(program);
    command.args(["generate", "--prompt", PROMPT, "--output"]).arg(folder.join("picture.png"));
    command.args(["--device", &args.device.device, "--autotune", &args.device.autotune]);
    if let Some(bytes) = args.device.memory {
        command.args(["--memory", &bytes.to_string()]);
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
