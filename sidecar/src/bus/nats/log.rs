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
    jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind},
};
use futures_util::TryStreamExt;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OnceCell;

/// What the keys of members begin with.
const MEMBER: &str = "member.";

/// Ratings on JetStream.
pub(in crate::bus) struct JetStream {
    link: Link,
    buckets: OnceCell<Buckets>,
    /// The revision of each lease that is ours: what it must still be to be renewed.
    leases: Mutex<BTreeMap<Partition, u64>>,
    /// Partitions whose streams are known to be there.
    made: Mutex<u32>,
}

struct Buckets {
    log: kv::Store,
    leases: kv::Store,
}

impl JetStream {
    pub(super) fn new(link: Link) -> Self {
        Self { link, buckets: OnceCell::new(), leases: Mutex::default(), made: Mutex::default() }
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
        let mut ours = Vec::with_capacity(partitions.len());
        for partition in partitions {
            if self.claim_one(leases, me, *partition).await? {
                ours.push(*partition);
            }
        }
        Ok(ours)
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

    async fn bounds(&self, partitions: &[Partition]) -> Result<Vec<Bounds>, Cause> {
        let log = &self.buckets().await?.log;
        let mut bounds = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let stream = self.link.context.get_stream(self.link.stream_name(*partition)).await?;
            let state = &stream.cached_info().state;
            let committed = log.get(committed_key(*partition)).await?;
            let committed =
                committed.map(|text| Ok::<_, Cause>(std::str::from_utf8(&text)?.parse()?));
            bounds.push(Bounds {
                // They count from 1; nothing was removed as long as that is the first.
                start: if state.first_sequence <= 1 { 0 } else { state.first_sequence },
                end: if state.last_sequence == 0 { 0 } else { state.last_sequence + 1 },
                newest: state.last_sequence,
                committed: committed.transpose()?,
            });
        }
        Ok(bounds)
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
        for (partition, next) in positions {
            if self.revision(*partition).is_none() {
                continue;
            }
            log.put(committed_key(*partition), next.to_string().into()).await?;
            if *next > 0 {
                let stream =
                    self.link.context.get_stream_no_info(self.link.stream_name(*partition)).await?;
                stream.purge().sequence(*next).await?;
            }
        }
        Ok(())
    }

    async fn put_aside(&self, letter: &Letter<'_>) -> Result<(), Cause> {
        let mut headers = HeaderMap::new();
        // A header is one line.
        headers.insert("Merit-Reason", letter.reason.replace(['\r', '\n'], " "));
        headers.insert("Merit-Partition", letter.partition.to_string());
        headers.insert("Merit-Offset", letter.offset.to_string());
        let (subject, payload) = (self.link.dead_subject(), letter.payload.to_vec().into());
        self.link.context.publish_with_headers(subject, headers, payload).await?.await?;
        Ok(())
    }
}
