//! Single kernels at the sizes that real networks use.

use super::{Args, median};
use crate::progress::cancelled;
use pulid::runtime::Runtime;
use pulid_conformance::variants;
use pulid_engine::{GUARD, time_single};
use pulid_ops::operators;
use pulid_tensor::{Error, Result, TensorType};

/// One kernel variant at one size.
#[derive(serde::Serialize)]
pub(super) struct Row {
    /// `operator/case`.
    kernel: String,
    variant: &'static str,
    /// Whether networks run this variant.
    chosen: bool,
    milliseconds: f64,
    gflops: f64,
    gbytes: f64,
}

/// Times the benchmark cases that the flags ask for.
pub(super) async fn measure(runtime: &Runtime, args: &Args) -> Result<Vec<Row>> {
    let Runtime::Gpu { device, .. } = runtime else { return Ok(Vec::new()) };
    if !args.json {
        say!("{:>10} {:>9} {:>8}  {:<15} kernel (* what networks run)", "ms", "GFLOP/s", "GB/s", "variant");
    }
    let mut rows = Vec::new();
    for (_, info) in operators() {
        for case in (info.cases)().into_iter().filter(|c| c.benchmark) {
            let kernel = format!("{}/{}", info.name, case.name);
            if !kernel.contains(&args.filter) {
                continue;
            }
            if !case.storages().contains(&args.storage) {
                continue;
            }
            let types = case.types(args.storage);
            let output = case.operator.infer(&types)?;
            let largest = types.iter().chain([&output]).map(TensorType::bytes).max().unwrap_or(0) + GUARD;
            if largest as u64 > device.capabilities().max_binding_bytes {
                note!("skipped: {kernel} has a tensor over the device's largest binding");
                continue;
            }
            let cost = case.operator.cost(&types, &output);
            let variants = variants(&case, args.storage, device.capabilities())?;
            let chosen = runtime.choose(case.operator.as_ref(), &types, &output, &variants).await?;
            let inputs = case.inputs(args.storage)?;
            for (index, variant) in variants.iter().enumerate() {
                let wanted = match args.variants.as_str() {
                    "chosen" => index == chosen,
                    "all" => true,
                    name => variant.name == name,
                };
                if !wanted {
                    continue;
                }
                if cancelled() {
                    return Err(Error::Cancelled);
                }
                let run =
                    time_single(device, variant, &inputs, &output, args.repeats.max(1), args.inner.max(1)).await?;
                let seconds = median(run.seconds);
                let row = Row {
                    kernel: kernel.clone(),
                    variant: variant.name,
                    chosen: index == chosen,
                    milliseconds: seconds * 1e3,
                    gflops: cost.flops as f64 / seconds / 1e9,
                    gbytes: cost.bytes as f64 / seconds / 1e9,
                };
                if !args.json {
                    let mark = if row.chosen { "*" } else { " " };
                    say!(
                        "{:>10.3} {:>9.2} {:>8.2} {mark}{:<15} {kernel}",
                        row.milliseconds,
                        row.gflops,
                        row.gbytes,
                        row.variant
                    );
                }
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        let detail = format!("no kernel matches --filter `{}` and --variants {}", args.filter, args.variants);
        return Err(Error::invalid("bench", detail));
    }
    Ok(rows)
}
