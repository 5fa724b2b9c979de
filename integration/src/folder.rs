//! A folder that lives as long as its owner.

use std::{
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// A new, empty folder, removed when dropped or when the process is gone.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes a folder whose name begins with `name`.
    ///
    /// # Panics
    ///
    /// When the system's temporary folder cannot be written.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("merit-it-{}-", std::process::id());
        let base = std::env::temp_dir().join(prefix).into_os_string();
        sweep_at_the_end(&base);
        let mut path = base;
        path.push(format!("{number}-{name}"));
        let path = PathBuf::from(path);
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        Self(path)
    }

    /// Returns where the folder is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the folder and returns its path.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("the test's own folder is writable");
        path
    }
}

/// Starts, once, a shell that removes all folders of this process when it is gone: what tests
/// share is never dropped, and a killed test drops nothing.
fn sweep_at_the_end(base: &OsStr) {
    static SWEEPER: OnceLock<Child> = OnceLock::new();
    SWEEPER.get_or_init(|| {
        Command::new("sh")
            .args(["-c", "cat >/dev/null; rm -rf \"$1\"*", "sweeper"])
            .arg(base)
            // It ends with us: the system closes our end of the pipe.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh is there")
    });
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
