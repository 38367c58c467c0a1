use super::check_output;
use crate::progress::{Terminal, cancelled};
use pulid::runtime::Reporter;
use pulid_conformance::{Check, Entry, Expectations, Outcome, Pattern, Report, checks};
use pulid_engine::{Device, DeviceOptions, Observer};
use pulid_ops::{Capabilities, DeviceKind};
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Flags of `pulid conformance`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid conformance --report lavapipe.html --report lavapipe.json\n  \
    pulid conformance --device radeon --filter norm/ --filter 'matmul/*dtype=f16*'\n  \
    pulid conformance --list --filter attention\n\n\
    Exit code 1 where a check fails, or passes though it is listed as failing.")]
pub struct Args {
    /// Only checks whose id contains this, or fits it where it has `*` or `?`; may be given again for more
    #[arg(long, value_name = "PATTERN")]
    filter: Vec<String>,
    /// `auto` or a part of a device's name, driver or backend
    #[arg(long, default_value = "auto")]
    device: String,
    /// Write the report here: FILE.json or FILE.html; may be given twice
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// A JSON list of failures that are known: `[{"adapter": ..., "backend": ..., "id": ..., "reason": ...}]`, each but the last a part
    /// of the name or a pattern
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
    /// Write the checks into this new folder, for runners without this program such as web/conformance.mjs, and run none
    #[arg(long, value_name = "DIR", conflicts_with_all = ["report", "list", "device"])]
    export: Option<PathBuf>,
    /// List the checks' ids and run none
    #[arg(long)]
    list: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the suite.
pub fn run(args: &Args) -> Result<()> {
    for path in &args.report {
        check_output(path)?;
        Report::accept(path)?;
    }
    let mut expected = Expectations::shipped()?;
    if let Some(path) = &args.expected {
        expected = expected.and(Expectations::open(path)?);
    }
    if let Some(folder) = &args.export {
        return export(args, folder);
    }
    pollster::block_on(run_on_device(args, &expected))
}

/// Keeps what the flags ask for.
fn filtered(args: &Args, capabilities: &Capabilities) -> Result<Vec<Check>> {
    let filters: Vec<Pattern> = args.filter.iter().map(Pattern::new).collect();
    let mut checks = checks(capabilities)?;
    checks.retain(|check| filters.is_empty() || filters.iter().any(|f| f.matches(&check.id)));
    if checks.is_empty() {
        return Err(Error::invalid("--filter", "no check fits; `pulid conformance --list` shows all"));
    }
    Ok(checks)
}

fn export(args: &Args, folder: &Path) -> Result<()> {
    // Everything that some device may run; runners skip what theirs cannot.
    let all = Capabilities { shader_f16: true, subgroup_lanes: 8, ..Capabilities::baseline(DeviceKind::Cpu) };
    let checks = filtered(args, &all)?;
    let bytes = pulid_conformance::export(folder, &checks)?;
    say!("{}: {} checks, {:.1} MB of data", folder.display(), checks.len(), bytes as f64 / 1e6);
    Ok(())
}

async fn run_on_device(args: &Args, expected: &Expectations) -> Result<()> {
    let open = async || Device::open(&args.device, DeviceOptions::default()).await;
    let mut device = open().await?;
    let checks = filtered(args, device.capabilities())?;
    if args.list {
        checks.iter().for_each(|check| say!("{}", check.id));
        return Ok(());
    }
    let mut report = Report::new(device.summary().clone());
    let terminal = Terminal::new(args.json);
    let d = device.summary();
    terminal.stage(&format!("{} ({}, {})", d.name, d.driver, d.backend));
    for (done, check) in checks.iter().enumerate() {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        let entry = one(check, &device, expected).await;
        if matches!(entry.outcome, Outcome::Fail | Outcome::ExpectedFail) {
            let word = if entry.outcome == Outcome::Fail { "FAIL" } else { "expected" };
            terminal.note(&format!("{word} {}: {}", entry.id, entry.detail.as_deref().unwrap_or_default()));
            // A kernel may take the device with it; the others deserve a fresh one.
            if entry.worst.is_none() {
                device = open().await?;
            }
        }
        report.push(entry);
        terminal.progress(done as u64 + 1, checks.len() as u64);
    }
    terminal.finish();
    for path in &args.report {
        pulid::image::write_atomically(path, report.text_for(path)?.as_bytes())?;
    }
    let s = report.summary;
    if args.json {
        say!("{}", report.json()?);
    } else {
        say!("{} pass, {} fail, {} skipped, {} fail as expected", s.pass, s.fail, s.skip, s.expected_fail);
    }
    match s.fail {
        0 => Ok(()),
        n => Err(Error::Device(format!("{n} of {} checks failed on {}", checks.len(), report.device.name))),
    }
}

async fn one(check: &Check, device: &Device, expected: &Expectations) -> Entry {
    if let Some(reason) = &check.skipped {
        return Entry::skipped(&check.id, reason);
    }
    let start = Instant::now();
    let found = check.run(device).await;
    Entry::judged(&check.id, found, start.elapsed().as_secs_f64(), device.summary(), expected)
}
