//! The connection, and the names of everything that is ours on the server.

use super::config::{Config, Login};
use crate::bus::{BusError, Cause, Partition};
use async_nats::{
    ConnectOptions, Event,
    jetstream::{self, Context, kv, stream},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tracing::{info, warn};

/// How long a request may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// The dead letters that are kept.
const DEAD_KEPT: i64 = 10_000;

/// What to look at when there is no connection: the client does not tell a certificate that it does
/// not trust from a cable that is cut.
const REMEDY: &str = "look at bus.url, the certificates and the login";

/// The last that the client said of a connection that is away.
type Trouble = Arc<Mutex<Option<String>>>;

/// A connection that comes back by itself. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) context: Context,
    pub(super) config: Config,
    /// Why there is no connection, as far as the client said.
    trouble: Trouble,
    /// The address, for messages.
    pub(super) address: String,
}

impl Link {
    /// Begins to connect; a server that is away is no error.
    ///
    /// # Errors
    ///
    /// When a secret cannot be read or the client refuses its settings.
    pub(super) async fn open(config: &Config) -> Result<Self, BusError> {
        let address = config.servers().collect::<Vec<_>>().join(", ");
        let trouble = Trouble::default();
        let tls = address.starts_with("tls://");
        let mut options = ConnectOptions::new()
            .name("merit")
            .retry_on_initial_connect()
            .connection_timeout(DEADLINE)
            .request_timeout(Some(DEADLINE))
            .require_tls(tls)
            .event_callback({
                let (trouble, address) = (Arc::clone(&trouble), address.clone());
                move |event| {
                    note(&trouble, &address, event);
                    std::future::ready(())
                }
            });
        if let Some(file) = &config.tls_ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let (Some(chain), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) {
            options = options.add_client_certificate(chain.clone(), key.clone());
        }
        options = match config.login()? {
            Login::Nobody => options,
            Login::User(name, password) => {
                options.user_and_password(name, password.expose().to_owned())
            }
            Login::Token(token) => options.token(token.expose().to_owned()),
            Login::Credentials(file) => options.credentials(file.expose()).map_err(|_| {
                // What the client says of it may repeat what stands there.
                let problem = "is no .creds file: a JWT and a seed, each between its lines";
                BusError::Config { key: "credentials_file", problem: problem.to_owned() }
            })?,
        };
        let servers: Vec<String> = config.servers().map(str::to_owned).collect();
        let failed = |error: async_nats::ConnectError| BusError::Unavailable {
            address: address.clone(),
            source: error.into(),
        };
        let client = options.connect(servers).await.map_err(failed)?;
        let mut context = jetstream::new(client);
        context.set_timeout(config.delivery_timeout);
        Ok(Self { context, config: config.clone(), trouble, address })
    }

    /// Returns `error` with why there is no connection, when there is none.
    pub(super) fn explain(&self, error: impl Into<Cause>) -> Cause {
        let error = error.into();
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(trouble) => format!("{error}; {trouble}: {REMEDY}").into(),
            None => error,
        }
    }

    /// Returns what the names of streams and buckets begin with: they have no dots.
    fn base(&self) -> String {
        self.config.topic.replace('.', "_")
    }

    pub(super) fn subject(&self, partition: Partition) -> String {
        format!("{}.{partition}", self.config.topic)
    }

    pub(super) fn stream_name(&self, partition: Partition) -> String {
        format!("{}-{partition}", self.base())
    }

    pub(super) fn dead_subject(&self) -> String {
        format!("{}.dead", self.config.topic)
    }

    fn stored(&self, name: String, subject: String) -> stream::Config {
        stream::Config {
            name,
            subjects: vec![subject],
            storage: stream::StorageType::File,
            num_replicas: usize::from(self.config.replicas),
            ..Default::default()
        }
    }

    /// Makes the streams of partitions `from..to` where they are missing.
    pub(super) async fn make_streams(&self, from: u32, to: u32) -> Result<(), Cause> {
        let room = i64::try_from(self.config.length_max).unwrap_or(i64::MAX);
        for partition in (from..to).map(Partition) {
            let name = self.stream_name(partition);
            let wanted = stream::Config {
                max_messages: room,
                discard: stream::DiscardPolicy::New,
                ..self.stored(name, self.subject(partition))
            };
            self.context.get_or_create_stream(wanted).await?;
        }
        Ok(())
    }

    /// Makes the stream of dead letters where it is missing.
    pub(super) async fn make_dead(&self) -> Result<(), Cause> {
        let wanted = stream::Config {
            max_messages: DEAD_KEPT,
            discard: stream::DiscardPolicy::Old,
            ..self.stored(format!("{}_dead", self.base()), self.dead_subject())
        };
        self.context.get_or_create_stream(wanted).await?;
        Ok(())
    }

    async fn bucket(&self, suffix: &str, max_age: Duration) -> Result<kv::Store, Cause> {
        let bucket = format!("{}_{suffix}", self.base());
        if let Ok(found) = self.context.get_key_value(&bucket).await {
            return Ok(found);
        }
        let wanted = kv::Config {
            bucket,
            max_age,
            history: 1,
            storage: stream::StorageType::File,
            num_replicas: usize::from(self.config.replicas),
            ..Default::default()
        };
        Ok(self.context.create_key_value(wanted).await?)
    }

    /// Returns the bucket of what is kept for good.
    pub(super) async fn log_bucket(&self) -> Result<kv::Store, Cause> {
        self.bucket("log", Duration::ZERO).await
    }

    /// Returns the bucket of what is forgotten after a lease.
    pub(super) async fn lease_bucket(&self) -> Result<kv::Store, Cause> {
        self.bucket("leases", self.config.lease).await
    }
}

/// Logs what changes, and keeps the reason of what does not work.
fn note(trouble: &Trouble, address: &str, event: Event) {
    let mut trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
        Event::Connected => {
            if trouble.take().is_some() {
                info!(bus = address, "nats answers");
            }
        }
        Event::ServerError(_) | Event::ClientError(_) | Event::Disconnected => {
            let reason = event.to_string();
            // It is tried again many times a second.
            if trouble.as_ref() != Some(&reason) && event_says_why(&event, trouble.is_some()) {
                warn!(bus = address, reason, remedy = REMEDY, "no connection to nats");
                *trouble = Some(reason);
            }
        }
        Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining | Event::Closed => {}
    }
}

/// Returns false for a mere end of a connection whose reason is known already.
fn event_says_why(event: &Event, known: bool) -> bool {
    !(known && matches!(event, Event::Disconnected))
}

/// Returns how many partitions the log has; a larger wish is granted.
pub(super) async fn partitions(log: &kv::Store, wanted: u32) -> Result<u32, Cause> {
    loop {
        let found = log.entry("partitions").await?;
        let (count, revision) = match &found {
            Some(entry) if entry.operation == kv::Operation::Put => {
                (std::str::from_utf8(&entry.value)?.parse::<u32>()?, entry.revision)
            }
            Some(entry) => (0, entry.revision),
            None => (0, 0),
        };
        if count >= wanted {
            return Ok(count);
        }
        match log.update("partitions", wanted.to_string().into(), revision).await {
            Ok(_) => return Ok(wanted),
            // Somebody else was quicker: perhaps with a larger wish.
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => return Err(error.into()),
        }
    }
}
