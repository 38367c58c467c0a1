use pulid_tensor::{Error, Result};

/// Flags of `pulid devices`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists devices, best first.
pub fn run(args: &Args) -> Result<()> {
    let adapters = pollster::block_on(pulid_engine::adapters());
    if args.json {
        let text = serde_json::to_string_pretty(&adapters).map_err(|e| Error::invalid("--json", e.to_string()))?;
        say!("{text}");
        return Ok(());
    }
    for a in &adapters {
        say!("{} ({:?}, {}; {})", a.name, a.kind, a.backend, a.driver);
    }
    if adapters.is_empty() {
        say!("none; {}", pulid_engine::driver_advice());
    }
    Ok(())
}
