//! The streams as a leased log.

use super::{
    link::{self, Link},
    reader::StreamReader,
};
use crate::bus::{
    Cause, Partition,
    leased::{Bounds, Letter, Log, Whole, source_name},
};
use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::GetStreamErrorKind,
        kv::{self, CreateErrorKind, Operation, UpdateErrorKind},
        stream::Info,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OnceCell;

/// How many questions of one round are on their way at once.
const AT_ONCE: usize = 32;
/// What headers and names of a dead letter may take of what a message may have, in bytes; the reason is within 1 KiB.
const HEADERS_MAX: usize = 2_048;
/// What the keys of members begin with.
const MEMBER: &str = "member.";

/// Ratings on JetStream.
pub(in crate::bus) struct JetStream {
    link: Link,
    buckets: OnceCell<Buckets>,
    /// The revision of each lease that is ours: what it must still be to be renewed.
    leases: Mutex<BTreeMap<Partition, u64>>,
    /// When each stream was made, in Unix nanoseconds: one that was made anew gives offsets twice.
    births: Mutex<BTreeMap<Partition, i128>>,
    /// Partitions whose streams are known to be there.
    made: Mutex<u32>,
}

struct Buckets {
    log: kv::Store,
    leases: kv::Store,
}

impl JetStream {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            buckets: OnceCell::new(),
            leases: Mutex::default(),
            births: Mutex::default(),
            made: Mutex::default(),
        }
    }

    async fn buckets(&self) -> Result<&Buckets, Cause> {
        let open = || async {
            let (log, leases) = (self.link.log_bucket().await?, self.link.lease_bucket().await?);
            Ok::<_, Cause>(Buckets { log, leases })
        };
        self.buckets.get_or_try_init(open).await
    }

    fn revision(&self, partition: Partition) -> Option<u64> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }

    fn note(&self, partition: Partition, revision: Option<u64>) {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        match revision {
            Some(revision) => leases.insert(partition, revision),
            None => leases.remove(&partition),
        };
    }

    /// Returns what the server says of a partition's stream; makes it when it is gone.
    async fn info(&self, partition: Partition) -> Result<Info, Cause> {
        let name = self.link.stream_name(partition);
        match self.link.context.get_stream(&name).await {
            Ok(stream) => Ok(stream.cached_info().clone()),
            Err(error) => {
                let gone = matches!(error.kind(), GetStreamErrorKind::JetStream(said)
                    if said.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND);
                if gone {
                    self.link.make_streams(partition.0, partition.0 + 1).await?;
                }
                Err(error.into())
            }
        }
    }

    fn known_birth(&self, partition: Partition) -> Option<i128> {
        self.births.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }

    fn note_birth(&self, partition: Partition, born: i128) {
        self.births.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, born);
    }

    /// Returns when the stream of `partition` was made, as far as anybody noted; notes `born` when nobody did.
    async fn birth(
        &self,
        log: &kv::Store,
        partition: Partition,
        born: i128,
    ) -> Result<i128, Cause> {
        if let Some(known) = self.known_birth(partition) {
            return Ok(known);
        }
        let key = birth_key(partition);
        let noted = match log.get(&key).await? {
            Some(noted) => std::str::from_utf8(&noted)?.parse()?,
            None => {
                log.put(&key, born.to_string().into()).await?;
                born
            }
        };
        self.note_birth(partition, noted);
        Ok(noted)
    }

    async fn bounds_of(&self, log: &kv::Store, partition: Partition) -> Result<Bounds, Cause> {
        let info = self.info(partition).await?;
        let born = info.created.unix_timestamp_nanos();
        let anew = self.birth(log, partition, born).await? != born;
        let state = &info.state;
        let committed: Option<u64> = match log.get(committed_key(partition)).await? {
            Some(text) => Some(std::str::from_utf8(&text)?.parse()?),
            None => None,
        };
        // They count from 1; nothing was removed as long as that is the first.
        let start = if state.first_sequence <= 1 { 0 } else { state.first_sequence };
        let end = if state.last_sequence == 0 { 0 } else { state.last_sequence + 1 };
        let from = committed.unwrap_or(start).max(state.first_sequence).max(1);
        Ok(Bounds {
            start,
            end,
            newest: state.last_sequence,
            unread: (state.last_sequence + 1).saturating_sub(from),
            committed,
            anew,
        })
    }

    /// Notes that `partition` is done with below `next`, and removes that.
    async fn commit_one(
        &self,
        log: &kv::Store,
        partition: Partition,
        next: u64,
    ) -> Result<(), Cause> {
        log.put(committed_key(partition), next.to_string().into()).await?;
        if next == 0 {
            return Ok(());
        }
        let stream = self.link.context.get_stream(self.link.stream_name(partition)).await?;
        let info = stream.cached_info();
        let born = info.created.unix_timestamp_nanos();
        let same = self.known_birth(partition) == Some(born);
        // Of a log that lost its newest records a purge would take what came since.
        if same && next <= info.state.last_sequence + 1 {
            stream.purge().sequence(next).await?;
        }
        Ok(())
    }

    /// Claims or renews one lease; returns whether it is ours.
    async fn claim_one(
        &self,
        leases: &kv::Store,
        me: &str,
        partition: Partition,
    ) -> Result<bool, Cause> {
        let (key, value) = (key(partition), || me.to_owned().into());
        if let Some(revision) = self.revision(partition) {
            match leases.update(&key, value(), revision).await {
                Ok(revision) => {
                    self.note(partition, Some(revision));
                    return Ok(true);
                }
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    self.note(partition, None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match leases.create(&key, value()).await {
            Ok(revision) => {
                self.note(partition, Some(revision));
                Ok(true)
            }
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                // Ours from before a restart, when this member keeps its name.
                let entry = leases.entry(&key).await?;
                let own = entry.filter(|e| e.operation == Operation::Put && e.value == me);
                let Some(entry) = own else { return Ok(false) };
                match leases.update(&key, value(), entry.revision).await {
                    Ok(revision) => {
                        self.note(partition, Some(revision));
                        Ok(true)
                    }
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn key(partition: Partition) -> String {
    format!("lease.{partition}")
}

fn committed_key(partition: Partition) -> String {
    format!("committed.{partition}")
}

fn birth_key(partition: Partition) -> String {
    format!("made.{partition}")
}

/// Returns the log's name; draws one when it has none.
async fn source(log: &kv::Store) -> Result<String, Cause> {
    if let Some(source) = log.get("source").await? {
        return Ok(String::from_utf8(source.to_vec())?);
    }
    let source = source_name();
    match log.create("source", source.clone().into()).await {
        Ok(_) => Ok(source),
        Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
            let source = log.get("source").await?.ok_or("the log's name was removed")?;
            Ok(String::from_utf8(source.to_vec())?)
        }
        Err(error) => Err(error.into()),
    }
}

impl Log for JetStream {
    type Reader = StreamReader;

    fn address(&self) -> &str {
        &self.link.address
    }

    fn reader(&self) -> StreamReader {
        StreamReader::new(self.link.clone())
    }

    async fn look(&self) -> Result<(String, u32), Cause> {
        let log = &self.buckets().await?.log;
        let source = source(log).await?;
        let partitions = link::partitions(log, self.link.config.partitions).await?;
        let made = *self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made < partitions {
            self.link.make_streams(made, partitions).await?;
            self.link.make_dead().await?;
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = partitions;
        }
        Ok((source, partitions))
    }

    async fn join(&self, me: &str, _lease: Duration) -> Result<Whole, Cause> {
        let (source, partitions) = self.look().await?;
        let leases = &self.buckets().await?.leases;
        leases.put(format!("{MEMBER}{me}"), "".into()).await?;
        let keys: Vec<String> = leases.keys().await?.try_collect().await?;
        let name = |key: &String| key.strip_prefix(MEMBER).map(str::to_owned);
        let mut members: Vec<String> = keys.iter().filter_map(name).collect();
        members.sort_unstable();
        Ok(Whole { source, partitions, members })
    }

    async fn claim(
        &self,
        me: &str,
        partitions: &[Partition],
        _lease: Duration,
    ) -> Result<Vec<Partition>, Cause> {
        let leases = &self.buckets().await?.leases;
        let claim = |partition: Partition| async move {
            Ok::<_, Cause>((partition, self.claim_one(leases, me, partition).await?))
        };
        let claims: Vec<_> = partitions.iter().copied().map(claim).collect();
        let claimed: Vec<(Partition, bool)> =
            stream::iter(claims).buffered(AT_ONCE).try_collect().await?;
        Ok(claimed.into_iter().filter_map(|(partition, ours)| ours.then_some(partition)).collect())
    }

    async fn release(&self, me: &str, partitions: &[Partition], leaves: bool) -> Result<(), Cause> {
        let leases = &self.buckets().await?.leases;
        for partition in partitions {
            let Some(revision) = self.revision(*partition) else { continue };
            self.note(*partition, None);
            let deleted = leases.delete_expect_revision(key(*partition), Some(revision)).await;
            // Another's by now, then.
            if let Err(error) = deleted
                && error.kind() != UpdateErrorKind::WrongLastRevision
            {
                return Err(error.into());
            }
        }
        if leaves {
            leases.delete(format!("{MEMBER}{me}")).await?;
        }
        Ok(())
    }

    async fn bounds(&self, partitions: &[Partition]) -> Result<Vec<Result<Bounds, Cause>>, Cause> {
        let log = &self.buckets().await?.log;
        let bounds: Vec<_> =
            partitions.iter().map(|partition| self.bounds_of(log, *partition)).collect();
        Ok(stream::iter(bounds).buffered(AT_ONCE).collect().await)
    }

    /// A stream counts on from its newest message, whatever was lost behind it.
    async fn go_on(&self, _partition: Partition, _next: u64) -> Result<bool, Cause> {
        Ok(false)
    }

    async fn renew(&self, source: &str, lost: &[Partition]) -> Result<(), Cause> {
        let log = &self.buckets().await?.log;
        let entry = log.entry("source").await?.ok_or("the log's name was removed")?;
        if entry.value == source {
            match log.update("source", source_name().into(), entry.revision).await {
                Ok(_) => {}
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(error.into()),
            }
        }
        // After the name: who finds these still there gives it another one, which does no harm.
        for partition in lost {
            let born = self.info(*partition).await?.created.unix_timestamp_nanos();
            log.delete(committed_key(*partition)).await?;
            log.put(birth_key(*partition), born.to_string().into()).await?;
            self.note_birth(*partition, born);
        }
        Ok(())
    }

    async fn commit(
        &self,
        _me: &str,
        source: &str,
        positions: &[(Partition, u64)],
    ) -> Result<(), Cause> {
        let log = &self.buckets().await?.log;
        if self::source(log).await? != source {
            return Ok(()); // these are offsets of a log that is gone
        }
        let ours = positions.iter().filter(|(partition, _)| self.revision(*partition).is_some());
        let commits: Vec<_> =
            ours.map(|(partition, next)| self.commit_one(log, *partition, *next)).collect();
        let outcomes: Vec<Result<(), Cause>> =
            stream::iter(commits).buffered(AT_ONCE).collect().await;
        outcomes.into_iter().collect()
    }

    async fn put_aside(&self, letter: &Letter<'_>) -> Result<(), Cause> {
        let room = self.link.context.client().server_info().max_payload;
        let kept = letter.payload.len().min(room.saturating_sub(HEADERS_MAX));
        let mut headers = HeaderMap::new();
        // A header is one line.
        headers.insert("Merit-Reason", letter.reason.replace(['\r', '\n'], " "));
        headers.insert("Merit-Partition", letter.partition.to_string());
        headers.insert("Merit-Offset", letter.offset.to_string());
        if kept < letter.payload.len() {
            headers.insert("Merit-Value-Cut", "true");
        }
        let (subject, payload) = (self.link.dead_subject(), letter.payload[..kept].to_vec().into());
        let sent = self.link.context.publish_with_headers(subject, headers, payload).await;
        let taken = match sent {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            // It may have been removed; where it is there, nothing happens.
            self.link.make_dead().await?;
            return Err(error.into());
        }
        Ok(())
    }
}
