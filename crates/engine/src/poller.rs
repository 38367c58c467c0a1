//! Drives wgpu's callbacks where nobody else does.
//!
//! Browsers call back by themselves. Natively somebody must call `Device::poll`; a thread of its own does, so that
//! awaiting a submission never blocks or spins in the caller.

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Acquire};
    use std::sync::mpsc::{Sender, channel};
    use std::thread::JoinHandle;

    /// What to wait for.
    enum Wanted {
        All,
        /// A submission, whose callback sets the flag.
        Submission(wgpu::SubmissionIndex, Arc<AtomicBool>),
    }

    #[derive(Debug)]
    pub(crate) struct Poller {
        wake: Option<Sender<Wanted>>,
        thread: Option<JoinHandle<()>>,
    }

    impl Poller {
        pub(crate) fn new(device: wgpu::Device) -> std::io::Result<Self> {
            let (wake, requests) = channel();
            let thread = std::thread::Builder::new().name("pulid-gpu-poll".into()).spawn(move || {
                // Ends when the last `Poller` is dropped. Errors are reported by the device's own callbacks.
                while let Ok(wanted) = requests.recv() {
                    if let Wanted::Submission(index, called) = wanted {
                        let _ = device.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None });
                        // wgpu calls back after the last submission that it knows of, which another thread may have made.
                        if called.load(Acquire) {
                            continue;
                        }
                    }
                    let _ = device.poll(wgpu::PollType::wait_indefinitely());
                }
            })?;
            Ok(Poller { wake: Some(wake), thread: Some(thread) })
        }

        /// Makes sure that callbacks of everything submitted so far are called.
        pub(crate) fn wake(&self) {
            self.send(Wanted::All);
        }

        /// The same of this submission, as soon as it is over; its callback sets the flag.
        pub(crate) fn wake_after(&self, submission: wgpu::SubmissionIndex, called: Arc<AtomicBool>) {
            self.send(Wanted::Submission(submission, called));
        }

        fn send(&self, wanted: Wanted) {
            // The thread lives as long as `self`; if it died by a panic in a driver, awaiting reports a lost device.
            if let Some(wake) = &self.wake {
                let _ = wake.send(wanted);
            }
        }
    }

    impl Drop for Poller {
        /// Waits for the thread, which holds the device: left alone it would destroy the device while the process ends and
        /// the driver's own globals with it. Lavapipe, still writing its shader cache then, corrupted the heap.
        fn drop(&mut self) {
            self.wake = None;
            if let Some(thread) = self.thread.take()
                && thread.thread().id() != std::thread::current().id()
            {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod web {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[derive(Debug)]
    pub(crate) struct Poller;

    impl Poller {
        pub(crate) fn new(_: wgpu::Device) -> std::io::Result<Self> {
            Ok(Poller)
        }

        pub(crate) fn wake(&self) {}

        pub(crate) fn wake_after(&self, _: wgpu::SubmissionIndex, _: Arc<AtomicBool>) {}
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::Poller;
#[cfg(target_arch = "wasm32")]
pub(crate) use web::Poller;
