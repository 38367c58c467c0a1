use pulid_tensor::{HostTensor, MaybeSendSync, Result};
use std::fmt;
use std::sync::Arc;

/// Produces a weight when it is needed: reads it from a checkpoint, permutes it, casts it.
pub trait LoadWeight: MaybeSendSync {
    /// The tensor in exactly the type its graph node declares.
    ///
    /// # Errors
    /// When the checkpoint lacks it or holds another shape.
    fn load(&self) -> Result<HostTensor>;
}

impl<F: Fn() -> Result<HostTensor> + MaybeSendSync> LoadWeight for F {
    fn load(&self) -> Result<HostTensor> {
        self()
    }
}

/// A weight of a graph: a name for people and a way to get the numbers. Nothing is read before [`Weight::load`].
#[derive(Clone)]
pub struct Weight {
    /// Checkpoint key or a description.
    pub name: String,
    loader: Arc<dyn LoadWeight>,
}

impl Weight {
    /// A weight that is read on demand.
    pub fn new(name: impl Into<String>, loader: impl LoadWeight + 'static) -> Self {
        Weight { name: name.into(), loader: Arc::new(loader) }
    }

    /// A constant known already.
    pub fn constant(name: impl Into<String>, tensor: HostTensor) -> Self {
        Weight::new(name, move || Ok(tensor.clone()))
    }

    /// Reads it. See [`LoadWeight::load`].
    pub fn load(&self) -> Result<HostTensor> {
        self.loader.load()
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({})", self.name)
    }
}
