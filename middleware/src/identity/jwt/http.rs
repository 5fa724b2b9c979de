//! A key set behind a URL.
//!
//! 1. `https`, or `http` to this machine alone: whoever can change the set can be anybody.
//! 2. A redirect is an error, wherever it leads: the configured address is the trusted one.
//! 3. The body is bounded, and read as JSON whatever its content type says.
//! 4. A query may be a secret, and so may what stands before an `@`: neither is shown.
//! 5. A connection per fetch, closed after it: fetches are minutes apart. No proxy is used.

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

use super::{
    JwtIdentity,
    jwks::KEY_SET_MAX,
    source::{FetchError, KeySource},
};

/// Why an address cannot be a source of keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwksUrlError {
    /// No absolute URL.
    #[error("key set url {url:?} must be absolute, like https://id.example.com/jwks.json")]
    Url {
        /// The refused address.
        url: String,
    },
    /// Neither `https` nor `http` to this machine.
    #[error("key set url {url:?} must be https, or http to localhost, 127.0.0.0/8 or [::1]")]
    Insecure {
        /// The refused address.
        url: String,
    },
    /// A name or password in the URL would show up in logs.
    #[error("key set url must not hold a user name or password")]
    Credentials,
    /// The certificates given are none.
    #[error("key set authority must be certificates in PEM")]
    Authority {
        /// What is wrong with them, when they are PEM at all.
        #[source]
        source: Option<rustls::Error>,
    },
    /// The system has no certificates of authorities.
    #[error("system has no certificates to trust: install them, or give the key set's authority")]
    NoRoots,
    /// The TLS library refuses its own defaults.
    #[error("tls cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// A key set behind a URL, as a [`KeySource`].
pub struct JwksUrl {
    uri: Uri,
    name: String,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl JwksUrl {
    /// Returns the source at `url`, whose certificate the system's authorities vouch for.
    ///
    /// # Errors
    ///
    /// When the address is neither `https` nor `http` to this machine, or the system trusts nobody.
    pub fn new(url: &str) -> Result<Self, JwksUrlError> {
        let uri = check(url)?;
        // Plain `http` to this machine needs no certificates, so a system without any may use it.
        let roots = match uri.scheme() == Some(&Scheme::HTTPS) {
            true => system_roots()?,
            false => RootCertStore::empty(),
        };
        Self::with(uri, roots)
    }

    /// Returns the source at `url`, whose certificate one of these authorities (PEM), and no other,
    /// vouches for.
    ///
    /// # Errors
    ///
    /// As [`JwksUrl::new`], and when `authorities` holds no certificate.
    pub fn with_authorities(
        url: &str,
        authorities: impl AsRef<[u8]>,
    ) -> Result<Self, JwksUrlError> {
        let uri = check(url)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities.as_ref()) {
            let certificate = certificate.map_err(|_| JwksUrlError::Authority { source: None })?;
            let added = roots.add(certificate);
            added.map_err(|source| JwksUrlError::Authority { source: Some(source) })?;
        }
        match roots.is_empty() {
            true => Err(JwksUrlError::Authority { source: None }),
            false => Self::with(uri, roots),
        }
    }

    fn with(uri: Uri, roots: RootCertStore) -> Result<Self, JwksUrlError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { name: shown(&uri.to_string()), uri, client })
    }
}

impl std::fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwksUrl").field("url", &self.name).finish_non_exhaustive()
    }
}

impl JwtIdentity {
    /// Verifies with the keys of the JSON Web Key Set at `url`, refreshed in the background.
    ///
    /// ```
    /// use tower_merit::JwtIdentity;
    ///
    /// # fn identity() -> Result<JwtIdentity, Box<dyn std::error::Error>> {
    /// let identity = JwtIdentity::jwks_url("https://id.example.com/.well-known/jwks.json")?
    ///     .issuer("https://id.example.com/")
    ///     .audience("openclaw");
    /// # Ok(identity)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`JwksUrl::new`].
    pub fn jwks_url(url: &str) -> Result<Self, JwksUrlError> {
        Ok(Self::key_source(JwksUrl::new(url)?))
    }
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("no answer")]
    Request(#[from] hyper_util::client::legacy::Error),
    #[error("answer is {status}: only 200 is taken, and no redirect is followed")]
    Status { status: StatusCode },
    #[error("body broke off, or is longer than {KEY_SET_MAX} bytes")]
    Body(#[source] FetchError),
}

impl KeySource for JwksUrl {
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + '_>> {
        Box::pin(async move { Ok(self.get().await?) })
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl JwksUrl {
    async fn get(&self) -> Result<Bytes, HttpError> {
        let request = Request::get(self.uri.clone())
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, concat!("tower-merit/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .expect("the address was checked");
        let response = self.client.request(request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(HttpError::Status { status });
        }
        let body = Limited::new(response.into_body(), KEY_SET_MAX);
        Ok(body.collect().await.map_err(HttpError::Body)?.to_bytes())
    }
}

fn check(url: &str) -> Result<Uri, JwksUrlError> {
    let absolute = || JwksUrlError::Url { url: shown(url) };
    let uri: Uri = url.parse().map_err(|_| absolute())?;
    let authority = uri.authority().ok_or_else(absolute)?;
    if authority.as_str().contains('@') {
        return Err(JwksUrlError::Credentials);
    }
    let host = authority.host();
    let local = host.eq_ignore_ascii_case("localhost")
        || host == "[::1]"
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS && !host.is_empty() => Ok(uri),
        Some(scheme) if *scheme == Scheme::HTTP && local => Ok(uri),
        _ => Err(JwksUrlError::Insecure { url: shown(url) }),
    }
}

/// Returns `url` without user, password and query.
fn shown(url: &str) -> String {
    let (address, query) = url.split_once('?').map_or((url, ""), |(address, _)| (address, "?***"));
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let (user, host) = rest.rsplit_once('@').map_or(("", rest), |(_, host)| ("***@", host));
    let mark = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{mark}{user}{host}{query}")
}

fn system_roots() -> Result<RootCertStore, JwksUrlError> {
    let mut roots = RootCertStore::empty();
    // Some systems carry certificates that no library reads; the others count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err(JwksUrlError::NoRoots),
        false => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_goes_to_this_machine_alone() {
        for url in
            ["http://localhost/k", "http://LOCALHOST:80/", "http://127.0.0.2:9/k", "http://[::1]/k"]
        {
            assert!(JwksUrl::new(url).is_ok(), "{url}");
        }
        for url in [
            "http://id.example.com/k",
            "http://127.0.0.1.example.com/k",
            "http://localhost.example.com/k",
            "http://[::2]/k",
            "http://10.0.0.1/k",
            "http://0x7f000001/k",
            "ftp://localhost/k",
            "file:///etc/keys",
        ] {
            assert!(JwksUrl::new(url).is_err(), "{url}");
        }
    }

    #[test]
    fn an_address_without_a_host_or_with_a_password_is_refused() {
        for url in ["", "/jwks.json", "id.example.com/jwks", "https://", "https:///k", "http:// /"]
        {
            assert!(JwksUrl::new(url).is_err(), "{url}");
        }
        let error = JwksUrl::new("https://user:hunter2@id.example.com/k").unwrap_err();
        assert!(matches!(error, JwksUrlError::Credentials));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn what_may_be_a_secret_in_an_address_is_never_shown() {
        let source = JwksUrl::new("http://localhost/keys?token=hunter2").unwrap();
        assert_eq!(source.name(), "http://localhost/keys?***");
        assert!(!format!("{source:?}").contains("hunter2"));
        for url in [
            "http://id.example.com/keys?token=hunter2",
            "https://u:hunter2@id.example.com/a b",
            "u:hunter2@id.example.com",
            "/keys?hunter2",
        ] {
            let error = JwksUrl::new(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn authorities_that_are_no_certificates_are_refused() {
        for pem in ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            let source = JwksUrl::with_authorities("https://id.example.com/k", pem);
            assert!(matches!(source, Err(JwksUrlError::Authority { .. })), "{pem}");
        }
    }
}
