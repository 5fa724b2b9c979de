//! What every store promises, as one suite of checks; each fails by panicking with the promise.
//!
//! [`run`] takes any store behind a [`Harness`]. [`lua_agrees_with_rust`] and
//! [`redis_follows_the_model`] hold the Redis scripts to the arithmetic of [`crate::bucket`].

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a suite of assertions")]

mod document;

mod draw;

mod harness;

mod scripts;

mod tuning;

pub use draw::Draw;

pub use harness::{Harness, Memory};

pub use scripts::{age, age_market, level_of, lua_agrees_with_rust, redis_follows_the_model};

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    BucketRule, Change, Charge, Decision, Direction, Lend, Loan, Record, Settlement, Spend, Take,
    Tune, Verdict, Written,
};
use crate::{
    AgentId,
    bucket::{BucketName, Limits, NanoTokens, Tokens},
};

fn limits(rate: f64, capacity: u64) -> Limits {
    Limits::per_second(rate, capacity).unwrap()
}

fn bucket(name: &str, limits: Limits) -> BucketRule {
    BucketRule {
        name: BucketName::new(name).unwrap(),
        is_default: name == "default",
        limits,
        shadow: false,
    }
}

fn watched(name: &str, limits: Limits) -> BucketRule {
    BucketRule { shadow: true, ..bucket(name, limits) }
}

fn agent(name: &str) -> AgentId {
    AgentId::new(&format!("contract-{name}")).unwrap()
}

/// One token a day, so that the time a real server takes refills nothing.
fn slow(capacity: u64) -> Limits {
    limits(0.00001, capacity)
}

fn takes(takes: &[(&BucketRule, u64)]) -> Arc<[Take]> {
    let take = |&(bucket, cost): &(&BucketRule, u64)| Take {
        bucket: bucket.clone(),
        cost: Tokens::new(cost).unwrap(),
    };
    takes.iter().map(take).collect()
}

async fn ask<S: Spend>(store: &S, agent: &AgentId, of: &[(&BucketRule, u64)]) -> Verdict {
    as_the_layer(store, Charge { agent: agent.clone(), takes: takes(of) }).await.unwrap()
}

/// Asks for `charge` as the layer does: at once where the store can.
///
/// # Errors
///
/// As [`Spend::spend`].
pub async fn as_the_layer<S: Spend>(
    store: &S,
    charge: Charge,
) -> Result<Verdict, super::StoreError> {
    match store.spend_now(&charge.agent, &charge.takes, Instant::now()) {
        Some(verdict) => Ok(verdict),
        None => store.spend(charge).await,
    }
}

async fn lend<S: Lend>(store: &S, agent: &AgentId, of: &[(&BucketRule, u64)], most: u32) -> Loan {
    store.lend(Charge { agent: agent.clone(), takes: takes(of) }, most).await.unwrap()
}

/// Asks for `count` charges at once, each in a task of its own.
async fn ask_at_once<S: Spend>(
    store: &S,
    agent: &AgentId,
    of: &[(&BucketRule, u64)],
    count: usize,
) -> Vec<Verdict> {
    let takes = takes(of);
    let charge = || Charge { agent: agent.clone(), takes: Arc::clone(&takes) };
    let asked: Vec<_> = (0..count).map(|_| tokio::spawn(store.spend(charge()))).collect();
    let mut verdicts = Vec::new();
    for answer in asked {
        verdicts.push(answer.await.unwrap().unwrap());
    }
    verdicts
}

/// Settles, and returns what the buckets hold after that.
async fn settle<S: Spend>(
    store: &S,
    agent: &AgentId,
    of: &[(&BucketRule, u64)],
    direction: Direction,
) -> Verdict {
    store.settle(Settlement { agent: agent.clone(), takes: takes(of), direction });
    // A store may settle when it gets round to it, but not after what was asked later.
    let look: Vec<_> = of.iter().map(|(bucket, _)| (*bucket, 0)).collect();
    ask(store, agent, &look).await
}

fn change(agent: &AgentId, rev: u64, limits: Limits) -> Change {
    Change {
        agent: agent.clone(),
        rev,
        limits,
        named: Vec::new(),
        adopts: None,
        state: format!("state {rev}"),
        applied: vec![("source/0".to_owned(), 10 + rev)],
        seen: vec![(rev.to_string(), format!("ids {rev}"))],
    }
}

fn operator(limits: Limits) -> Written {
    Written::Operator { capacity: Some(limits.capacity()), refill: Some(limits.refill()) }
}

async fn load_one<T: Tune>(store: &T, agent: &AgentId) -> Record {
    store.load(std::slice::from_ref(agent)).await.unwrap().remove(0).unwrap()
}

async fn write_one<T: Tune>(store: &T, change: Change) -> Written {
    store.write(&[change]).await.unwrap().remove(0).unwrap()
}

/// Runs every promise against `harness`, whose store must be empty.
pub async fn run<H: Harness>(harness: &H) {
    a_new_agent_holds_a_full_bucket_and_no_more(harness).await;
    a_wait_of_exactly_the_time_told_is_enough(harness).await;
    all_buckets_are_charged_or_none(harness).await;
    a_cost_of_zero_only_looks(harness).await;
    a_cost_above_the_capacity_passes_when_full_and_leaves_debt(harness).await;
    new_limits_clamp_and_never_mint(harness).await;
    a_banned_agent_spends_nothing(harness).await;
    a_write_is_fenced_by_its_revision(harness).await;
    what_was_written_reads_back(harness).await;
    an_operators_limits_are_adopted_not_overwritten(harness).await;
    an_epoch_and_progress_are_kept(harness).await;
    many_agents_are_written_in_one_call(harness).await;
    concurrent_spends_are_decided_as_if_one_came_after_the_other(harness).await;
    requests_at_once_are_refused_by_the_bucket_that_was_short(harness).await;
    a_watched_bucket_refuses_nothing_and_says_so(harness).await;
    requests_at_once_pay_a_watched_bucket_as_far_as_it_goes(harness).await;
    what_was_given_back_can_be_spent_again_and_never_overfills(harness).await;
    a_request_that_cost_more_leaves_debt(harness).await;
    tuning::run(harness).await;
    document::run(harness).await;
}

/// Runs the promises of a store that hands out tokens ahead against `harness`.
pub async fn run_lending<H: Harness<Store: Lend>>(harness: &H) {
    a_loan_leaves_half_to_others(harness).await;
}

async fn a_new_agent_holds_a_full_bucket_and_no_more<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("new"), bucket("default", slow(3)));
    for left in [2, 1, 0] {
        let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
        assert_eq!(verdict.decision, Decision::Admitted);
        assert_eq!(verdict.first.tokens.whole(), left);
        assert_eq!(verdict.first.limits, bucket.limits);
    }
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    assert!(matches!(verdict.decision, Decision::Denied { wait_ms: Some(wait) } if wait > 1_000));
    assert!(verdict.first.short);
}

async fn a_wait_of_exactly_the_time_told_is_enough<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("wait"), bucket("default", limits(0.01, 1)));
    ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    let Decision::Denied { wait_ms: Some(wait) } = verdict.decision else { panic!("{verdict:?}") };
    assert!((90_000..=100_000).contains(&wait), "a token takes 100 s at 0.01/s, told {wait} ms");
    harness.advance(&agent, Duration::from_millis(wait)).await;
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    assert_eq!(verdict.decision, Decision::Admitted);
}

async fn all_buckets_are_charged_or_none<H: Harness>(harness: &H) {
    let agent = agent("all");
    let (wide, narrow) = (bucket("default", slow(10)), bucket("writes", slow(1)));
    let both = [(&wide, 1), (&narrow, 1)];
    let verdict = ask(harness.store(), &agent, &both).await;
    assert_eq!(verdict.decision, Decision::Admitted);
    assert_eq!(verdict.rest[0].tokens.whole(), 0);
    for _ in 0..5 {
        let verdict = ask(harness.store(), &agent, &both).await;
        assert!(matches!(verdict.decision, Decision::Denied { .. }));
        assert_eq!(verdict.first.tokens.whole(), 9, "a refusal charged the other bucket");
        assert_eq!((verdict.first.short, verdict.rest[0].short), (false, true));
    }
}

async fn a_cost_of_zero_only_looks<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("peek"), bucket("default", slow(1)));
    for _ in 0..3 {
        let verdict = ask(harness.store(), &agent, &[(&bucket, 0)]).await;
        assert_eq!((verdict.decision, verdict.first.tokens.whole()), (Decision::Admitted, 1));
    }
    ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    let verdict = ask(harness.store(), &agent, &[(&bucket, 0)]).await;
    assert_eq!(verdict.decision, Decision::Admitted, "a look was refused");
}

async fn a_cost_above_the_capacity_passes_when_full_and_leaves_debt<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("debt"), bucket("default", limits(0.01, 10)));
    let verdict = ask(harness.store(), &agent, &[(&bucket, 25)]).await;
    assert_eq!(verdict.decision, Decision::Admitted);
    assert_eq!(verdict.first.tokens, NanoTokens(-15_000_000_000));
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    let Decision::Denied { wait_ms: Some(wait) } = verdict.decision else { panic!("{verdict:?}") };
    assert!((1_590_000..=1_600_000).contains(&wait), "16 tokens at 0.01/s, told {wait} ms");
}

async fn new_limits_clamp_and_never_mint<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("clamp"), bucket("default", slow(100)));
    ask(harness.store(), &agent, &[(&bucket, 40)]).await;
    let written = write_one(harness.store(), change(&agent, 0, slow(10))).await;
    assert!(matches!(written, Written::Done { rev: 1, demand } if demand.admitted == 40));
    let verdict = ask(harness.store(), &agent, &[(&bucket, 0)]).await;
    assert_eq!((verdict.first.tokens.whole(), verdict.first.limits), (10, slow(10)));
    write_one(harness.store(), change(&agent, 1, slow(1000))).await;
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    assert_eq!(verdict.first.limits, slow(1000));
    assert!(verdict.first.tokens.whole() <= 60, "a higher capacity minted tokens: {verdict:?}");
}

async fn a_banned_agent_spends_nothing<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("banned"), bucket("default", slow(5)));
    harness.ban(&agent, u64::from(u32::MAX) * 1000).await;
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    assert!(matches!(verdict.decision, Decision::Banned { for_ms } if for_ms > 0));
    harness.ban(&agent, 0).await;
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    assert_eq!((verdict.decision, verdict.first.tokens.whole()), (Decision::Admitted, 4));
}

async fn a_write_is_fenced_by_its_revision<H: Harness>(harness: &H) {
    let (agent, store) = (agent("fence"), harness.store());
    assert!(matches!(
        write_one(store, change(&agent, 0, slow(7))).await,
        Written::Done { rev: 1, .. }
    ));
    assert_eq!(write_one(store, change(&agent, 0, slow(8))).await, Written::Stale);
    assert_eq!(write_one(store, change(&agent, 2, slow(9))).await, Written::Stale);
    let record = load_one(store, &agent).await;
    assert_eq!((record.rev, record.limits, record.operator), (1, Some(slow(7)), false));
}

async fn what_was_written_reads_back<H: Harness>(harness: &H) {
    let (agent, store) = (agent("read-back"), harness.store());
    let fresh = load_one(store, &agent).await;
    assert_eq!((fresh.rev, fresh.limits, fresh.operator), (0, None, false));
    write_one(store, change(&agent, 0, limits(20.2, 40))).await;
    write_one(store, change(&agent, 1, limits(0.000_001, 9_000_000))).await;
    let mut record = load_one(store, &agent).await;
    assert_eq!(record.limits, Some(limits(0.000_001, 9_000_000)));
    assert_eq!(record.state, "state 1");
    assert_eq!(record.applied, [("source/0".to_owned(), 11)]);
    record.seen.sort();
    assert_eq!(record.seen, [("0".into(), "ids 0".into()), ("1".into(), "ids 1".into())]);
}

async fn an_operators_limits_are_adopted_not_overwritten<H: Harness>(harness: &H) {
    let (agent, store) = (agent("operator"), harness.store());
    let bucket = bucket("default", slow(100));
    harness.operator_sets(&agent, slow(2)).await;
    let verdict = ask(store, &agent, &[(&bucket, 1)]).await;
    assert_eq!(verdict.first.limits, slow(2), "an operator's limits hold from the next request");
    assert_eq!(write_one(store, change(&agent, 0, slow(50))).await, operator(slow(2)));
    let adopting = Change { adopts: Some(slow(2)), ..change(&agent, 0, slow(3)) };
    assert!(matches!(write_one(store, adopting).await, Written::Done { rev: 1, .. }));
    assert!(matches!(write_one(store, change(&agent, 1, slow(4))).await, Written::Done { .. }));
    harness.operator_sets(&agent, slow(9)).await;
    let record = load_one(store, &agent).await;
    assert_eq!((record.limits, record.operator), (Some(slow(9)), true));
    assert_eq!(write_one(store, change(&agent, 2, slow(5))).await, operator(slow(9)));
}

async fn an_epoch_and_progress_are_kept<H: Harness>(harness: &H) {
    let store = harness.store();
    assert_eq!(store.life().await.unwrap().epoch, None);
    store.begin_epoch("first").await.unwrap();
    store.begin_epoch("second").await.unwrap();
    let life = store.life().await.unwrap();
    assert_eq!(life.epoch.as_deref(), Some("first"));
    assert_eq!(life, store.life().await.unwrap());
    store.note_progress(&[("s/0".to_owned(), 5), ("s/1".to_owned(), 6)]).await.unwrap();
    store.note_progress(&[("s/0".to_owned(), 7)]).await.unwrap();
    let mut progress = store.progress().await.unwrap();
    progress.sort();
    assert_eq!(progress, [("s/0".to_owned(), 7), ("s/1".to_owned(), 6)]);
}

async fn many_agents_are_written_in_one_call<H: Harness>(harness: &H) {
    let agents: Vec<AgentId> = (0..500).map(|index| agent(&format!("many{index}"))).collect();
    let changes: Vec<Change> = agents.iter().map(|agent| change(agent, 0, slow(11))).collect();
    let written = harness.store().write(&changes).await.unwrap();
    assert!(written.iter().all(|written| matches!(written, Ok(Written::Done { rev: 1, .. }))));
    let records = harness.store().load(&agents).await.unwrap();
    assert!(records.iter().all(|record| record.as_ref().unwrap().limits == Some(slow(11))));
    assert_eq!(records.len(), 500);
}

async fn concurrent_spends_are_decided_as_if_one_came_after_the_other<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("concurrent"), bucket("default", slow(101)));
    let verdicts = ask_at_once(harness.store(), &agent, &[(&bucket, 2)], 200).await;
    let (admitted, denied): (Vec<_>, Vec<_>) =
        verdicts.iter().partition(|verdict| verdict.decision == Decision::Admitted);
    let mut left: Vec<u64> = admitted.iter().map(|v| v.first.tokens.whole()).collect();
    left.sort_unstable();
    let each_once: Vec<u64> = (0..50).map(|left| left * 2 + 1).collect();
    assert_eq!(left, each_once, "every request sees what those before it left");
    for verdict in denied {
        assert_eq!((verdict.first.tokens.whole(), verdict.first.short), (1, true));
        let Decision::Denied { wait_ms: Some(wait) } = verdict.decision else {
            panic!("{verdict:?}")
        };
        assert!((99_000_000..=100_000_000).contains(&wait), "1 token at 0.00001/s, told {wait} ms");
    }
    let demand = load_one(harness.store(), &agent).await.demand;
    assert_eq!(demand.admitted, 100);
}

async fn requests_at_once_are_refused_by_the_bucket_that_was_short<H: Harness>(harness: &H) {
    let agent = agent("short-at-once");
    let (wide, narrow) = (bucket("default", slow(20)), bucket("writes", slow(5)));
    let verdicts = ask_at_once(harness.store(), &agent, &[(&wide, 1), (&narrow, 1)], 30).await;
    let (admitted, denied): (Vec<_>, Vec<_>) =
        verdicts.iter().partition(|verdict| verdict.decision == Decision::Admitted);
    assert_eq!((admitted.len(), denied.len()), (5, 25));
    for verdict in denied {
        assert_eq!((verdict.first.short, verdict.rest[0].short), (false, true));
    }
    let demand = load_one(harness.store(), &agent).await.demand;
    assert_eq!((demand.admitted, demand.denied), (5, 0), "the wide bucket refused nobody");
}

async fn a_watched_bucket_refuses_nothing_and_says_so<H: Harness>(harness: &H) {
    let agent = agent("watched");
    let (wide, watched) = (bucket("default", slow(5)), watched("writes", slow(2)));
    for (left, left_watched, short) in [(3, 0, false), (1, 0, true)] {
        let verdict = ask(harness.store(), &agent, &[(&wide, 2), (&watched, 2)]).await;
        assert_eq!(verdict.decision, Decision::Admitted);
        assert_eq!((verdict.first.tokens.whole(), verdict.first.short), (left, false));
        let held = &verdict.rest[0];
        assert_eq!((held.tokens.whole(), held.short), (left_watched, short));
    }
    let verdict = ask(harness.store(), &agent, &[(&wide, 2), (&watched, 2)]).await;
    assert!(matches!(verdict.decision, Decision::Denied { .. }));
    assert_eq!((verdict.first.tokens.whole(), verdict.first.short), (1, true));
}

async fn requests_at_once_pay_a_watched_bucket_as_far_as_it_goes<H: Harness>(harness: &H) {
    let agent = agent("watched-at-once");
    let (wide, watched) = (bucket("default", slow(20)), watched("writes", slow(7)));
    let verdicts = ask_at_once(harness.store(), &agent, &[(&wide, 1), (&watched, 1)], 30).await;
    let admitted = |verdict: &&Verdict| verdict.decision == Decision::Admitted;
    assert_eq!(verdicts.iter().filter(admitted).count(), 20);
    let paid = verdicts.iter().filter(|verdict| !verdict.rest[0].short);
    assert_eq!(paid.count(), 7);
}

async fn what_was_given_back_can_be_spent_again_and_never_overfills<H: Harness>(harness: &H) {
    let agent = agent("back");
    let (default, writes) = (bucket("default", slow(5)), bucket("writes", slow(5)));
    let store = harness.store();
    ask(store, &agent, &[(&default, 5), (&writes, 2)]).await;
    let back = [(&default, 3), (&writes, 3)];
    let verdict = settle(store, &agent, &back, Direction::GiveBack).await;
    assert_eq!((verdict.first.tokens.whole(), verdict.rest[0].tokens.whole()), (3, 5));
    assert_eq!(load_one(store, &agent).await.demand.admitted, 2);
    let verdict = ask(store, &agent, &[(&default, 3)]).await;
    assert_eq!(verdict.decision, Decision::Admitted);
}

async fn a_request_that_cost_more_leaves_debt<H: Harness>(harness: &H) {
    let (agent, bucket) = (agent("more"), bucket("default", slow(5)));
    ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    let verdict = settle(harness.store(), &agent, &[(&bucket, 10)], Direction::TakeMore).await;
    assert!((-6_000_000_000..-5_999_000_000).contains(&verdict.first.tokens.0), "{verdict:?}");
    let verdict = ask(harness.store(), &agent, &[(&bucket, 1)]).await;
    assert!(matches!(verdict.decision, Decision::Denied { .. }));
    assert_eq!(load_one(harness.store(), &agent).await.demand.admitted, 11);
}

async fn a_loan_leaves_half_to_others<H: Harness<Store: Lend>>(harness: &H) {
    let agent = agent("loan");
    let (wide, narrow) = (bucket("default", slow(1000)), bucket("writes", slow(100)));
    let (both, store) = ([(&wide, 2), (&narrow, 1)], harness.store());
    let loan = lend(store, &agent, &both, 1000).await;
    // 99 are left of the narrow one, and half of that is 49.
    assert_eq!((loan.verdict.decision, loan.ahead), (Decision::Admitted, 49));
    assert_eq!(loan.verdict.first.tokens.whole(), 900);
    assert_eq!(loan.verdict.rest[0].tokens.whole(), 50);
    let loan = lend(store, &agent, &both, 10).await;
    assert_eq!((loan.ahead, loan.verdict.rest[0].tokens.whole()), (10, 39));
    assert_eq!(load_one(store, &agent).await.demand.admitted, 122);
    let verdict = settle(store, &agent, &[(&wide, 20), (&narrow, 10)], Direction::GiveBack).await;
    assert_eq!(verdict.rest[0].tokens.whole(), 49);
    let loan = lend(store, &agent, &[(&narrow, 49)], 5).await;
    assert_eq!((loan.verdict.decision, loan.ahead), (Decision::Admitted, 0));
    let loan = lend(store, &agent, &[(&narrow, 1)], 5).await;
    assert!(matches!(loan.verdict.decision, Decision::Denied { .. }));
    assert_eq!(loan.ahead, 0);
    let loan = lend(store, &agent, &[(&wide, 0)], 5).await;
    assert_eq!(loan.ahead, 0, "what costs nothing need not be lent");
}

/// Returns a charge of one token of `agent`, out of a thousand that do not come back in a test's time.
#[must_use]
pub fn one_token(agent: &AgentId) -> Charge {
    let take = Take { bucket: bucket("default", slow(1000)), cost: Tokens::ONE };
    Charge { agent: agent.clone(), takes: [take].into() }
}

/// Returns the change that follows revision `rev` of `agent`.
#[must_use]
pub fn next_change(agent: &AgentId, rev: u64) -> Change {
    change(agent, rev, slow(100 + rev))
}

/// Takes one token of `agent`, trying again while the store reconnects.
pub async fn spend_one<S: Spend>(store: &S, agent: &AgentId) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match store.spend(one_token(agent)).await {
            Ok(verdict) => return assert_eq!(verdict.decision, Decision::Admitted),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Writes the next limits of `agent`, whatever its record's revision.
pub async fn write_next<T: Tune>(store: &T, agent: &AgentId) {
    let record = load_one(store, agent).await;
    let written = write_one(store, next_change(agent, record.rev)).await;
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}
