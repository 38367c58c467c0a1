//! What viewers know of JPEG files that the decoder does not ask for.

use super::profile::inks_to_srgb;
use ::image::RgbImage;
use std::borrow::Cow;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Adobe's segment, which says that the components are what they are (0): RGB of three, inks of four.
const ADOBE: [u8; 16] = [0xff, 0xee, 0, 14, b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, 0];

/// What a file's segments tell before its first scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segments {
    /// Marker of the frame, SOF0 to SOF15, and bits of a sample.
    pub frame: Option<(u8, u8)>,
    /// Names of the components, as many as there are up to four.
    components: [u8; 4],
    count: u8,
    jfif: bool,
    /// Where Adobe's byte for the transform of colours lies.
    adobe: Option<usize>,
}

impl Segments {
    pub(super) fn read(bytes: &[u8]) -> Segments {
        let mut found = Segments::default();
        let mut at = 2;
        while let Some(&[0xff, marker]) = bytes.get(at..at + 2).and_then(|b| b.first_chunk()) {
            match marker {
                // Fill bytes, and markers without a segment.
                0xff => at += 1,
                0x01 | 0xd0..=0xd8 => at += 2,
                0xd9 | 0xda => break,
                _ => {
                    let Some(&length) = bytes.get(at + 2..at + 4).and_then(|b| b.first_chunk()) else { break };
                    let length = usize::from(u16::from_be_bytes(length)).max(2);
                    let content = bytes.get(at + 4..at + 2 + length).unwrap_or_default();
                    match (marker, content) {
                        (0xe0, [b'J', b'F', b'I', b'F', ..]) => found.jfif = true,
                        (0xee, [b'A', b'd', b'o', b'b', b'e', ..]) if content.len() >= 12 => {
                            found.adobe = Some(at + 4 + 11);
                        }
                        // DHT, JPG and DAC are no frames.
                        (0xc0..=0xcf, [bits, _, _, _, _, count, rest @ ..])
                            if ![0xc4, 0xc8, 0xcc].contains(&marker) =>
                        {
                            found.frame = Some((marker, *bits));
                            found.count = *count;
                            for (name, component) in found.components.iter_mut().zip(rest.chunks_exact(3)) {
                                *name = component[0];
                            }
                        }
                        _ => {}
                    }
                    at += 2 + length;
                }
            }
        }
        found
    }

    /// Why no decoder that browsers have either would show the file.
    pub(super) fn unsupported(&self) -> Option<String> {
        let (marker, bits) = self.frame?;
        let kind = match marker {
            0xc3 | 0xc7 | 0xcb | 0xcf => "lossless coding",
            0xc5 | 0xc6 | 0xcd | 0xce => "hierarchical coding",
            0xc9 | 0xca => "arithmetic coding",
            _ if bits != 8 => return Some(format!("{bits} bits a sample")),
            _ => return None,
        };
        Some(kind.into())
    }

    /// Whether the components are called R, G and B and nothing else says what they are: RGB, by the rule of libjpeg.
    fn are_named_rgb(&self) -> bool {
        self.count == 3 && self.components[..3] == *b"RGB" && !self.jfif && self.adobe.is_none()
    }
}

/// The file in words that the decoder understands.
pub(super) fn clarified<'a>(bytes: &'a [u8], segments: &Segments) -> Cow<'a, [u8]> {
    if !segments.are_named_rgb() {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned([&bytes[..2], &ADOBE, &bytes[2..]].concat())
}

/// A file of inks by its own profile, if it is one and has one. Without, the decoder's plain rule holds, as in browsers.
pub(super) fn inked(bytes: &[u8], segments: &Segments, icc: &[u8]) -> Option<RgbImage> {
    if segments.count != 4 {
        return None;
    }
    // As plain components, whatever they are.
    let mut plain = Cow::Borrowed(bytes);
    let transform = segments.adobe.and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    if let Some(at) = segments.adobe.filter(|_| transform != 0) {
        *plain.to_mut().get_mut(at)? = 0;
    }
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::CMYK);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&plain[..]), options);
    let mut pixels = decoder.decode().ok()?;
    let (width, height) = decoder.dimensions()?;
    for pixel in pixels.as_chunks_mut::<4>().0 {
        if transform == 2 {
            // ITU-T T.871's map to RGB, whose complements are the inks.
            let [y, cb, cr] = [0, 1, 2].map(|i| f32::from(pixel[i]));
            let (cb, cr) = (cb - 128.0, cr - 128.0);
            let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
            for (ink, colour) in pixel.iter_mut().zip(rgb) {
                *ink = 255 - colour.round().clamp(0.0, 255.0) as u8;
            }
        }
        // Every program that writes them writes them inverted, as Adobe's do.
        *pixel = pixel.map(|ink| 255 - ink);
    }
    RgbImage::from_raw(width as u32, height as u32, inks_to_srgb(&pixels, icc)?)
}
