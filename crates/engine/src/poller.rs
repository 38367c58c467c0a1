//! Drives wgpu's callbacks where nobody else does.
//!
//! Browsers call back by themselves. Natively somebody must call `Device::poll`; a thread of its own does, so that
//! awaiting a submission never blocks or spins in the caller.

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::sync::mpsc::{Sender, channel};

    #[derive(Debug)]
    pub(crate) struct Poller {
        wake: Sender<()>,
    }

    impl Poller {
        pub(crate) fn new(device: wgpu::Device) -> std::io::Result<Self> {
            let (wake, requests) = channel::<()>();
            std::thread::Builder::new().name("pulid-gpu-poll".into()).spawn(move || {
                // Ends when the last `Poller` is dropped. Errors are reported by the device's own callbacks.
                while requests.recv().is_ok() {
                    let _ = device.poll(wgpu::PollType::wait_indefinitely());
                }
            })?;
            Ok(Poller { wake })
        }

        /// Makes sure that callbacks of everything submitted so far are called.
        pub(crate) fn wake(&self) {
            // The thread lives as long as `self`; if it died by a panic in a driver, awaiting reports a lost device.
            let _ = self.wake.send(());
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod web {
    #[derive(Debug)]
    pub(crate) struct Poller;

    impl Poller {
        pub(crate) fn new(_: wgpu::Device) -> std::io::Result<Self> {
            Ok(Poller)
        }

        pub(crate) fn wake(&self) {}
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::Poller;
#[cfg(target_arch = "wasm32")]
pub(crate) use web::Poller;
