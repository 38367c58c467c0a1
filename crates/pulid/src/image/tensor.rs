use ::image::RgbImage;
use pulid_tensor::{Error, HostTensor, Result};

/// (value - mean) / deviation per RGB channel, of values in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Mean of R, G, B.
    pub mean: [f32; 3],
    /// Standard deviation of R, G, B.
    pub deviation: [f32; 3],
}

impl Normalization {
    /// Leaves values in 0..1.
    pub const NONE: Normalization = Normalization { mean: [0.0; 3], deviation: [1.0; 3] };
    /// ImageNet's statistics, which BiSeNet expects.
    pub const IMAGENET: Normalization = Normalization { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
    /// OpenAI CLIP's statistics, which EVA02-CLIP expects.
    pub const OPENAI_CLIP: Normalization = Normalization {
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
    };
    /// (8-bit value - 127.5) / 128, which SCRFD expects.
    pub const SCRFD: Normalization = Normalization { mean: [0.5; 3], deviation: [128.0 / 255.0; 3] };
    /// (8-bit value - 127.5) / 127.5, which ArcFace and the VAE's encoder expect.
    pub const SYMMETRIC: Normalization = Normalization { mean: [0.5; 3], deviation: [0.5; 3] };

    /// Normalises a tensor with three channels last.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless the tensor is f32 and its last extent is 3.
    pub fn apply(&self, image: &HostTensor) -> Result<HostTensor> {
        if image.shape().last() != 3 {
            return Err(Error::invalid("normalisation", format!("{} has not three channels last", image.shape())));
        }
        let data = image.as_f32()?.as_chunks().0.iter().flat_map(|&pixel| self.pixel(pixel)).collect();
        HostTensor::from_f32(image.shape().clone(), data)
    }

    fn pixel(&self, rgb: [f32; 3]) -> [f32; 3] {
        std::array::from_fn(|c| (rgb[c] - self.mean[c]) / self.deviation[c])
    }
}

/// An image as a tensor [1, H, W, 3] of normalised values; `nhwc_to_nchw` gives PyTorch's layout.
pub fn tensor_from_rgb(image: &RgbImage, normalization: &Normalization) -> HostTensor {
    // One entry per 8-bit value and channel: the same arithmetic as pixel by pixel.
    let table: Vec<[f32; 3]> = (0..=255u8).map(|v| normalization.pixel([f32::from(v) / 255.0; 3])).collect();
    let raw = image.as_raw();
    HostTensor::from_fn([1, image.height() as usize, image.width() as usize, 3], |i| table[raw[i] as usize][i % 3])
}

/// Images from the VAE's output: [B, H, W, 3] with values in -1..1, clamped.
///
/// # Errors
/// [`Error::NotFinite`] for NaN or infinity, [`Error::Invalid`] for another shape or type.
pub fn rgb_from_tensor(decoded: &HostTensor) -> Result<Vec<RgbImage>> {
    convert(decoded, |x| x * 0.5 + 0.5)
}

/// Images from a tensor [B, H, W, 3] with values in 0..1, clamped.
///
/// # Errors
/// As [`rgb_from_tensor`].
pub fn rgb_from_unit_tensor(image: &HostTensor) -> Result<Vec<RgbImage>> {
    convert(image, |x| x)
}

fn convert(image: &HostTensor, to_unit: impl Fn(f32) -> f32) -> Result<Vec<RgbImage>> {
    let shape = image.shape();
    let wrong = || Error::invalid("image", format!("{shape} is not [B, H, W, 3]"));
    let &[_, height, width, 3] = shape.extents() else {
        return Err(wrong());
    };
    let values = image.as_f32()?;
    let broken = values.iter().filter(|x| !x.is_finite()).count();
    if broken > 0 {
        return Err(Error::NotFinite {
            network: "vae-decoder".into(),
            operator: "output".into(),
            detail: format!("{broken} of {} values of the image; try `dtype` f32", values.len()),
        });
    }
    let (w, h) = (u32::try_from(width).map_err(|_| wrong())?, u32::try_from(height).map_err(|_| wrong())?);
    // Halves round to even, as NumPy's `round` does.
    let quantise = |&x: &f32| (to_unit(x).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    values
        .chunks_exact((height * width * 3).max(1))
        .map(|pixels| RgbImage::from_raw(w, h, pixels.iter().map(quantise).collect()).ok_or_else(wrong))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::Rgb;

    #[test]
    fn constants_match_their_definitions() {
        let image = RgbImage::from_fn(2, 1, |x, _| Rgb([0, 128, 255].map(|v| v + x as u8 * u8::from(v < 255))));
        let near = |n: &Normalization, f: fn(f32) -> f32| {
            let tensor = tensor_from_rgb(&image, n);
            assert_eq!(tensor.shape().extents(), [1, 1, 2, 3]);
            for (value, &raw) in tensor.as_f32().unwrap().iter().zip(image.as_raw()) {
                assert!((value - f(f32::from(raw))).abs() < 1e-6, "{value} for {}", f(f32::from(raw)));
            }
        };
        near(&Normalization::NONE, |v| v / 255.0);
        near(&Normalization::SCRFD, |v| (v - 127.5) / 128.0);
        near(&Normalization::SYMMETRIC, |v| (v - 127.5) / 127.5);
        let tensor = tensor_from_rgb(&image, &Normalization::IMAGENET);
        let expected = (129.0 / 255.0 - 0.456) / 0.224;
        assert!((tensor.as_f32().unwrap()[4] - expected).abs() < 1e-6);
    }

    #[test]
    fn normalising_later_is_normalising_at_once() {
        let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 40, y as u8 * 90, 200]));
        let plain = tensor_from_rgb(&image, &Normalization::NONE);
        let n = Normalization::OPENAI_CLIP;
        assert_eq!(n.apply(&plain).unwrap(), tensor_from_rgb(&image, &n));
        assert!(n.apply(&HostTensor::zeros([1, 2, 2, 4])).is_err());
    }

    #[test]
    fn pictures_survive_the_round_trip() {
        let image = RgbImage::from_fn(7, 37, |x, y| Rgb([(x * 37 + y) as u8, y as u8, 255 - y as u8]));
        let tensor = tensor_from_rgb(&image, &Normalization::SYMMETRIC);
        assert_eq!(rgb_from_tensor(&tensor).unwrap()[0], image);
        let unit = tensor_from_rgb(&image, &Normalization::NONE);
        assert_eq!(rgb_from_unit_tensor(&unit).unwrap(), [image]);
    }

    #[test]
    fn values_clamp_and_batches_split() {
        let tensor = HostTensor::from_f32([2, 1, 1, 3], vec![-9.0, 0.0, 9.0, 1.0, -1.0, 0.5]).unwrap();
        let images = rgb_from_tensor(&tensor).unwrap();
        assert_eq!(images[0].as_raw(), &[0, 128, 255]);
        assert_eq!(images[1].as_raw(), &[255, 0, 191]);
    }

    #[test]
    fn nan_is_an_error_not_a_black_image() {
        let tensor = HostTensor::from_f32([1, 1, 1, 3], vec![0.0, f32::NAN, f32::INFINITY]).unwrap();
        let error = rgb_from_tensor(&tensor).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { .. }) && error.to_string().contains("2 of 3"), "{error}");
        assert!(rgb_from_tensor(&HostTensor::zeros([1, 3, 2, 2])).is_err());
    }
}
