//! Where secrets are: configuration names a variable or a file, and what stands in it is never shown.
//!
//! What stands where a name should may be the secret itself, put there by mistake. So no message and
//! no output shows the name of a file, and that of a variable only when it looks like one: capitals,
//! digits and `_`, of which at least one. The path of the configuration key tells which is meant.

mod address;

pub use address::Address;

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, Serializer};

/// The longest file with secrets, in bytes: ten thousand API keys fit.
const FILE_MAX: u64 = 1024 * 1024;

/// What is shown instead.
const HIDDEN: &str = "***";

/// A secret: its `Debug` prints nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the secret, for whoever needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The name of an environment variable that holds a secret.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Variable(String);

impl Variable {
    /// Returns what the variable holds.
    ///
    /// # Errors
    ///
    /// When it is not there, or is no text.
    pub fn read(&self) -> Result<Secret, Unset> {
        let unset = || Unset { variable: self.looks_like_one().then(|| self.0.clone()) };
        std::env::var(&self.0).map(Secret).map_err(|_| unset())
    }

    /// Returns its name, for whoever reads it elsewhere; it may be a secret put there by mistake.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Returns true when it names nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn looks_like_one(&self) -> bool {
        let in_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        self.0.contains('_') && self.0.chars().all(in_name)
    }

    fn shown(&self) -> &str {
        if self.looks_like_one() { &self.0 } else { HIDDEN }
    }
}

impl From<&str> for Variable {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl fmt::Debug for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl Serialize for Variable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

/// A variable is not there, or is no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unset {
    /// Its name, when it looks like one.
    variable: Option<String>,
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variable {
            Some(name) => write!(f, "environment variable {name} is not set to a text"),
            None => {
                f.write_str("must be the name of an environment variable that is set to a text")
            }
        }
    }
}

impl std::error::Error for Unset {}

/// The path of a file that holds secrets.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct File(PathBuf);

impl File {
    /// Returns what the file holds.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is no text, or is longer than 1 MiB.
    pub fn read(&self) -> Result<Secret, Unreadable> {
        let mut text = String::new();
        let file = fs::File::open(&self.0)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > FILE_MAX {
            let kind = io::ErrorKind::FileTooLarge;
            return Err(io::Error::new(kind, format!("longer than {FILE_MAX} bytes")).into());
        }
        Ok(Secret(text))
    }

    /// Returns the one secret that the file holds; a line break at its end is no part of it.
    ///
    /// # Errors
    ///
    /// As [`File::read`].
    pub fn read_one(&self) -> Result<Secret, Unreadable> {
        let Secret(text) = self.read()?;
        Ok(Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

impl<P: AsRef<Path>> From<P> for File {
    fn from(path: P) -> Self {
        Self(path.as_ref().to_owned())
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HIDDEN.fmt(f)
    }
}

impl Serialize for File {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// A file with secrets cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the file that it names: {0}")]
pub struct Unreadable(#[from] io::Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_named_only_when_it_looks_like_one() {
        let unset = |name: &str| Variable::from(name).read().unwrap_err();
        let named = "environment variable MERIT_TEST_NONE is not set to a text";
        assert_eq!(unset("MERIT_TEST_NONE").to_string(), named);
        for secret in ["hunter2", "Hunter_2", "HUNTER2", "MZXW6YTBOI", "redis://u:HUNTER_2@h"] {
            let (variable, error) = (Variable::from(secret), unset(secret));
            let json = serde_json::to_string(&variable).unwrap();
            for shown in [error.to_string(), format!("{error:?} {variable:?}"), json] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }

    #[test]
    fn a_file_is_never_named_nor_what_stands_in_it() {
        let path = std::env::temp_dir().join(format!("merit-hunter2-{}", std::process::id()));
        let file = File::from(&path);
        let error = file.read().unwrap_err();
        fs::write(&path, "hunter2\r\n").unwrap();
        let (whole, one) = (file.read().unwrap(), file.read_one().unwrap());
        fs::remove_file(&path).unwrap();
        assert_eq!((whole.expose(), one.expose()), ("hunter2\r\n", "hunter2"));
        let json = serde_json::to_string(&file).unwrap();
        for shown in [error.to_string(), format!("{error:?} {file:?} {one:?}"), json] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        let error = File::from("/dev/zero").read().unwrap_err().to_string();
        assert!(error.contains("longer than 1048576 bytes"), "{error}");
    }
}
