//! Networks that find and describe faces.

mod bisenet;
mod resnet;
mod retinaface;

pub use bisenet::BiSeNet;
pub use retinaface::RetinaFace;
