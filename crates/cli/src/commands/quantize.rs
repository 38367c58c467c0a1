use super::models::ModelsArgs;
use super::{check_weights, outputs};
use crate::progress::Terminal;
use pulid::quantize::{Quantized, quantize_model};
use pulid_models::sdxl::SdxlModel;
use pulid_tensor::{DType, Result};
use std::path::PathBuf;

/// Flags of `pulid quantize`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    pulid quantize --model juggernaut-xl --to q8 --output juggernaut-xl-q8\n  \
    pulid quantize --model dreamshaper.safetensors --to q4 --output dreamshaper-q4\n  \
    pulid generate --model juggernaut-xl-q8 --id ada.jpg --prompt portrait")]
pub struct Args {
    /// A folder in diffusers' SDXL layout, or a single file [default: sdxl of the models folder]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Another UNet than the model's own, as in `generate`
    #[arg(long, value_name = "FILE")]
    unet: Option<PathBuf>,
    /// Folder with configurations and tokenizers for a single file, as in `generate`
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsArgs,
    /// q8 (8.5 bits a weight, close to f16) or q4 (4.5 bits, visibly different)
    #[arg(long, value_name = "q8|q4", value_parser = parse_quantized)]
    to: DType,
    /// The folder to make, in diffusers' layout
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Print a JSON report with the error of every tensor instead of progress
    #[arg(long)]
    json: bool,
}

fn parse_quantized(text: &str) -> std::result::Result<DType, String> {
    match text {
        "q8" => Ok(DType::Q8),
        "q4" => Ok(DType::Q4),
        _ => Err("accepted are q8 and q4".into()),
    }
}

/// Quantises a model.
pub fn run(args: &Args) -> Result<()> {
    let models = args.models.open(args.model.as_deref(), None)?;
    let (path, over) = models.model(args.model.as_deref())?;
    outputs([&path].into_iter().chain(&over).chain(&args.unet).chain(&args.config))?;
    let mut model = SdxlModel::open(path)?;
    if let Some(config) = &args.config {
        model = model.with_config(config)?;
    }
    if let Some(unet) = args.unet.clone().or(over) {
        check_weights(&unet)?;
        model = model.with_unet(unet);
    }
    let terminal = Terminal::new(args.json);
    let made = quantize_model(&model, &args.output, args.to, &terminal)?;
    terminal.finish();
    if args.json {
        say!("{}", serde_json::json!({ "folder": args.output, "to": args.to, "report": made }));
        return Ok(());
    }
    report(&made);
    say!("{}", args.output.display());
    Ok(())
}

/// Per network the mean and the largest error, then the ten worst tensors.
fn report(made: &Quantized) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    say!("weights: {:.1} MiB, before {:.1} MiB", mib(made.bytes_after), mib(made.bytes_before));
    say!("difference: root mean squared difference over root mean square");
    let mut networks: Vec<&str> = made.tensors.iter().map(|t| t.network.as_str()).collect();
    networks.sort_unstable();
    networks.dedup();
    for network in networks {
        let errors: Vec<f64> = made.tensors.iter().filter(|t| t.network == network).map(|t| t.relative).collect();
        let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
        let largest = errors.iter().copied().fold(0.0, f64::max);
        say!("  {network}: {} tensors, mean {mean:.2e}, largest {largest:.2e}", errors.len());
    }
    let mut worst: Vec<_> = made.tensors.iter().collect();
    worst.sort_by(|a, b| b.relative.total_cmp(&a.relative));
    say!("largest errors:");
    for t in worst.iter().take(10) {
        say!("  {:.2e}  {} {}", t.relative, t.network, t.key);
    }
}
