//! Networks that find and describe faces.

mod bisenet;

pub use bisenet::BiSeNet;
