//! Missing and mismatched keys of a network's file, all of them at once.

use crate::family::{Kind, Role, kind};
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{Error, Result, Shape};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keys of each kind that a message names.
const NAMED: usize = 3;

/// Keys that are noted before the search ends: more than any network has. A configuration may ask for layers without end.
const MOST: usize = 4096;

/// Elements of a tensor that no network has; a configuration may ask for more than can be counted.
const LARGEST: usize = 1 << 31;

/// What a file seems to be, as the end of a message; empty where that is not known.
pub(crate) fn looks_like(checkpoint: &Checkpoint) -> String {
    let Kind { name, role } = kind(checkpoint);
    if role == Role::Unknown { String::new() } else { format!("; the file looks like this: {name}") }
}

/// Shared by all views of one network's weights.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyReport(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// Every key that was asked for.
    asked: BTreeSet<String>,
    /// Keys that are read without being part of the graph as they are.
    read: BTreeSet<String>,
    missing: Vec<String>,
    /// Key, shape that the network has, shape in the file.
    mismatched: Vec<(String, Shape, Shape)>,
}

impl KeyReport {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a key that is asked for, and whether the file has it with that shape.
    ///
    /// # Errors
    /// When so much is missing that there is no use in going on.
    pub fn note(&self, checkpoint: &Checkpoint, key: &str, expected: &Shape) -> Result<()> {
        let mut found = self.found();
        if !found.asked.insert(key.to_owned()) {
            return Ok(());
        }
        // An error would look for the closest keys, which takes its time.
        if !checkpoint.contains(key) {
            found.missing.push(key.to_owned());
        } else if let Ok(info) = checkpoint.info(key)
            && info.shape != *expected
        {
            found.mismatched.push((key.to_owned(), expected.clone(), info.shape));
        }
        let strange = !expected.checked_count().is_ok_and(|count| count <= LARGEST);
        if strange || found.missing.len() + found.mismatched.len() > MOST {
            let detail = format!("should have shape {expected}: the configuration is not this file's");
            return Err(Error::Weight { key: key.into(), source_name: checkpoint.name().into(), detail });
        }
        Ok(())
    }

    /// Notes a key that the file lacks.
    pub fn note_missing(&self, key: &str) {
        let mut found = self.found();
        if found.asked.insert(key.to_owned()) {
            found.missing.push(key.to_owned());
        }
    }

    /// Notes a key that is read to compute a weight.
    pub fn note_read(&self, key: String) {
        self.found().read.insert(key);
    }

    /// The keys that nobody asked for since the last [`KeyReport::clear`].
    pub fn unread(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let found = self.found();
        let unread = |key: &&str| !found.asked.contains(*key) && !found.read.contains(*key);
        checkpoint.keys().filter(unread).map(str::to_owned).collect()
    }

    /// Forgets what was found before.
    pub fn clear(&self) {
        *self.found() = Found::default();
    }

    /// Nothing where everything fits. `complete` says whether all of the network was asked for.
    ///
    /// # Errors
    /// Names the file and the first few keys of each kind, what was expected and what the file seems to be.
    pub fn check(&self, checkpoint: &Checkpoint, complete: bool) -> Result<()> {
        let found = self.found();
        let list = |items: &mut dyn Iterator<Item = String>| items.take(NAMED).collect::<Vec<_>>().join(", ");
        match (found.missing.as_slice(), found.mismatched.as_slice()) {
            ([], []) => return Ok(()),
            ([key], []) => return checkpoint.info(key).map(drop),
            ([], [(key, expected, _)]) => return checkpoint.tensor_of_shape(key, expected.clone()).map(drop),
            _ => {}
        }
        let of = if complete { format!(" of {}", found.asked.len()) } else { String::new() };
        let mut parts = Vec::new();
        if !found.missing.is_empty() {
            let first = list(&mut found.missing.iter().map(|key| format!("`{key}`")));
            parts.push(format!("{}{of} tensors are missing, first: {first}", found.missing.len()));
        }
        if !found.mismatched.is_empty() {
            let first = found.mismatched.iter().map(|(key, want, is)| format!("`{key}` {is}, expected {want}"));
            parts.push(format!(
                "{}{of} tensors have another shape, first: {}",
                found.mismatched.len(),
                list(&mut first.into_iter())
            ));
        }
        let own = list(&mut checkpoint.keys().map(|key| format!("`{key}`")));
        let family = looks_like(checkpoint);
        parts.push(format!(
            "the file holds {} tensors, such as {own}{family}; does it belong to this network?",
            checkpoint.len()
        ));
        Err(Error::file(checkpoint.name(), parts.join("; ")))
    }
}
