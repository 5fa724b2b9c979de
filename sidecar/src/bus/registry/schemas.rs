//! What ids mean that were met on the bus.

use std::{
    collections::HashSet,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use lru::LruCache;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{
    Config, Retry,
    client::{Client, Described},
};
use crate::{
    bus::BusError,
    rating::confluent::{Schema, SchemaId},
};

/// The most schemas that are remembered; a topic has a handful.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(1000).expect("1000 is not 0");
/// The most questions that are on their way; a partition waits for one at a time.
const ASKED_MAX: usize = 64;
/// How long the registry's "no such schema" is believed.
const UNKNOWN_FRESH: Duration = Duration::from_secs(30);
/// How long after the first "no such schema" it is asked again: a replica may be that much behind.
const UNKNOWN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The schemas of a registry, by id. Clones share them; when all are gone, nobody asks any more.
#[derive(Clone)]
pub struct Schemas {
    inner: Arc<Inner>,
    /// Changes when a question was answered.
    answered: watch::Receiver<()>,
}

struct Inner {
    client: Client,
    state: Mutex<State>,
    answers: watch::Sender<()>,
}

struct State {
    known: LruCache<SchemaId, Known>,
    asked: HashSet<SchemaId>,
}

enum Known {
    Schema(Arc<Schema>),
    /// No rating can be read with it, for ever or until a time.
    Refused(Arc<str>, Option<Instant>),
}

/// What an id means.
#[derive(Clone, Debug)]
pub enum Found {
    /// This schema.
    Schema(Arc<Schema>),
    /// No rating can be read with it: the end of a sentence that begins with the schema.
    Refused(Arc<str>),
    /// That is being asked.
    Asked,
}

impl Schemas {
    /// Returns what asks the registry of `config`. It is asked when an id is met, not before.
    ///
    /// # Errors
    ///
    /// When the configuration cannot be carried out.
    pub fn new(config: &Config) -> Result<Self, BusError> {
        let (answers, answered) = watch::channel(());
        let state = State { known: LruCache::new(KNOWN_MAX), asked: HashSet::new() };
        let client = Client::new(config)?;
        Ok(Self { inner: Arc::new(Inner { client, state: Mutex::new(state), answers }), answered })
    }

    /// Returns what `id` means, as far as that is known; the first to ask makes the registry be asked. Must be
    /// called within a tokio runtime.
    pub fn find(&self, id: SchemaId) -> Found {
        let mut state = self.inner.lock();
        match state.known.get(&id) {
            Some(Known::Schema(schema)) => return Found::Schema(Arc::clone(schema)),
            Some(Known::Refused(reason, until))
                if until.is_none_or(|until| Instant::now() < until) =>
            {
                return Found::Refused(Arc::clone(reason));
            }
            _ => {}
        }
        // With too many on their way it is asked when one of those is answered and the caller comes back.
        if state.asked.len() < ASKED_MAX && state.asked.insert(id) {
            tokio::spawn(ask(Arc::downgrade(&self.inner), id));
        }
        Found::Asked
    }

    /// Returns when something was answered since the last call. Cancel safe.
    pub async fn answered(&mut self) {
        // The other end is in `inner`.
        let _ = self.answered.changed().await;
    }
}

impl fmt::Debug for Schemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schemas").field(&self.inner.client.address()).finish()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: SchemaId, known: Known) {
        let mut state = self.lock();
        state.known.put(id, known);
        state.asked.remove(&id);
        drop(state);
        self.answers.send_replace(());
    }
}

/// Asks what `id` means until the registry says it, or nobody wants to know any more.
async fn ask(inner: Weak<Inner>, id: SchemaId) {
    let mut retry = Retry::new();
    let mut unknown = false;
    loop {
        let pause = {
            let Some(inner) = inner.upgrade() else { return };
            match inner.client.schema(id).await {
                Ok(Some(described)) => return inner.answer(id, read(id, &described)),
                Ok(None) if unknown => {
                    let reason = "is not known to it: its writer uses another registry, or it was \
                                  deleted there";
                    let until = Instant::now() + UNKNOWN_FRESH;
                    return inner.answer(id, Known::Refused(reason.into(), Some(until)));
                }
                Ok(None) => {
                    unknown = true;
                    UNKNOWN_AGAIN_AFTER
                }
                Err(error) => {
                    unknown = false;
                    retry.failed(&error, "a partition waits for a schema")
                }
            }
        };
        sleep(pause).await;
    }
}

fn read(id: SchemaId, described: &Described) -> Known {
    let Described { schema, kind, references } = described;
    let refers = references.as_ref().is_some_and(|references| !references.is_empty());
    match Schema::read(id, kind, schema, refers) {
        Ok(schema) => {
            info!(schema = id.0, kind, "schema of the registry is known");
            Known::Schema(Arc::new(schema))
        }
        Err(reason) => {
            warn!(schema = id.0, kind, reason, "no rating can be read with a schema");
            Known::Refused(reason.into(), None)
        }
    }
}
