//! From photos of a person to identity tokens.
//!
//! [`detect`] lists the faces of a photo. [`extract`] takes the largest face of each photo through recogniser, parser,
//! vision tower and PuLID's identity encoder; the [`Identity`] can be saved, and its tokens loaded again for
//! [`text_to_image`](crate::text_to_image).

mod condition;
mod debug;
mod detect;
mod extract;
mod file;
mod models;
mod network;

pub use detect::{LONG_SIDE, MIN_EYE_DISTANCE, detect};
pub use extract::{MAX_PHOTOS, crop_side, extract};
pub use file::Identity;
pub use models::FaceModels;
