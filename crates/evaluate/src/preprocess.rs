//! CLIP's preprocessing, as transformers' CLIPImageProcessor.

use pulid::image::{Normalization, RgbImage, resize_pillow_bicubic, tensor_from_rgb};
use pulid_checkpoint::{files, json};
use pulid_tensor::{Error, HostTensor, Result};
use serde_json::Value;
use std::path::Path;

/// Sides beyond this are a mistake in the file.
const MOST_PIXELS: u32 = 4096;

/// Pillow's number of the bicubic filter.
const BICUBIC: u64 = 3;

/// Bicubic to a shorter side, the middle cut out, levels to 0..1, mean and deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipPreprocess {
    /// The shorter side after resizing.
    shortest: u32,
    /// Side of the square in the middle that is cut out.
    side: u32,
    normalization: Normalization,
}

impl ClipPreprocess {
    /// OpenAI's, for images of this side.
    pub fn new(side: u32) -> Self {
        ClipPreprocess { shortest: side, side, normalization: Normalization::OPENAI_CLIP }
    }

    /// What `preprocessor_config.json` of a CLIP's folder says, or the `image_processor` of its `processor_config.json`; OpenAI's where
    /// neither is there. `side` is the side of the images that the encoder takes.
    ///
    /// # Errors
    /// A file that is malformed or asks for something else than CLIP's preprocessing.
    pub fn read(folder: &Path, side: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            if files::is_file(&path) { files::read_to_string(&path).map(Some) } else { Ok(None) }
        };
        let (name, text, inner) = match (read("preprocessor_config.json")?, read("processor_config.json")?) {
            (Some(text), _) => ("preprocessor_config.json", text, false),
            (None, Some(text)) => ("processor_config.json", text, true),
            (None, None) => return Ok(Self::new(side)),
        };
        let path = folder.join(name);
        let value: Value =
            json::from_str(&text).map_err(|e| Error::file(&path, format!("is not a configuration: {e}")))?;
        let value = if inner { &value["image_processor"] } else { &value };
        Self::parse(value, side).map_err(|detail| Error::file(&path, detail))
    }

    fn parse(value: &Value, side: u32) -> std::result::Result<Self, String> {
        let mut made = Self::new(side);
        for key in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            if value[key] == Value::Bool(false) {
                return Err(format!("`{key}` is false; CLIP's own preprocessing is what is built"));
            }
        }
        if let Some(filter) = value["resample"].as_u64().filter(|f| *f != BICUBIC) {
            return Err(format!("`resample` is {filter}; only Pillow's bicubic ({BICUBIC}) is built"));
        }
        if let Some(factor) = value["rescale_factor"].as_f64().filter(|f| (f * 255.0 - 1.0).abs() > 1e-6) {
            return Err(format!("`rescale_factor` is {factor}; only 1 / 255 is built"));
        }
        let pixels = |key: &str, value: &Value| match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n @ 1..=MOST_PIXELS) => Ok(n),
            _ => Err(format!("`{key}` is {value}, expected 1 to {MOST_PIXELS} pixels")),
        };
        match &value["size"] {
            Value::Null => {}
            number @ Value::Number(_) => made.shortest = pixels("size", number)?,
            Value::Object(size) => match (size.get("shortest_edge"), size.get("height"), size.get("width")) {
                (Some(edge), ..) if !edge.is_null() => made.shortest = pixels("size", edge)?,
                _ => return Err("`size` has no `shortest_edge`; other resizing is not built".into()),
            },
            other => return Err(format!("`size` is {other}")),
        }
        match &value["crop_size"] {
            Value::Null => {}
            number @ Value::Number(_) => made.side = pixels("crop_size", number)?,
            crop => {
                let (height, width) = (pixels("crop_size", &crop["height"])?, pixels("crop_size", &crop["width"])?);
                if height != width {
                    return Err(format!("`crop_size` is {height} x {width}; a square is needed"));
                }
                made.side = height;
            }
        }
        if made.side != side {
            return Err(format!("`crop_size` is {}, and the encoder takes images of {side}", made.side));
        }
        if made.shortest < made.side {
            return Err(format!("`size` {} is smaller than `crop_size` {}", made.shortest, made.side));
        }
        for (key, part) in
            [("image_mean", &mut made.normalization.mean), ("image_std", &mut made.normalization.deviation)]
        {
            let numbers: Option<Vec<f32>> =
                value[key].as_array().map(|all| all.iter().filter_map(|v| v.as_f64().map(|v| v as f32)).collect());
            match numbers.as_deref() {
                None if value[key].is_null() => {}
                Some(&[r, g, b]) => *part = [r, g, b],
                _ => return Err(format!("`{key}` is {}, expected three numbers", value[key])),
            }
        }
        if made.normalization.deviation.iter().any(|d| *d <= 0.0) {
            return Err("`image_std` holds a number that is not above 0".into());
        }
        Ok(made)
    }

    /// The square that the encoder sees, before it is normalised.
    ///
    /// # Errors
    /// An image without pixels, or of such proportions that it would be too large resized.
    pub fn square(&self, image: &RgbImage) -> Result<RgbImage> {
        let (width, height) = image.dimensions();
        let (short, long) = (width.min(height), width.max(height));
        if short == 0 {
            return Err(Error::invalid("picture", "has no pixels"));
        }
        // transformers' `int(size * long / short)`.
        let longer = u64::from(self.shortest) * u64::from(long) / u64::from(short);
        let longer = u32::try_from(longer)
            .ok()
            .filter(|l| *l <= 64 * MOST_PIXELS)
            .ok_or_else(|| Error::invalid("picture", format!("{width} x {height} is too long for CLIP; crop it")))?;
        let (w, h) = if width <= height { (self.shortest, longer) } else { (longer, self.shortest) };
        let resized = resize_pillow_bicubic(image, w, h)?;
        let (x, y) = ((w - self.side) / 2, (h - self.side) / 2);
        Ok(image::imageops::crop_imm(&resized, x, y, self.side, self.side).to_image())
    }

    /// The encoder's input [1, S, S, 3].
    ///
    /// # Errors
    /// As [`ClipPreprocess::square`].
    pub fn pixel_values(&self, image: &RgbImage) -> Result<HostTensor> {
        Ok(tensor_from_rgb(&self.square(image)?, &self.normalization))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_checkpoint::Checkpoint;

    /// transformers' CLIPImageProcessor (its PIL backend): the same levels, and so the same normalised values up to rounding.
    #[test]
    fn images_are_prepared_as_transformers_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/clip-vision/preprocess");
        let cases: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("preprocess.json")).unwrap()).unwrap();
        let file = Checkpoint::open(folder.join("images.safetensors")).unwrap();
        let bytes = |key: &str| -> Vec<u8> { file.integers(key).unwrap().iter().map(|&v| v as u8).collect() };
        let cases = cases["cases"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for (i, case) in cases.iter().enumerate() {
            let shape = file.info(&format!("image.{i}")).unwrap().shape;
            let (width, height) = (shape[1] as u32, shape[0] as u32);
            let image = RgbImage::from_raw(width, height, bytes(&format!("image.{i}"))).unwrap();
            let preprocess = ClipPreprocess::new(case["side"].as_u64().unwrap() as u32);
            assert_eq!(
                preprocess.square(&image).unwrap().as_raw(),
                &bytes(&format!("levels.{i}")),
                "{width} x {height}"
            );
            let want = file.tensor(&format!("pixel_values.{i}")).unwrap();
            let got = preprocess.pixel_values(&image).unwrap().nhwc_to_nchw().unwrap();
            let got = got.as_f32().unwrap();
            assert!(want.as_f32().unwrap().iter().zip(got).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn configurations_are_read_and_others_refused() {
        let parse = |text: &str, side| ClipPreprocess::parse(&serde_json::from_str(text).unwrap(), side);
        assert_eq!(parse("{}", 224).unwrap(), ClipPreprocess::new(224));
        let own = parse(r#"{"size": {"shortest_edge": 256}, "crop_size": 224, "image_mean": [0.5, 0.5, 0.5]}"#, 224);
        let own = own.unwrap();
        assert_eq!((own.shortest, own.side, own.normalization.mean), (256, 224, [0.5; 3]));
        for (bad, part) in [
            (r#"{"do_center_crop": false}"#, "do_center_crop"),
            (r#"{"resample": 2}"#, "resample"),
            (r#"{"size": {"height": 224, "width": 224}}"#, "shortest_edge"),
            (r#"{"size": 0}"#, "1 to"),
            (r#"{"crop_size": 336}"#, "images of 224"),
            (r#"{"size": 100}"#, "smaller"),
            (r#"{"image_std": [1, 0, 1]}"#, "above 0"),
            (r#"{"image_mean": [1]}"#, "three numbers"),
            (r#"{"rescale_factor": 1}"#, "1 / 255"),
        ] {
            let error = parse(bad, 224).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
        assert!(ClipPreprocess::new(224).square(&RgbImage::new(0, 3)).is_err());
        assert!(ClipPreprocess::new(224).square(&RgbImage::new(1, 30_000)).is_err());
    }
}
