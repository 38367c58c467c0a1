//! One module per subcommand.

pub mod bench;
mod choices;
pub mod conformance;
pub mod devices;
pub mod doctor;
pub mod embed;
pub mod faces;
pub mod generate;
mod identity;
pub mod inspect;
mod models;
pub mod pull;
pub mod quantize;
pub mod run;
mod settings;
mod warm;

pub use choices::remember_choices;
pub use settings::{note_with_flags, with_flags};

use choices::known_choices;
use clap::Args;
use pulid::runtime::{Keep, Runtime};
use pulid_checkpoint::FileSet;
use pulid_engine::DeviceOptions;
use pulid_tensor::Result;
use std::path::Path;

/// Flags of every command that computes.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// `auto`, `reference` (plain CPU code, slow and precise) or a part of a device's name
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// `on` measures kernel variants once per device and remembers them (in PULID_CACHE, or where programs' caches lie); `off` gives
    /// the same plan every time
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    pub autotune: String,
    /// Device memory that one network may take, for example 6GiB: weights that do not fit stream from main memory while others
    /// compute [default: all there is]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// MiB that one tensor may take, where the device offers as many: with more than what every device has, large images' decoder runs
    /// in fewer bands of rows
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=2047))]
    pub max_binding: u64,
}

fn parse_memory(text: &str) -> std::result::Result<u64, String> {
    let size: bytesize::ByteSize = text.parse().map_err(|_| "expected a size such as 6GiB or 800MB".to_owned())?;
    Ok(size.as_u64())
}

impl DeviceArgs {
    /// Opens what the flags ask for.
    pub async fn open(&self) -> Result<Runtime> {
        self.open_with(DeviceOptions::default()).await
    }

    /// [`DeviceArgs::open`] with a device of these options.
    pub async fn open_with(&self, options: DeviceOptions) -> Result<Runtime> {
        let options = DeviceOptions { max_binding_bytes: self.max_binding << 20, ..options };
        // One command uses most networks once.
        let runtime = Runtime::open(&self.device, options).await?;
        let runtime = runtime.with_memory(self.memory).keeping(Keep::Nothing);
        if self.autotune == "off" {
            return Ok(runtime);
        }
        let known = known_choices(&runtime);
        Ok(runtime.with_tuning(known))
    }
}

/// Checks, before any work, that a file can be created at `path` later.
pub fn check_output(path: &Path) -> Result<()> {
    FileSet::new().claim(path)
}
