use pulid_tensor::{HostTensor, MaybeSendSync, Result};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
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

/// What a weight is made of. Together with the type of its node it tells the bytes on a device: weights of equal keys and types
/// are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightKey {
    /// The file's content and the tensor's place in it, as `Checkpoint::identity` gives them.
    pub source: String,
    /// What is done with the tensor's elements while it loads, the cast to the node's type apart: `same`, `transposed`, ...
    pub layout: Cow<'static, str>,
    /// What is added to the tensor while it loads, if anything.
    pub patch: Option<Arc<str>>,
}

impl WeightKey {
    /// How the source of a tensor in memory begins.
    const CONTENT: &str = "content ";

    /// The key of a tensor of a file without a patch.
    pub fn new(source: impl Into<String>, layout: impl Into<Cow<'static, str>>) -> Self {
        WeightKey { source: source.into(), layout: layout.into(), patch: None }
    }

    /// The key of a tensor in memory: its type and content.
    pub fn of_content(tensor: &HostTensor) -> Self {
        let mut hash = Sha256::new();
        hash.update(tensor.tensor_type().to_string());
        hash.update(tensor.bytes());
        let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        WeightKey::new(format!("{}{hex}", Self::CONTENT), "same")
    }
}

/// A weight of a graph: a name for people, a key, and a way to get the values. Nothing is read before [`Weight::load`].
#[derive(Clone)]
pub struct Weight {
    /// Checkpoint key or a description.
    pub name: String,
    key: Arc<WeightKey>,
    file: Option<Arc<str>>,
    loader: Arc<dyn LoadWeight>,
}

impl Weight {
    /// A weight that is read on demand. Whatever the loader's result depends on must be part of the key.
    pub fn new(name: impl Into<String>, key: WeightKey, loader: impl LoadWeight + 'static) -> Self {
        Weight { name: name.into(), key: Arc::new(key), file: None, loader: Arc::new(loader) }
    }

    /// The weight with the file that it is read from, for people.
    pub fn in_file(self, file: impl Into<Arc<str>>) -> Self {
        Weight { file: Some(file.into()), ..self }
    }

    /// The file that it is read from, where that was said.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// A constant known already.
    pub fn constant(name: impl Into<String>, tensor: HostTensor) -> Self {
        Weight::new(name, WeightKey::of_content(&tensor), move || Ok(tensor.clone()))
    }

    /// Whether it is a tensor in memory rather than one of a file.
    pub fn is_constant(&self) -> bool {
        self.key.source.starts_with(WeightKey::CONTENT)
    }

    /// What it is made of.
    pub fn key(&self) -> &Arc<WeightKey> {
        &self.key
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
