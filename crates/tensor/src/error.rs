use std::path::PathBuf;

/// Result with the shared [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a file, a photo, a prompt, a flag or a device.
///
/// Each variant says what was wrong and where; `advice` says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value given by the caller or the user cannot be used (a flag, a shape, a setting).
    #[error("{what}: {detail}")]
    Invalid {
        /// The flag, argument or quantity.
        what: String,
        /// What is wrong with it and what is accepted.
        detail: String,
    },
    /// An operator refused its operands; check the shapes the graph gives it.
    #[error("operator {operator}: {detail}")]
    Operator {
        /// Operator name, as in file names and plans.
        operator: String,
        /// Shapes, limits and what was expected.
        detail: String,
    },
    /// A file could not be read or does not hold what it should.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and what to do.
        detail: String,
    },
    /// A tensor is missing from a checkpoint or has another shape.
    #[error("weight `{key}` in {source_name}: {detail}")]
    Weight {
        /// The checkpoint key.
        key: String,
        /// The file or folder searched.
        source_name: String,
        /// What was expected and what was found.
        detail: String,
    },
    /// A photo cannot be used (no face, too small, broken).
    #[error("photo {name}: {detail}")]
    Photo {
        /// File name of the photo.
        name: String,
        /// What is wrong and what to try.
        detail: String,
    },
    /// The device is missing, lost, or lacks a feature or limit.
    #[error("device: {0}")]
    Device(String),
    /// The device has no memory left for what was asked of it; it stays usable. Says what to try.
    #[error("device: {0}")]
    OutOfMemory(String),
    /// NaN or infinity appeared; names where it arose first.
    #[error("{network}: operator {operator} produced NaN or infinity ({detail})")]
    NotFinite {
        /// The network, for example `unet`.
        network: String,
        /// The operator's label in the plan.
        operator: String,
        /// How many and what to try.
        detail: String,
    },
    /// A server could not be reached, or broke off and kept doing so.
    #[error("{url}: {detail}")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened and what to do.
        detail: String,
    },
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Reading or writing failed in the operating system.
    #[error("{}: {}", path.display(), io_message(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's own error.
        source: std::io::Error,
    },
}

/// What the operating system says, without its number of the error, and in words of our own where a file is missing or a folder is in its place.
pub fn io_message(error: &std::io::Error) -> String {
    use std::io::ErrorKind::{IsADirectory, NotFound};
    match (error.kind(), error.raw_os_error()) {
        (NotFound, Some(_)) => "there is no such file or folder".into(),
        (IsADirectory, Some(_)) => "is a folder; a file is needed here".into(),
        (_, Some(number)) => {
            let text = error.to_string();
            text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text).to_owned()
        }
        _ => error.to_string(),
    }
}

impl Error {
    /// [`Error::Invalid`] from anything printable.
    pub fn invalid(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Invalid { what: what.into(), detail: detail.into() }
    }

    /// [`Error::Operator`] from anything printable.
    pub fn operator(operator: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Operator { operator: operator.into(), detail: detail.into() }
    }

    /// An operator's error as that of another, which asked it about its operands; other errors as they are.
    #[must_use]
    pub fn of_operator(self, operator: &str) -> Self {
        match self {
            Error::Operator { detail, .. } => Error::operator(operator, detail),
            other => other,
        }
    }

    /// [`Error::File`] from anything printable.
    pub fn file(path: impl Into<PathBuf>, detail: impl Into<String>) -> Self {
        Error::File { path: path.into(), detail: detail.into() }
    }

    /// [`Error::Network`] from anything printable.
    pub fn network(url: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Network { url: url.into(), detail: detail.into() }
    }

    /// [`Error::Io`] for a path.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// [`Error::Photo`] from anything printable.
    pub fn photo(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Photo { name: name.into(), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_the_operating_system_is_told() {
        let missing = std::fs::File::open("no/such/file").unwrap_err();
        assert_eq!(Error::io("a", missing).to_string(), "a: there is no such file or folder");
        // EACCES on Unix, and an error of some name elsewhere.
        let other = Error::io("a", std::io::Error::from_raw_os_error(13)).to_string();
        assert!(other.len() > "a: ".len() && !other.contains("os error"), "{other}");
        let own = Error::io("a", std::io::Error::other("the words of a library"));
        assert_eq!(own.to_string(), "a: the words of a library");
    }
}
