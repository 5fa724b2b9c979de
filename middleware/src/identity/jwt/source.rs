//! Where key sets come from: a file, a URL, or what you bring.

use std::{error::Error, future::Future, path::PathBuf, pin::Pin};

use bytes::Bytes;

use super::jwks::{KEY_SET_MAX, KeySetError};

/// Why a source could not be read.
pub type FetchError = Box<dyn Error + Send + Sync>;

/// Where a JSON Web Key Set is fetched from.
///
/// Called seldom, so its future is boxed. What it returns may be anything: it is read as hostile.
pub trait KeySource: Send + Sync + 'static {
    /// Returns the document as it is now. Need not bound the time it takes; must bound the size
    /// ([`KEY_SET_MAX`] is the longest that is taken).
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + '_>>;

    /// Returns what the source is called in logs and errors; no secret.
    fn name(&self) -> &str;
}

/// A key set in a file, read again at every refresh.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
    name: String,
}

impl KeyFile {
    /// Returns the file at `path`, as a source.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.display().to_string(), path }
    }
}

impl KeySource for KeyFile {
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + '_>> {
        let path = self.path.clone();
        Box::pin(async move {
            let read = move || {
                if std::fs::metadata(&path)?.len() > KEY_SET_MAX as u64 {
                    return Err(std::io::ErrorKind::FileTooLarge.into());
                }
                std::fs::read(&path)
            };
            Ok(tokio::task::spawn_blocking(read).await??.into())
        })
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Why there is no fresh key set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The source could not be read.
    #[error("key set cannot be fetched from {name}")]
    Fetch {
        /// The source.
        name: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The source took too long.
    #[error("key set from {name} did not arrive within {timeout_ms} ms")]
    Timeout {
        /// The source.
        name: String,
        /// How long was waited.
        timeout_ms: u128,
    },
    /// The document is no key set that can be in force.
    #[error("key set from {name} is refused")]
    Refused {
        /// The source.
        name: String,
        /// Why.
        #[source]
        source: KeySetError,
    },
    /// Nothing fetches: there is no runtime, or it ended.
    #[error("key set from {name} is not fetched outside of a tokio runtime")]
    NoRuntime {
        /// The source.
        name: String,
    },
}
