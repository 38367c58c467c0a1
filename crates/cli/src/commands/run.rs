use super::settings::StorageArgs;
use super::{DeviceArgs, check_weights, claim_tensors, outputs, remember_choices};
use crate::progress::Terminal;
use pulid::runtime::Runtime;
use pulid_checkpoint::{Checkpoint, safetensors};
use pulid_models::run::{Checkpointing, GRADIENT, NETWORKS, Prepared, RunOptions, Tensors, block, prepare};
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
    /// Where the output tensors go (safetensors); `-` is standard output
    #[arg(long)]
    outputs: PathBuf,
    /// Gradients beside the outputs (unet, id-former, id-encoder, vae-decoder, onnx): see below
    #[arg(long)]
    gradient: bool,
    /// With --gradient: values of the forward pass that are computed again instead of stored, none or those within blocks
    #[arg(long, value_enum, default_value_t = Checkpoints::Off, requires = "gradient")]
    checkpointing: Checkpoints,
    /// A setting of the network
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Write the plan as text to this file (on a device only)
    #[arg(long, value_name = "FILE")]
    dump_plan: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    storage: StorageArgs,
}

/// Values of `--checkpointing`.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Checkpoints {
    Off,
    Block,
}

impl From<Checkpoints> for Checkpointing {
    fn from(checkpoints: Checkpoints) -> Self {
        match checkpoints {
            Checkpoints::Off => Checkpointing::Off,
            Checkpoints::Block => Checkpointing::Blocks(block),
        }
    }
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
    text += &format!("\nWith --gradient:\n  {GRADIENT}.\n");
    text + "\nExample:\n  pulid run vae-decoder --weights model/vae --inputs latent.safetensors --outputs sample.safetensors"
}

/// Runs one network.
pub fn run(args: &Args) -> Result<()> {
    let mut files = outputs([&args.weights].into_iter().chain(&args.adapter).chain(&args.inputs))?;
    claim_tensors(&mut files, &args.outputs)?;
    if let Some(path) = &args.dump_plan {
        files.claim(path)?;
    }
    // Only the UNet takes it up.
    args.adapter.iter().try_for_each(|path| check_weights(path))?;
    let terminal = Terminal::new(false);
    pollster::block_on(async {
        let runtime = args.device.open().await?;
        if args.dump_plan.is_some() && matches!(runtime, Runtime::Reference) {
            return Err(no_plan("the reference"));
        }
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
            gradient: args.gradient.then(|| args.checkpointing.into()),
        };
        let prepared = prepare(&args.network, &options, &inputs)?;
        let for_identity = args.adapter.is_some() || !args.settings.is_empty();
        if args.network == "unet" && for_identity && !inputs.contains_key("id_embedding") {
            note!("note: without an input `id_embedding` the adapter and its settings change nothing");
        }
        let outputs = match prepared {
            Prepared::Done(_) if args.dump_plan.is_some() => return Err(no_plan(&args.network)),
            Prepared::Done(outputs) => outputs,
            Prepared::Graph(mut run) => {
                if let Some(path) = &args.dump_plan {
                    let planned = runtime.plan(&run.graph, &terminal).await?;
                    let planned = planned.ok_or_else(|| no_plan("the reference"))?;
                    files.write_bytes(path, planned.plan.dump().as_bytes())?;
                }
                let outputs = loop {
                    match runtime.run(&run.graph, &run.inputs, &terminal).await {
                        Err(Error::NotFinite { .. }) if run.lower_loss_scale() => {}
                        other => break other?,
                    }
                };
                run.finish(outputs)?
            }
        };
        let tensors = outputs.iter().map(|(name, tensor)| (name.as_str(), tensor));
        files.write_bytes(&args.outputs, &safetensors::to_bytes(tensors, &BTreeMap::new())?)?;
        files.commit()?;
        remember_choices(&runtime);
        Ok(())
    })
}

/// For what is not planned; nobody should wait for a file that never comes.
fn no_plan(of: &str) -> Error {
    Error::invalid("--dump-plan", format!("{of} has no plan, which only networks on a device have; leave the flag out"))
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
