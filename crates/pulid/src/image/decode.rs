use super::colours::{Colours, for_pixels, png_chunks};
use super::jpeg::{self, Segments};
use super::other_format::other_format;
use super::profile::{from_space, to_srgb};
use ::image::error::ImageError;
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use pulid_tensor::{Error, Result};
use std::io::Cursor;

/// Largest photo that is decoded, in pixels; more is refused before any memory is taken for it.
pub const MAX_PIXELS: u64 = 100_000_000;

/// Photos with a shorter side than this hold no usable face.
pub const MIN_SIDE: u32 = 16;

/// What a decoder may allocate beside 16-bit RGBA: its own tables.
const DECODER_TABLES: u64 = 64 << 20;

/// Decodes a JPEG, PNG or WebP photo the way a viewer shows it, as 8-bit RGB.
///
/// The EXIF orientation is applied, colours are brought to sRGB from the space that the file says they are in (an ICC profile, PNG's
/// `cICP`, `gAMA` and `cHRM`, EXIF's Adobe RGB), transparency is laid over white, gray is
/// repeated over the channels, 16 bits are rounded to 8; of an animation the first frame counts. `name` is the photo's name for messages.
///
/// # Errors
/// [`Error::Photo`] for other formats, broken or truncated files, and images above [`MAX_PIXELS`] or below
/// [`MIN_SIDE`].
pub fn decode_photo(name: &str, bytes: &[u8]) -> Result<RgbImage> {
    decode_photo_within(name, bytes, MAX_PIXELS)
}

/// [`decode_photo`] with another limit than [`MAX_PIXELS`].
///
/// # Errors
/// As [`decode_photo`].
pub fn decode_photo_within(name: &str, bytes: &[u8], max_pixels: u64) -> Result<RgbImage> {
    let refuse = |detail: String| Error::photo(name, detail);
    if bytes.is_empty() {
        return Err(refuse("the file is empty".into()));
    }
    let Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) = ::image::guess_format(bytes) else {
        return Err(refuse(other_format(bytes)));
    };
    if let Some(damage) = damage(format, bytes) {
        return Err(refuse(format!(
            "{damage}; copy or download it again, or save it anew from a viewer that shows it whole"
        )));
    }
    let segments = if format == ImageFormat::Jpeg { Segments::read(bytes) } else { Segments::default() };
    if let Some(kind) = segments.unsupported() {
        return Err(refuse(format!(
            "it is a JPEG file with {kind}, which cannot be read; save it as a plain JPEG or PNG"
        )));
    }
    let clarified = jpeg::clarified(bytes, &segments);
    let mut reader = ImageReader::with_format(Cursor::new(&clarified[..]), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(8).saturating_add(DECODER_TABLES));
    reader.limits(limits);
    let broken = |e: ImageError| refuse(explain(format, &e));
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        let most = max_pixels / 1_000_000;
        return Err(refuse(format!("{width} x {height} pixels are too many; shrink it to {most} megapixels")));
    }
    if width.min(height) < MIN_SIDE {
        return Err(refuse(format!("{width} x {height} pixels are too few; use a larger photo")));
    }
    // A photo whose EXIF block is damaged is still a photo.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // Neither are colours that a damaged profile would tell.
    let (icc, exif) = (decoder.icc_profile().ok().flatten(), decoder.exif_metadata().ok().flatten());
    let by_ink = icc.as_deref().and_then(|icc| jpeg::inked(bytes, &segments, icc)).map(DynamicImage::ImageRgb8);
    let colours = Colours::of(format, bytes, icc, exif);
    if let Colours::Hdr(transfer) = colours {
        return Err(refuse(format!(
            "its brightness goes beyond white ({transfer}), and there is no one way to show that; save it as an ordinary PNG or JPEG"
        )));
    }
    let decoded = match by_ink {
        Some(rgb) => rgb,
        None => {
            let decoded = DynamicImage::from_decoder(decoder).map_err(broken)?;
            match colours {
                Colours::Profile(icc) => to_srgb(decoded, &icc),
                Colours::Space(space) => {
                    let profile = for_pixels(*space, &decoded);
                    from_space(decoded, &profile)
                }
                Colours::Srgb | Colours::Hdr(_) => decoded,
            }
        }
    };
    let rgb = flatten(decoded).ok_or_else(|| refuse("its kind of pixels is not supported; save it as RGB".into()))?;
    let mut upright = DynamicImage::ImageRgb8(rgb);
    upright.apply_orientation(orientation);
    Ok(upright.into_rgb8())
}

/// 8-bit RGB over white, straight from the decoded pixels without a second copy of their own kind.
fn flatten(decoded: DynamicImage) -> Option<RgbImage> {
    let (width, height) = (decoded.width(), decoded.height());
    let data: Vec<u8> = match decoded {
        DynamicImage::ImageRgb8(image) => return Some(image),
        DynamicImage::ImageLuma8(image) => image.as_raw().iter().flat_map(|&l| [l; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            image.as_raw().as_chunks().0.iter().flat_map(|&[l, a]| [over_white(l, a); 3]).collect()
        }
        DynamicImage::ImageRgba8(image) => {
            image.as_raw().as_chunks().0.iter().flat_map(|&[r, g, b, a]| [r, g, b].map(|c| over_white(c, a))).collect()
        }
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|&l| [to_8_bits(l.into()); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => {
            image.as_raw().as_chunks().0.iter().flat_map(|&[l, a]| [over_white_16(l, a); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&c| to_8_bits(c.into())).collect(),
        DynamicImage::ImageRgba16(image) => {
            let pixels = image.as_raw().as_chunks().0.iter();
            pixels.flat_map(|&[r, g, b, a]| [r, g, b].map(|c| over_white_16(c, a))).collect()
        }
        _ => return None,
    };
    RgbImage::from_raw(width, height, data)
}

fn over_white(color: u8, alpha: u8) -> u8 {
    let (color, alpha) = (u32::from(color), u32::from(alpha));
    ((color * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn over_white_16(color: u16, alpha: u16) -> u8 {
    let (color, alpha) = (u64::from(color), u64::from(alpha));
    to_8_bits((color * alpha + 65535 * (65535 - alpha) + 32767) / 65535)
}

fn to_8_bits(value: u64) -> u8 {
    ((value + 128) / 257).min(255) as u8
}

fn explain(format: ImageFormat, error: &ImageError) -> String {
    let name = match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        _ => "WebP",
    };
    match error {
        ImageError::Limits(_) => "decoding it takes more memory than a photo should; save it again".into(),
        ImageError::Unsupported(e) => format!("this kind of {name} file is not supported ({e}); save it again"),
        e => format!("the {name} file is broken ({e}); copy or download it again"),
    }
}

/// What is wrong with a file that its decoder would not notice, or would notice too late.
fn damage(format: ImageFormat, bytes: &[u8]) -> Option<&'static str> {
    match format {
        ImageFormat::Jpeg if jpeg_is_truncated(bytes) => Some("the JPEG file ends before its image does"),
        ImageFormat::WebP if webp_is_truncated(bytes) => Some("the WebP file is broken (it ends within a part of it)"),
        ImageFormat::Png if png_palette_is_broken(bytes) => {
            Some("the PNG file is broken (its palette ends within a colour)")
        }
        _ => None,
    }
}

/// Whether a JPEG lacks its end-of-image marker: the decoder would fill what is missing with gray.
fn jpeg_is_truncated(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut in_scan = false;
    while let Some(&[first, marker]) = bytes.get(at..at + 2).and_then(|b| b.first_chunk()) {
        if first != 0xff {
            // Between segments only fill bytes can stand here; tolerate what decoders tolerate.
            at += 1;
            continue;
        }
        match marker {
            0xd9 => return false,
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ if in_scan && !(0xc0..=0xfe).contains(&marker) => at += 2,
            _ => {
                let Some(&length) = bytes.get(at + 2..at + 4).and_then(|b| b.first_chunk()) else {
                    return true;
                };
                in_scan |= marker == 0xda;
                at += 2 + usize::from(u16::from_be_bytes(length)).max(2);
            }
        }
    }
    true
}

/// Whether a chunk of a WebP file claims more bytes than there are: the decoder takes memory for metadata by that claim alone.
fn webp_is_truncated(bytes: &[u8]) -> bool {
    // `RIFF`, a size, `WEBP`; then a name of four bytes, a size, the content and a byte that makes it even.
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some((&[_, _, _, _, a, b, c, d], content)) = rest.split_first_chunk() {
        let size = u32::from_le_bytes([a, b, c, d]) as usize;
        if size > content.len() {
            return true;
        }
        rest = content.get(size + size % 2..).unwrap_or_default();
    }
    false
}

/// Whether a PNG's palette is no whole number of colours: png 0.18 does not expect that.
fn png_palette_is_broken(bytes: &[u8]) -> bool {
    png_chunks(bytes).any(|(name, length, _)| &name == b"PLTE" && !length.is_multiple_of(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Hexed, bytes_from_hex};
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Photo {
        name: String,
        file: String,
        expected: Hexed,
        /// Largest difference that another decoder's rounding explains; 0 for lossless formats.
        tolerance: u8,
    }

    fn photos() -> Vec<Photo> {
        let parts = [include_str!("../../tests/data/photos.json"), include_str!("../../tests/data/colours.json")];
        parts.into_iter().flat_map(|part| serde_json::from_str::<Vec<Photo>>(part).unwrap()).collect()
    }

    fn photo(name: &str) -> Vec<u8> {
        bytes_from_hex(&photos().into_iter().find(|p| p.name == name).unwrap().file)
    }

    #[test]
    fn photos_decode_as_viewers_show_them() {
        let photos = photos();
        assert!(photos.len() >= 50);
        let mut wrong = Vec::new();
        for photo in photos {
            let image = decode_photo(&photo.name, &bytes_from_hex(&photo.file)).unwrap();
            let expected = photo.expected.image();
            assert_eq!(image.dimensions(), expected.dimensions(), "{}", photo.name);
            let worst = image.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            if worst > photo.tolerance {
                wrong.push(format!("{} differs by {worst}, not {}", photo.name, photo.tolerance));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    fn message(bytes: &[u8]) -> String {
        match decode_photo("me.jpg", bytes) {
            Err(error @ Error::Photo { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unusable_files_are_explained() {
        assert!(message(b"").contains("empty"));
        assert!(message(b"hello").contains("save it as JPEG"));
        let jpeg = photo("rgb.jpg");
        for end in [3, 30, jpeg.len() / 2, jpeg.len() - 2] {
            let message = message(&jpeg[..end]);
            assert!(
                message.contains("ends before") && message.contains("a viewer that shows it whole"),
                "{end}: {message}"
            );
        }
        for name in ["rgb.png", "lossy.webp"] {
            let file = photo(name);
            assert!(message(&file[..file.len() / 2]).contains("broken"), "{name}");
        }
    }

    #[test]
    fn brightness_beyond_white_is_refused() {
        let file = photo("named-p3.png");
        let at = file.windows(4).position(|w| w == b"cICP").unwrap();
        for (transfer, name) in [(16, "PQ"), (18, "HLG")] {
            let mut file = file.clone();
            file[at + 5] = transfer;
            let crc = crc32(&file[at..at + 8]);
            file[at + 8..at + 12].copy_from_slice(&crc.to_be_bytes());
            assert!(message(&file).contains(&format!("beyond white ({name})")), "{}", message(&file));
        }
    }

    #[test]
    fn jpegs_of_other_kinds_are_named() {
        let file = photo("rgb.jpg");
        let frame = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        let changed = |at: usize, value: u8| {
            let mut file = file.clone();
            file[frame + at] = value;
            message(&file)
        };
        assert!(changed(4, 12).contains("12 bits a sample"));
        for (marker, kind) in [(0xc9, "arithmetic"), (0xca, "arithmetic"), (0xc3, "lossless"), (0xc5, "hierarchical")] {
            assert!(changed(1, marker).contains(kind), "{}", changed(1, marker));
        }
    }

    #[test]
    fn sizes_are_checked_before_memory_is_taken() {
        // A PNG header that claims 60000 x 60000 16-bit RGBA pixels: 28 GB.
        let mut png = photo("rgb.png");
        png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        png[24..26].copy_from_slice(&[16, 6]);
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(message(&png).contains("60000 x 60000"), "{}", message(&png));
        let tiny = crate::image::encode_png(&RgbImage::new(200, 5), &Default::default()).unwrap();
        assert!(message(&tiny).contains("200 x 5"));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
        !bytes.iter().fold(u32::MAX, |crc, &b| (0..8).fold(crc ^ u32::from(b), step))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn damaged_files_never_panic(
            which in 0usize..64,
            edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
            cut in any::<proptest::sample::Index>(),
            keep: bool,
        ) {
            let photos = photos();
            let mut file = bytes_from_hex(&photos[which % photos.len()].file);
            for (at, value) in edits {
                let at = at.index(file.len());
                file[at] = value;
            }
            if !keep {
                file.truncate(cut.index(file.len()));
            }
            let _ = decode_photo("damaged", &file);
        }
    }
}
