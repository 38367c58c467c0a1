//! Pictures of what the networks saw.

use crate::face::{Face, LabelMap, color_labels, draw_faces, feature_heat_map};
use crate::image::{PngMetadata, RgbImage, encode_png, rgb_from_unit_tensor, write_atomically};
use pulid_tensor::{Error, HostTensor, Result};
use std::path::Path;

/// Side of the picture of a feature map, about.
const FEATURES_SIDE: usize = 448;

/// What is shown of one photo.
pub(super) struct PhotoPictures<'a> {
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

/// Writes `1_faces.png`, `1_crop.png`, `1_mask.png`, `1_gray.png` and `1_features_1.png` .. for the first photo, and so on;
/// with facexlib's detector also `1_faces_retinaface.png`.
///
/// The folder is made when every picture is ready; each file appears whole.
///
/// # Errors
/// When the folder or a file cannot be written.
pub(super) fn write_pictures(folder: &Path, photos: &[PhotoPictures<'_>]) -> Result<()> {
    let mut files = Vec::new();
    for (i, photo) in photos.iter().enumerate() {
        let mut add = |name: String, image: &RgbImage| -> Result<()> {
            files.push((format!("{}_{name}.png", i + 1), encode_png(image, &PngMetadata::default())?));
            Ok(())
        };
        add("faces".into(), &draw_faces(photo.photo, photo.faces))?;
        if !photo.aligned.is_empty() {
            add("faces_retinaface".into(), &draw_faces(photo.photo, photo.aligned))?;
        }
        add("crop".into(), photo.crop)?;
        add("mask".into(), &color_labels(photo.mask))?;
        for gray in rgb_from_unit_tensor(photo.gray)? {
            add("gray".into(), &gray)?;
        }
        for (k, hidden) in photo.hidden.iter().enumerate() {
            let grid = hidden.shape().get(1).map_or(1, |n| n.isqrt()).max(1);
            let pixels = (FEATURES_SIDE / grid).max(1);
            add(format!("features_{}", k + 1), &feature_heat_map(hidden, pixels as u32)?)?;
        }
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    files.iter().try_for_each(|(name, bytes)| write_atomically(&folder.join(name), bytes))
}
