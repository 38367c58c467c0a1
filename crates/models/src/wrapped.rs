//! Files of models that were saved inside of something else: `DataParallel`, a trainer's state, `torch.compile`.

use crate::unread::harmless;
use pulid_checkpoint::Checkpoint;
use std::borrow::Cow;

/// What stands before all names in files that programs write around a model: DataParallel and DistributedDataParallel, `torch.compile`,
/// trainers that keep the weights beside an optimizer's state, Lightning's modules.
const WRAPPERS: [&str; 8] =
    ["module.", "_orig_mod.", "state_dict.", "model_state_dict.", "model_state.", "model.", "net.", "network."];

/// Modules that are wrapped one by one: what then follows the first part of a name.
const INNER: [&str; 2] = ["module", "_orig_mod"];

/// Wrappers within wrappers that are looked for.
const DEPTH: usize = 4;

/// A file's tensors without what a wrapper put before all of their names. Counters and other harmless tensors may stand beside them.
pub(crate) fn unwrapped(file: &Checkpoint) -> Cow<'_, Checkpoint> {
    let mut found = Cow::Borrowed(file);
    for _ in 0..DEPTH {
        let Some(wrapper) = WRAPPERS.into_iter().find(|wrapper| wraps(&found, wrapper)) else { break };
        let inner = match found.keys().all(|key| key.starts_with(wrapper)) {
            // Messages go on with the file's own names.
            true => found.with_prefix(wrapper),
            false => {
                let bare = |key: &str| Some(key.strip_prefix(wrapper).unwrap_or(key).to_owned());
                // Two tensors of one name are none of what a wrapper leaves.
                let Ok(renamed) = found.rename(bare) else { break };
                renamed
            }
        };
        found = Cow::Owned(inner);
    }
    if found.keys().any(|key| without_inner(key).is_some())
        && let Ok(renamed) = found.rename(|key| Some(without_inner(key).unwrap_or_else(|| key.to_owned())))
    {
        found = Cow::Owned(renamed);
    }
    found
}

/// Whether this stands before the name of every tensor that has a use.
fn wraps(file: &Checkpoint, wrapper: &str) -> bool {
    // Stability's own names, and those of networks that are a list of layers.
    let own = |rest: &str| rest.starts_with("diffusion_model.") || rest.starts_with(|c: char| c.is_ascii_digit());
    let mut any = false;
    for key in file.keys().filter(|key| !harmless(key)) {
        match key.strip_prefix(wrapper) {
            Some("") | None => return false,
            Some(rest) if wrapper == "model." && own(rest) => return false,
            Some(_) => any = true,
        }
    }
    any
}

/// `unet.module.conv_in.weight` as `unet.conv_in.weight`.
fn without_inner(key: &str) -> Option<String> {
    let (first, rest) = key.split_once('.')?;
    let (second, rest) = rest.split_once('.')?;
    INNER.contains(&second).then(|| format!("{first}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_checkpoint::{MemorySource, safetensors};
    use pulid_tensor::HostTensor;

    fn names(keys: &[&str]) -> Vec<String> {
        let tensor = HostTensor::zeros([1]);
        let bytes = safetensors::to_bytes(keys.iter().map(|key| (*key, &tensor)), &Default::default()).unwrap();
        let file = Checkpoint::from_source(std::sync::Arc::new(MemorySource::new("a", bytes))).unwrap();
        unwrapped(&file).keys().map(str::to_owned).collect()
    }

    #[test]
    fn what_stands_before_all_names_goes_and_nothing_else() {
        for (keys, want) in [
            (&["module.a.w", "module.b.w"][..], &["a.w", "b.w"][..]),
            (&["state_dict.model.module.a.w"], &["a.w"]),
            (&["_orig_mod.module.a.w", "global_step"], &["a.w", "global_step"]),
            (&["a.module.w", "b.w"], &["a.w", "b.w"]),
            (&["model.diffusion_model.a.w"], &["model.diffusion_model.a.w"]),
            (&["state_dict.model.diffusion_model.a.w"], &["model.diffusion_model.a.w"]),
            (&["model.1.w"], &["model.1.w"]),
            (&["module.a.w", "b.w"], &["b.w", "module.a.w"]),
            (&["module.a.w", "a.w"], &["a.w", "module.a.w"]),
            (&["a.module.w", "a.w"], &["a.module.w", "a.w"]),
        ] {
            assert_eq!(names(keys), want, "{keys:?}");
        }
    }
}
