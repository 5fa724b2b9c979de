//! A real Chromium, driven by a script of `browser/` that prints what it saw.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{Folder, Process};

/// Returns Chromium's path.
///
/// # Panics
///
/// When it is missing.
#[must_use]
pub fn chromium() -> PathBuf {
    let path = std::env::var_os("CHROMIUM").unwrap_or_else(|| "/usr/bin/chromium".into());
    let path = PathBuf::from(path);
    assert!(path.exists(), "{}: install Debian's `chromium`, or set CHROMIUM", path.display());
    path
}

/// Returns true where Chromium refuses its sandbox: what root runs.
///
/// # Panics
///
/// Where there is no `/proc`.
#[must_use]
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    status.contains("\nUid:\t0\t")
}

fn driver(script: &str) -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
    for package in ["puppeteer-core", "axe-core"] {
        let installed = home.join("node_modules").join(package).is_dir();
        assert!(installed, "npm's `{package}` is missing: run npm ci in {}", home.display());
    }
    home.join(script)
}

/// Lets `script` visit a page with what it is `told`; returns what it saw.
///
/// # Panics
///
/// When it fails, or takes longer than `deadline`.
pub async fn visit(script: &str, told: &Value, deadline: Duration) -> Value {
    let folder = Folder::new("browser");
    let driver = driver(script).to_str().expect("the folder's name is text").to_owned();
    let arguments = [driver, told.to_string()];
    let mut process = Process::start("browser", "node", &arguments, &[], folder.path());
    let status = process.wait(deadline).await;
    let output = process.output();
    assert!(status.success(), "the driver ended with {status}");
    let line = output.lines().rfind(|line| line.starts_with('{')).expect("it prints what it saw");
    serde_json::from_str(line).expect("it prints JSON")
}
