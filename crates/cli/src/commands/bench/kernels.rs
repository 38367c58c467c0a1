//! Single kernels at the sizes that real networks use.

use super::roofline::{self, Roofline};
use super::{Args, median};
use crate::progress::cancelled;
use pulid::runtime::Runtime;
use pulid_conformance::{sizes, variants};
use pulid_engine::{Device, GUARD, Peaks, time_single};
use pulid_ops::{Case, Storage, Variant, operators};
use pulid_tensor::{Error, Result, TensorType};

/// One kernel variant at one size.
#[derive(serde::Serialize)]
pub(super) struct Row {
    /// `operator/case`.
    kernel: String,
    dtype: &'static str,
    variant: &'static str,
    /// Whether networks run this variant.
    chosen: bool,
    milliseconds: f64,
    gflops: f64,
    gbytes: f64,
    /// Executions in a sample, and whether the device's own clock timed them.
    executions: usize,
    timestamps: bool,
    /// With --roofline.
    #[serde(skip_serializing_if = "Option::is_none")]
    roofline: Option<Roofline>,
}

/// The cases that the flags ask for, with names of `operator/case`.
fn cases(args: &Args) -> Result<Vec<(String, Case)>> {
    if !args.case.is_empty() {
        // The library knows no flags.
        let flag = |e| match e {
            Error::Invalid { what, detail } if what == "case" => Error::invalid("--case", detail),
            other => other,
        };
        return args.case.iter().map(|name| Ok((name.clone(), sizes::case(name).map_err(flag)?))).collect();
    }
    let all = operators().flat_map(|(_, info)| (info.cases)().into_iter().map(move |case| (info.name, case)));
    let named = all.filter(|(_, case)| case.benchmark).map(|(name, case)| (format!("{name}/{}", case.name), case));
    Ok(named.filter(|(name, _)| name.contains(&args.filter)).collect())
}

/// Whether the flags ask for a variant.
fn wanted(args: &Args, variants: &[Variant], index: usize, chosen: usize) -> bool {
    match args.variants.as_str() {
        "chosen" => index == chosen,
        "all" => true,
        // Operators list the plainest last.
        "fast" => index == chosen || index + 1 < variants.len(),
        names => names.split(',').any(|name| name == variants[index].name),
    }
}

/// Times the cases that the flags ask for.
pub(super) async fn measure(runtime: &Runtime, args: &Args, peaks: Option<&Peaks>) -> Result<Vec<Row>> {
    let Runtime::Gpu { device, .. } = runtime else { return Ok(Vec::new()) };
    if !args.quiet() {
        let share = if args.roofline { "  of the roof     " } else { "" };
        say!("{:>10} {:>9} {:>8}{share}  {:<15} kernel (* what networks run)", "ms", "GFLOP/s", "GB/s", "variant");
    }
    let mut rows = Vec::new();
    for (kernel, case) in cases(args)? {
        for &storage in &args.dtype {
            if let Err(why) = measure_case(runtime, device, args, peaks, &kernel, &case, storage, &mut rows).await {
                // One of a list of sizes shall not take the others with it, unless the device went.
                match why {
                    Error::Cancelled => return Err(why),
                    why if args.case.len() > 1 => note!("failed: {kernel} in {}: {why}", storage.name()),
                    why => return Err(why),
                }
            }
        }
    }
    if rows.is_empty() {
        let detail = format!("no kernel matches --filter `{}` and --variants {}", args.filter, args.variants);
        return Err(Error::invalid("bench", detail));
    }
    Ok(rows)
}

async fn measure_case(
    runtime: &Runtime,
    device: &Device,
    args: &Args,
    peaks: Option<&Peaks>,
    kernel: &str,
    case: &Case,
    storage: Storage,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let types = case.types(storage);
    let output = case.operator.infer(&types)?;
    let largest = types.iter().chain([&output]).map(TensorType::bytes).max().unwrap_or(0) + GUARD;
    if largest as u64 > device.capabilities().max_binding_bytes {
        note!("skipped: {kernel} has a tensor over the device's largest binding");
        return Ok(());
    }
    if storage.half_activations() && !device.capabilities().shader_f16 {
        note!("skipped: {kernel} in {}: the device has no shader-f16", storage.name());
        return Ok(());
    }
    let cost = case.operator.cost(&types, &output);
    let variants = variants(case, storage, device.capabilities())?;
    let chosen = runtime.choose(case.operator.as_ref(), &types, &output, &variants).await?;
    let inputs = sizes::operands(case, &types).or_else(|_| case.inputs(storage))?;
    for (index, variant) in variants.iter().enumerate().filter(|&(i, _)| wanted(args, &variants, i, chosen)) {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        let timing = time_single(device, variant, &inputs, &output, args.repeats.max(1)).await?;
        let seconds = median(timing.seconds);
        let row = Row {
            kernel: kernel.to_owned(),
            dtype: storage.name(),
            variant: variant.name,
            chosen: index == chosen,
            milliseconds: seconds * 1e3,
            gflops: cost.flops as f64 / seconds / 1e9,
            gbytes: cost.bytes as f64 / seconds / 1e9,
            executions: timing.executions,
            timestamps: timing.timestamps,
            roofline: peaks.map(|peaks| roofline::place(peaks, variant, cost, seconds)),
        };
        if args.lines {
            say!("{}", serde_json::to_string(&row).map_err(|e| Error::invalid("--lines", e.to_string()))?);
        } else if !args.json {
            let mark = if row.chosen { "*" } else { " " };
            let dtype = if storage == Storage::F32 { String::new() } else { format!(" {}", row.dtype) };
            let share = row.roofline.map_or(String::new(), |r| format!(" {:>5.1} % {:<10}", 100.0 * r.share, r.bound));
            say!(
                "{:>10.3} {:>9.2} {:>8.2}{share} {mark}{:<15} {kernel}{dtype}",
                row.milliseconds,
                row.gflops,
                row.gbytes,
                row.variant
            );
        }
        rows.push(row);
    }
    Ok(())
}
