//! Failures that are known, by adapter, backend and check.

use pulid_engine::AdapterSummary;
use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

/// What is known when this is built.
const SHIPPED: &str = include_str!("../expected.json");

/// A check's id or a part of it; with `*` or `?`, the whole id with anything or any one character there.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    wild: Option<WildMatch>,
}

impl Pattern {
    /// From the text of a flag or a file.
    pub fn new(text: impl Into<String>) -> Pattern {
        let text = text.into();
        let wild = text.contains(['*', '?']).then(|| WildMatch::new(&text));
        Pattern { text, wild }
    }

    /// Whether a text fits.
    pub fn matches(&self, text: &str) -> bool {
        match &self.wild {
            Some(wild) => wild.matches(text),
            None => text.contains(&self.text),
        }
    }
}

/// Checks that fail on some adapters, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Adapters, as part or pattern of `name driver` in any case.
    pub adapter: String,
    /// Backends, as part or pattern.
    pub backend: String,
    /// Checks, as part or pattern of the id.
    pub id: String,
    /// Why, with a link to the driver's or compiler's issue where there is one.
    pub reason: String,
}

/// All that is known.
#[derive(Clone, Debug, Default)]
pub struct Expectations(Vec<Expectation>);

impl Expectations {
    /// The list that comes with the program.
    ///
    /// # Errors
    /// Never, but for a broken build.
    pub fn shipped() -> Result<Expectations> {
        Self::parse(SHIPPED, "expected.json")
    }

    /// A list of somebody's own.
    ///
    /// # Errors
    /// When the file cannot be read or is malformed.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Expectations> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// A list in the form of `expected.json`; `name` is for the error.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(text: &str, name: &str) -> Result<Expectations> {
        let list = serde_json::from_str(text);
        list.map(Expectations).map_err(|e| Error::invalid(name, format!("is no list of expected failures: {e}")))
    }

    /// One after another.
    pub fn all(&self) -> &[Expectation] {
        &self.0
    }

    /// Adds another list.
    pub fn and(mut self, more: Expectations) -> Expectations {
        self.0.extend(more.0);
        self
    }

    /// Why a check is expected to fail on an adapter, if it is.
    pub fn reason(&self, adapter: &AdapterSummary, id: &str) -> Option<&str> {
        let name = format!("{} {}", adapter.name, adapter.driver).to_lowercase();
        let fits = |pattern: &str, text: &str| Pattern::new(pattern).matches(text);
        // Browsers write in small letters what drivers call themselves.
        let named = |e: &Expectation| fits(&e.adapter.to_lowercase(), &name) && fits(&e.backend, &adapter.backend);
        let found = self.0.iter().find(|e| named(e) && fits(&e.id, id))?;
        Some(&found.reason)
    }
}
