//! Faces around the networks: the detector's input and outputs, alignment, and the mask before the identity encoder.
//!
//! The order of things: [`letterbox`], the detector network, [`decode_detections`], [`choose_face`]; then
//! [`arcface_crop`] for the recogniser, and [`facexlib_crop`], the parser network, [`LabelMap`] and [`gray_on_white`]
//! for the vision tower. Where facexlib's own detector is at hand, [`retinaface_input`], its network,
//! [`decode_retinaface`] and [`centre_most_face`] give the landmarks of that crop, as in the official pipelines.

mod align;
mod debug;
mod lmeds;
mod parsing;
mod retinaface;
mod scrfd;
mod similarity;
mod warp;

pub use align::{ARCFACE_SIDE, ARCFACE_TEMPLATE, FACEXLIB_TEMPLATE, arcface_crop, arcface_transform, facexlib_crop};
pub use debug::{color_labels, draw_faces, feature_heat_map};
pub use lmeds::estimate_lmeds;
pub use parsing::{LABELS, LabelMap, WHITE_LABELS, gray_on_white};
pub use retinaface::{
    RETINAFACE_SCORE_THRESHOLD, centre_most_face, decode_retinaface, retinaface_candidates, retinaface_input,
};
pub use scrfd::{
    Face, Letterbox, MIN_FACE_SIDE, NEARLY_AS_SURE, NMS_THRESHOLD, SCORE_THRESHOLD, choose_face, decode_detections,
    large_enough, letterbox, surely_largest,
};
pub use similarity::Similarity;
pub use warp::warp;

/// Left eye, right eye, nose, left and right corner of the mouth (as the viewer sees them), in pixels.
pub type Landmarks = [[f32; 2]; 5];
