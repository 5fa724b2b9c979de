//! One round of keeping the leases: take part, renew what is ours, claim what is due.

use super::{Bounds, Log, Terms, Whole};
use crate::bus::{Cause, Partition};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// What a round found.
#[derive(Debug)]
pub(super) struct Kept {
    /// When it began: leases run from here.
    pub(super) began: Instant,
    pub(super) source: String,
    pub(super) partitions: u32,
    /// What is ours.
    pub(super) ours: Vec<(Partition, Held)>,
    /// What is ours and more than our due.
    pub(super) surplus: Vec<Partition>,
    /// What others may have now.
    pub(super) released: Vec<Partition>,
}

/// A partition that is ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) bounds: Bounds,
    /// Whether the next offset that we would read lies beyond the end of the log.
    pub(super) beyond: bool,
}

/// Does a round for a member that owns the partitions in `owned`, each with the next offset that it
/// reads, and gives `releasing` back first.
///
/// `known` is the log that these are partitions of: of another one, nothing is owned.
pub(super) async fn round<L: Log>(
    log: &L,
    terms: &Terms,
    known: &str,
    mut owned: BTreeMap<Partition, u64>,
    releasing: Vec<Partition>,
) -> Result<Kept, Cause> {
    if terms.follows {
        return look(log, known, owned, releasing).await;
    }
    let began = Instant::now();
    if !releasing.is_empty() {
        log.release(&terms.me, &releasing, false).await?;
    }
    let whole = log.join(&terms.me, terms.lease).await?;
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
    let held = |(partition, bounds): (Partition, Bounds)| {
        let beyond = owned.get(&partition).is_some_and(|next| *next > bounds.end);
        (partition, Held { bounds, beyond })
    };
    let ours = ours.into_iter().zip(bounds).map(held).collect();
    let Whole { source, partitions, .. } = whole;
    Ok(Kept { began, source, partitions, ours, surplus, released: releasing })
}

/// Does a round for one that follows: all partitions are its own, from where the log begins.
async fn look<L: Log>(
    log: &L,
    known: &str,
    mut owned: BTreeMap<Partition, u64>,
    released: Vec<Partition>,
) -> Result<Kept, Cause> {
    let began = Instant::now();
    let (source, partitions) = log.look().await?;
    if known != source {
        owned.clear();
    }
    let all: Vec<Partition> = (0..partitions).map(Partition).collect();
    let bounds = log.bounds(&all).await?;
    let held = |(partition, bounds): (Partition, Bounds)| {
        let beyond = owned.get(&partition).is_some_and(|next| *next > bounds.end);
        (partition, Held { bounds: Bounds { committed: None, ..bounds }, beyond })
    };
    let ours = all.into_iter().zip(bounds).map(held).collect();
    Ok(Kept { began, source, partitions, ours, surplus: Vec::new(), released })
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
