//! The time of day as one process sees it, set forward and back while it runs.
//!
//! libfaketime stands between the process and the C library and adds to `CLOCK_REALTIME` what a file says,
//! which it reads at every call. The steady clock is left alone, as when an operator sets the system's clock.

use std::{fs, path::PathBuf, time::Duration};

use crate::Folder;

/// Where Debian's libfaketime is, below a folder that is named after the machine.
const BELOW: &str = "faketime/libfaketimeMT.so.1";

/// A time of day that a test sets.
#[derive(Debug)]
pub struct WallClock {
    ahead: PathBuf,
    library: PathBuf,
    folder: Folder,
}

impl WallClock {
    /// Returns a clock that is right.
    ///
    /// # Panics
    ///
    /// When libfaketime is not installed.
    #[must_use]
    pub fn new() -> Self {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let library = folders.map(|folder| folder.path().join(BELOW)).find(|file| file.exists());
        let library = library.expect("libfaketime is there: apt-get install libfaketime");
        let folder = Folder::new("clock");
        let ahead = folder.path().join("ahead");
        let clock = Self { ahead, library, folder };
        clock.set_ahead(Duration::ZERO);
        clock
    }

    /// Returns the variables by which a process goes by this clock.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &PathBuf| path.to_str().expect("a folder's name is text").to_owned();
        let variables = [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.ahead)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // Times of files stay as they are.
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Sets the clock to `ahead` of the right time; zero sets it right.
    ///
    /// # Panics
    ///
    /// When the clock's own folder cannot be written.
    pub fn set_ahead(&self, ahead: Duration) {
        // Whole at every moment: the process may be reading it.
        let next = self.folder.write("next", &format!("+{}", ahead.as_secs()));
        fs::rename(next, &self.ahead).expect("the test's own folder is writable");
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new()
    }
}
