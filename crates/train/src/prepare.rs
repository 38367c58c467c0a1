//! From images to a cache.

use crate::buckets::{Size, buckets, nearest};
use crate::cache::{Cache, Description, Entry, Rejected, Sample, TextStates, file_name};
use crate::data::{Item, Listing};
use image::imageops::{FilterType, crop_imm, resize};
use pulid::identity::{FaceModels, PhotoInputs, photo_inputs};
use pulid::image::{Normalization, RgbImage, decode_photo, tensor_from_rgb};
use pulid::pipeline::{Pipeline, TextConditioning};
use pulid::runtime::{Loaded, Quiet, Reporter, Runtime};
use pulid_engine::Observer;
use pulid_models::Precision;
use pulid_models::sdxl::Part;
use pulid_tensor::{DType, Error, HostTensor, Result};
use sha2::{Digest, Sha256};
use std::path::Path;

/// What is prepared with what.
pub struct Preparing<'a> {
    /// Where the networks run; it should keep them.
    pub pipeline: &'a Pipeline,
    /// The networks that read faces.
    pub faces: &'a FaceModels,
    /// Pixels of a side of the training images.
    pub resolution: usize,
    /// Whether images keep about their shape, with the area of such a square: [`buckets`](crate::buckets).
    pub buckets: bool,
    /// Type of what is stored of text and vision tower.
    pub dtype: DType,
}

/// What came of it.
#[derive(Debug)]
pub struct Prepared {
    /// The cache.
    pub cache: Cache,
    /// Images that were taken and rejected this time.
    pub taken: usize,
    /// See `taken`.
    pub rejected: usize,
}

/// Makes a cache of a listing's images, or goes on with one.
///
/// Of each image: the face, as [`pulid::identity::extract`] reads it, up to the identity encoder's inputs; latents of its crop at the
/// training size; the caption's text states. An image that is broken or shows no face is noted with the reason and left out.
///
/// # Errors
/// A cache of other networks, a full disk, unreadable weights, a lost device, cancellation: what is in the cache then stays, and the next
/// call goes on after it.
pub async fn prepare(
    listing: &Listing,
    folder: &Path,
    preparing: &Preparing<'_>,
    reporter: &dyn Reporter,
) -> Result<Prepared> {
    let factor = preparing.pipeline.model().vae(Precision::F32)?.config().factor();
    let side = preparing.resolution;
    if side == 0 || !side.is_multiple_of(factor) || side > 4096 {
        let detail = format!("{side} is not a multiple of {factor} from {factor} to 4096");
        return Err(Error::invalid("resolution", detail));
    }
    let sizes = if preparing.buckets { buckets(side)? } else { vec![[side, side]] };
    preparing.faces.require_all()?;
    let mut cache = Cache::begin(folder, &preparing.description()?)?;
    let known = cache.known();
    for (name, why) in listing.rejected.iter().filter(|(name, _)| !known.contains(name)) {
        cache.reject(Rejected { image_file: name.clone(), why: why.clone() })?;
    }
    let new: Vec<&Item> = listing.items.iter().filter(|item| !known.contains(&item.id)).collect();
    reporter.stage("preparing images");
    let (taken, rejected) = (cache.entries().len(), cache.rejected().len());
    let quiet = Quiet(reporter);
    if !cache.has_empty_prompt() {
        cache.set_empty_prompt(&preparing.text("", &quiet).await?)?;
    }
    let mut encoder = None;
    for (i, item) in new.iter().enumerate() {
        if reporter.cancelled() {
            return Err(Error::Cancelled);
        }
        match preparing.item(item, &sizes, &mut encoder, &quiet).await {
            Ok((entry, sample)) => cache.add(entry, &sample)?,
            Err(error) => {
                let why = why(error)?;
                reporter.note(&format!("{}: {why}", item.id));
                cache.reject(Rejected { image_file: item.id.clone(), why })?;
            }
        }
        reporter.step(i + 1, new.len());
    }
    let (taken, rejected) = (cache.entries().len() - taken, cache.rejected().len() - rejected);
    Ok(Prepared { cache, taken, rejected })
}

/// Why an image is left out, where it is the image's fault; other errors end the work.
fn why(error: Error) -> Result<String> {
    match error {
        Error::Photo { detail, .. } => Ok(detail),
        // A caption that no text encoder reads whole, values that overflow: of this image alone.
        Error::NotFinite { .. } => Ok(error.to_string()),
        Error::Invalid { ref what, .. } if what == "prompt" => Ok(error.to_string()),
        other => Err(other),
    }
}

impl Preparing<'_> {
    /// What tells a cache made with these from others.
    fn description(&self) -> Result<Description> {
        let model = self.pipeline.model();
        let mut hash = Sha256::new();
        let parts = Part::ALL.into_iter().filter(|part| *part != Part::Unet);
        for part in parts {
            let files = model.part(part)?;
            let first = files.weights.keys().next().map(str::to_owned);
            hash.update(files.config.as_bytes());
            hash.update(files.weights.len().to_le_bytes());
            // Contents, not places: a moved model is the same one.
            if let Some(first) = first {
                hash.update(files.weights.tensor(&first)?.bytes());
            }
        }
        for path in self.faces.files() {
            let length = path.metadata().map_err(|e| Error::io(&path, e))?.len();
            hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(length.to_le_bytes());
        }
        Ok(Description {
            version: Description::VERSION,
            resolution: self.resolution,
            buckets: self.buckets,
            model: model.path().display().to_string(),
            networks: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            dtype: if self.dtype == DType::F16 { "f16" } else { "f32" }.into(),
        })
    }

    fn runtime(&self) -> &Runtime {
        self.pipeline.runtime()
    }

    /// The VAE's encoder for images of a size.
    async fn encoder(&self, [height, width]: Size, observer: &dyn Observer) -> Result<Loaded> {
        let vae = self.pipeline.model().vae(Precision::F32)?;
        self.runtime().load(&vae.encoder(1, height, width)?, observer).await
    }

    /// The first chunk of a caption, as in training SDXL.
    async fn text(&self, caption: &str, reporter: &dyn Reporter) -> Result<TextStates> {
        let encoded = self.pipeline.encode(&[caption], reporter).await?.pop();
        let Some(TextConditioning { chunks, pooled }) = encoded else {
            return Err(Error::invalid("prompt", "was encoded to nothing"));
        };
        let none = || Error::invalid("prompt", "was encoded to nothing");
        Ok(TextStates { hidden: chunks.into_iter().next().ok_or_else(none)?, pooled })
    }

    /// An image at the size among `sizes` that is nearest to its shape. `encoder` is the one that was used last, and its size.
    async fn item(
        &self,
        item: &Item,
        sizes: &[Size],
        encoder: &mut Option<(Size, Loaded)>,
        reporter: &dyn Reporter,
    ) -> Result<(Entry, Sample)> {
        let bytes = item.read()?;
        let picture = decode_photo(&item.id, &bytes)?;
        let PhotoInputs { id_cond, hidden, face, recognised } =
            photo_inputs(self.runtime(), self.faces, &item.id, &bytes, reporter).await?;
        let came = [picture.height() as usize, picture.width() as usize];
        let none = || Error::invalid("buckets", "are none");
        let size = nearest(sizes, came).ok_or_else(none)?;
        let Cropped { picture: crop, left, top } = crop_around(&picture, size, face);
        if encoder.as_ref().is_none_or(|(last, _)| *last != size) {
            // It goes before the next one comes; the runtime keeps it as far as there is room.
            *encoder = None;
            *encoder = Some((size, self.encoder(size, reporter).await?));
        }
        let Some((_, encoder)) = encoder else { return Err(none()) };
        encoder.write("sample", &tensor_from_rgb(&crop, &Normalization::SYMMETRIC))?;
        let mut moments = encoder.run(reporter).await?;
        let mut take = |name: &str| {
            let none = || Error::invalid("vae-encoder", format!("gave no `{name}`"));
            moments.remove(name).ok_or_else(none)
        };
        let (mean, logvar) = (take("mean")?, take("logvar")?);
        let text = self.text(&item.caption, reporter).await?;
        let numbers = [picture.height(), picture.width(), top, left, size[0] as u32, size[1] as u32];
        let entry = Entry {
            image_file: item.id.clone(),
            person: item.person.clone(),
            text: item.caption.clone(),
            file: file_name(&item.id),
            time_ids: numbers.map(|v| v as f32),
        };
        let face = face_tensor(&recognised);
        Ok((entry, Sample { mean, logvar, text, id_cond, hidden, face }))
    }
}

/// A picture [1, H, W, 3] of values 0 to 255.
fn face_tensor(picture: &RgbImage) -> HostTensor {
    let values = picture.as_raw();
    HostTensor::from_fn([1, picture.height() as usize, picture.width() as usize, 3], |i| f32::from(values[i]))
}

/// A part of a picture.
struct Cropped {
    picture: RgbImage,
    /// Of the part in the resized picture.
    left: u32,
    top: u32,
}

/// Shrinks or grows a picture until it just covers `size` and cuts the rest of one side, around the middle or as far from it as the face
/// needs.
fn crop_around(picture: &RgbImage, size: Size, [left, top, right, bottom]: [f32; 4]) -> Cropped {
    let (width, height) = picture.dimensions();
    let [to_height, to_width] = size.map(|length| length as u32);
    let scale = (to_width as f32 / width as f32).max(to_height as f32 / height as f32);
    let sized = |length: u32, least: u32| ((length as f32 * scale).round() as u32).max(least);
    let (wide, high) = (sized(width, to_width), sized(height, to_height));
    let resized = if (wide, high) == (width, height) {
        picture.clone()
    } else {
        resize(picture, wide, high, FilterType::Lanczos3)
    };
    let start = |length: u32, side: u32, from: f32, to: f32| {
        let middle = (length - side) as f32 / 2.0;
        // Where the face does not fit, its middle is shown.
        let (low, high) = (to * scale - side as f32, from * scale);
        let wanted = if low <= high { middle.clamp(low, high) } else { (low + high) / 2.0 };
        (wanted.round().max(0.0) as u32).min(length - side)
    };
    let (x, y) = (start(wide, to_width, left, right), start(high, to_height, top, bottom));
    Cropped { picture: crop_imm(&resized, x, y, to_width, to_height).to_image(), left: x, top: y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crop_holds_the_face() {
        // Columns tell where they came from.
        let picture = RgbImage::from_fn(400, 100, |x, _| image::Rgb([(x / 2) as u8, 0, 0]));
        let left = |face| crop_around(&picture, [100, 100], face).left;
        assert_eq!(left([190.0, 20.0, 210.0, 60.0]), 150, "the middle");
        assert_eq!(left([20.0, 20.0, 80.0, 60.0]), 20);
        assert_eq!(left([300.0, 20.0, 390.0, 60.0]), 290);
        assert_eq!(left([350.0, 20.0, 480.0, 60.0]), 300, "beyond the edge");
        assert_eq!(left([100.0, 0.0, 300.0, 100.0]), 150, "wider than the crop");
        // The whole height of a part twice as wide as high.
        let crop = crop_around(&picture, [50, 100], [300.0, 20.0, 390.0, 60.0]);
        assert_eq!((crop.picture.dimensions(), crop.left, crop.top), ((100, 50), 95, 0));
        let crop = crop_around(&picture, [50, 50], [20.0, 20.0, 80.0, 60.0]);
        assert_eq!((crop.picture.dimensions(), crop.left, crop.top), ((50, 50), 10, 0));
        assert!(crop.picture.get_pixel(25, 25).0[0].abs_diff(35) <= 1);
    }
}
