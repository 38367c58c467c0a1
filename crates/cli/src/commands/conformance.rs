mod graphs;

use super::models::mini_models;
use super::outputs;
use crate::progress::{Terminal, cancelled};
use graphs::{GraphCheck, graph_checks};
use pulid::runtime::{Reporter, Runtime};
use pulid_checkpoint::FileSet;
use pulid_conformance::{Check, Column, Entry, Expectations, Outcome, Pattern, Report, checks};
use pulid_engine::{AdapterSummary, Device, DeviceOptions, Observer};
use pulid_ops::{Capabilities, DeviceKind};
use pulid_tensor::{Error, Result};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Flags of `pulid conformance`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid conformance --report lavapipe.html --report lavapipe.json\n  \
    pulid conformance --device radeon --filter norm/ --filter 'matmul/*dtype=f16*'\n  \
    pulid conformance --list --filter attention\n  \
    pulid conformance --filter onnx/ --filter network/ --goldens checkout/tests/goldens\n  \
    pulid conformance --summarise lavapipe.json --output tests/conformance/lavapipe.json\n\n\
    Exit code 1 where a check fails, or passes though it is listed as failing.")]
pub struct Args {
    /// Only checks whose id contains this, or fits it where it has `*` or `?`; may be given again for more
    #[arg(long, value_name = "PATTERN")]
    filter: Vec<String>,
    /// `auto` or a part of a device's name, driver or backend
    #[arg(long, default_value = "auto")]
    device: String,
    /// Check kernels with cooperative matrices of SIZE x SIZE, 8 or 16, though the driver may not list it; 0 leaves them out
    #[arg(long, value_name = "SIZE", value_parser = clap::builder::PossibleValuesParser::new(["0", "8", "16"]))]
    cooperative: Option<String>,
    /// Let these matrices lie in memory as units of 8 bytes, as on devices that take no kernels with units of 16
    #[arg(long)]
    unpacked: bool,
    /// Take it that subgroups have so many lanes, least and most, such as 4,16, whatever the driver says: for kernels that are made for
    /// sizes that vary. The driver's own must lie between
    #[arg(long, value_name = "LEAST,MOST", value_parser = parse_lanes)]
    lanes: Option<[u32; 2]>,
    /// Write the report here: FILE.json or FILE.html; may be given twice
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// A JSON list of failures that are known: `[{"adapter": ..., "backend": ..., "id": ..., "reason": ...}]`, each but the last a part
    /// of the name or a pattern
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
    /// The repository's tests/goldens, for checks of whole graphs: onnx's node tests (`onnx/`) and networks (`network/`) [default:
    /// where the mini models are found, if it is there]
    #[arg(long, value_name = "DIR")]
    goldens: Option<PathBuf>,
    /// Write the kernels' checks into this new folder, for runners without this program such as web/conformance.mjs, and run none
    #[arg(long, value_name = "DIR", conflicts_with_all = ["report", "list", "device"])]
    export: Option<PathBuf>,
    /// Cut a report down to a column of docs/conformance.md, and run nothing
    #[arg(long, value_name = "REPORT.json", requires = "output", conflicts_with_all = ["report", "list", "device", "filter", "export", "json"])]
    summarise: Option<PathBuf>,
    /// Where the column goes: tests/conformance/NAME.json
    #[arg(long, value_name = "FILE", requires = "summarise")]
    output: Option<PathBuf>,
    /// List the checks' ids and run none
    #[arg(long)]
    list: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn parse_lanes(text: &str) -> std::result::Result<[u32; 2], String> {
    let numbers: Option<Vec<u32>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[least, most]) if least <= most && least.is_power_of_two() && most.is_power_of_two() => Ok([least, most]),
        _ => Err("expected two powers of two, the lesser first, such as 4,16".into()),
    }
}

impl Args {
    fn device_options(&self) -> DeviceOptions {
        let size = self.cooperative.as_deref().and_then(|size| size.parse().ok());
        let usual =
            DeviceOptions { assumed_lanes: self.lanes, packed_matrices: !self.unpacked, ..DeviceOptions::default() };
        match size {
            None => usual,
            Some(0) => DeviceOptions { cooperative_matrices: false, ..usual },
            size => DeviceOptions { unlisted_cooperative_size: size, ..usual },
        }
    }
}

/// Runs the suite.
pub fn run(args: &Args) -> Result<()> {
    if let (Some(report), Some(output)) = (&args.summarise, &args.output) {
        return summarise(report, output);
    }
    let mut files = outputs(args.expected.iter().chain(&args.goldens))?;
    for path in &args.report {
        files.claim(path)?;
        Report::accept(path)?;
    }
    if let Some(folder) = args.goldens.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(Error::invalid("--goldens", format!("there is no folder {}", folder.display())));
    }
    let mut expected = Expectations::shipped()?;
    if let Some(path) = &args.expected {
        expected = expected.and(Expectations::open(path)?);
    }
    if let Some(folder) = &args.export {
        return export(args, folder, &expected);
    }
    pollster::block_on(run_on_device(args, &expected, files))
}

fn summarise(report: &Path, output: &Path) -> Result<()> {
    let mut files = outputs([&report.to_owned()])?;
    files.claim(output)?;
    let text = std::fs::read_to_string(report).map_err(|e| Error::io(report, e))?;
    let column = Column::of_report(&text, &report.display().to_string())?;
    files.write_bytes(output, column.json()?.as_bytes())?;
    files.commit()
}

/// One thing to run.
enum Item {
    Kernel(Box<Check>),
    Graph(GraphCheck),
}

impl Item {
    fn id(&self) -> &str {
        match self {
            Item::Kernel(check) => &check.id,
            Item::Graph(check) => &check.id,
        }
    }
}

/// Keeps what the flags ask for.
fn filtered<T>(args: &Args, mut items: Vec<T>, id: impl Fn(&T) -> &str) -> Result<Vec<T>> {
    let filters: Vec<Pattern> = args.filter.iter().map(Pattern::new).collect();
    items.retain(|item| filters.is_empty() || filters.iter().any(|f| f.matches(id(item))));
    if items.is_empty() {
        return Err(Error::invalid("--filter", "no check fits; `pulid conformance --list` shows all"));
    }
    Ok(items)
}

/// Kernels first, then graphs where there are goldens.
fn items(args: &Args, capabilities: &Capabilities) -> Result<Vec<Item>> {
    let mut all: Vec<Item> = checks(capabilities)?.into_iter().map(|check| Item::Kernel(Box::new(check))).collect();
    let beside_models = || Some(mini_models()?.join("../../tests/goldens")).filter(|folder| folder.is_dir());
    if let Some(folder) = args.goldens.clone().or_else(beside_models) {
        all.extend(graph_checks(&folder)?.into_iter().map(Item::Graph));
    }
    filtered(args, all, Item::id)
}

fn export(args: &Args, folder: &Path, expected: &Expectations) -> Result<()> {
    // Everything that some device may run; runners skip what theirs cannot.
    let all = Capabilities { shader_f16: true, subgroup_lanes: 8, ..Capabilities::baseline(DeviceKind::Cpu) };
    let mut checks = filtered(args, checks(&all)?, |check| &check.id)?;
    checks.retain(|check| !check.case.large);
    let bytes = pulid_conformance::export(folder, &checks, expected)?;
    say!("{}: {} checks, {:.1} MB of data", folder.display(), checks.len(), bytes as f64 / 1e6);
    Ok(())
}

async fn run_on_device(args: &Args, expected: &Expectations, mut files: FileSet) -> Result<()> {
    let mut runtime = Runtime::open(&args.device, args.device_options()).await?;
    let device = device_of(&runtime)?;
    let checks = items(args, device.capabilities())?;
    if args.list {
        checks.iter().for_each(|check| say!("{}", check.id()));
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
        let entry = one(check, &runtime, device.summary(), expected).await?;
        if matches!(entry.outcome, Outcome::Fail | Outcome::ExpectedFail) {
            let word = if entry.outcome == Outcome::Fail { "FAIL" } else { "expected" };
            let line = format!("{word} {}: {}", entry.id, entry.detail.as_deref().unwrap_or_default());
            // A bar that nobody sees shows no notes.
            if std::io::stderr().is_terminal() {
                terminal.note(&line)
            } else {
                note!("{line}")
            }
            // A kernel may take the device with it; the others deserve a fresh one.
            if entry.worst.is_none() {
                runtime = Runtime::open(&args.device, args.device_options()).await?;
            }
        }
        report.push(entry);
        terminal.progress(done as u64 + 1, checks.len() as u64);
    }
    terminal.finish();
    for path in &args.report {
        files.write_bytes(path, report.text_for(path)?.as_bytes())?;
    }
    files.commit()?;
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

/// The device of a runtime that has one.
fn device_of(runtime: &Runtime) -> Result<Device> {
    match runtime {
        Runtime::Gpu { device, .. } => Ok(device.clone()),
        Runtime::Reference => Err(Error::invalid("--device", "the reference is what devices are held to")),
    }
}

async fn one(item: &Item, runtime: &Runtime, adapter: &AdapterSummary, expected: &Expectations) -> Result<Entry> {
    match item {
        Item::Kernel(check) => Ok(check.entry(&device_of(runtime)?, adapter, expected).await),
        Item::Graph(check) => {
            let start = Instant::now();
            let found = check.run(runtime).await;
            Ok(Entry::judged(&check.id, found, start.elapsed().as_secs_f64(), adapter, expected))
        }
    }
}
