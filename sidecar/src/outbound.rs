//! What servers that we call are shown and trusted by: secret header fields, certificate authorities, and
//! whether they are this machine.

use std::{fs, path::Path, sync::Arc};

use http::HeaderValue;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// The longest certificate file, in bytes.
const CA_FILE_MAX: u64 = 1 << 20;

/// Returns `text` as the value of a field that is a secret; `None` when no field carries it.
pub(crate) fn secret_field(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns `token` as the value of `Authorization`; `None` unless it is visible ASCII.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    let visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    visible.then(|| secret_field(&format!("Bearer {token}"))).flatten()
}

/// Returns whether `host`, as it stands in a URI, is this machine.
pub(crate) fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host == "[::1]"
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the authorities in the PEM file `file`.
///
/// # Errors
///
/// With the file and what is wrong with it.
pub(crate) fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let shown = file.display();
    let unreadable = |error| format!("cannot read {shown}: {error}");
    if fs::metadata(file).map_err(unreadable)?.len() > CA_FILE_MAX {
        return Err(format!("{shown} is longer than {CA_FILE_MAX} bytes"));
    }
    let pem = fs::read(file).map_err(unreadable)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| format!("{shown} is no PEM"))?;
        roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
    }
    match roots.is_empty() {
        true => Err(format!("{shown} holds no certificate in PEM")),
        false => Ok(roots),
    }
}

/// Returns the authorities that this system trusts; `None` when there are none.
pub(crate) fn system_roots() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Some systems carry certificates that no library reads; the others count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}

/// Returns how to speak TLS with servers that `roots` vouch for.
///
/// # Errors
///
/// When the library refuses.
pub(crate) fn tls(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("tls cannot be set up: {error}"))?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}
