//! Times versions of a kernel on one Vulkan device and holds them to one another. What it takes is written by `matmul.py` and
//! `attention.py`.

mod case;
mod gpu;

use case::Case;
use clap::Parser;
use gpu::{Gpu, Kernel};
use half::f16;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How far a result may be from the first one of the same work, as a part of that one's largest value: results are rounded to f16, which is
/// 2^-11 of each, and so are attention's weights before they are summed, in an order of each version's own.
const TOLERANCE: f64 = 1.0 / 256.0;

/// Time versions of a kernel and hold each to the first one of the same work
#[derive(Parser)]
#[command(
    name = "lab",
    after_help = "Exit codes:\n  \
    0  every version that ran gave the same result\n  \
    1  some did not, or could not be compiled or run\n  \
    2  the file or the device cannot be used"
)]
struct Args {
    /// Versions, as matmul.py and attention.py write them
    cases: PathBuf,
    /// A part of the device's name or driver
    #[arg(long, default_value = "nvidia")]
    device: String,
    /// Begin no version after so many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run each version once, for its result
    #[arg(long)]
    quick: bool,
    /// Only versions whose name has this part, and the first ones of the same work
    #[arg(long, default_value = "")]
    filter: String,
    /// Write every version's WGSL and SPIR-V into this folder
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

/// What the versions before gave: for each work the first result.
#[derive(Default)]
struct First(HashMap<String, Vec<f16>>);

impl First {
    /// The largest distance to the first result of the same work, as a part of that one's largest value; nothing if there is none before.
    fn distance(&mut self, work: &str, result: Vec<f16>) -> Option<f64> {
        let Some(first) = self.0.get(work) else {
            self.0.insert(work.to_owned(), result);
            return None;
        };
        let largest = first.iter().map(|value| value.to_f64().abs()).fold(0.0, f64::max);
        let distances = first.iter().zip(&result).map(|(a, b)| (a.to_f64() - b.to_f64()).abs());
        // NaN is as far as can be: `f64::max` would pass over it.
        let farthest = distances.fold(0.0, |far: f64, d| if d.is_nan() { f64::INFINITY } else { far.max(d) });
        Some(if farthest == 0.0 { 0.0 } else { farthest / largest })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let begin = Instant::now();
    let opened = read(&args).and_then(|cases| Ok((cases, Gpu::open(&args.device)?)));
    let (cases, gpu) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let kernels = gpu.compile(&cases);
    eprintln!("compiled {} in {:.1} s", cases.len(), begin.elapsed().as_secs_f64());
    let (mut first, mut failed) = (First::default(), false);
    for (place, (case, kernel)) in cases.iter().zip(kernels).enumerate() {
        if begin.elapsed() > Duration::from_secs(args.seconds) {
            eprintln!("out of time: {} versions did not run", cases.len() - place);
            break;
        }
        match kernel.and_then(|kernel| line(&gpu, case, &kernel, args.quick, &mut first)) {
            Ok((text, good)) => {
                println!("{:<54} {text}", case.name);
                failed |= !good;
            }
            Err(why) => {
                println!("{:<54} failed: {}", case.name, why.trim_end());
                failed = true;
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

/// The cases of the file that the filter leaves, written out where that is wanted.
fn read(args: &Args) -> Result<Vec<Case>, String> {
    let named = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read(&args.cases).map_err(|e| named(&args.cases, &e))?;
    let mut cases: Vec<Case> = serde_json::from_slice(&text).map_err(|e| named(&args.cases, &e))?;
    let named_so = |case: &&Case| case.name.contains(&args.filter);
    let works: HashSet<String> = cases.iter().filter(named_so).map(|case| case.work.clone()).collect();
    let mut begun = HashSet::new();
    cases.retain(|case| works.contains(&case.work) && (begun.insert(case.work.clone()) || named_so(&case)));
    if cases.is_empty() {
        return Err(format!("{}: no version's name holds `{}`", args.cases.display(), args.filter));
    }
    if let Some(folder) = &args.dump {
        std::fs::create_dir_all(folder).map_err(|e| named(folder, &e))?;
        for (at, case) in cases.iter().enumerate() {
            let path = folder.join(format!("{at:02}.wgsl"));
            std::fs::write(&path, format!("// {}\n{}\n", case.name, case.wgsl)).map_err(|e| named(&path, &e))?;
            // What cannot be translated is told with the other results.
            if let Ok(spirv) = case.translated() {
                let path = path.with_extension("spv");
                std::fs::write(&path, bytemuck::cast_slice(&spirv.words)).map_err(|e| named(&path, &e))?;
            }
        }
    }
    Ok(cases)
}

/// Runs one version: its figures, and whether its result is that of the ones before.
fn line(gpu: &Gpu, case: &Case, kernel: &Kernel, quick: bool, first: &mut First) -> Result<(String, bool), String> {
    let outcome = gpu.run(case, kernel, quick)?;
    let distance = first.distance(&case.work, outcome.result);
    let good = distance.is_none_or(|d| d <= TOLERANCE);
    let verdict = match distance {
        None => "first of its work".to_owned(),
        Some(distance) => format!("error {distance:.1e}{}", if good { "" } else { ": WRONG" }),
    };
    let (us, tflops) = (outcome.seconds * 1e6, case.flops / outcome.seconds / 1e12);
    Ok((format!("{us:9.1} us {tflops:7.3} TFLOP/s  {verdict}, compiled in {:.2} s", kernel.compile_seconds), good))
}
