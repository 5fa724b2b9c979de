//! How a [`RedisStore`] is addressed: one server, a cluster, or a master behind sentinels; with which
//! user, and trusting whom.

use std::{sync::Arc, time::Duration};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisError, Script, TlsCertificates, io::tcp::TcpSettings,
};
use tokio::sync::Mutex;

use super::{
    Inner, RedisStore, SET_LIMITS_LUA, TIMEOUT_DEFAULT,
    coalesce::{Coalescer, Options},
    link::Link,
    masters::Control,
    sentinel::Sentinels,
    topology::{Place, Topology, address},
};
use crate::store::StoreError;

/// Bytes that stay unacknowledged this long mean that the server's host is gone: 3 s.
const DEAD_LINK_TIMEOUT: Duration = Duration::from_secs(3);

/// Builds a [`RedisStore`].
#[derive(Clone)]
pub struct RedisStoreBuilder {
    servers: Servers,
    options: Options,
    username: Option<String>,
    password: Option<String>,
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone)]
enum Servers {
    One(String),
    Cluster(Vec<String>),
    Sentinel { master: String, urls: Vec<String> },
}

impl RedisStore {
    /// Connects to `url`: `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    ///
    /// # Errors
    ///
    /// When the address cannot be parsed, or the server does not answer within 2 s.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Returns a builder for a store on the server at `url`, as [`RedisStore::connect`] takes it.
    #[must_use]
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Servers::One(url.to_owned()))
    }

    /// Returns a builder for a store on a Redis Cluster, found through any of its nodes at `urls`. All
    /// of them are `redis://` or all `rediss://`, with the same user and password.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), tower_merit::store::StoreError> {
    /// # use tower_merit::RedisStore;
    /// let nodes = ["redis://10.0.0.1:6379", "redis://10.0.0.2:6379"];
    /// let store = RedisStore::cluster(nodes).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Servers::Cluster(urls.into_iter().map(Into::into).collect()))
    }

    /// Returns a builder for a store on the master that the sentinels at `urls` call `master`. Users
    /// and passwords in `urls` are for the sentinels; those for the master go to
    /// [`RedisStoreBuilder::username`] and [`RedisStoreBuilder::password`]. When the first address is
    /// `rediss://` the master is spoken to over TLS as well.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), tower_merit::store::StoreError> {
    /// # use tower_merit::RedisStore;
    /// let sentinels = ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379"];
    /// let store = RedisStore::sentinel("mymaster", sentinels).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sentinel<U: Into<String>>(
        master: &str,
        urls: impl IntoIterator<Item = U>,
    ) -> RedisStoreBuilder {
        let urls = urls.into_iter().map(Into::into).collect();
        RedisStoreBuilder::new(Servers::Sentinel { master: master.to_owned(), urls })
    }
}

impl RedisStoreBuilder {
    fn new(servers: Servers) -> Self {
        Self {
            servers,
            options: Options { timeout: TIMEOUT_DEFAULT, coalesce: true, cache_denials: true },
            username: None,
            password: None,
            ca: None,
            client: None,
        }
    }

    /// Sets the longest a decision waits for Redis; 20 ms unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets whether requests that arrive while calls are in flight travel together in the next one;
    /// they do unless told not to. Either way the decisions are the same.
    #[must_use]
    pub fn coalesce(mut self, on: bool) -> Self {
        self.options.coalesce = on;
        self
    }

    /// Sets whether a refusal is repeated, without asking Redis, until the request would pass (at most
    /// [`DENIAL_MAX`](super::DENIAL_MAX)); it is unless told not to. Limits that are raised meanwhile,
    /// and tokens that another node gives back, are seen that much later.
    #[must_use]
    pub fn cache_denials(mut self, on: bool) -> Self {
        self.options.cache_denials = on;
        self
    }

    /// Sets the ACL user on the servers that hold the buckets, instead of the one in the address.
    #[must_use]
    pub fn username(mut self, username: &str) -> Self {
        self.username = Some(username.to_owned());
        self
    }

    /// Sets the password on the servers that hold the buckets, instead of the one in the address.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Trusts these authorities (PEM, one or more certificates) and no others; the system's, unless set.
    #[must_use]
    pub fn ca_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows the servers this certificate chain; both in PEM.
    #[must_use]
    pub fn client_certificate(
        mut self,
        chain: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.client = Some((chain.into(), key.into()));
        self
    }

    /// Looks at addresses and certificates, without connecting.
    ///
    /// # Errors
    ///
    /// With the first that cannot be used.
    pub fn check(&self) -> Result<(), StoreError> {
        self.topology().map(drop)
    }

    /// Connects, and waits until the servers have answered once.
    ///
    /// # Errors
    ///
    /// When an address or a certificate cannot be used, or the servers do not answer within 2 s.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store = self.connect_lazily()?;
        store.ping().await?;
        Ok(store)
    }

    /// Returns a store that connects in the background: until it has, every decision follows the
    /// outage policy.
    ///
    /// # Errors
    ///
    /// When an address or a certificate cannot be used.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazily(self) -> Result<RedisStore, StoreError> {
        let (topology, address) = self.topology()?;
        let link = Link::open(&topology);
        Ok(RedisStore {
            inner: Arc::new(Inner {
                coalescer: Coalescer::new(self.options, link.clone(), address.clone()),
                link,
                control: Mutex::new(Control::new(topology)),
                address,
                timeout: self.options.timeout,
                set_limits: Script::new(SET_LIMITS_LUA),
            }),
        })
    }

    /// Returns where the servers are, and how to call them in messages.
    fn topology(&self) -> Result<(Topology, String), StoreError> {
        let topology = match &self.servers {
            Servers::One(url) => {
                let client = self.client(self.node(url)?)?;
                let shown = address(&client);
                (Topology::Master(Place::Fixed(client)), shown)
            }
            Servers::Cluster(urls) => self.cluster_of(urls)?,
            Servers::Sentinel { master, urls } => self.behind_sentinels(master, urls)?,
        };
        Ok(topology)
    }

    fn cluster_of(&self, urls: &[String]) -> Result<(Topology, String), StoreError> {
        let nodes: Vec<ConnectionInfo> =
            urls.iter().map(|url| self.node(url)).collect::<Result<_, _>>()?;
        let Some(first) = nodes.first() else {
            return Err(unusable("at least one node of the cluster is needed"));
        };
        for node in &nodes {
            let (redis, like) = (node.redis_settings(), first.redis_settings());
            if matches!(node.addr(), ConnectionAddr::Unix(_)) {
                return Err(unusable("a cluster is reached over TCP, not through a socket file"));
            }
            if redis.db() != 0 {
                return Err(unusable("a cluster has database 0 only: leave /<db> out"));
            }
            if (redis.username(), redis.password()) != (like.username(), like.password()) {
                return Err(unusable("all nodes of a cluster have one user and password"));
            }
            if is_tls(node) != is_tls(first) {
                return Err(unusable("all nodes of a cluster are redis://, or all are rediss://"));
            }
        }
        let seeds: Vec<Client> =
            nodes.into_iter().map(|node| self.client(node)).collect::<Result<_, _>>()?;
        let shown = seeds.iter().map(address).collect::<Vec<_>>().join(", ");
        Ok((Topology::Cluster(seeds.into()), shown))
    }

    fn behind_sentinels(
        &self,
        master: &str,
        urls: &[String],
    ) -> Result<(Topology, String), StoreError> {
        if master.is_empty() || urls.is_empty() {
            return Err(unusable("the master's name and at least one sentinel are needed"));
        }
        let sentinels: Vec<ConnectionInfo> =
            urls.iter().map(|url| parse(url)).collect::<Result<_, _>>()?;
        for sentinel in &sentinels {
            if matches!(sentinel.addr(), ConnectionAddr::Unix(_)) {
                return Err(unusable("a sentinel is reached over TCP, not through a socket file"));
            }
            if sentinel.redis_settings().db() != 0 {
                return Err(unusable("a sentinel has no databases: leave /<db> out"));
            }
        }
        let clients: Vec<Client> =
            sentinels.iter().map(|at| self.client(at.clone())).collect::<Result<_, _>>()?;
        let shown = clients.iter().map(address).collect::<Vec<_>>().join(", ");
        // What the sentinels are told of themselves is not for the master.
        let node = clients[0].get_connection_info().clone();
        let node = node.set_redis_settings(self.credentials(Default::default()));
        let shown = format!("{master} behind {shown}");
        let sentinels = Sentinels::new(master, clients, node);
        Ok((Topology::Master(Place::Sentinel(sentinels)), shown))
    }

    /// Parses the address of a server that holds buckets.
    fn node(&self, url: &str) -> Result<ConnectionInfo, StoreError> {
        let info = parse(url)?;
        let redis = self.credentials(info.redis_settings().clone());
        Ok(info.set_redis_settings(redis))
    }

    fn credentials(&self, mut redis: redis::RedisConnectionInfo) -> redis::RedisConnectionInfo {
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password);
        }
        redis
    }

    fn has_certificates(&self) -> bool {
        self.ca.is_some() || self.client.is_some()
    }

    fn certificates(&self) -> TlsCertificates {
        TlsCertificates {
            client_tls: self
                .client
                .clone()
                .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: self.ca.clone(),
        }
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, StoreError> {
        if !is_tls(&info) {
            if self.has_certificates() {
                return Err(unusable("certificates need an address that begins with rediss://"));
            }
            return Client::open(info).map_err(StoreError::address);
        }
        provide_tls()?;
        for pem in self.ca.iter().chain(self.client.as_ref().map(|(chain, _)| chain)) {
            // An empty list of authorities would make every handshake fail, without saying why.
            if !String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----") {
                return Err(unusable("certificates must be PEM: found none in what was given"));
            }
        }
        if self.has_certificates() {
            Client::build_with_tls(info, self.certificates()).map_err(StoreError::address)
        } else {
            Client::open(info).map_err(StoreError::address)
        }
    }
}

fn unusable(why: &'static str) -> StoreError {
    StoreError::address(RedisError::from((ErrorKind::InvalidClientConfig, why)))
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true).set_user_timeout(DEAD_LINK_TIMEOUT)
}

fn parse(url: &str) -> Result<ConnectionInfo, StoreError> {
    let info = url.into_connection_info().map_err(StoreError::address)?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(unusable("#insecure would trust anybody: give the authority's certificate"));
    }
    Ok(info.set_tcp_settings(tcp()))
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

/// Sees to it that rustls has a provider: it would panic without one. One that the process has
/// installed is left alone.
fn provide_tls() -> Result<(), StoreError> {
    use rustls::crypto::CryptoProvider;
    if CryptoProvider::get_default().is_none() {
        #[cfg(feature = "aws-lc-rs")]
        // Somebody else may have been quicker, which serves as well.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    match CryptoProvider::get_default() {
        Some(_) => Ok(()),
        None => Err(unusable("rediss:// needs a rustls provider: install one in main")),
    }
}

/// The addresses may carry passwords: nothing of them is shown.
impl std::fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStoreBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn refused(builder: &RedisStoreBuilder) -> String {
        let error = builder.check().unwrap_err();
        error.source().unwrap().to_string()
    }

    #[test]
    fn addresses_of_every_form_are_taken() {
        for url in ["redis://h", "redis://u:p@h:1/3", "rediss://h:6380", "unix:///run/redis.sock"] {
            RedisStore::builder(url).check().unwrap();
        }
        RedisStore::cluster(["redis://a:1", "redis://b:2"]).check().unwrap();
        RedisStore::cluster(["rediss://a:1", "rediss://b:2"]).check().unwrap();
        RedisStore::sentinel("m", ["redis://:own@a:1"]).username("u").check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_connects() {
        let builder = RedisStore::builder;
        let none: [&str; 0] = [];
        for (builder, why) in [
            (builder("http://h"), "URL"),
            (builder("rediss://h/#insecure"), "trust anybody"),
            (builder("redis://h").ca_certificates("x"), "rediss://"),
            (builder("rediss://h").ca_certificates("x"), "found none"),
            (RedisStore::cluster(none), "at least one"),
            (RedisStore::cluster(["redis://a/2"]), "database 0"),
            (RedisStore::cluster(["redis://a", "rediss://b"]), "all are rediss://"),
            (RedisStore::cluster(["redis://u:p@a", "redis://u:q@b"]), "one user"),
            (RedisStore::sentinel("m", none), "at least one"),
            (RedisStore::sentinel("", ["redis://a"]), "name"),
            (RedisStore::sentinel("m", ["redis://a/1"]), "no databases"),
            (RedisStore::sentinel("m", ["unix:///s"]), "TCP"),
        ] {
            let told = refused(&builder);
            assert!(told.contains(why), "{why} is not in {told}");
        }
    }

    #[test]
    fn neither_a_message_nor_debug_shows_a_password() {
        let builder = RedisStore::cluster(["redis://u:hunter2@a:1", "redis://u:hunter2@b:2"]);
        let (_, shown) = builder.topology().unwrap();
        assert_eq!(shown, "a:1, b:2");
        assert!(!format!("{builder:?}").contains("hunter2"));
        let sentinel = RedisStore::sentinel("m", ["redis://:hunter2@a:1"]).password("hunter3");
        let (_, shown) = sentinel.topology().unwrap();
        assert_eq!(shown, "m behind a:1");
    }

    #[test]
    fn the_sentinels_password_is_not_sent_to_the_master() {
        let builder = RedisStore::sentinel("m", ["redis://s:own@a:1"]).username("u").password("p");
        let (Topology::Master(Place::Sentinel(sentinels)), _) = builder.topology().unwrap() else {
            panic!("not behind sentinels")
        };
        let redis = sentinels.node().redis_settings();
        assert_eq!((redis.username(), redis.password()), (Some("u"), Some("p")));
    }
}
