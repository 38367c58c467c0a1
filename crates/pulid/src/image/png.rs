use super::encode::ImageMetadata;
use ::image::RgbImage;
use pulid_tensor::{Error, Result};

/// IPTC's digital source type for media that a trained model made.
const DIGITAL_SOURCE_TYPE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";

/// The image as a PNG file with its metadata.
///
/// `parameters` is a `tEXt` chunk, or `iTXt` where it does not fit Latin-1 or holds a NUL.
///
/// # Errors
/// [`Error::Invalid`] for an image without pixels.
pub fn encode_png(image: &RgbImage, metadata: &ImageMetadata) -> Result<Vec<u8>> {
    let failed = |e: png::EncodingError| Error::invalid("PNG", e.to_string());
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::invalid("PNG", "the image has no pixels"));
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(text) = &metadata.parameters {
        let text = text.replace('\0', " ");
        if text.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk("parameters".into(), text).map_err(failed)?;
        } else {
            encoder.add_itxt_chunk("parameters".into(), text).map_err(failed)?;
        }
    }
    if metadata.generated {
        encoder.add_itxt_chunk("XML:com.adobe.xmp".into(), generated_xmp()).map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.as_raw()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// An XMP packet that marks generated media.
pub(super) fn generated_xmp() -> String {
    format!(
        r#"<?xpacket begin="{bom}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"#,
        bom = '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::Rgb;

    fn read(bytes: &[u8]) -> (Vec<u8>, png::Info<'static>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        reader.finish().unwrap();
        (pixels, reader.info().clone())
    }

    fn picture() -> RgbImage {
        RgbImage::from_fn(33, 20, |x, y| Rgb([x as u8 * 7, y as u8 * 12, (x * y) as u8]))
    }

    #[test]
    fn pixels_and_texts_are_read_back() {
        let metadata = ImageMetadata { parameters: Some("café, 5 € a cup".replace('€', "é")), generated: true };
        let (pixels, info) = read(&encode_png(&picture(), &metadata).unwrap());
        assert_eq!(&pixels, picture().as_raw());
        let text = &info.uncompressed_latin1_text[0];
        assert_eq!((text.keyword.as_str(), &text.text), ("parameters", metadata.parameters.as_ref().unwrap()));
        let xmp = &info.utf8_text[0];
        assert_eq!(xmp.keyword, "XML:com.adobe.xmp");
        assert!(!xmp.compressed);
        let packet = xmp.get_text().unwrap();
        assert!(packet.contains(&format!(">{DIGITAL_SOURCE_TYPE}<")), "{packet}");
    }

    #[test]
    fn other_scripts_are_kept_as_utf8() {
        let metadata = ImageMetadata { parameters: Some("портрет 🎨\0!".into()), generated: false };
        let (_, info) = read(&encode_png(&picture(), &metadata).unwrap());
        assert!(info.uncompressed_latin1_text.is_empty());
        assert_eq!(info.utf8_text.len(), 1);
        assert_eq!(info.utf8_text[0].get_text().unwrap(), "портрет 🎨 !");
    }

    #[test]
    fn without_metadata_there_is_none() {
        let (_, info) = read(&encode_png(&picture(), &ImageMetadata::default()).unwrap());
        assert!(info.uncompressed_latin1_text.is_empty() && info.utf8_text.is_empty());
        assert!(encode_png(&RgbImage::new(0, 3), &ImageMetadata::default()).is_err());
    }
}
