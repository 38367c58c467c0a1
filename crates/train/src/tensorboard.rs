//! TensorBoard's event files: TFRecord frames around `tensorflow.Event` messages with scalars.
//!
//! Source: tensorflow's `core/util/event.proto`, `core/framework/summary.proto` and `core/lib/io/record_writer.h`.

use prost::Message;
use pulid_tensor::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// An event file that is written on.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file in a folder, `events.out.tfevents.SECONDS.pulid`: TensorBoard reads all of a folder, in the order of their names.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(folder: &Path, seconds: f64) -> Result<EventFile> {
        let path = folder.join(format!("events.out.tfevents.{:.0}.pulid", seconds));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = EventFile { path, file };
        let version = Some("brain.Event:2".to_owned());
        events.write(&Event { wall_time: seconds, step: 0, file_version: version, summary: None })?;
        Ok(events)
    }

    /// Adds scalars of a step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn scalars(&mut self, seconds: f64, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value = |(tag, value): &(&str, f64)| Value { tag: (*tag).to_owned(), simple_value: Some(*value as f32) };
        let summary = Some(Summary { value: scalars.iter().map(value).collect() });
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.write(&Event { wall_time: seconds, step, file_version: None, summary })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let record = record(&event.encode_to_vec());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

/// A TFRecord frame: length, its checksum, data, its checksum, all little-endian.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()];
    parts.concat()
}

/// CRC32C, masked so that checksums of data that holds checksums stay good.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that torch.utils.tensorboard's protobufs and tensorboard's `RecordWriter` make of the first event of a file
    /// (`Event(wall_time=1.5, file_version="brain.Event:2")`) and of a scalar (`wall_time=2.0, step=7, tag "loss" = 0.25`), by the
    /// formats' definitions: protobuf's wire format, and the check value of CRC-32C ("123456789" gives 0xe3069283).
    #[test]
    fn events_are_tensorflow_s() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 1.5).unwrap();
        events.scalars(2.0, 7, &[("loss", 0.25)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked(&rest[..8]));
            assert_eq!(crc(12 + length), masked(&rest[12..12 + length]));
            found.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        let first = b"\x09\0\0\0\0\0\0\xf8\x3f\x1a\x0dbrain.Event:2".to_vec();
        let second =
            [&b"\x09\0\0\0\0\0\0\0\x40\x10\x07\x2a\x0d\x0a\x0b\x0a\x04loss\x15"[..], &[0, 0, 0x80, 0x3e]].concat();
        assert_eq!(found, [first, second]);
    }
}
