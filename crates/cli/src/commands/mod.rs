//! One module per subcommand.

pub mod bench;
mod choices;
pub mod conformance;
pub mod devices;
pub mod doctor;
pub mod embed;
pub mod evaluate;
pub mod faces;
pub mod generate;
mod identity;
pub mod inspect;
mod models;
mod profile;
pub mod pull;
pub mod quantize;
pub mod run;
mod settings;
pub mod train;
mod warm;

pub use choices::remember_choices;
pub use settings::{note_with_flags, with_flags};

use choices::{known_choices, use_compiled};
use clap::Args;
use pulid::runtime::{Keep, Runtime};
use pulid_checkpoint::{Checkpoint, FileSet};
use pulid_engine::DeviceOptions;
use pulid_ops::{Capabilities, DeviceKind};
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// Flags of every command that computes.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// `auto`, `reference` (plain CPU code, slow and precise), `cpu` (the device among those of `pulid devices` that is one), or a part
    /// of a device's name
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
    #[arg(long, value_name = "MIB", default_value = "128", value_parser = parse_binding)]
    pub max_binding: u64,
    /// `off` leaves out kernels that multiply cooperative matrices, which `pulid doctor` lists, to see how a device without them does
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    pub cooperative: String,
}

fn parse_memory(text: &str) -> std::result::Result<u64, String> {
    /// No network fits less, so that a number alone below it was not meant as bytes.
    const LEAST_BYTES: f64 = 16_777_216.0;
    let bare = text.trim().parse::<f64>().ok().filter(|bytes| *bytes > 0.0 && *bytes < LEAST_BYTES);
    if let Some(number) = bare {
        let unit = if number < 256.0 { "GiB" } else { "MiB" };
        return Err(format!("a number alone is bytes; {number}{unit}?"));
    }
    match parse_size(text, "6GiB or 800MB")? {
        0 => Err("no network fits into nothing; leave the flag out for all there is".into()),
        size => Ok(size),
    }
}

/// MiB as a number alone, or a size with its unit.
fn parse_binding(text: &str) -> std::result::Result<u64, String> {
    let mib = match text.trim().parse::<u64>() {
        Ok(mib) => mib,
        Err(_) => parse_size(text, "512 (MiB) or 1GiB")? >> 20,
    };
    let bytes = mib >> 20;
    match mib {
        1..=2047 => Ok(mib),
        _ if mib.is_multiple_of(1 << 20) && (1..=2047).contains(&bytes) => {
            Err(format!("expected 1 to 2047 MiB, and a number alone is MiB; {bytes}?"))
        }
        _ => Err("expected 1 to 2047 MiB".into()),
    }
}

fn parse_size(text: &str, such: &str) -> std::result::Result<u64, String> {
    let size: bytesize::ByteSize = text.trim().parse().map_err(|_| format!("expected a size such as {such}"))?;
    Ok(size.as_u64())
}

impl DeviceArgs {
    /// Options of a device with what the flags say.
    fn options(&self, options: DeviceOptions) -> DeviceOptions {
        DeviceOptions {
            max_binding_bytes: self.max_binding << 20,
            cooperative_matrices: self.cooperative == "on",
            ..options
        }
    }

    /// A discrete GPU that need not be there: WebGPU's guarantees, half precision, bindings as large as the flags say, and buffers of 2 GiB.
    pub fn discrete(&self) -> Capabilities {
        Capabilities {
            shader_f16: true,
            max_binding_bytes: self.max_binding << 20,
            max_buffer_bytes: 2 << 30,
            ..Capabilities::baseline(DeviceKind::Discrete)
        }
    }

    /// Opens what the flags ask for.
    pub async fn open(&self) -> Result<Runtime> {
        self.open_with(DeviceOptions::default()).await
    }

    /// [`DeviceArgs::open`] with a device of these options.
    pub async fn open_with(&self, options: DeviceOptions) -> Result<Runtime> {
        self.open_named(&self.device, options).await
    }

    /// [`DeviceArgs::open_with`] for another device than the flag's.
    pub async fn open_named(&self, name: &str, options: DeviceOptions) -> Result<Runtime> {
        let options = self.options(options);
        // One command uses most networks once.
        let runtime = Runtime::open(name, options).await?;
        use_compiled(&runtime);
        if let Runtime::Gpu { device, .. } = &runtime
            && let Some(choice) = device.choice()
        {
            note!("note: {}", note_with_flags(choice));
        }
        let runtime = runtime.with_memory(self.memory).keeping(Keep::Nothing);
        if self.autotune == "off" {
            return Ok(runtime);
        }
        let known = known_choices(&runtime);
        Ok(runtime.with_tuning(known))
    }
}

/// The files that a command writes, where `-` is standard output, which prints into none of its inputs.
pub fn outputs<'a>(inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<FileSet> {
    let mut files = FileSet::with_stdout(crate::output::was_open());
    inputs.into_iter().try_for_each(|path| files.reads(path))?;
    files.prints()?;
    Ok(files)
}

/// Claims a file of tensors, which is safetensors under whatever name but an image's.
///
/// # Errors
/// As [`FileSet::claim`], and for the extension of an image.
pub fn claim_tensors(files: &mut FileSet, path: &Path) -> Result<()> {
    const IMAGES: [&str; 12] =
        ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic"];
    files.claim(path)?;
    if files.is_stream(path)? {
        return Ok(());
    }
    let led_to = files.led_to(path)?;
    let extensions = [Some(path), led_to.as_deref()].into_iter().flatten().filter_map(Path::extension);
    match extensions.map(|e| e.to_string_lossy().to_lowercase()).find(|e| IMAGES.contains(&e.as_str())) {
        Some(image) => Err(Error::file(
            path,
            format!("is to hold tensors, which are not written as .{image}: name it .safetensors"),
        )),
        None => Ok(()),
    }
}

/// Refuses a report that would go where a file goes.
pub fn check_report(files: &FileSet, json: bool) -> Result<()> {
    match json && files.takes_stdout() {
        true => Err(Error::invalid(
            "--json",
            "the report would go into the file on standard output; name a file for one of them",
        )),
        false => Ok(()),
    }
}

/// Checks that a file of weights which is named and may go unused is one.
pub fn check_weights(path: &Path) -> Result<()> {
    Checkpoint::open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_options_of_the_device() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            device: DeviceArgs,
        }
        let read = |flags: &[&str]| {
            let words = std::iter::once("pulid").chain(flags.iter().copied());
            let timed = DeviceOptions { timestamps: true, ..DeviceOptions::default() };
            <Command as clap::Parser>::try_parse_from(words).map(|command| command.device.options(timed))
        };
        let usual = read(&[]).unwrap();
        assert_eq!((usual.cooperative_matrices, usual.max_binding_bytes >> 20, usual.timestamps), (true, 128, true));
        let other = read(&["--cooperative", "off", "--max-binding", "512"]).unwrap();
        assert_eq!((other.cooperative_matrices, other.max_binding_bytes >> 20), (false, 512));
        assert!(read(&["--cooperative", "8"]).is_err());
    }

    #[test]
    fn sizes_without_a_unit_are_asked_about() {
        assert_eq!(parse_memory("6GiB"), Ok(6 << 30));
        assert_eq!(parse_memory("800MB"), Ok(800_000_000));
        assert_eq!(parse_memory("300kB"), Ok(300_000), "small, but meant");
        assert_eq!(parse_memory("2147483648"), Ok(2 << 30));
        for (text, part) in [
            ("6", "6GiB?"),
            ("6.5", "6.5GiB?"),
            ("800", "800MiB?"),
            ("6000", "6000MiB?"),
            ("0", "nothing"),
            ("0GiB", "nothing"),
            ("much", "such as 6GiB"),
            ("", "such as 6GiB"),
        ] {
            assert!(parse_memory(text).unwrap_err().contains(part), "{text}");
        }
        assert_eq!(
            (parse_binding("128"), parse_binding("512MiB"), parse_binding("1GiB")),
            (Ok(128), Ok(512), Ok(1024))
        );
        for (text, part) in [
            ("134217728", "expected 1 to 2047 MiB, and a number alone is MiB; 128?"),
            ("99999999", "expected 1 to 2047 MiB"),
            ("0", "1 to 2047"),
            ("4096", "1 to 2047"),
            ("64kB", "1 to 2047"),
            ("x", "512 (MiB)"),
        ] {
            assert!(parse_binding(text).unwrap_err().contains(part), "{text}");
        }
    }
}
