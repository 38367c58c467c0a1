//! Reports of networks that are a part of something larger.

use pulid::runtime::Reporter;
use pulid_engine::Observer;

/// Passes cancellation on, not the stages and progress of each network.
pub(crate) struct Quiet<'a>(pub &'a dyn Reporter);

impl Observer for Quiet<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

impl Reporter for Quiet<'_> {}
