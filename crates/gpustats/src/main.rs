//! `pulid-gpustats LIBRARIES VERSION [--bless] [--dump KERNEL] [--gpu GPU]`: the table of `tests/snapshots/gpu_stats.txt`, compared or renewed, by
//! the drivers and shims of a Mesa that is unpacked under LIBRARIES. `cargo xtask gpu-stats` fetches one and calls this.

use pulid_gpustats::{Driver, GPUS, Gpu, Outcome, Row, differences, figures, kernels, problems, render};
use pulid_ops::Capabilities;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

/// Differences that are shown.
const SHOWN: usize = 40;

/// Processes that compile a GPU's kernels, each every so many: the shims never free a buffer, and a driver makes some for each pipeline.
const SHARES: usize = 4;

/// What the command line says.
struct Arguments {
    libraries: PathBuf,
    version: String,
    bless: bool,
    dump: Option<String>,
    gpu: Option<String>,
    /// Given to the processes that this one starts with a driver's shim.
    compile: Option<String>,
    /// Which of the shares these compile.
    share: usize,
}

impl Arguments {
    fn read() -> Outcome<Arguments> {
        let mut words = std::env::args().skip(1);
        let mut next = |what: &str| words.next().ok_or_else(|| format!("expected {what}"));
        let (libraries, version) = (next("the folder of Mesa's libraries")?.into(), next("Mesa's version")?);
        let mut read = Arguments { libraries, version, bless: false, dump: None, gpu: None, compile: None, share: 0 };
        while let Ok(word) = next("an option") {
            match word.as_str() {
                "--bless" => read.bless = true,
                "--dump" => read.dump = Some(next("a part of a kernel's name after --dump")?),
                "--gpu" => read.gpu = Some(next("a GPU after --gpu")?),
                "--compile" => read.compile = Some(next("a GPU after --compile")?),
                "--share" => {
                    read.share = next("a number after --share")?.parse().map_err(|_| "--share takes a number")?
                }
                other => return Err(format!("unknown option `{other}`; there are --bless, --dump KERNEL, --gpu GPU")),
            }
        }
        if read.bless && read.gpu.is_some() {
            return Err("--bless renews the whole table; leave --gpu out".into());
        }
        Ok(read)
    }
}

fn main() -> ExitCode {
    let done = Arguments::read().and_then(|arguments| match &arguments.compile {
        Some(gpu) => compile(&arguments, named(gpu)?),
        None => all(&arguments),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str) -> Outcome<&'static Gpu> {
    GPUS.iter().find(|gpu| gpu.name == name).ok_or_else(|| {
        let names: Vec<_> = GPUS.iter().map(|gpu| gpu.name).collect();
        format!("no GPU `{name}`; there are {}", names.join(", "))
    })
}

/// In a process with the GPU's shim: compiles every kernel and prints a row of JSON each, or what the compiler wrote.
fn compile(arguments: &Arguments, gpu: &Gpu) -> Outcome {
    let driver = Driver::open(&arguments.libraries.join(format!("libvulkan_{}.so", gpu.driver)))?;
    let capabilities = Capabilities { class: gpu.class, ..driver.capabilities().clone() };
    for kernel in kernels(&capabilities)?.into_iter().skip(arguments.share).step_by(SHARES) {
        let name = kernel.name();
        if arguments.dump.as_ref().is_some_and(|part| !name.contains(part)) {
            continue;
        }
        let compiled = driver.compile(&kernel)?;
        if arguments.dump.is_some() {
            println!("==== {name} on {}, {}", gpu.name, gpu.known_as);
            compiled.statistics.iter().for_each(|(name, value)| println!("{name}: {value}"));
            let last = compiled.texts.last();
            last.iter().for_each(|(name, text)| println!("---- {name}\n{text}"));
            continue;
        }
        let figures = figures(&kernel, &compiled);
        let (cooperative, expected_lanes) = (kernel.is_cooperative(), capabilities.lanes().unwrap_or_default());
        let row = Row { kernel: name, gpu: gpu.name.into(), cooperative, expected_lanes, figures };
        println!("{}", serde_json::to_string(&row).map_err(|e| e.to_string())?);
    }
    Ok(())
}

/// Starts processes with each GPU's shim, several at a time, and does with their rows what the command line says.
fn all(arguments: &Arguments) -> Outcome {
    let gpus: Vec<&Gpu> = match &arguments.gpu {
        Some(name) => vec![named(name)?],
        None => GPUS.iter().collect(),
    };
    let shares = gpus.iter().flat_map(|gpu| (0..SHARES).map(move |share| (gpu, share)));
    if arguments.dump.is_some() {
        let outputs: Vec<String> = shares.map(|(gpu, share)| start(arguments, gpu, share)).collect::<Outcome<_>>()?;
        if outputs.iter().all(String::is_empty) {
            return Err("no kernel's name holds that; tests/snapshots/gpu_stats.txt lists them".into());
        }
        outputs.iter().for_each(|text| print!("{text}"));
        return Ok(());
    }
    let waiting = Mutex::new(shares);
    let results: Mutex<Vec<Outcome<String>>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((gpu, share)) = waiting.lock().ok().and_then(|mut shares| shares.next()) {
                    let result = start(arguments, gpu, share);
                    results.lock().into_iter().for_each(|mut all| all.push(result.clone()));
                }
            });
        }
    });
    let mut rows: Vec<Row> = Vec::new();
    for text in results.into_inner().map_err(|e| e.to_string())? {
        for line in text?.lines() {
            rows.push(serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?);
        }
    }
    judge(arguments, &rows)
}

/// Compares the table with the one in the repository, or renews that one.
fn judge(arguments: &Arguments, rows: &[Row]) -> Outcome {
    let text = render(rows, &arguments.version);
    if arguments.gpu.is_some() {
        print!("{text}");
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/snapshots/gpu_stats.txt");
    if arguments.bless {
        std::fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let mut found = problems(rows);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let changed = differences(&old, &text);
    found.extend(changed.iter().take(SHOWN).cloned());
    if changed.len() > SHOWN {
        found.push(format!("and {} more rows that differ", changed.len() - SHOWN));
    }
    if !changed.is_empty() {
        found.push("look at the differences, and accept them by `cargo xtask gpu-stats --bless`".into());
    }
    match found.as_slice() {
        [] => {
            println!("{} pipelines for {} GPUs: none spills, and every figure is the table's", rows.len(), GPUS.len());
            Ok(())
        }
        found => Err(found.join("\n")),
    }
}

/// This program again, on Mesa's own libraries and with the shim that stands for a GPU's kernel driver; what it printed of its share.
fn start(arguments: &Arguments, gpu: &Gpu, share: usize) -> Outcome<String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's own file is unknown: {e}"))?;
    let libraries = &arguments.libraries;
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(libraries);
    command.arg("--preload").arg(libraries.join(format!("lib{}_noop_drm_shim.so", gpu.shim)));
    command.arg(program).arg(libraries).arg(&arguments.version).args(["--compile", gpu.name]);
    command.args(["--share", &share.to_string()]);
    command.args(arguments.dump.iter().flat_map(|part| ["--dump", part]));
    // What another run compiled comes without statistics.
    command.env("MESA_SHADER_CACHE_DISABLE", "true").envs(gpu.environment.iter().copied());
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("Mesa's loader cannot be started: {e}"))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|e| e.to_string());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = told.lines().rev().take(5).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(format!("{} ({}):\n{}", gpu.name, output.status, last.join("\n")))
}
