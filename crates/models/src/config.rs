//! Reading the `config.json` that lies beside a network's weights.

use pulid_checkpoint::{files, json};
use pulid_tensor::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A number for all blocks of a network, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same everywhere.
    Same(usize),
    /// One for each block.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The numbers of `blocks` blocks.
    ///
    /// # Errors
    /// When there is one for each of another number of blocks.
    pub fn expand(&self, blocks: usize, what: &str) -> Result<Vec<usize>> {
        match self {
            PerBlock::Same(n) => Ok(vec![*n; blocks]),
            PerBlock::Each(n) if n.len() == blocks => Ok(n.clone()),
            PerBlock::Each(n) => {
                Err(Error::invalid(what, format!("{} numbers are given for {blocks} blocks", n.len())))
            }
        }
    }
}

/// A `config.json`, checked key by key before it is read into a struct.
pub(crate) struct Config {
    value: Value,
    name: String,
}

impl Config {
    /// Parses the text; `name` is the file, for messages.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let value: Value =
            json::from_str(text).map_err(|e| Error::file(name, format!("is not a configuration: {e}")))?;
        Ok(Config { value, name: name.to_owned() })
    }

    /// Refuses options that would change the network and are not built: each key may be missing, null, false or hold
    /// one of the accepted texts or numbers.
    pub fn accept(&self, keys: &[(&str, &[&str])]) -> Result<()> {
        for (key, accepted) in keys {
            let text = match &self.value[key] {
                Value::Null | Value::Bool(false) => continue,
                Value::String(text) => text.clone(),
                // 1.0 and 1 are the same setting.
                Value::Number(n) => n.as_f64().unwrap_or(f64::NAN).to_string(),
                other => other.to_string(),
            };
            if !accepted.contains(&text.as_str()) {
                let known = if accepted.is_empty() { "none".to_owned() } else { accepted.join(", ") };
                let detail = format!("`{key}` is {text}, which is not built; accepted: {known}");
                return Err(Error::file(&self.name, detail));
            }
        }
        Ok(())
    }

    /// The struct.
    pub fn read<T: DeserializeOwned>(self) -> Result<T> {
        serde_json::from_value(self.value)
            .map_err(|e| Error::file(&self.name, format!("is not this network's configuration: {e}")))
    }

    /// Checks a condition between the values.
    pub fn require(name: &str, holds: bool, detail: impl FnOnce() -> String) -> Result<()> {
        if holds { Ok(()) } else { Err(Error::file(name, detail())) }
    }
}

/// Text and name of the `config.json` in a folder of weights, which must have one, or beside a weights file.
pub(crate) fn beside(path: &std::path::Path) -> Result<Option<(String, String)>> {
    let folder = if files::is_dir(path) { path } else { path.parent().unwrap_or(std::path::Path::new("")) };
    let config = folder.join("config.json");
    let wanted = files::is_dir(path) || files::is_file(&config);
    if wanted { Ok(Some((files::read_to_string(&config)?, config.display().to_string()))) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_options_are_refused() {
        let config = |text| Config::parse(text, "config.json").unwrap();
        let keys: &[(&str, &[&str])] = &[("act_fn", &["silu"]), ("scale", &["1"]), ("class_embed_type", &[])];
        config(r#"{"act_fn":"silu","scale":1.0,"class_embed_type":null}"#).accept(keys).unwrap();
        config("{}").accept(keys).unwrap();
        for (bad, key) in [(r#"{"act_fn":"relu"}"#, "act_fn"), (r#"{"class_embed_type":"timestep"}"#, "class_embed")] {
            let error = config(bad).accept(keys).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("config.json"), "{error}");
        }
        assert!(Config::parse("{", "config.json").is_err());
    }

    #[test]
    fn numbers_expand() {
        let each: PerBlock = serde_json::from_str("[1, 2]").unwrap();
        assert_eq!(each.expand(2, "heads").unwrap(), [1, 2]);
        assert!(each.expand(3, "heads").is_err());
        assert_eq!(PerBlock::Same(4).expand(2, "heads").unwrap(), [4, 4]);
    }
}
