//! One round of keeping the leases: take part, renew what is ours, claim what is due.

use super::{Bounds, Log, Terms, Whole};
use crate::bus::{Cause, Partition};
use std::collections::BTreeMap;
use tokio::time::Instant;
use tracing::warn;

/// What a round found.
#[derive(Debug)]
pub(super) struct Kept {
    /// When it began: leases run from here.
    pub(super) began: Instant,
    pub(super) source: String,
    pub(super) partitions: u32,
    /// What is ours.
    pub(super) ours: Vec<(Partition, Bounds)>,
    /// What is ours and cannot be used now.
    pub(super) faults: Vec<(Partition, Cause)>,
    /// What is ours and more than our due.
    pub(super) surplus: Vec<Partition>,
    /// What others may have now.
    pub(super) released: Vec<Partition>,
}

/// What a member has when a round begins.
#[derive(Debug)]
pub(super) struct Having {
    /// The log that it reads: of another one, nothing is owned.
    pub(super) source: String,
    /// Its partitions, each with the next offset that it reads.
    pub(super) owned: BTreeMap<Partition, u64>,
    /// What it gives back first.
    pub(super) releasing: Vec<Partition>,
    /// Partitions of which it knows that they give offsets twice.
    pub(super) lost: Vec<Partition>,
}

/// Does a round for a member.
pub(super) async fn round<L: Log>(log: &L, terms: &Terms, having: Having) -> Result<Kept, Cause> {
    if terms.follows {
        return look(log, having).await;
    }
    let Having { source: known, mut owned, releasing, lost: known_lost } = having;
    let began = Instant::now();
    if !releasing.is_empty() {
        log.release(&terms.me, &releasing, false).await?;
    }
    let mut whole = log.join(&terms.me, terms.lease).await?;
    if known != whole.source {
        owned.clear();
    }
    let due = due(&whole.members, &terms.me, whole.partitions);
    let surplus: Vec<Partition> = owned.keys().copied().skip(due).collect();
    let wanted: Vec<Partition> = owned.keys().copied().collect();
    let mut ours = match wanted.is_empty() {
        true => Vec::new(),
        false => log.claim(&terms.me, &wanted, terms.lease).await?,
    };
    // From a place of our own on, so that members do not all ask for the same; one at a time, since
    // what is claimed beyond our due would be another's.
    let place = whole.members.iter().position(|name| *name == terms.me).unwrap_or(0);
    let first = u32::try_from(place * due).unwrap_or(0) % whole.partitions.max(1);
    let others = (0..whole.partitions)
        .map(|step| Partition((first + step) % whole.partitions))
        .filter(|partition| !owned.contains_key(partition));
    for partition in others {
        if ours.len() >= due {
            break;
        }
        ours.extend(log.claim(&terms.me, &[partition], terms.lease).await?);
    }
    let bounds = match ours.is_empty() {
        true => Vec::new(),
        false => log.bounds(&ours).await?,
    };
    let (mut held, mut faults, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for (partition, bounds) in ours.into_iter().zip(bounds) {
        let bounds = match bounds {
            Ok(bounds) => bounds,
            Err(error) => {
                faults.push((partition, error));
                continue;
            }
        };
        let next = owned.get(&partition).copied();
        let known = known == whole.source && known_lost.contains(&partition);
        let beyond = next.max(bounds.committed).filter(|next| *next > bounds.end);
        if let (Some(next), false, false) = (beyond, known, bounds.anew) {
            match log.go_on(partition, next).await {
                Ok(true) => {
                    warn!(
                        bus = log.address(), %partition, next, end = bounds.end,
                        "the log of a partition has lost its newest ratings, and goes on behind them"
                    );
                    held.push((partition, Bounds { end: next, ..bounds }));
                    continue;
                }
                Ok(false) => {}
                Err(error) => {
                    faults.push((partition, error));
                    continue;
                }
            }
        }
        if known || bounds.anew || beyond.is_some() {
            warn!(
                bus = log.address(), %partition, next, committed = bounds.committed, end = bounds.end,
                "the log of a partition was made anew or has lost its newest ratings"
            );
            lost.push(partition);
        }
        held.push((partition, bounds));
    }
    if !lost.is_empty() {
        // What comes now gets offsets that other ratings had: under this name they would pass for them.
        log.renew(&whole.source, &lost).await?;
        whole.source = log.join(&terms.me, terms.lease).await?.source;
        for (partition, bounds) in &mut held {
            if lost.contains(partition) {
                bounds.committed = None;
            }
        }
    }
    let Whole { source, partitions, .. } = whole;
    Ok(Kept { began, source, partitions, ours: held, faults, surplus, released: releasing })
}

/// Does a round for one that follows: all partitions are its own, from where the log begins.
///
/// One that gives offsets twice is left out of this round, so that it is given up and read anew: the log's
/// name is the members' to change.
async fn look<L: Log>(log: &L, having: Having) -> Result<Kept, Cause> {
    let Having { source: known, mut owned, releasing, lost } = having;
    let began = Instant::now();
    let (source, partitions) = log.look().await?;
    if known != source {
        owned.clear();
    }
    let all: Vec<Partition> = (0..partitions).map(Partition).collect();
    let (mut ours, mut faults) = (Vec::with_capacity(all.len()), Vec::new());
    for (partition, bounds) in all.iter().zip(log.bounds(&all).await?) {
        let beyond = |end: u64| owned.get(partition).is_some_and(|next| *next > end);
        match bounds {
            Err(error) => faults.push((*partition, error)),
            Ok(bounds) if lost.contains(partition) || beyond(bounds.end) => {}
            Ok(bounds) => ours.push((*partition, Bounds { committed: None, ..bounds })),
        }
    }
    Ok(Kept { began, source, partitions, ours, faults, surplus: Vec::new(), released: releasing })
}

/// Returns how many of `partitions` are `me`'s due: an equal share, and the first in the order of
/// names have one of the rest each.
fn due(members: &[String], me: &str, partitions: u32) -> usize {
    let count = members.len().max(1);
    let place = members.iter().position(|name| name == me).unwrap_or(0);
    let partitions = partitions as usize;
    partitions / count + usize::from(place < partitions % count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dues_add_up_and_differ_by_one_at_most(members in 1_usize..40, partitions in 1_u32..200) {
            let names: Vec<String> = (0..members).map(|n| format!("m{n:03}")).collect();
            let dues: Vec<usize> = names.iter().map(|me| due(&names, me, partitions)).collect();
            prop_assert_eq!(dues.iter().sum::<usize>(), partitions as usize);
            let (least, most) = (dues.iter().min().unwrap(), dues.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }
}
