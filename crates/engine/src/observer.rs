use pulid_tensor::{Error, Result};

/// Watches long work and may stop it.
pub trait Observer {
    /// Whether the work should stop as soon as it can; it then ends with [`Error::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }

    /// Part of the present work that is done, in units of the work's own (bytes, floating-point operations).
    fn progress(&self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

pub(crate) fn check(observer: &dyn Observer) -> Result<()> {
    if observer.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
