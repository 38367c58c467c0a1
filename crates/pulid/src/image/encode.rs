//! Images as files of the formats that are written.

use super::exif::user_comment;
use super::png::{encode_png, generated_xmp};
use ::image::codecs::jpeg::JpegEncoder;
use ::image::{ExtendedColorType, ImageEncoder, RgbImage};
use pulid_tensor::{Error, Result};
use std::path::Path;

/// Of 100: no difference that one would see, at some third of a PNG's size.
const JPEG_QUALITY: u8 = 95;

/// What a segment of a JPEG file holds beside its own length.
const MAX_JPEG_SEGMENT: usize = 65533;

/// Before an XMP packet in a JPEG file (XMP specification, part 3, 1.1.3).
const JPEG_XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// Before an EXIF block in a JPEG file.
const JPEG_EXIF: &[u8] = b"Exif\0\0";

/// What a written image says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageMetadata {
    /// How the image was made, where viewers of generated images look for it; see [`parameters_text`](super::parameters_text). In PNG a
    /// `parameters` chunk, else the `UserComment` of an EXIF block.
    pub parameters: Option<String>,
    /// Whether to mark the image as generated media, in IPTC's words in an XMP packet.
    pub generated: bool,
}

/// A format that images are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageFormat {
    /// Lossless.
    #[default]
    Png,
    /// Of quality 95, with color at full resolution (4:4:4).
    Jpeg,
    /// Lossless.
    WebP,
}

impl ImageFormat {
    /// The format that a file's name asks for, by its extension in any case.
    ///
    /// # Errors
    /// [`Error::File`] for any other extension, and for none.
    pub fn of(path: &Path) -> Result<ImageFormat> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("png") => Ok(ImageFormat::Png),
            Some("jpg" | "jpeg" | "jpe" | "jfif") => Ok(ImageFormat::Jpeg),
            Some("webp") => Ok(ImageFormat::WebP),
            Some(other) => {
                Err(Error::file(path, format!("no image is written as .{other}: name it .png, .jpg or .webp")))
            }
            None => Err(Error::file(path, "which format is it to have? Name it .png, .jpg or .webp")),
        }
    }

    /// Checks that files of this format hold so large an image with such metadata, before one is made.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names another format.
    pub fn check(self, [width, height]: [usize; 2], metadata: &ImageMetadata) -> Result<()> {
        let most = match self {
            ImageFormat::Png => return Ok(()),
            ImageFormat::Jpeg => 65535,
            ImageFormat::WebP => 16384,
        };
        if width.max(height) > most {
            let detail = format!("{width} x {height} is more than {self} holds, {most} pixels a side; name it .png");
            return Err(Error::invalid("image", detail));
        }
        let comment = metadata.parameters.as_deref().map_or(0, |text| JPEG_EXIF.len() + user_comment(text).len());
        if self == ImageFormat::Jpeg && comment > MAX_JPEG_SEGMENT {
            return Err(Error::invalid(
                "image",
                "the prompts are longer than JPEG's 64 KiB of metadata; name it .png or .webp",
            ));
        }
        Ok(())
    }
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageFormat::Png => "PNG",
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::WebP => "WebP",
        })
    }
}

/// The image as a file of this format, with its metadata.
///
/// # Errors
/// [`Error::Invalid`] for an image without pixels, and as [`ImageFormat::check`].
pub fn encode_image(format: ImageFormat, image: &RgbImage, metadata: &ImageMetadata) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::invalid(format.to_string(), "the image has no pixels"));
    }
    format.check([width as usize, height as usize], metadata)?;
    match format {
        ImageFormat::Png => encode_png(image, metadata),
        ImageFormat::Jpeg => encode_jpeg(image, metadata),
        ImageFormat::WebP => encode_webp(image, metadata),
    }
}

fn encode_jpeg(image: &RgbImage, metadata: &ImageMetadata) -> Result<Vec<u8>> {
    let failed = |detail: String| Error::invalid("JPEG", detail);
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
    if let Some(text) = &metadata.parameters {
        encoder.set_exif_metadata(user_comment(text)).map_err(|e| failed(e.to_string()))?;
    }
    let (width, height) = image.dimensions();
    encoder.write_image(image, width, height, ExtendedColorType::Rgb8).map_err(|e| failed(e.to_string()))?;
    if metadata.generated {
        let packet = [JPEG_XMP, generated_xmp().as_bytes()].concat();
        let length = u16::try_from(packet.len() + 2).map_err(|e| failed(e.to_string()))?;
        let segment = [&[0xff, 0xe1], &length.to_be_bytes()[..], &packet].concat();
        let at = after_application_segments(&bytes);
        bytes.splice(at..at, segment);
    }
    Ok(bytes)
}

/// Where the JFIF header and the EXIF block end.
fn after_application_segments(jpeg: &[u8]) -> usize {
    let mut at = 2;
    while let [0xff, 0xe0 | 0xe1, high, low, ..] = jpeg[at..] {
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
    at
}

fn encode_webp(image: &RgbImage, metadata: &ImageMetadata) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
    if let Some(text) = &metadata.parameters {
        encoder.set_exif_metadata(user_comment(text));
    }
    if metadata.generated {
        encoder.set_xmp_metadata(generated_xmp().into_bytes());
    }
    let (width, height) = image.dimensions();
    let encoded = encoder.encode(image, width, height, image_webp::ColorType::Rgb8);
    encoded.map_err(|e| Error::invalid("WebP", e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::{ImageDecoder, ImageReader, Rgb};
    use std::io::Cursor;

    const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

    fn picture() -> RgbImage {
        RgbImage::from_fn(45, 31, |x, y| Rgb([x as u8 * 5, y as u8 * 8, 128]))
    }

    #[test]
    fn every_format_is_read_back_with_what_it_says() {
        let text = "портрет 🎨, 5 €\nSteps: 4, Seed: 1";
        let metadata = ImageMetadata { parameters: Some(text.into()), generated: true };
        for format in FORMATS {
            let bytes = encode_image(format, &picture(), &metadata).unwrap();
            let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().unwrap();
            assert_eq!(format!("{:?}", reader.format().unwrap()).to_lowercase(), format.to_string().to_lowercase());
            let mut decoder = reader.into_decoder().unwrap();
            let packet = String::from_utf8(decoder.xmp_metadata().unwrap().expect("an XMP packet")).unwrap();
            assert!(packet.contains("trainedAlgorithmicMedia"), "{format}: {packet}");
            let far = ::image::load_from_memory(&bytes).unwrap().into_rgb8();
            let most = far.as_raw().iter().zip(picture().as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(most <= if format == ImageFormat::Jpeg { 6 } else { 0 }, "{format}: {most}");
            if format == ImageFormat::Png {
                continue;
            }
            // By a reader that knows nothing of the writer.
            let exif = exif::Reader::new().read_from_container(&mut Cursor::new(&bytes)).unwrap();
            let comment = exif.get_field(exif::Tag::UserComment, exif::In::PRIMARY).expect("a comment");
            let exif::Value::Undefined(comment, _) = &comment.value else { panic!("{comment:?}") };
            let units: Vec<u16> = comment
                .strip_prefix(b"UNICODE\0")
                .unwrap()
                .chunks(2)
                .map(|c| u16::from_be_bytes([c[0], c[1]]))
                .collect();
            assert_eq!(String::from_utf16(&units).unwrap(), text, "{format}");
        }
    }

    #[test]
    fn without_metadata_there_is_none() {
        for format in FORMATS {
            let bytes = encode_image(format, &picture(), &ImageMetadata::default()).unwrap();
            let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().unwrap();
            let mut decoder = reader.into_decoder().unwrap();
            assert_eq!((decoder.exif_metadata().unwrap(), decoder.xmp_metadata().unwrap()), (None, None), "{format}");
            assert!(encode_image(format, &RgbImage::new(0, 3), &ImageMetadata::default()).is_err());
        }
    }

    #[test]
    fn names_ask_for_formats() {
        let of = |name: &str| ImageFormat::of(Path::new(name));
        for (name, format) in [
            ("a.png", ImageFormat::Png),
            ("a.PNG", ImageFormat::Png),
            ("b.c/a.jpg", ImageFormat::Jpeg),
            ("a.JPEG", ImageFormat::Jpeg),
            ("a.b.webp", ImageFormat::WebP),
        ] {
            assert_eq!(of(name).unwrap(), format, "{name}");
        }
        for name in ["a", "a.", ".png", "a.gif", "a.tiff", "a.png.bak", "x.png/a"] {
            let message = of(name).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{name}: ")), "{message}");
            assert!(message.contains("ame it .png, .jpg or .webp"), "{message}");
        }
    }

    #[test]
    fn what_a_format_cannot_hold_is_known_before() {
        let long = ImageMetadata { parameters: Some("long ".repeat(7000)), generated: false };
        assert!(ImageFormat::Jpeg.check([64, 64], &long).unwrap_err().to_string().contains(".png"));
        assert!(encode_image(ImageFormat::Jpeg, &picture(), &long).is_err());
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            encode_image(format, &picture(), &long).unwrap();
        }
        assert!(ImageFormat::WebP.check([64, 20000], &ImageMetadata::default()).is_err());
        ImageFormat::Jpeg.check([64, 20000], &ImageMetadata::default()).unwrap();
    }
}
