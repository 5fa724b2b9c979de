//! One process: the parts that its role asks for, started together and stopped in order.
//!
//! 1. Every listener is bound before anything starts; what cannot be bound is an error by name.
//! 2. Redis or the bus being away is no error at the start: `/readyz` says so until they answer.
//! 3. To stop: listeners close and finish what is in flight, and so does the feed bridge, then ratings that the gateway is still
//!    handing on reach the bus, tokens taken ahead go back to the store, then the tuner takes what is left off the in-process bus, or gives
//!    its partitions back. Each step has a deadline; together they are below 30 s (`STOP_DEADLINE` and what is written last).

mod buckets;
mod connections;
mod demo;
mod explain;
mod linger;
mod serve;
mod store;

pub use demo::{DemoError, Options as DemoOptions, run as demo};

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AdmissionLayer, BuildError, JwtVerifier, MemoryStore, Outage,
    bucket::Limits,
    store::{LeasedError, StoreError},
};
use tracing::{error, info, warn};

use self::{
    buckets::{Buckets, Those},
    store::Store,
};
use crate::{
    admin::{self, Health},
    bus::{BusConfig, BusError, Consumer, Publisher},
    clock,
    config::{Config, Role},
    decisions::{Log, LogConfig, LogError, Logging},
    gateway, ingest,
    openapi::{self, Listener},
    personalize::{Node, NodeError, Personalized, Viewers},
    rls,
    tuner::{self, Operator, Tuner, TunerError},
};

/// Why a process cannot start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// A value of the configuration cannot be used; it names its path.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on.
    #[error("{}: cannot listen on {address}", key(name))]
    Bind {
        /// The listener: its table, `ingest.grpc` for the second of ingest.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store cannot be used as configured.
    #[error("store")]
    Store(#[from] StoreError),
    /// Leases cannot be given as configured.
    #[error("store")]
    Leases(#[from] LeasedError),
    /// The bus cannot be used as configured.
    #[error("bus")]
    Bus(#[from] BusError),
    /// The admission layer cannot be built.
    #[error("gateway")]
    Admission(#[from] BuildError),
    /// The gateway cannot be built.
    #[error("gateway")]
    Gateway(#[from] gateway::GatewayError),
    /// Ingest cannot be built.
    #[error("ingest")]
    Ingest(#[from] ingest::ApiKeysError),
    /// The feed bridge cannot start, or ended.
    #[error("feed bridge")]
    Feed(#[from] ingest::feed::FeedError),
    /// The admin listener cannot be guarded.
    #[error("admin")]
    Admin(#[from] admin::AdminError),
    /// Decisions cannot be logged.
    #[error("policy.decision_log")]
    Decisions(#[from] LogError),
    /// Personalised ratings cannot be learned, or ended.
    #[error("personalised ratings")]
    Personalized(#[from] NodeError),
    /// The tuner ended.
    #[error("tuner")]
    Tuner(#[from] TunerError),
    /// The tuner ended by a fault of ours.
    #[error("tuner or personalised ratings panicked")]
    Panicked,
}

/// Returns where the address of the listener `name` is configured.
fn key(name: &str) -> String {
    match name {
        "ingest.grpc" => "ingest.grpc_listen".to_owned(),
        table => format!("{table}.listen"),
    }
}

/// A process that runs.
pub struct Running {
    /// Where each listener listens, by its table's name.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    stop: CancellationToken,
    stop_tuner: CancellationToken,
    servers: JoinSet<()>,
    bridge: Option<ingest::feed::Bridge>,
    handing_on: Option<gateway::HandingOn>,
    tuner: JoinSet<Result<(), TunerError>>,
    node: JoinSet<Result<(), NodeError>>,
    drains: bool,
    store: Store,
    health: Option<Health>,
    aims: watch::Sender<tuner::Aim>,
    /// Takes over buckets that are changed.
    following: JoinSet<()>,
    logging: Option<Logging>,
}

/// Starts the parts of `role`.
///
/// # Errors
///
/// When an address is taken, or a key, a secret or an address in the configuration cannot be used.
pub async fn start(
    config: &Config,
    role: Role,
    metrics: PrometheusHandle,
) -> Result<Running, AppError> {
    // A bridge limits nobody: whatever the store, it needs none.
    let (store, health) = match role {
        Role::Feed => (Store::Memory(MemoryStore::new()), Health::new()),
        _ => Store::open(config)?,
    };
    start_with(config, role, metrics, store, health).await
}

async fn start_with(
    config: &Config,
    role: Role,
    metrics: PrometheusHandle,
    store: Store,
    mut health: Health,
) -> Result<Running, AppError> {
    let listeners = Listeners::bind(config, role).await?;
    // Buckets and routes may be others than the file's; all the rest is the file's.
    let file = config;
    let buckets = match role {
        // A bridge has neither buckets nor a store, and who only ingests asks for neither.
        Role::Feed => None,
        Role::Ingest if file.admin.listen.is_none() => None,
        _ => Some(Buckets::open(file, store.clone()).await),
    };
    let config =
        buckets.as_ref().map_or_else(|| file.clone(), |buckets| buckets.in_force().clone());
    let config = &config;
    let (aim, rules) = match role {
        Role::Feed => {
            let nothing = Limits::per_second(0.0, 0).expect("nothing is in range");
            (tuner::Aim::new(config.policy.clone(), nothing), Arc::default())
        }
        _ => (config.aim(), config.bucket_rules()),
    };
    let ((aims, changes), rules) = (watch::channel(aim.clone()), watch::Sender::new(rules));
    let tees =
        role.guards() && config.gateway.listen.is_some() && config.gateway.tee_ratings.is_some();
    let ingests = role.ingests() && config.ingest.listens();
    let takes = ingests || tees;
    let feed = config.feed.as_ref().filter(|_| role.bridges());
    let publishes = takes || feed.is_some_and(|feed| feed.publish);
    // A tuner by itself publishes nothing; it asks the bus through this end whether it is there.
    let guards = role.guards() && config.gateway.listen.is_some();
    let personalizes = config.personalize.enabled && (guards || ingests);
    let name = format!("personalize-{}", config.personalize.node_name(role.name()));
    let follows = personalizes.then_some(name.as_str());
    let (publisher, consumer, follower) =
        bus(&config.bus, publishes || role.tunes(), role.tunes(), follows).await?;

    if let Some(publisher) = publisher.clone() {
        health = health.part("bus", move || {
            let publisher = publisher.clone();
            async move { publisher.check().await }
        });
    }

    // Who is let serve by its outage policy must not be taken out of service by the outage.
    let answers = listeners.rls.is_some();
    if (guards || answers) && config.store.on_outage != Outage::Closed {
        health = health.spare("store").spare("bus");
    }

    let (stop, stop_tuner) = (CancellationToken::new(), CancellationToken::new());
    let told = Arc::new(Notify::new());
    let mut servers = JoinSet::new();
    let ends = stop.clone();
    servers
        .spawn(async move { ends.run_until_cancelled(clock::watch()).await.unwrap_or_default() });
    let mut addresses = Vec::new();
    let mut serve = |name, listener: TcpListener, router: Router| {
        if let Ok(address) = listener.local_addr() {
            info!(listener = name, %address, "listening");
            addresses.push((name, address));
        }
        servers.spawn(serve::serve(name, listener, router, stop.clone()));
    };
    let faults = |faults: Vec<String>| AppError::Config(faults.join("; "));
    let asks = config.rls.identify == rls::Identified::Request;
    let verifier = match ingests || listeners.gateway.is_some() || (answers && asks) {
        true => config.tokens().map_err(faults)?,
        false => None,
    };
    let verifier = verifier.map(|tokens| {
        tokens.build().map_err(|error| AppError::Config(format!("identity: {error}")))
    });
    let verifier: Option<JwtVerifier> = verifier.transpose()?;
    if let Some(verifier) = verifier.clone() {
        health = health.part("identity", move || {
            let verifier = verifier.clone();
            async move { verifier.ready().await }
        });
    }
    let node = follower.map(|follower| Node::open(&config.personalize, follower)).transpose()?;
    let personalized: Option<Personalized> = node.as_ref().map(Node::personalized);
    if let Some(personalized) = personalized.clone() {
        health = health.part("personalize", move || std::future::ready(personalized.check()));
    }
    let viewers = Viewers::new(verifier.clone());
    let intake = match &publisher {
        Some(publisher) if publishes => Some(ingest::Ingest::new(
            config.ingest.clone(),
            publisher.clone(),
            verifier.clone(),
            if takes { config.ingest.api_keys()? } else { ingest::ApiKeys::default() },
            config.ratings.subject,
            config.ratings.receipts().map_err(AppError::Config)?,
        )),
        _ => None,
    };
    let mut bridge = None;
    if let Some(feed) = feed {
        let intake = intake.clone().filter(|_| feed.publish);
        let started = ingest::feed::Bridge::start(feed.clone(), intake).await?;
        let status = started.status();
        health = health.part("feed", move || std::future::ready(status.check()));
        bridge = Some(started);
    }
    // What agents do not wait for must not take their service with it.
    if guards || answers {
        health = health.tell_only("feed").tell_only("personalize");
    }
    let (mut handing_on, mut live) = (None, None);
    if let Some(listener) = listeners.gateway {
        let agents = config.agents(verifier.as_ref()).map_err(faults)?;
        let mut admission = AdmissionLayer::builder(store.clone()).identity(agents);
        if let Some(keys) = config.ratings.receipt_keys().map_err(AppError::Config)? {
            admission = admission.receipts(keys);
        }
        let admission = config.admission(admission).build()?;
        let tee =
            intake.clone().filter(|_| tees).map(|intake| {
                gateway::Tee::new(move |request| {
                    let intake = intake.clone();
                    async move {
                        intake.take(&request).await.map(drop).map_err(|refusal| refusal.reason())
                    }
                })
            });
        handing_on = tee.as_ref().map(gateway::Tee::handing_on);
        let front = gateway::Live::new(&config.gateway, admission, config.charges(), tee)?;
        let mut router = front.router();
        if config.gateway.limits_page && !config.gateway.shadow {
            let concurrency = config.gateway.concurrency_per_agent;
            let explain = explain::explain(aims.subscribe());
            router =
                router.merge(gateway::limits(front.clone(), store.clone(), explain, concurrency));
        }
        live = Some(front);
        if let Some(personalized) = &personalized {
            let (events, tickets) = (&config.personalize.events, store.tickets());
            router = router
                .merge(personalized.events(events, viewers.clone(), tickets, stop.clone()))
                .merge(openapi::router(Listener::Gateway, true));
        }
        serve("gateway", listener, router);
    }
    let mut answering = None;
    if let Some(listener) = listeners.rls {
        let callers = match config.rls.identify {
            rls::Identified::Entry => rls::Callers::named(),
            rls::Identified::Request => {
                rls::Callers::proved_to(config.agents(verifier.as_ref()).map_err(faults)?)
            }
        };
        let mut admission = AdmissionLayer::builder(store.clone()).identity(callers);
        if let Some(keys) = config.ratings.receipt_keys().map_err(AppError::Config)? {
            admission = admission.receipts(keys);
        }
        let admission = config.rls_admission(admission).build()?;
        let selector = config.selector().map_err(AppError::Config)?;
        let shown = config.gateway.x_rate_limit_headers;
        let live = rls::Live::new(&config.rls, &selector, admission, shown);
        let parts = health.clone();
        let serves = move || {
            let parts = parts.clone();
            async move { parts.report().await.ready }
        };
        serve("rls", listener, rls::router(live.clone(), serves, stop.clone()));
        answering = Some(live);
    }
    if let (Some(listener), Some(intake)) = (listeners.grpc, intake.clone()) {
        serve("ingest.grpc", listener, ingest::grpc::router(intake, stop.clone()));
    }
    if let (Some(listener), Some(intake)) = (listeners.ingest, intake) {
        let router = match &personalized {
            Some(personalized) => {
                intake.router().merge(personalized.router(&config.personalize, viewers.clone()))
            }
            None => intake.router(),
        };
        let router = router.merge(openapi::router(Listener::Ingest, personalized.is_some()));
        serve("ingest", listener, router);
    }
    let busiest = consumer.is_some().then(|| config.metrics.busiest()).flatten();
    let metrics = admin::Exposition { recorded: metrics, busiest: busiest.clone() };
    if let Some(listener) = listeners.metrics {
        serve("metrics", listener, admin::probes(health.clone(), metrics.clone()));
    }
    let (insight, asks) = tuner::insight();
    let mut keeping = None;
    if let Some(listener) = listeners.admin {
        let token = config.admin.token()?;
        let operator = Operator::new(store.beside(config)?, aims.subscribe());
        let console = admin::Console {
            operator,
            buckets: rules.subscribe(),
            insight: consumer.is_some().then_some(insight),
            role: role.name(),
        };
        // A bridge has neither buckets nor a store.
        let book = (role != Role::Feed).then(|| book(file, store.clone(), Arc::clone(&told)));
        let (router, keeps) =
            admin::router(&config.admin, token, health.clone(), metrics, console, book)?;
        serve("admin", listener, router);
        keeping = Some(keeps);
    }
    if let Some(keeping) = keeping {
        let ends = stop.clone();
        servers.spawn(async move { ends.run_until_cancelled(keeping).await.unwrap_or_default() });
    }
    drop(publisher);

    let (mut tuner, mut learning) = (JoinSet::new(), JoinSet::new());
    if let Some(node) = node {
        learning.spawn(node.run(stop_tuner.clone()));
    }
    let drains = matches!(config.bus, BusConfig::InProcess(_));
    let mut logging = None;
    if let Some(consumer) = consumer {
        let mut plan = tuner::Plan::new(aim.policy.clone(), aim.start);
        plan.aim = aim;
        plan.subject = config.ratings.subject;
        plan.unproved = unproved(config);
        plan.tuner = config.tuner.clone();
        plan.changes = Some(changes);
        plan.asks = Some(asks);
        plan.busiest = busiest;
        if let Some(path) = &config.policy.decision_log {
            let (log, task) = Log::open(LogConfig::at(path.clone())).await?;
            plan.decisions = Some(log);
            logging = Some(task);
        }
        let loops = Tuner::new(consumer, store.clone(), plan);
        tuner.spawn(loops.run(stop_tuner.clone()));
    }
    let mut following = JoinSet::new();
    if let Some(buckets) = buckets {
        let those = Those { gateway: live, rls: answering, aims: aims.clone(), rules };
        following.spawn(buckets.follow(those, told, stop.clone()));
    }
    let health = Some(health);
    Ok(Running {
        addresses,
        stop,
        stop_tuner,
        servers,
        bridge,
        handing_on,
        tuner,
        node: learning,
        drains,
        store,
        health,
        aims,
        following,
        logging,
    })
}

/// Returns what the admin listener's `/buckets` goes by.
fn book(file: &Config, store: Store, told: Arc<Notify>) -> admin::Book<Store> {
    let (checked, read) = (Arc::new(file.clone()), Arc::new(file.clone()));
    admin::Book {
        store,
        file: file.document(),
        check: Arc::new(move |found| Ok(checked.with_document(found)?.document_text())),
        read: Arc::new(move |text| match read.with_document_text(text) {
            Ok(config) => Ok(config.document()),
            Err(error) => Err(error.to_string()),
        }),
        told,
    }
}

/// Returns what ratings without a receipt weigh.
fn unproved(config: &Config) -> tuner::Unproved {
    match config.ratings.receipts {
        ingest::ReceiptMode::Off => tuner::Unproved::All,
        ingest::ReceiptMode::Prefer => tuner::Unproved::Less,
        ingest::ReceiptMode::Require => tuner::Unproved::Nothing,
    }
}

/// The ends of the bus that a process asked for.
type Ends = (Option<Publisher>, Option<Consumer>, Option<Consumer>);

/// Returns the ends of the bus that this process needs; the last one follows, under the name `follows`.
async fn bus(
    config: &BusConfig,
    publishes: bool,
    consumes: bool,
    follows: Option<&str>,
) -> Result<Ends, BusError> {
    Ok(match (config, publishes || consumes || follows.is_some()) {
        (_, false) => (None, None, None),
        (BusConfig::InProcess(_), true) => {
            let (publisher, consumer, follower) = match follows {
                Some(name) => {
                    let (publisher, consumer, follower) = config.all(name).await?;
                    (publisher, consumer, Some(follower))
                }
                None => {
                    let (publisher, consumer) = config.both().await?;
                    (publisher, consumer, None)
                }
            };
            (Some(publisher), consumes.then_some(consumer), follower)
        }
        (_, true) => {
            let publisher = if publishes { Some(config.publisher().await?) } else { None };
            let consumer = if consumes { Some(config.consumer().await?) } else { None };
            let follower = match follows {
                Some(name) => Some(config.follower(name).await?),
                None => None,
            };
            (publisher, consumer, follower)
        }
    })
}

struct Listeners {
    ingest: Option<TcpListener>,
    grpc: Option<TcpListener>,
    gateway: Option<TcpListener>,
    rls: Option<TcpListener>,
    metrics: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Listeners {
    async fn bind(config: &Config, role: Role) -> Result<Self, AppError> {
        let bind = async |name, wanted: bool, address: Option<SocketAddr>| match address {
            Some(address) if wanted => TcpListener::bind(address)
                .await
                .map(Some)
                .map_err(|source| AppError::Bind { name, address, source }),
            _ => Ok(None),
        };
        Ok(Self {
            ingest: bind("ingest", role.ingests(), config.ingest.listen).await?,
            grpc: bind("ingest.grpc", role.ingests(), config.ingest.grpc_listen).await?,
            gateway: bind("gateway", role.guards(), config.gateway.listen).await?,
            rls: bind("rls", role.answers(), config.rls.listen).await?,
            metrics: bind("metrics", true, config.metrics.listen).await?,
            admin: bind("admin", true, config.admin.listen).await?,
        })
    }
}

/// How long ratings whose answer is out may take to reach the bus once the listeners are closed.
const HANDING_ON_DEADLINE: Duration = Duration::from_secs(5);

/// How long tokens taken ahead may take to go back; those that do not are lost to their agents.
const LEASES_DEADLINE: Duration = Duration::from_secs(3);

/// How long the tuner may take to write what is left once the listeners are closed.
const TUNER_DEADLINE: Duration = Duration::from_secs(10);

/// By when, from the order to stop, the tuner is told to end whatever is left: listeners that took all of their time leave
/// it less. Decisions and spans are written after it.
const STOP_DEADLINE: Duration = Duration::from_secs(22);

/// How long the tuner may take to end in order once that time is over.
const TUNER_LAST: Duration = Duration::from_secs(2);

impl Running {
    /// Returns the address of the listener `name`.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.addresses.iter().find(|(listener, _)| *listener == name).map(|(_, address)| *address)
    }

    /// Returns where to say what the tuner is to go on by.
    #[must_use]
    pub fn aims(&self) -> watch::Sender<tuner::Aim> {
        self.aims.clone()
    }

    /// Runs until `told` is ready or a part fails, then stops everything in order.
    ///
    /// # Errors
    ///
    /// When a part failed.
    pub async fn until(mut self, told: impl Future<Output = ()>) -> Result<(), AppError> {
        let bridge = async {
            match &mut self.bridge {
                Some(bridge) => bridge.failed().await,
                None => std::future::pending().await,
            }
        };
        let failed = tokio::select! {
            () = told => None,
            Some(ended) = self.tuner.join_next() => Some(ended.map(|ended| ended.map_err(AppError::from))),
            Some(ended) = self.node.join_next() => Some(ended.map(|ended| ended.map_err(AppError::from))),
            // It has no end of its own.
            Some(Err(panic)) = self.following.join_next() => Some(Err(panic)),
            failed = bridge => Some(Ok(Err(failed.into()))),
        };
        let failure = match failed {
            None => Ok(()),
            Some(Ok(Err(failure))) => Err(failure),
            Some(Ok(Ok(()))) => Ok(()),
            Some(Err(panic)) => {
                error!(%panic, "a part ended");
                Err(AppError::Panicked)
            }
        };
        self.stop().await;
        failure
    }

    async fn stop(mut self) {
        info!("stopping: finishing what is in flight");
        let ends = tokio::time::Instant::now() + STOP_DEADLINE;
        // Dropped at once: its checks hold the bus open.
        if let Some(health) = self.health.take() {
            health.drain();
        }
        self.stop.cancel();
        // It holds the store and the gateway open, and reads on for nobody.
        self.following.shutdown().await;
        let bridge = self.bridge.take();
        let bridged = async {
            if let Some(bridge) = bridge {
                bridge.finish().await;
            }
        };
        let served = async { while self.servers.join_next().await.is_some() {} };
        tokio::join!(bridged, served);
        let handing_on = self.handing_on.take();
        let handed_on = async {
            let Some(handing_on) = handing_on else { return };
            let given_up = handing_on.finish(HANDING_ON_DEADLINE).await;
            if given_up > 0 {
                warn!(given_up, "ratings that the upstream accepted did not reach the bus in time");
            }
        };
        // Nobody asks any more: what this process took ahead goes back.
        let returned = async {
            match tokio::time::timeout(LEASES_DEADLINE, self.store.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "tokens taken ahead were not returned"),
                Err(_) => warn!("tokens taken ahead were not returned in time"),
            }
        };
        tokio::join!(handed_on, returned);
        if !self.drains {
            self.stop_tuner.cancel();
        }
        let (tuner, node) = (&mut self.tuner, &mut self.node);
        let drained = async {
            while tuner.join_next().await.is_some() {}
            while node.join_next().await.is_some() {}
        };
        let ends = ends.min(tokio::time::Instant::now() + TUNER_DEADLINE);
        if tokio::time::timeout_at(ends, drained).await.is_err() {
            warn!("ratings were still on their way after the time to finish them");
            self.stop_tuner.cancel();
            let last = async {
                while self.tuner.join_next().await.is_some() {}
                while self.node.join_next().await.is_some() {}
            };
            if tokio::time::timeout(TUNER_LAST, last).await.is_err() {
                warn!("tuner or personalised ratings did not end when told to");
            }
        }
        self.tuner.abort_all();
        self.node.abort_all();
        // The tuner is gone, and its end of the log with it.
        if let Some(logging) = self.logging.take()
            && tokio::time::timeout(TUNER_LAST, logging.finish()).await.is_err()
        {
            warn!("decisions were not logged in time");
        }
        info!("stopped");
    }
}

#[cfg(test)]
mod tests;
