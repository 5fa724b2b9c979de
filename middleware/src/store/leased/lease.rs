//! One agent's lease under one plan: what it holds here, until when, and how fast it is used.
//!
//! Pure: time arrives as milliseconds since the store was made. Amounts are multiples of the plan's
//! costs, so one multiple admits one request.

use std::{collections::VecDeque, iter, mem, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    bucket::{CAPACITY_MAX, NanoTokens, Tokens},
    store::{Decision, Held, Loan, StoreError, Take, Verdict},
};

/// The time over which use is measured: 100 ms.
pub(super) const WINDOW_MS: u64 = 100;

/// For how many such windows tokens are taken ahead.
const WINDOWS_AHEAD: u64 = 2;

/// How long a refusal is believed at most: 100 ms.
pub(super) const DENIAL_MS: u64 = 100;

/// Pause before tokens are taken ahead again after the store failed: 20 ms.
const FAILED_MS: u64 = 20;

/// A pace is kept in eighths of a request, so that it fades instead of stopping at 1.
const PACE_SCALE: u32 = 8;

/// A lease is renewed when a quarter of what was wanted ahead is left.
const RENEW_AT: u32 = 4;

/// What a request that waits for the store will be told.
pub(super) type Answer = Result<Verdict, StoreError>;

/// Requests that wait for the answer on its way, in their order.
pub(super) type Waiters = VecDeque<oneshot::Sender<Answer>>;

/// What may be held, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) term_ms: u64,
    pub(super) ahead_max: u32,
}

/// What an agent holds here under one plan.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) takes: Arc<[Take]>,
    /// Multiples that are paid for and not yet spent.
    left: u32,
    /// They may be spent before this moment, and go back from then on.
    until_ms: u64,
    /// What the store said last, and when it was heard.
    known: Option<Verdict>,
    told_ms: u64,
    /// Nobody was told yet that the limits are others than before.
    news: bool,
    /// A refusal in `known` holds until here.
    refused_until_ms: u64,
    /// Refusals told from memory that the bucket has not counted yet.
    uncounted: u32,
    /// Nothing is taken ahead before this moment.
    renew_from_ms: u64,
    /// Requests admitted here since `window_ms`, and per window before that, in eighths.
    window_ms: u64,
    used: u32,
    pace: u32,
    /// Present while a loan is on its way: there is one at most.
    pub(super) flight: Option<Box<Waiters>>,
}

impl Lease {
    pub(super) fn new(takes: Arc<[Take]>, now_ms: u64) -> Self {
        Self {
            takes,
            left: 0,
            until_ms: 0,
            known: None,
            told_ms: 0,
            news: false,
            refused_until_ms: 0,
            uncounted: 0,
            renew_from_ms: 0,
            window_ms: now_ms,
            used: 0,
            pace: 0,
            flight: None,
        }
    }

    /// When this lease was last of use: the one that was not for longest makes room for another.
    pub(super) fn used_ms(&self) -> u64 {
        self.window_ms
    }

    pub(super) fn is_for(&self, takes: &Arc<[Take]>) -> bool {
        Arc::ptr_eq(&self.takes, takes) || self.takes == *takes
    }

    /// Spends one multiple, if there is one that may still be spent.
    pub(super) fn take(&mut self, now_ms: u64) -> Option<Verdict> {
        if self.left == 0 || now_ms >= self.until_ms {
            return None;
        }
        self.left -= 1;
        self.news = false;
        self.count(now_ms);
        let mut verdict = self.known.as_ref().map(|known| self.shown(known))?;
        // A multiple was paid for in every bucket, whatever the last charge found there.
        verdict.first.short = false;
        verdict.rest.iter_mut().for_each(|held| held.short = false);
        Some(verdict)
    }

    /// Spends one multiple for a request that only asks this lease: `None` leaves everything as it was,
    /// and so it does when whoever stands in for the store has not heard of new limits.
    pub(super) fn take_now(&mut self, now_ms: u64, bounds: &Bounds) -> Option<Verdict> {
        let dry = self.renews_at(self.left.saturating_sub(1), now_ms, bounds);
        if self.news || dry { None } else { self.take(now_ms) }
    }

    /// Puts one multiple back that was taken here and not used; false when the lease has ended.
    pub(super) fn put_back(&mut self, now_ms: u64, bounds: &Bounds) -> bool {
        let alive = now_ms < self.until_ms && self.known.is_some() && self.left < bounds.ahead_max;
        if alive {
            self.left += 1;
        }
        // What was refused may be there now.
        self.refused_until_ms = 0;
        alive
    }

    /// Returns the refusal that still holds, with what is left of its wait.
    pub(super) fn refused(&mut self, now_ms: u64) -> Option<Verdict> {
        if now_ms >= self.refused_until_ms {
            return None;
        }
        let passed_ms = now_ms.saturating_sub(self.told_ms);
        let known = self.known.as_ref()?;
        let decision = match known.decision {
            Decision::Admitted => return None,
            Decision::Denied { wait_ms } => {
                self.uncounted = self.uncounted.saturating_add(1);
                Decision::Denied { wait_ms: wait_ms.map(|wait| wait.saturating_sub(passed_ms)) }
            }
            Decision::Banned { for_ms } => {
                Decision::Banned { for_ms: for_ms.saturating_sub(passed_ms) }
            }
        };
        Some(Verdict { decision, ..known.clone() })
    }

    /// Returns the refusals told from memory since the last time, for the buckets to count that were
    /// short. To be asked before another answer is taken in.
    pub(super) fn uncounted(&mut self) -> Option<(Arc<[Take]>, u32)> {
        let count = mem::take(&mut self.uncounted);
        let known = self.known.as_ref().filter(|_| count > 0)?;
        let short = known.held().zip(&*self.takes).filter(|(held, _)| held.short);
        let short: Arc<[Take]> = short.map(|(_, take)| take.clone()).collect();
        (!short.is_empty()).then_some((short, count))
    }

    /// Returns how many multiples to take ahead for `waiting` requests and what is used in a window;
    /// an agent that was not seen before gets none.
    pub(super) fn wanted(&mut self, waiting: usize, now_ms: u64, bounds: &Bounds) -> u32 {
        self.measure(now_ms);
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        self.target(bounds).max(waiting).min(bounds.ahead_max).saturating_sub(self.left)
    }

    fn target(&self, bounds: &Bounds) -> u32 {
        // No more than the term lasts.
        let ahead_ms = bounds.term_ms.min(WINDOWS_AHEAD * WINDOW_MS);
        let steady = (u64::from(self.pace) * ahead_ms).div_ceil(u64::from(PACE_SCALE) * WINDOW_MS);
        let steady = u32::try_from(steady).unwrap_or(u32::MAX);
        // Of the window that goes on nobody knows how much of it is over.
        steady.max(self.used).min(bounds.ahead_max)
    }

    /// Returns true when use is steady and what is left will not last.
    pub(super) fn runs_dry(&self, now_ms: u64, bounds: &Bounds) -> bool {
        self.renews_at(self.left, now_ms, bounds)
    }

    fn renews_at(&self, left: u32, now_ms: u64, bounds: &Bounds) -> bool {
        self.pace >= PACE_SCALE
            && left <= self.target(bounds) / RENEW_AT
            && self.flight.is_none()
            && now_ms >= self.renew_from_ms
    }

    /// Takes in what the store answered to a charge sent at `sent_ms`. Returns the multiples that
    /// must go back: all from before when the limits changed or the term is over, all on a ban.
    pub(super) fn landed(&mut self, loan: Loan, sent_ms: u64, now_ms: u64, bounds: &Bounds) -> u32 {
        let Loan { verdict, ahead } = loan;
        let mut back = 0;
        let changed = self.known.as_ref().is_some_and(|known| limits_differ(known, &verdict));
        self.news |= changed;
        if changed || now_ms >= self.until_ms {
            back = mem::take(&mut self.left);
        }
        // Counted from when the question left: the store answered after that.
        let refused = |wait_ms: u64| sent_ms.saturating_add(wait_ms.min(DENIAL_MS));
        match verdict.decision {
            Decision::Admitted => {
                self.left = self.left.saturating_add(ahead);
                self.until_ms = sent_ms + bounds.term_ms;
                self.refused_until_ms = 0;
                self.renew_from_ms = 0;
                if now_ms >= self.until_ms {
                    back += mem::take(&mut self.left);
                }
                // Given back by callers while the loan was on its way.
                let excess = self.left.saturating_sub(bounds.ahead_max);
                self.left -= excess;
                back += excess;
            }
            Decision::Denied { wait_ms } => {
                self.refused_until_ms = refused(wait_ms.unwrap_or(u64::MAX));
                self.renew_from_ms = self.refused_until_ms;
            }
            Decision::Banned { for_ms } => {
                back += mem::take(&mut self.left);
                self.refused_until_ms = refused(for_ms);
            }
        }
        self.told_ms = now_ms;
        self.known = Some(verdict);
        back
    }

    /// Answers the request whose charge was asked about: what the store said, or a multiple held
    /// here when the store denied.
    pub(super) fn lead(&mut self, now_ms: u64) -> Verdict {
        let known = self.known.as_ref().expect("the store has just answered");
        if known.decision == Decision::Admitted {
            let verdict = self.shown(known);
            self.count(now_ms);
            return verdict;
        }
        let refusal = known.clone();
        self.take(now_ms).unwrap_or(refusal)
    }

    /// Keeps the whole multiple that was paid for a request that is not there to use it.
    pub(super) fn keep(&mut self) {
        self.left += 1;
    }

    /// The store failed: what is left goes on until its term ends.
    pub(super) fn failed(&mut self, now_ms: u64) {
        self.renew_from_ms = now_ms + FAILED_MS;
    }

    /// Returns what must go back when the lease has ended, or `now` is the moment to end it.
    pub(super) fn end(&mut self, now_ms: u64, now: bool) -> u32 {
        if now {
            self.until_ms = 0;
            self.refused_until_ms = 0;
        }
        if now_ms >= self.until_ms { mem::take(&mut self.left) } else { 0 }
    }

    /// Counts one request admitted here.
    fn count(&mut self, now_ms: u64) {
        self.measure(now_ms);
        self.used = self.used.saturating_add(1);
    }

    /// Settles the windows that have passed.
    fn measure(&mut self, now_ms: u64) {
        let windows = now_ms.saturating_sub(self.window_ms) / WINDOW_MS;
        if windows == 0 {
            return;
        }
        let last = self.used.saturating_mul(PACE_SCALE);
        let pace = self.pace.saturating_add(last).div_ceil(2);
        // Each further window was one without use.
        let idle = u32::try_from(windows - 1).unwrap_or(u32::MAX);
        self.pace = pace.checked_shr(idle).unwrap_or(0);
        self.used = 0;
        self.window_ms += windows * WINDOW_MS;
    }

    /// Returns what a caller is shown: the level the store named last and what is left here of it.
    fn shown(&self, known: &Verdict) -> Verdict {
        let mut takes = self.takes.iter();
        let mut held = |held: &Held| {
            let Take { bucket, cost } =
                takes.next().expect("a verdict has the buckets of its plan");
            let left = i64::from(self.left).saturating_mul(cost.nano().0);
            let tokens = held.tokens.0.saturating_add(left).min(held.limits.capacity().nano().0);
            let short = held.short && bucket.shadow;
            Held { tokens: NanoTokens(tokens), short, ..*held }
        };
        let first = held(&known.first);
        Verdict { decision: Decision::Admitted, first, rest: known.rest.iter().map(held).collect() }
    }
}

/// Returns the part of `takes` that an admitted charge paid: a bucket that was only watched and held
/// too little gave nothing. The same `Arc` when it paid all.
pub(super) fn paid(takes: &Arc<[Take]>, verdict: &Verdict) -> Arc<[Take]> {
    if verdict.held().all(|held| !held.short) {
        return Arc::clone(takes);
    }
    let paid = takes.iter().zip(verdict.held()).filter(|(_, held)| !held.short);
    paid.map(|(take, _)| take.clone()).collect()
}

/// True when a bucket's limits are not what they were.
fn limits_differ(before: &Verdict, after: &Verdict) -> bool {
    before.held().zip(after.held()).any(|(before, after)| before.limits != after.limits)
}

/// Returns `takes` with every cost multiplied by `count`, in pieces that a cost can express.
pub(super) fn multiplied(takes: &Arc<[Take]>, count: u32) -> impl Iterator<Item = Arc<[Take]>> {
    let largest = takes.iter().map(|take| take.cost.get()).max().unwrap_or(1).max(1);
    let most = u32::try_from(CAPACITY_MAX / largest).unwrap_or(u32::MAX).max(1);
    let mut rest = count;
    iter::from_fn(move || {
        let piece = rest.min(most);
        rest -= piece;
        (piece > 0).then(|| {
            let times = |take: &Take| Take {
                bucket: take.bucket.clone(),
                cost: Tokens::new(take.cost.get() * u64::from(piece)).expect("at most the largest"),
            };
            takes.iter().map(times).collect()
        })
    })
}
