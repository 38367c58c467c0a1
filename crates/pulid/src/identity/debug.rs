//! Images of what the networks saw.

use super::condition::HIDDEN_STATES;
use crate::face::{Face, LabelMap, color_labels, draw_faces, feature_heat_map};
use crate::image::{ImageMetadata, RgbImage, encode_png, rgb_from_unit_tensor};
use pulid_tensor::{HostTensor, Result};

/// Side of the image of a feature map, about.
const FEATURES_SIDE: usize = 448;

/// What is shown of one photo.
pub(super) struct PhotoImages<'a> {
    /// The photo as the detector saw it.
    pub photo: &'a RgbImage,
    /// Its faces, the person's first.
    pub faces: &'a [Face],
    /// The faces of facexlib's detector, if it was asked, the person's first.
    pub aligned: &'a [Face],
    /// The aligned crop.
    pub crop: &'a RgbImage,
    /// Its labels.
    pub mask: &'a LabelMap,
    /// The gray face on white, [1, H, W, 3] in 0..1.
    pub gray: &'a HostTensor,
    /// The vision tower's hidden states.
    pub hidden: &'a [HostTensor],
}

/// An image of what the networks saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugImage {
    /// Its file's name, for example `1_crop.png`; one of [`debug_image_names`].
    pub name: String,
    /// The image.
    pub image: RgbImage,
}

impl DebugImage {
    /// The image as a PNG file.
    ///
    /// # Errors
    /// When it has no pixels.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        encode_png(&self.image, &ImageMetadata::default())
    }
}

/// Names of every [`DebugImage`] that so many photos may give: `1_faces.png`, `1_faces_retinaface.png` (with facexlib's
/// detector only), `1_crop.png`, `1_mask.png`, `1_gray.png` and `1_features_1.png` .. `1_features_5.png` of the first photo,
/// and so on.
pub fn debug_image_names(photos: usize) -> Vec<String> {
    let kinds = [FACES, FACES_RETINAFACE, CROP, MASK, GRAY].map(str::to_owned);
    let kinds: Vec<_> = kinds.into_iter().chain((0..HIDDEN_STATES).map(features)).collect();
    (0..photos).flat_map(|photo| kinds.iter().map(move |kind| file_name(photo, kind))).collect()
}

const FACES: &str = "faces";
const FACES_RETINAFACE: &str = "faces_retinaface";
const CROP: &str = "crop";
const MASK: &str = "mask";
const GRAY: &str = "gray";

fn features(state: usize) -> String {
    format!("features_{}", state + 1)
}

fn file_name(photo: usize, kind: &str) -> String {
    format!("{}_{kind}.png", photo + 1)
}

/// Draws the images of every photo, named as [`debug_image_names`] says.
///
/// # Errors
/// When the features hold NaN or are not a square of patches.
pub(super) fn draw_debug_images(photos: &[PhotoImages<'_>]) -> Result<Vec<DebugImage>> {
    let mut debug_images = Vec::new();
    for (i, photo) in photos.iter().enumerate() {
        let mut add = |kind: &str, image: RgbImage| debug_images.push(DebugImage { name: file_name(i, kind), image });
        add(FACES, draw_faces(photo.photo, photo.faces));
        if !photo.aligned.is_empty() {
            add(FACES_RETINAFACE, draw_faces(photo.photo, photo.aligned));
        }
        add(CROP, photo.crop.clone());
        add(MASK, color_labels(photo.mask));
        for gray in rgb_from_unit_tensor(photo.gray)? {
            add(GRAY, gray);
        }
        for (k, hidden) in photo.hidden.iter().enumerate() {
            let grid = hidden.shape().get(1).map_or(1, |n| n.isqrt()).max(1);
            let pixels = (FEATURES_SIDE / grid).max(1);
            add(&features(k), feature_heat_map(hidden, pixels as u32)?);
        }
    }
    Ok(debug_images)
}
