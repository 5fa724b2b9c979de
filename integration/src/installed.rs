//! Servers that a script of this folder finds, or fetches for whoever is the first to ask.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

/// Returns what the script `name` says of where its program is.
///
/// # Panics
///
/// When the script fails, with what it said.
pub(crate) async fn script(name: &str, arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let asked = Command::new(script).args(arguments).stdin(Stdio::null()).output().await;
    let asked = asked.unwrap_or_else(|error| panic!("{name} cannot be run: {error}"));
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "{name}: {said}");
    String::from_utf8_lossy(&asked.stdout).trim().to_owned()
}
