//! Reading the images in `tests/data/*.json`.

use ::image::RgbImage;
use serde::Deserialize;

/// An image as the generator script writes it.
#[derive(Deserialize)]
pub(crate) struct Hexed {
    width: u32,
    height: u32,
    hex: String,
}

impl Hexed {
    pub(crate) fn image(&self) -> RgbImage {
        RgbImage::from_raw(self.width, self.height, bytes_from_hex(&self.hex)).unwrap()
    }
}

pub(crate) fn bytes_from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).unwrap(), 16).unwrap()).collect()
}
