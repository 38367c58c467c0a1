//! From photos of a person to identity tokens.
//!
//! [`detect`] lists the faces of a photo. [`extract`] takes the person of each photo through recogniser, parser, vision
//! tower and the identity encoder of PuLID v1 or v1.1; the [`Identity`] can be saved, and its tokens loaded again for
//! [`pipeline`](crate::pipeline).

mod aligner;
mod belongs;
mod choice;
mod condition;
mod debug;
mod detect;
mod encoder;
mod extract;
mod file;
mod models;
mod network;
mod recognise;

pub use belongs::{SAME_PERSON, check_adapter, unread_of_adapter};
pub use choice::FaceChoice;
pub use debug::{DebugImage, debug_image_names};
pub use detect::{DetectOptions, DetectorKind, LONG_SIDE, MIN_EYE_DISTANCE, detect};
pub use extract::{ExtractOptions, MAX_PHOTOS, PhotoInputs, blank_tokens, crop, crop_side, extract, photo_inputs};
pub use file::Identity;
pub use models::FaceModels;
pub use recognise::{FaceFinder, FaceReader, SeenFace, open_recogniser};
