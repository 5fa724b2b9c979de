//! What tuners are promised beside records: demand, use of capacity, the market, named buckets.

use std::collections::BTreeMap;

use tokio::time::sleep;

use super::*;
use crate::store::{Bid, ByHand, Cursor, Demand, Quote, StoreError, Traded};

/// How long what another node was told may take to arrive: a bound against waiting for ever.
const SOON: Duration = Duration::from_secs(10);

pub(super) async fn run<H: Harness>(harness: &H) {
    demand_is_what_was_asked_and_what_is_left(harness).await;
    use_adds_up_over_nodes_and_never_goes_back(harness).await;
    one_of_two_bidders_leads(harness).await;
    a_quote_is_the_holders_to_post(harness).await;
    a_quote_of_no_numbers_is_refused_and_breaks_nothing(harness).await;
    a_walk_finds_every_agent_with_a_record_once(harness).await;
    named_buckets_are_written_together_with_the_default_one(harness).await;
    an_operators_named_limits_stay_until_they_are_removed(harness).await;
    what_an_operator_does_by_hand_is_in_force_at_once(harness).await;
}

async fn what_an_operator_does_by_hand_is_in_force_at_once<H: Harness>(harness: &H) {
    let store = harness.store();
    let (default, writes) = (bucket("default", slow(100)), bucket("writes", slow(50)));
    for (name, rated) in [("hand-rated", true), ("hand-new", false)] {
        let agent = agent(name);
        if rated {
            ask(store, &agent, &[(&default, 1)]).await;
            write_one(store, change(&agent, 0, slow(8))).await;
        }
        let rev = load_one(store, &agent).await.rev;
        let limits = |bucket, limits| ByHand::Limits { bucket, limits };
        store.by_hand(&agent, &limits(None, slow(6))).await.unwrap();
        store.by_hand(&agent, &limits(Some(writes.name.clone()), slow(3))).await.unwrap();
        assert_eq!(in_force(store, &agent, &default).await, slow(6));
        assert_eq!(in_force(store, &agent, &writes).await, slow(3));
        let record = load_one(store, &agent).await;
        assert_eq!((record.rev, record.limits, record.operator), (rev, Some(slow(6)), true));
        assert_eq!(record.banned_until_ms, None);

        let until_ms = u64::from(u32::MAX) * 1000;
        store.by_hand(&agent, &ByHand::Ban { until_ms }).await.unwrap();
        let verdict = ask(store, &agent, &[(&default, 1)]).await;
        assert!(matches!(verdict.decision, Decision::Banned { .. }), "{verdict:?}");
        // A rating's write lifts no ban.
        let adopts = Some(slow(6));
        let written = write_one(store, Change { adopts, ..change(&agent, rev, slow(5)) }).await;
        assert!(matches!(written, Written::Done { .. }), "{written:?}");
        assert_eq!(load_one(store, &agent).await.banned_until_ms, Some(until_ms));
        store.by_hand(&agent, &ByHand::Ban { until_ms: 0 }).await.unwrap();
        assert_eq!(load_one(store, &agent).await.banned_until_ms, None);
        let verdict = ask(store, &agent, &[(&default, 1)]).await;
        assert_eq!(verdict.decision, Decision::Admitted, "{name}");
        assert_eq!(verdict.first.limits, slow(5));
    }
}

async fn demand_is_what_was_asked_and_what_is_left<H: Harness>(harness: &H) {
    let (store, bucket) = (harness.store(), bucket("default", slow(10)));
    let [asks, owes, never] = ["demand-asks", "demand-owes", "demand-never"].map(agent);
    ask(store, &asks, &[(&bucket, 3)]).await;
    ask(store, &asks, &[(&bucket, 9)]).await;
    ask(store, &owes, &[(&bucket, 25)]).await;
    let demand = store.demand(&[owes, never, asks.clone()]).await.unwrap();
    let demand: Vec<Demand> = demand.into_iter().map(Result::unwrap).collect();
    let asked = Demand { admitted: 3, denied: 9, left: 7 };
    let owed = Demand { admitted: 25, denied: 0, left: 0 };
    assert_eq!(demand, [owed, Demand::default(), asked]);
    assert_eq!(load_one(store, &asks).await.demand, asked);
    let written = write_one(store, change(&asks, 0, slow(4))).await;
    assert_eq!(written, Written::Done { rev: 1, demand: asked });
    assert_eq!(store.demand(&[]).await.unwrap().len(), 0);
}

/// Returns what the nodes used, by name.
async fn used<T: Tune>(store: &T) -> BTreeMap<String, u64> {
    store.used().await.unwrap().into_iter().collect()
}

async fn use_adds_up_over_nodes_and_never_goes_back<H: Harness>(harness: &H) {
    let [(name, one), (other_name, other)] = harness.nodes().await;
    let (default, writes) = (bucket("default", slow(100)), bucket("writes", slow(100)));
    let before = used(harness.store()).await;
    let total = async || {
        let now = used(harness.store()).await;
        let of = |name: &String| now.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
        if name == other_name { of(&name) } else { of(&name) + of(&other_name) }
    };
    let mut seen = 0;
    let mut becomes = async |expected: u64| {
        let deadline = Instant::now() + SOON;
        loop {
            let now = total().await;
            assert!(now >= seen, "use went back from {seen} to {now}");
            seen = now;
            if now == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{now} tokens used, not {expected}");
            sleep(Duration::from_millis(5)).await;
        }
    };
    let [a, b, c] = ["use-a", "use-b", "use-c"].map(agent);
    // The other bucket is not the default one, and what is refused or looked at is no use.
    ask(&one, &a, &[(&writes, 50), (&default, 3)]).await;
    ask(&one, &a, &[(&default, 100)]).await;
    ask(&other, &b, &[(&default, 0)]).await;
    ask(&other, &b, &[(&default, 7)]).await;
    becomes(10).await;
    settle(&other, &b, &[(&default, 5)], Direction::GiveBack).await;
    settle(&one, &a, &[(&default, 2)], Direction::TakeMore).await;
    // What came back is taken off these.
    ask(&other, &c, &[(&default, 8)]).await;
    becomes(15).await;
}

fn bid(who: &str, quote: Option<Quote>) -> Bid {
    Bid { who: who.to_owned(), term: Duration::from_secs(30), quote }
}

fn quote(price: f64, use_share: f64) -> Option<Quote> {
    Some(Quote { price, use_share })
}

/// Gives back whatever `who` holds.
async fn leave<T: Tune>(store: &T, who: &str, quote: Option<Quote>) -> Traded {
    store.trade(&Bid { term: Duration::ZERO, ..bid(who, quote) }).await.unwrap()
}

async fn one_of_two_bidders_leads<H: Harness>(harness: &H) {
    let store = harness.store();
    let bids = ["first", "second"].map(|who| bid(who, None));
    let (one, two) = tokio::join!(store.trade(&bids[0]), store.trade(&bids[1]));
    let leads = [one.unwrap().leads, two.unwrap().leads];
    assert_ne!(leads[0], leads[1], "both lead, or neither");
    for (bid, leads) in bids.iter().zip(leads) {
        assert_eq!(store.trade(bid).await.unwrap().leads, leads, "a lease was lost");
    }
    for bid in &bids {
        leave(store, &bid.who, None).await;
    }
}

async fn a_quote_is_the_holders_to_post<H: Harness>(harness: &H) {
    let store = harness.store();
    let trade = async |who: &str, quote| store.trade(&bid(who, quote)).await.unwrap();
    let term = Duration::from_secs(30);
    // Numbers that no short decimal holds must come back as they are.
    let quotes = [quote(0.1 + 0.2, 1.0 / 3.0), quote(0.0, 1e300), quote(5e-324, 0.98)];
    let [first, second, third] = quotes;
    let ours = |traded: Traded, quote| assert_eq!(traded, Traded { leads: true, quote });
    let others = |traded: Traded, quote| assert_eq!(traded, Traded { leads: false, quote });

    let taken = trade("a", first).await;
    assert!(taken.leads && taken.quote != first, "posted by one who did not hold the lease yet");
    ours(trade("a", first).await, first);
    ours(trade("a", None).await, first);
    others(trade("b", second).await, first);
    harness.advance_market(term - Duration::from_secs(10)).await;
    others(trade("b", second).await, first);
    ours(trade("a", None).await, first);
    harness.advance_market(term - Duration::from_secs(10)).await;
    others(trade("b", second).await, first);

    harness.advance_market(term).await;
    ours(trade("b", second).await, first);
    others(trade("a", third).await, first);
    ours(trade("b", second).await, second);
    // Nobody took the lease meanwhile: it is still theirs to post.
    harness.advance_market(term).await;
    ours(trade("b", third).await, third);

    others(leave(store, "a", first).await, third);
    ours(trade("b", None).await, third);
    others(leave(store, "b", first).await, first);
    ours(trade("a", second).await, first);
    others(leave(store, "a", None).await, first);
    ours(trade("a", second).await, first);
    leave(store, "a", None).await;
}

async fn a_quote_of_no_numbers_is_refused_and_breaks_nothing<H: Harness>(harness: &H) {
    let store = harness.store();
    let before = store.trade(&bid("a", None)).await.unwrap();
    for (price, use_share) in [(f64::NAN, 0.5), (0.5, f64::INFINITY), (-0.1, 0.5), (0.5, -1.0)] {
        let refused = store.trade(&bid("a", quote(price, use_share))).await.unwrap_err();
        assert!(matches!(refused, StoreError::Quote(_)), "{refused}");
    }
    assert_eq!(store.trade(&bid("a", None)).await.unwrap(), before);
    leave(store, "a", None).await;
}

async fn a_walk_finds_every_agent_with_a_record_once<H: Harness>(harness: &H) {
    let store = harness.store();
    let rated: Vec<AgentId> = (0..300).map(|index| agent(&format!("walk{index}"))).collect();
    let changes: Vec<Change> = rated.iter().map(|agent| change(agent, 0, slow(5))).collect();
    store.write(&changes).await.unwrap();
    let unrated = agent("walk-unrated");
    ask(store, &unrated, &[(&bucket("default", slow(5)), 1)]).await;
    // A write that was refused makes no record.
    let stale = agent("walk-stale");
    assert_eq!(write_one(store, change(&stale, 7, slow(5))).await, Written::Stale);
    for about in [7, 1_000_000] {
        let (mut found, mut pages, mut next) = (BTreeMap::new(), 0, Some(Cursor::START));
        while let Some(from) = next {
            let (page, then) = store.agents(from, about).await.unwrap();
            for agent in page {
                *found.entry(agent).or_insert(0) += 1;
            }
            (pages, next) = (pages + 1, then);
            assert!(pages < 100_000, "a walk without end");
        }
        assert!(about > 300 || pages > 10, "{pages} pages of about {about}");
        for agent in &rated {
            assert_eq!(found.get(agent), Some(&1), "{agent} among pages of about {about}");
        }
        assert!(!found.contains_key(&unrated) && !found.contains_key(&stale));
    }
}

/// Returns the limits in force of the agent's bucket.
async fn in_force<S: Spend>(store: &S, agent: &AgentId, bucket: &BucketRule) -> Limits {
    ask(store, agent, &[(bucket, 0)]).await.first.limits
}

/// Writes limits of the default bucket and of one other, and returns those in force.
async fn write_both<H: Harness>(
    harness: &H,
    agent: &AgentId,
    (default, default_limits): (&BucketRule, Limits),
    (named, named_limits): (&BucketRule, Option<Limits>),
) -> (Limits, Limits) {
    let rev = load_one(harness.store(), agent).await.rev;
    let named_limits = named_limits.map(|limits| (named.name.clone(), limits));
    let both =
        Change { named: named_limits.into_iter().collect(), ..change(agent, rev, default_limits) };
    let written = write_one(harness.store(), both).await;
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
    let store = harness.store();
    (in_force(store, agent, default).await, in_force(store, agent, named).await)
}

async fn named_buckets_are_written_together_with_the_default_one<H: Harness>(harness: &H) {
    let agent = agent("named");
    let (default, writes) = (bucket("default", slow(100)), bucket("writes", slow(50)));
    let write = async |limits, named| {
        write_both(harness, &agent, (&default, limits), (&writes, named)).await
    };
    ask(harness.store(), &agent, &[(&default, 1), (&writes, 20)]).await;
    assert_eq!(write(slow(8), Some(limits(0.2, 4))).await, (slow(8), limits(0.2, 4)));
    // Clamped, and not minted.
    let verdict = ask(harness.store(), &agent, &[(&writes, 0)]).await;
    assert_eq!(verdict.first.tokens.whole(), 4);
    assert_eq!(write(slow(9), Some(slow(60))).await, (slow(9), slow(60)));
    let verdict = ask(harness.store(), &agent, &[(&writes, 0)]).await;
    assert!(verdict.first.tokens.whole() <= 30, "{verdict:?}");
    // What a change does not name stays.
    assert_eq!(write(slow(10), None).await, (slow(10), slow(60)));
    let stale =
        Change { named: vec![(writes.name.clone(), slow(1))], ..change(&agent, 0, slow(1)) };
    assert_eq!(write_one(harness.store(), stale).await, Written::Stale);
    assert_eq!(in_force(harness.store(), &agent, &writes).await, slow(60));
}

async fn an_operators_named_limits_stay_until_they_are_removed<H: Harness>(harness: &H) {
    let agent = agent("named-operator");
    let (default, writes) = (bucket("default", slow(100)), bucket("writes", slow(50)));
    let write = async |limits, named| {
        write_both(harness, &agent, (&default, limits), (&writes, Some(named))).await
    };
    for round in 0..2 {
        // Before anything was written, and after.
        harness.operator_sets_named(&agent, &writes.name, Some(slow(3))).await;
        for capacity in [20, 21] {
            assert_eq!(write(slow(capacity), slow(30)).await, (slow(capacity), slow(3)), "{round}");
        }
        harness.operator_sets_named(&agent, &writes.name, Some(slow(2))).await;
        assert_eq!(write(slow(22), slow(30)).await, (slow(22), slow(2)), "{round}");
        harness.operator_sets_named(&agent, &writes.name, None).await;
        for capacity in [31, 32] {
            assert_eq!(
                write(slow(23), slow(capacity)).await,
                (slow(23), slow(capacity)),
                "{round}"
            );
        }
    }
}
