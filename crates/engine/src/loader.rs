//! Weights on their way from their files to the device.

use pulid_graph::Weight;
use pulid_tensor::{HostTensor, Result};

/// Weights, read one after another: natively on a thread of their own, so that the next one is read, cast and permuted while one
/// uploads. At most three are in memory at once: one being read, one waiting, one uploading.
pub(crate) struct Loader {
    #[cfg(not(target_arch = "wasm32"))]
    read: Option<std::sync::mpsc::Receiver<Result<HostTensor>>>,
    #[cfg(not(target_arch = "wasm32"))]
    thread: Option<std::thread::JoinHandle<()>>,
    #[cfg(target_arch = "wasm32")]
    weights: std::vec::IntoIter<Weight>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Loader {
    /// Begins to read.
    pub fn new(weights: Vec<Weight>) -> Loader {
        let (sender, read) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            for weight in weights {
                let tensor = weight.load();
                let failed = tensor.is_err();
                // Nobody listens any more where loading was given up.
                if sender.send(tensor).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("pulid-weights".into()).spawn(work);
        Loader { read: Some(read), thread: thread.ok() }
    }

    /// The next weight.
    pub fn next(&mut self) -> Result<HostTensor> {
        let read = self.read.as_ref().and_then(|read| read.recv().ok());
        read.unwrap_or_else(|| {
            let detail = "the thread that reads them ended; close other programs and start again";
            Err(pulid_tensor::Error::invalid("weights", detail))
        })
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Drop for Loader {
    /// Waits for the thread, which stops at its next weight.
    fn drop(&mut self) {
        self.read = None;
        // What a panic there would tell was told when it did not answer.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[cfg(target_arch = "wasm32")]
impl Loader {
    /// Nothing is read ahead: there is one thread.
    pub fn new(weights: Vec<Weight>) -> Loader {
        Loader { weights: weights.into_iter() }
    }

    /// The next weight.
    pub fn next(&mut self) -> Result<HostTensor> {
        match self.weights.next() {
            Some(weight) => weight.load(),
            None => Err(pulid_tensor::Error::invalid("weights", "there are no more")),
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use pulid_graph::WeightKey;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn weights(count: usize, read: &Arc<AtomicUsize>) -> Vec<Weight> {
        let weight = |i: usize| {
            let read = read.clone();
            Weight::new(format!("w{i}"), WeightKey::new(format!("w{i}"), "same"), move || {
                read.fetch_add(1, Ordering::SeqCst);
                if i == 7 {
                    return Err(pulid_tensor::Error::invalid("w7", "is broken"));
                }
                Ok(HostTensor::from_fn([1], |_| i as f32))
            })
        };
        (0..count).map(weight).collect()
    }

    #[test]
    fn weights_come_in_order_and_an_error_ends_them() {
        let read = Arc::default();
        let mut loader = Loader::new(weights(10, &read));
        for i in 0..7 {
            assert_eq!(loader.next().unwrap().as_f32().unwrap(), [i as f32]);
        }
        assert!(loader.next().unwrap_err().to_string().contains("w7"));
        drop(loader);
        assert_eq!(read.load(Ordering::SeqCst), 8, "nothing is read after an error");
    }

    #[test]
    fn little_is_read_ahead_and_nothing_after_the_end() {
        let read = Arc::default();
        let mut loader = Loader::new(weights(7, &read));
        loader.next().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let ahead = read.load(Ordering::SeqCst);
        assert!((2..=3).contains(&ahead), "{ahead}");
        drop(loader);
        assert!(read.load(Ordering::SeqCst) <= ahead + 1);
    }
}
