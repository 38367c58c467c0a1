use crate::image::RgbImage;
use pulid_tensor::{Error, HostTensor, Result};

/// What BiSeNet's labels mean, by index (facexlib's model, trained on CelebAMask-HQ).
pub const LABELS: [&str; 19] = [
    "background",
    "skin",
    "left brow",
    "right brow",
    "left eye",
    "right eye",
    "glasses",
    "left ear",
    "right ear",
    "earring",
    "nose",
    "mouth",
    "upper lip",
    "lower lip",
    "neck",
    "necklace",
    "clothes",
    "hair",
    "hat",
];

/// Labels that PuLID paints white: background, ears, earring, neck, necklace, clothes and hat. Hair stays.
pub const WHITE_LABELS: [u8; 8] = [0, 7, 8, 9, 14, 15, 16, 18];

/// A label for every pixel of a face crop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    width: usize,
    height: usize,
    labels: Vec<u8>,
}

impl LabelMap {
    /// The most likely label of each pixel, the first one of equals, from logits [1, H, W, classes] at the crop's size.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless the logits are f32 of that shape, with 1 to 256 classes and no NaN.
    pub fn from_logits(logits: &HostTensor) -> Result<Self> {
        let &[1, height, width, classes @ 1..=256] = logits.shape().extents() else {
            return Err(Error::invalid(
                "face parser",
                format!("its output {} is not [1, H, W, classes]", logits.shape()),
            ));
        };
        let values = logits.as_f32()?;
        if values.iter().any(|v| v.is_nan()) {
            return Err(Error::invalid(
                "face parser",
                "its output holds NaN; the parser's weights or input are broken",
            ));
        }
        let best = |pixel: &[f32]| {
            let winner =
                pixel.iter().enumerate().fold((0, f32::NEG_INFINITY), |w, (i, &v)| if v > w.1 { (i, v) } else { w });
            winner.0 as u8
        };
        Ok(LabelMap { width, height, labels: values.chunks_exact(classes).map(best).collect() })
    }

    /// A map from its labels, row by row.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are not `width` x `height` of them.
    pub fn new(width: usize, height: usize, labels: Vec<u8>) -> Result<Self> {
        if width.checked_mul(height) != Some(labels.len()) {
            return Err(Error::invalid("label map", format!("{} labels are not {width} x {height}", labels.len())));
        }
        Ok(LabelMap { width, height, labels })
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The labels, row by row.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The share of pixels that stay after [`gray_on_white`], 0 to 1.
    pub fn face_share(&self) -> f64 {
        let kept = self.labels.iter().filter(|l| !WHITE_LABELS.contains(l)).count();
        kept as f64 / self.labels.len().max(1) as f64
    }
}

/// The crop as the vision tower gets it, before resizing: the face in gray (0.299 R + 0.587 G + 0.114 B), white
/// elsewhere.
///
/// Returns [1, H, W, 3] with values in 0..1.
///
/// # Errors
/// [`Error::Invalid`] when crop and labels differ in size.
pub fn gray_on_white(crop: &RgbImage, labels: &LabelMap) -> Result<HostTensor> {
    let (width, height) = (crop.width() as usize, crop.height() as usize);
    if (width, height) != (labels.width, labels.height) {
        let detail = format!("{} x {} labels for a crop of {width} x {height}", labels.width, labels.height);
        return Err(Error::invalid("face mask", detail));
    }
    let pixels = crop.pixels().zip(&labels.labels).flat_map(|(pixel, label)| {
        let [r, g, b] = pixel.0.map(|v| f32::from(v) / 255.0);
        let gray = 0.299 * r + 0.587 * g + 0.114 * b;
        [if WHITE_LABELS.contains(label) { 1.0 } else { gray }; 3]
    });
    HostTensor::from_f32([1, height, width, 3], pixels.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::Rgb;

    #[test]
    fn the_largest_logit_wins_and_the_first_of_equals() {
        let logits = vec![0.1, 2.0, -1.0, 5.0, 5.0, 1.0, -3.0, -2.0, -1.0, f32::NEG_INFINITY, f32::NEG_INFINITY, -9.0];
        let map = LabelMap::from_logits(&HostTensor::from_f32([1, 2, 2, 3], logits).unwrap()).unwrap();
        assert_eq!((map.width(), map.height()), (2, 2));
        assert_eq!(map.labels(), [1, 0, 2, 2]);
    }

    #[test]
    fn broken_logits_are_refused() {
        assert!(LabelMap::from_logits(&HostTensor::zeros([2, 2, 2, 3])).is_err());
        assert!(LabelMap::from_logits(&HostTensor::zeros([1, 2, 2, 300])).is_err());
        assert!(LabelMap::from_logits(&HostTensor::from_fn([1, 2, 2, 3], |_| f32::NAN)).is_err());
        assert!(LabelMap::new(3, 2, vec![0; 5]).is_err());
    }

    #[test]
    fn the_face_turns_gray_and_the_rest_white() {
        let crop = RgbImage::from_fn(19, 1, |x, _| Rgb([10 * x as u8, 255 - x as u8, 40]));
        let labels = LabelMap::new(19, 1, (0..19).collect()).unwrap();
        let masked = gray_on_white(&crop, &labels).unwrap();
        assert_eq!(masked.shape().extents(), [1, 1, 19, 3]);
        for (x, pixel) in masked.as_f32().unwrap().chunks(3).enumerate() {
            let white = ["background", "ear", "neck", "clothes", "hat"].iter().any(|part| LABELS[x].contains(part));
            let gray = (0.299 * (10 * x) as f32 + 0.587 * (255 - x) as f32 + 0.114 * 40.0) / 255.0;
            let expected = if white { 1.0 } else { gray };
            assert!(pixel.iter().all(|v| (v - expected).abs() < 1e-6), "{}: {pixel:?} for {expected}", LABELS[x]);
        }
        assert!((labels.face_share() - 11.0 / 19.0).abs() < 1e-12);
        assert!(gray_on_white(&crop, &LabelMap::new(1, 19, vec![0; 19]).unwrap()).is_err());
    }
}
