//! Weights that are a file's tensors plus a change, made while they load: what a LoRA needs.

use pulid_tensor::{DType, Error, HostTensor, MaybeSendSync, Result};
use std::fmt;
use std::sync::Arc;

/// A change of one tensor.
#[derive(Clone)]
pub struct Patch {
    id: Arc<str>,
    add: Arc<dyn Add>,
}

/// Changes a tensor's elements, f32 in the file's own order.
trait Add: MaybeSendSync {
    fn add(&self, tensor: &mut HostTensor) -> Result<()>;
}

impl<F: Fn(&mut HostTensor) -> Result<()> + MaybeSendSync> Add for F {
    fn add(&self, tensor: &mut HostTensor) -> Result<()> {
        self(tensor)
    }
}

impl Patch {
    /// A change by a function, which gets the tensor in f32 and in the file's own shape and order. `id` must tell everything the
    /// change depends on (files, tensors, strength): weights of equal tensors and ids are one.
    pub fn new(id: impl Into<Arc<str>>, add: impl Fn(&mut HostTensor) -> Result<()> + MaybeSendSync + 'static) -> Self {
        Patch { id: id.into(), add: Arc::new(add) }
    }

    /// What the change depends on.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The changed tensor, still in f32: whoever stores it rounds once.
    ///
    /// # Errors
    /// The change's own; a change of shape or type.
    pub fn apply(&self, mut tensor: HostTensor) -> Result<HostTensor> {
        let before = tensor.tensor_type();
        self.add.add(&mut tensor)?;
        if tensor.tensor_type() != before || before.dtype != DType::F32 {
            let detail = format!("makes {} of {before}, which must stay what it is", tensor.tensor_type());
            return Err(Error::invalid(self.id.as_ref(), detail));
        }
        Ok(tensor)
    }
}

impl fmt::Debug for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patch({})", self.id)
    }
}

/// Changes of a checkpoint's tensors by key.
pub trait Patches: MaybeSendSync + fmt::Debug {
    /// The change of a tensor, if there is one.
    fn of(&self, key: &str) -> Option<Patch>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Precision, Vars};
    use pulid_checkpoint::{Checkpoint, MemorySource, safetensors};
    use pulid_graph::{Graph, NodeKind, WeightKey};
    use std::collections::BTreeMap;

    /// Adds the outer product of two vectors to one matrix, as a LoRA of rank 1 does.
    #[derive(Debug)]
    struct Rank1(f32);

    impl Patches for Rank1 {
        fn of(&self, key: &str) -> Option<Patch> {
            let scale = self.0;
            (key == "m.weight").then(|| {
                Patch::new(format!("rank 1 times {scale}"), move |tensor| {
                    let [rows, columns] = [tensor.shape()[0], tensor.shape()[1]];
                    let sum = |i: usize, w: f32| w + scale * (i / columns + 1) as f32 * ((i % columns) as f32 - 1.0);
                    let values = tensor.as_f32()?.iter().enumerate().map(|(i, &w)| sum(i, w)).collect();
                    *tensor = HostTensor::from_f32([rows, columns], values)?;
                    Ok(())
                })
            })
        }
    }

    /// [3, 2] in the file.
    fn checkpoint() -> Checkpoint {
        let weight = HostTensor::from_fn([3, 2], |i| 0.1 + i as f32).cast(DType::F16);
        let other = HostTensor::from_fn([3, 2], |i| i as f32).cast(DType::F16);
        let tensors = [("m.weight", &weight), ("n.weight", &other)];
        let bytes = safetensors::to_bytes(tensors, &BTreeMap::new()).unwrap();
        Checkpoint::from_source(Arc::new(MemorySource::new("w.safetensors", bytes))).unwrap()
    }

    fn matrix(vars: &Vars, module: &str) -> (Arc<WeightKey>, HostTensor) {
        let mut g = Graph::new("g");
        let id = vars.pp(module).matrix(&mut g, "weight", 2, 3).unwrap();
        let NodeKind::Weight(weight) = &g.nodes()[id.index()].kind else { panic!("no weight") };
        (weight.key().clone(), weight.load().unwrap())
    }

    #[test]
    fn a_patched_weight_is_the_sum_rounded_once() {
        let file = checkpoint();
        let plain = Vars::new(file.clone(), Precision::F16);
        let patched = plain.clone().with_patches(Arc::new(Rank1(0.3)));
        let (_, weight) = matrix(&patched, "m");
        let stored = file.tensor("m.weight").unwrap().to_f32_vec();
        let expected = HostTensor::from_fn([2, 3], |i| {
            let (column, row) = (i / 3, i % 3);
            stored[row * 2 + column] + 0.3 * (row + 1) as f32 * (column as f32 - 1.0)
        });
        assert_eq!(weight, expected.cast(DType::F16));
        let (_, unchanged) = matrix(&patched, "n");
        assert_eq!(unchanged, matrix(&plain, "n").1);
    }

    #[test]
    fn keys_tell_patches_apart_and_nothing_else() {
        let plain = Vars::new(checkpoint(), Precision::F16);
        let with = |scale: f32| plain.clone().with_patches(Arc::new(Rank1(scale)));
        let key = |vars: &Vars, module: &str| matrix(vars, module).0;
        assert_eq!(key(&with(0.3), "m"), key(&with(0.3), "m"));
        assert_ne!(key(&with(0.3), "m"), key(&with(0.4), "m"));
        assert_ne!(key(&with(0.3), "m"), key(&plain, "m"));
        assert_eq!(key(&with(0.3), "n"), key(&plain, "n"));
    }

    #[test]
    fn a_patch_may_not_change_the_shape() {
        let patch = Patch::new("wrong", |tensor| {
            *tensor = HostTensor::zeros([1]);
            Ok(())
        });
        assert!(patch.apply(HostTensor::zeros([2])).unwrap_err().to_string().contains("wrong"));
    }
}
