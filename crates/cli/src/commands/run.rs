use super::{DeviceArgs, DtypeArgs, check_output, remember_choices};
use crate::progress::Terminal;
use pulid_checkpoint::Checkpoint;
use pulid_models::run::{NETWORKS, Prepared, RunOptions, Tensors, prepare};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Flags of `pulid run`.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// The network; see the list below
    network: String,
    /// Its weights: a file or a folder
    #[arg(long)]
    weights: PathBuf,
    /// A PuLID file, for unet
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Input tensors (safetensors, f32 and integers, PyTorch's layout)
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Where the output tensors go (safetensors)
    #[arg(long)]
    outputs: PathBuf,
    /// A setting of the network
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Write the plan as text to this file (on a device only)
    #[arg(long, value_name = "FILE")]
    dump_plan: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    storage: DtypeArgs,
}

fn after_help() -> String {
    let mut text = String::from("Networks:\n");
    for n in NETWORKS {
        text += &format!("  {:<14} {}", n.name, n.summary);
        if !n.settings.is_empty() {
            text += &format!(" (--set {})", n.settings.join(", "));
        }
        text.push('\n');
    }
    text + "\nExample:\n  pulid run vae-decoder --weights model/vae --inputs latent.safetensors --outputs sample.safetensors"
}

/// Runs one network.
pub fn run(args: &Args) -> Result<()> {
    check_output(&args.outputs)?;
    let terminal = Terminal::new(false);
    pollster::block_on(async {
        let runtime = args.device.open().await?;
        let mut settings = BTreeMap::new();
        for text in &args.settings {
            let pair = text.split_once('=');
            let (key, value) = pair.ok_or_else(|| Error::invalid("--set", format!("`{text}` is not KEY=VALUE")))?;
            settings.insert(key.to_owned(), value.to_owned());
        }
        let (inputs, integers) = match &args.inputs {
            Some(path) => read_inputs(path)?,
            None => Default::default(),
        };
        let options = RunOptions {
            weights: args.weights.clone(),
            adapter: args.adapter.clone(),
            settings,
            integers,
            precision: runtime.precision(args.storage.dtype, args.storage.quantize),
            max_tensor_bytes: runtime.max_tensor_bytes(),
        };
        let outputs = match prepare(&args.network, &options, &inputs)? {
            Prepared::Done(outputs) => outputs,
            Prepared::Graph(run) => {
                if let Some(path) = &args.dump_plan {
                    let planned = runtime.plan(&run.graph, &terminal).await?;
                    let planned = planned.ok_or_else(|| Error::invalid("--dump-plan", "the reference has no plan"))?;
                    pulid::image::write_atomically(path, planned.plan.dump().as_bytes())?;
                }
                let outputs = runtime.run(&run.graph, &run.inputs, &terminal).await?;
                run.finish(outputs)?
            }
        };
        remember_choices(&runtime);
        let tensors = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor));
        pulid_checkpoint::write_safetensors(&args.outputs, tensors, &BTreeMap::new())
    })
}

/// Every tensor of a safetensors file, and its integers with their signs.
fn read_inputs(path: &std::path::Path) -> Result<(Tensors, BTreeMap<String, Vec<i64>>)> {
    let file = Checkpoint::open(path)?;
    let (mut tensors, mut integers) = (Tensors::new(), BTreeMap::new());
    for key in file.keys() {
        let info = file.info(key)?;
        let tensor = if info.element.is_float() {
            file.tensor(key)?
        } else {
            let values = file.integers(key)?;
            let low = values.iter().map(|&v| v as u32).collect();
            integers.insert(key.to_owned(), values);
            HostTensor::from_u32(info.shape, low)?
        };
        tensors.insert(key.to_owned(), tensor);
    }
    Ok((tensors, integers))
}
