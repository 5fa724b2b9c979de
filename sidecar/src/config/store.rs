//! Where Redis is, who we are there, and whom we trust: read into what connects.

use std::{error::Error, path::Path};

use tower_merit::{
    RedisStore,
    store::{RedisStoreBuilder, StoreError},
};

use super::{Config, Store, StoreKind, cause, read};
use crate::{bus::BusConfig, secret::Secret};

impl Config {
    /// Returns what connects to the configured Redis.
    ///
    /// # Errors
    ///
    /// With every fault of `[store]` that keeps it from doing so, each with its path.
    pub fn redis(&self) -> Result<RedisStoreBuilder, Vec<String>> {
        let mut faults = Vec::new();
        let builder = self.store.redis(&mut faults);
        builder.filter(|_| faults.is_empty()).ok_or(faults)
    }
}

impl Store {
    /// Gives a bus over Redis that names no server this one, with all that it takes to get in.
    pub(super) fn lend_to(&self, bus: &mut BusConfig) {
        let BusConfig::Redis(bus) = bus else { return };
        if bus.url.is_some() || bus.url_env.is_some() || self.kind != StoreKind::Redis {
            return;
        }
        bus.url.clone_from(&self.url);
        bus.url_env.clone_from(&self.url_env);
        bus.username.clone_from(&self.username);
        bus.password_env.clone_from(&self.password_env);
        bus.password_file.clone_from(&self.password_file);
        bus.tls_ca_file.clone_from(&self.tls_ca_file);
        bus.tls_cert_file.clone_from(&self.tls_cert_file);
        bus.tls_key_file.clone_from(&self.tls_key_file);
    }

    /// Returns how many ways of saying where Redis is are used.
    fn places(&self) -> usize {
        usize::from(self.url.is_some())
            + usize::from(self.url_env.is_some())
            + usize::from(!self.cluster.is_empty())
            + usize::from(self.sentinel.is_some())
    }

    fn redis(&self, faults: &mut Vec<String>) -> Option<RedisStoreBuilder> {
        if self.places() != 1 {
            faults.push(format!(
                "store: say where Redis is by one of url, url_env, cluster and sentinel; {} are set",
                self.places()
            ));
        }
        let identified = self.identified(faults);
        let place = self.place(faults);
        let (Some(identify), Some((path, builder))) = (identified, place) else { return None };
        let builder = identify(builder).timeout(self.timeout);
        // A fault of one address was told with its place in the list.
        let told = faults.iter().any(|fault| fault.starts_with(path));
        if let (false, Err(error)) = (told, builder.check()) {
            faults.push(format!("{path}: {}", why(&error)));
        }
        Some(builder)
    }

    /// Returns the addresses, and the path of the key that they stand in.
    fn place(&self, faults: &mut Vec<String>) -> Option<(&'static str, RedisStoreBuilder)> {
        let mut check = |path: String, builder: RedisStoreBuilder| {
            if let Err(error) = builder.check() {
                faults.push(format!("{path}: {}", why(&error)));
            }
        };
        if let Some(sentinel) = &self.sentinel {
            for (index, url) in sentinel.urls.iter().enumerate() {
                let one = RedisStore::sentinel("any", [&**url]);
                check(format!("store.sentinel.urls[{index}]"), one);
            }
            let urls = sentinel.urls.iter().map(|url| &**url);
            return Some(("store.sentinel", RedisStore::sentinel(&sentinel.master, urls)));
        }
        if !self.cluster.is_empty() {
            for (index, url) in self.cluster.iter().enumerate() {
                check(format!("store.cluster[{index}]"), RedisStore::cluster([&**url]));
            }
            return Some((
                "store.cluster",
                RedisStore::cluster(self.cluster.iter().map(|url| &**url)),
            ));
        }
        match (&self.url, &self.url_env) {
            (Some(url), _) => Some(("store.url", RedisStore::builder(url))),
            (None, Some(variable)) => match variable.read() {
                Ok(url) => Some(("store.url_env", RedisStore::builder(url.expose()))),
                Err(error) => {
                    faults.push(format!("store.url_env: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    /// Returns what adds user, password and certificates; `None` when one of them is not there.
    fn identified(
        &self,
        faults: &mut Vec<String>,
    ) -> Option<impl Fn(RedisStoreBuilder) -> RedisStoreBuilder + use<>> {
        let before = faults.len();
        let password = self.password(faults);
        let mut certificates = |key: &str, path: &Option<std::path::PathBuf>| {
            path.as_deref().and_then(|path| text(key, path, faults))
        };
        let ca = certificates("tls_ca_file", &self.tls_ca_file);
        let chain = certificates("tls_cert_file", &self.tls_cert_file);
        let key = self.tls_key_file.as_ref().and_then(|file| {
            let unreadable = |error| faults.push(format!("store.tls_key_file: {error}"));
            file.read().map_err(unreadable).ok()
        });
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            faults.push("store.tls_cert_file: goes with store.tls_key_file, set both".to_owned());
        }
        let username = self.username.clone();
        (faults.len() == before).then_some(move |mut builder: RedisStoreBuilder| {
            if let Some(username) = &username {
                builder = builder.username(username);
            }
            if let Some(password) = &password {
                builder = builder.password(password.expose());
            }
            if let Some(ca) = &ca {
                builder = builder.ca_certificates(ca.as_str());
            }
            if let (Some(chain), Some(key)) = (&chain, &key) {
                builder = builder.client_certificate(chain.as_str(), key.expose());
            }
            builder
        })
    }

    fn password(&self, faults: &mut Vec<String>) -> Option<Secret> {
        match (&self.password_env, &self.password_file) {
            (None, None) => {
                if self.username.is_some() {
                    faults.push(
                        "store.username: needs store.password_env or password_file".to_owned(),
                    );
                }
                None
            }
            (Some(variable), None) => {
                let unset = |error| faults.push(format!("store.password_env: {error}"));
                variable.read().map_err(unset).ok()
            }
            (None, Some(file)) => {
                let unreadable = |error| faults.push(format!("store.password_file: {error}"));
                file.read_one().map_err(unreadable).ok()
            }
            (Some(_), Some(_)) => {
                faults.push("store.password_env: set it or password_file, one of them".to_owned());
                None
            }
        }
    }
}

fn text(key: &str, path: &Path, faults: &mut Vec<String>) -> Option<String> {
    let found = read(path).map_err(|error| {
        faults.push(format!("store.{key}: {error}: {}", cause(&error)));
    });
    found.ok()
}

/// Returns why an address is not usable. Redis' client adds the kind of its error, which says nothing
/// to an operator, and sometimes what it read, which may be a secret: both are left out.
fn why(error: &StoreError) -> String {
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    match cause.split(" - InvalidClientConfig").next().unwrap_or_default() {
        "Redis URL did not parse" => {
            "must be redis://[user:password@]host[:port][/database], or rediss:// for TLS"
                .to_owned()
        }
        why => why.to_owned(),
    }
}
