//! Buckets in Redis, shared by every node: one script call per decision, one slot per agent.
//!
//! Time is the server's, so nodes need no common clock. A decision is given up after its deadline;
//! the server may still carry it out, which costs the agent at most that request's tokens. The
//! client reconnects in the background, every 10 to 250 ms; scripts that a restarted server has
//! forgotten are sent again.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisError, Script, ServerErrorKind, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    io::tcp::TcpSettings,
};

use tokio::sync::Mutex;

use super::{
    BUCKET_TTL, Change, Charge, Decision, Demand, Held, Life, RECORD_TTL, Record, Spend,
    StoreError, TAKES_MAX, Take, Tune, Verdict, Written, memory::banned,
};
use crate::{
    AgentId,
    bucket::{Limits, MicroTokensPerSecond, NanoTokens, Tokens},
};

/// The longest a decision waits for Redis, unless configured: 20 ms.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_millis(20);

/// The longest a connection attempt or a control-plane call takes: 2 s. Longer than any decision,
/// because a batch of thousands of writes is one call.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that stay unacknowledged this long mean that the server's host is gone: 3 s.
const DEAD_LINK_TIMEOUT: Duration = Duration::from_secs(3);

const RECONNECT_MIN: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_millis(250);

/// Commands that wait for the socket; further ones wait for a place, and run into their deadline.
const PIPELINE_MAX: usize = 1024;

/// The control plane's marks that are not an agent's: its epoch, and how far each partition got.
const EPOCH_KEY: &str = "merit:epoch";
const PROGRESS_KEY: &str = "merit:progress";

#[cfg(any(test, feature = "test-util"))]
pub(super) const BUCKET_LUA: &str = include_str!("bucket.lua");
const SPEND_LUA: &str = concat!(include_str!("bucket.lua"), include_str!("spend.lua"));
const SET_LIMITS_LUA: &str = concat!(include_str!("bucket.lua"), include_str!("set_limits.lua"));

/// Buckets in Redis. Clones share one connection.
///
/// ```no_run
/// # async fn example() -> Result<(), tower_merit::store::StoreError> {
/// use std::time::Duration;
/// use tower_merit::RedisStore;
///
/// let store = RedisStore::builder("redis://127.0.0.1:6379")
///     .timeout(Duration::from_millis(20))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    connection: ConnectionManager,
    control: Mutex<Control>,
    address: String,
    timeout: Duration,
    spend: Script,
    set_limits: Script,
}

/// The control plane's own connection. It does not reconnect by itself: a server that was replaced
/// may have lost writes, and whoever writes must learn of it before writing on.
enum Control {
    /// Not yet used.
    Fresh,
    Up(MultiplexedConnection),
    /// Broken until [`Tune::life`] connects anew.
    Broken,
}

/// Builds a [`RedisStore`].
#[derive(Clone)]
pub struct RedisStoreBuilder {
    url: String,
    timeout: Duration,
}

impl RedisStoreBuilder {
    /// Sets the longest a decision waits for Redis; 20 ms unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects, and waits until the server has answered once.
    ///
    /// # Errors
    ///
    /// When the address cannot be parsed, or the server does not answer within 2 s.
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
    /// When the address cannot be parsed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazily(self) -> Result<RedisStore, StoreError> {
        let info = self.url.as_str().into_connection_info().map_err(StoreError::Address)?;
        let address = address_of(&info);
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(DEAD_LINK_TIMEOUT);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(StoreError::Address)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONTROL_TIMEOUT))
            // Deadlines are ours, one for each kind of call.
            .set_response_timeout(None)
            .set_min_delay(RECONNECT_MIN)
            .set_max_delay(RECONNECT_MAX)
            .set_number_of_retries(usize::MAX)
            .set_pipeline_buffer_size(PIPELINE_MAX);
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config)
            .map_err(StoreError::Address)?;
        Ok(RedisStore {
            inner: Arc::new(Inner {
                client,
                connection,
                control: Mutex::new(Control::Fresh),
                address,
                timeout: self.timeout,
                spend: Script::new(SPEND_LUA),
                set_limits: Script::new(SET_LIMITS_LUA),
            }),
        })
    }
}

/// Returns `host:port` or the socket's path: never the user or the password.
fn address_of(info: &ConnectionInfo) -> String {
    info.addr().to_string()
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

    /// Returns a builder for a store at `url`.
    #[must_use]
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder { url: url.to_owned(), timeout: TIMEOUT_DEFAULT }
    }

    /// Asks the server for a sign of life.
    ///
    /// # Errors
    ///
    /// When it does not answer within 2 s.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let mut connection = self.inner.connection.clone();
        within(CONTROL_TIMEOUT, run(&mut connection, &redis::cmd("PING")))
            .await?
            .map(drop)
            .map_err(|error| self.unavailable(error))
    }

    /// Returns the longest a decision waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::Unavailable { address: self.inner.address.clone(), source }
    }

    /// Opens the control plane's connection.
    async fn connect_control(&self) -> Result<MultiplexedConnection, StoreError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONTROL_TIMEOUT))
            .set_response_timeout(None);
        let client = &self.inner.client;
        within(CONTROL_TIMEOUT, client.get_multiplexed_async_connection_with_config(&config))
            .await?
            .map_err(|error| self.unavailable(error))
    }

    /// Sends a pipeline over the control plane's connection; any failure of it breaks the connection,
    /// so that nothing more is written before the store was asked which life this is.
    async fn control_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let mut control = self.inner.control.lock().await;
        let mut connection = match &*control {
            Control::Up(connection) => connection.clone(),
            Control::Broken => return Err(StoreError::Lost),
            Control::Fresh => {
                let connection = self.connect_control().await?;
                *control = Control::Up(connection.clone());
                connection
            }
        };
        let answers = self.pipelined(&mut connection, pipeline).await;
        answers.inspect_err(|_| *control = Control::Broken)
    }

    /// Sends a pipeline, once more when the server has lost the scripts. An answer that faults one
    /// agent's data stays among the answers; any other error is the store's.
    async fn pipelined(
        &self,
        connection: &mut MultiplexedConnection,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        let count = pipeline.cmd_iter().count();
        for _ in 0..2 {
            let sent = connection.req_packed_commands(pipeline, 0, count);
            let answers = within(CONTROL_TIMEOUT, sent).await?;
            let answers = answers.map_err(|error| self.unavailable(error))?;
            let error = |answer: &Value| answer.clone().extract_error().err();
            let mut faults = answers.iter().filter(|answer| is_fault(answer)).filter_map(error);
            match faults.find(|error| !is_wrong_type(error)) {
                None => return Ok(answers),
                Some(error) if is_no_script(&error) => {
                    let load = script_load(SET_LIMITS_LUA);
                    let loaded = connection.req_packed_command(&load);
                    let loaded = within(CONTROL_TIMEOUT, loaded).await?;
                    loaded
                        .and_then(Value::extract_error)
                        .map_err(|error| self.unavailable(error))?;
                }
                Some(error) => return Err(self.unavailable(error)),
            }
        }
        Err(StoreError::Malformed { what: "NOSCRIPT right after SCRIPT LOAD".to_owned() })
    }

    /// Runs one command over the control plane's connection.
    async fn control(&self, command: &Cmd) -> Result<Value, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(command.clone());
        let mut answers = self.control_all(&pipeline).await?;
        answers.pop().ok_or_else(|| StoreError::Malformed { what: "nothing".to_owned() })
    }

    /// Runs the spend script, and sends it first when the server does not know it.
    async fn decide(&self, charge: &Charge) -> Result<Verdict, StoreError> {
        let inner = &*self.inner;
        debug_assert!((1..=TAKES_MAX).contains(&charge.takes.len()));
        let mut connection = inner.connection.clone();
        let mut command = redis::cmd("EVALSHA");
        command.arg(inner.spend.get_hash()).arg(2);
        command.arg(bucket_key(&charge.agent)).arg(record_key(&charge.agent));
        for Take { bucket, cost } in &*charge.takes {
            if bucket.is_default {
                command.arg("");
            } else {
                command.arg([bucket.name.as_str(), "."].concat());
            }
            command.arg(bucket.limits.capacity().get());
            command.arg(bucket.limits.refill().micro());
            command.arg(cost.get());
        }
        let call = async {
            match run(&mut connection, &command).await {
                Err(error) if is_no_script(&error) => {
                    run(&mut connection, &script_load(SPEND_LUA)).await?;
                    run(&mut connection, &command).await
                }
                answer => answer,
            }
        };
        let answer = within(inner.timeout, call).await?.map_err(|error| {
            if is_wrong_type(&error) { of_another_type() } else { self.unavailable(error) }
        })?;
        verdict(charge, &answer).ok_or_else(|| malformed(&answer))
    }
}

fn bucket_key(agent: &AgentId) -> String {
    format!("tb:{agent}")
}

/// The braces put the record into the same cluster slot as the bucket.
fn record_key(agent: &AgentId) -> String {
    format!("merit:{{tb:{agent}}}")
}

fn script_load(code: &str) -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(code);
    command
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn is_fault(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(_))
}

/// A key of another type under an agent's name is that agent's trouble. Servers before 7 put the
/// code of an error within a script behind a code of their own.
fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE")
}

fn of_another_type() -> StoreError {
    StoreError::Malformed { what: "a key that is no hash".to_owned() }
}

/// Runs one command; an error that the server answered is an error here too.
async fn run(connection: &mut ConnectionManager, command: &Cmd) -> Result<Value, RedisError> {
    connection.req_packed_command(command).await.and_then(Value::extract_error)
}

async fn within<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, StoreError> {
    tokio::time::timeout(limit, call).await.map_err(|_| StoreError::Timeout(limit))
}

fn malformed(answer: &Value) -> StoreError {
    let mut what = format!("{answer:?}");
    what.truncate(what.floor_char_boundary(200));
    StoreError::Malformed { what }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn items(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

fn unsigned(value: &Value) -> Option<u64> {
    u64::try_from(integer(value)?).ok()
}

fn limits(capacity: u64, micro: u64) -> Option<Limits> {
    Some(Limits::new(Tokens::new(capacity).ok()?, MicroTokensPerSecond::new(micro).ok()?))
}

/// Reads what `spend.lua` replies.
fn verdict(charge: &Charge, answer: &Value) -> Option<Verdict> {
    let [outcome, wait, rest @ ..] = items(answer)? else { return None };
    let decision = match (integer(outcome)?, integer(wait)?) {
        (0, _) => Decision::Admitted,
        (1, wait) => Decision::Denied { wait_ms: u64::try_from(wait).ok() },
        (2, wait) => return Some(banned(charge, u64::try_from(wait).ok()?)),
        _ => return None,
    };
    if rest.len() != charge.takes.len() * 4 {
        return None;
    }
    let mut held = rest.chunks_exact(4).zip(&*charge.takes).map(|(held, take)| {
        Some(Held {
            bucket: take.bucket.name.clone(),
            limits: limits(unsigned(&held[0])?, unsigned(&held[1])?)?,
            tokens: NanoTokens(integer(&held[2])?),
            short: integer(&held[3])? == 1,
        })
    });
    let first = held.next()??;
    let rest = held.collect::<Option<_>>()?;
    Some(Verdict { decision, first, rest })
}

/// Reads limits as an operator or the sidecar wrote them; [`crate::bucket`] has the ranges.
fn limits_from_text(capacity: Option<&str>, rate: Option<&str>) -> Option<Limits> {
    let capacity: f64 = capacity?.parse().ok()?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: `as` saturates"
    )]
    let capacity = (capacity >= 0.0).then_some(capacity as u64)?;
    Limits::per_second(rate?.parse().ok()?, capacity).ok()
}

/// Reads the counts out of `<nano-tokens> <at> <admitted> <denied> <capacity> <rate>`.
fn demand_from_level(level: &str) -> Demand {
    let mut fields = level.split(' ').skip(2).map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(admitted)), Some(Ok(denied))) => Demand { admitted, denied },
        _ => Demand::default(),
    }
}

const APPLIED: &str = "applied:";
const SEEN: &str = "seen:";

fn record(fields: &Value, bucket: &Value) -> Option<Record> {
    let [capacity, rate, level] = items(bucket)? else { return None };
    let mut record = Record {
        limits: limits_from_text(text(capacity), text(rate)),
        demand: text(level).map(demand_from_level).unwrap_or_default(),
        ..Record::default()
    };
    let mut written = None;
    let pairs: Vec<(&Value, &Value)> = match fields {
        Value::Array(flat) => flat.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
        Value::Map(pairs) => pairs.iter().map(|(name, value)| (name, value)).collect(),
        _ => return None,
    };
    for (name, value) in pairs {
        let (name, value) = (text(name)?, text(value)?);
        match name {
            "rev" => record.rev = value.parse().ok()?,
            "written" => {
                let (capacity, rate) = value.split_once(' ')?;
                written = limits_from_text(Some(capacity), Some(rate));
            }
            "state" => value.clone_into(&mut record.state),
            _ => {
                if let Some(source) = name.strip_prefix(APPLIED) {
                    record.applied.push((source.to_owned(), value.parse().ok()?));
                } else if let Some(slot) = name.strip_prefix(SEEN) {
                    record.seen.push((slot.to_owned(), value.to_owned()));
                }
            }
        }
    }
    // An expired bucket is not an operator's doing: the record's limits are still the agent's.
    record.operator = record.limits.is_some() && record.limits != written;
    record.limits = record.limits.or(written);
    Some(record)
}

/// Reads what `set_limits.lua` replies.
fn written(answer: &Value) -> Option<Written> {
    match items(answer)? {
        [Value::Int(0)] => Some(Written::Stale),
        [Value::Int(1), rev, level] => {
            Some(Written::Done { rev: unsigned(rev)?, demand: demand_from_level(text(level)?) })
        }
        [Value::Int(2), capacity, rate] => {
            let half = |value: &Value| integer(value).map(|number| u64::try_from(number).ok());
            Some(Written::Operator {
                capacity: half(capacity)?.map(Tokens::new).transpose().ok()?,
                refill: half(rate)?.map(MicroTokensPerSecond::new).transpose().ok()?,
            })
        }
        _ => None,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Spend for RedisStore {
    type Future = Pin<Box<dyn Future<Output = Result<Verdict, StoreError>> + Send>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        let store = self.clone();
        Box::pin(async move { store.decide(&charge).await })
    }
}

impl Tune for RedisStore {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        if agents.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for agent in agents {
            pipeline.cmd("HGETALL").arg(record_key(agent));
            let bucket = pipeline.cmd("HMGET").arg(bucket_key(agent));
            bucket.arg("capacity").arg("refill_rate").arg("level");
        }
        let answers = self.control_all(&pipeline).await?;
        let read = |pair: &[Value]| {
            if pair.iter().any(is_fault) {
                return Err(of_another_type());
            }
            record(&pair[0], &pair[1]).ok_or_else(|| malformed(&pair[0]))
        };
        Ok(answers.chunks_exact(2).map(read).collect())
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for change in changes {
            let command = pipeline.cmd("EVALSHA").arg(self.inner.set_limits.get_hash()).arg(2);
            command.arg(bucket_key(&change.agent)).arg(record_key(&change.agent));
            command.arg(change.rev);
            command.arg(change.limits.capacity().get());
            command.arg(change.limits.refill().to_string());
            match change.adopts {
                Some(found) => command.arg(found.capacity().get()).arg(found.refill().micro()),
                None => command.arg("").arg(""),
            };
            command.arg(&change.state);
            command.arg(milliseconds(BUCKET_TTL)).arg(milliseconds(RECORD_TTL));
            for (source, offset) in &change.applied {
                command.arg(format!("{APPLIED}{source}")).arg(offset);
            }
            for (slot, ids) in &change.seen {
                command.arg(format!("{SEEN}{slot}")).arg(ids);
            }
        }
        let answers = self.control_all(&pipeline).await?;
        let read = |answer: &Value| match answer {
            fault if is_fault(fault) => Err(of_another_type()),
            answer => written(answer).ok_or_else(|| malformed(answer)),
        };
        Ok(answers.iter().map(read).collect())
    }

    async fn life(&self) -> Result<Life, StoreError> {
        {
            let mut control = self.inner.control.lock().await;
            if matches!(*control, Control::Broken) {
                *control = Control::Up(self.connect_control().await?);
            }
        }
        let info = self.control(redis::cmd("INFO").arg("server")).await?;
        let run_id = match &info {
            Value::VerbatimString { text, .. } => run_id(text),
            other => text(other).and_then(run_id),
        };
        let run_id = run_id.ok_or_else(|| malformed(&info))?;
        let epoch = self.control(redis::cmd("GET").arg(EPOCH_KEY)).await?;
        Ok(Life { run_id, epoch: text(&epoch).map(str::to_owned) })
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        self.control(redis::cmd("SET").arg(EPOCH_KEY).arg(epoch).arg("NX")).await.map(drop)
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let answer = self.control(redis::cmd("HGETALL").arg(PROGRESS_KEY)).await?;
        redis::from_redis_value(answer.clone()).map_err(|_| malformed(&answer))
    }

    async fn note_progress(&self, progress: &[(String, u64)]) -> Result<(), StoreError> {
        if progress.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("HSET");
        command.arg(PROGRESS_KEY);
        for (source, offset) in progress {
            command.arg(source).arg(offset);
        }
        self.control(&command).await.map(drop)
    }
}

fn run_id(info: &str) -> Option<String> {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().to_owned())
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

/// The address may carry a password: it is not shown.
impl std::fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStoreBuilder").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
