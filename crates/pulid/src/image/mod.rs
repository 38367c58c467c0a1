//! Images in and out: photos from bytes, resizing as OpenCV, PyTorch and Pillow do it, tensors, PNG, JPEG and WebP with metadata.
//!
//! An image is an [`RgbImage`], 8 bits a channel; as a tensor it is [1, H, W, 3] with channels last.

mod bicubic;
mod colours;
mod decode;
mod encode;
mod exif;
mod file;
mod jpeg;
mod other_format;
mod parameters;
mod pillow;
mod png;
mod preview;
mod profile;
mod resize;
mod tables;
mod tensor;
#[cfg(test)]
pub(crate) mod testing;

pub use ::image::RgbImage;
pub use bicubic::resize_bicubic;
pub use decode::{MAX_PIXELS, MIN_SIDE, decode_photo, decode_photo_within};
pub use encode::{ImageFormat, ImageMetadata, encode_image};
#[cfg(not(target_arch = "wasm32"))]
pub use file::write_atomically;
pub use parameters::parameters_text;
pub(crate) use parameters::{sampler_name, schedule_name};
pub use pillow::resize_pillow_bicubic;
pub use png::encode_png;
pub use preview::rgb_from_latents;
pub use resize::{resize_bilinear, resize_lanczos4, shrink_to_long_side};
pub use tensor::{Normalization, rgb_from_tensor, rgb_from_unit_tensor, tensor_from_rgb};
