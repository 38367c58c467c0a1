use pulid_conformance::variants;
use pulid_engine::{Device, DeviceOptions, run_single};
use pulid_ops::{OPERATORS, Storage};
use pulid_tensor::{Error, Result};

/// Flags of `pulid bench`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pulid bench --device llvmpipe --filter matmul --json")]
pub struct Args {
    /// A part of the device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only kernels whose id contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Timed repetitions of each kernel, after one warm-up
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One kernel variant at one size.
#[derive(serde::Serialize)]
struct Row {
    id: String,
    seconds: f64,
    gflops: f64,
    gbytes: f64,
}

/// Times the benchmark cases.
pub fn run(args: &Args) -> Result<()> {
    let rows = pollster::block_on(async {
        let device = Device::open(&args.device, DeviceOptions::default()).await?;
        if !args.json {
            let s = device.summary();
            println!("{} ({}), median of {} runs, f32", s.name, s.driver, args.repeats.max(1));
            println!("{:>10} {:>9} {:>8}  kernel", "ms", "GFLOP/s", "GB/s");
        }
        let mut rows = Vec::new();
        for info in OPERATORS {
            for case in (info.cases)().into_iter().filter(|c| c.benchmark) {
                let types = case.types(Storage::F32);
                let output = case.operator.infer(&types)?;
                let cost = case.operator.cost(&types, &output);
                for variant in variants(&case, Storage::F32, device.capabilities())? {
                    let id = format!("{}/{}:{}", info.name, variant.name, case.name);
                    if !id.contains(&args.filter) {
                        continue;
                    }
                    let inputs = case.inputs(Storage::F32)?;
                    let mut seconds =
                        run_single(&device, &variant, &inputs, &output, args.repeats.max(1)).await?.seconds;
                    seconds.sort_by(f64::total_cmp);
                    let seconds = seconds[seconds.len() / 2];
                    let row = Row {
                        id,
                        seconds,
                        gflops: cost.flops as f64 / seconds / 1e9,
                        gbytes: cost.bytes as f64 / seconds / 1e9,
                    };
                    if !args.json {
                        println!("{:>10.3} {:>9.2} {:>8.2}  {}", seconds * 1e3, row.gflops, row.gbytes, row.id);
                    }
                    rows.push(row);
                }
            }
        }
        Ok::<_, Error>(rows)
    })?;
    if args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::invalid("--json", e.to_string()))?;
        println!("{text}");
    }
    Ok(())
}
