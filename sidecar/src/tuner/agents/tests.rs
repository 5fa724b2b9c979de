use super::*;
use tower_merit::bucket::BucketName;

use crate::{
    bus::Partition,
    policy::{Config, Kind},
    rating::{Poster, RatingRequest},
    tuner::{Aim, Unproved},
};

const EPOCH: &str = "e1";
/// More than any of the tests has.
const AGENTS: usize = 1_000;

fn judge(config: &Config) -> Judge {
    let aim = Aim::new(config.clone(), Limits::per_second(20.0, 40).unwrap());
    Judge::new(aim, Unproved::All)
}

fn policy() -> Policy {
    judge(&Config::default()).policy().clone()
}

fn agent() -> AgentId {
    AgentId::new("a").unwrap()
}

fn delivery(offset: u64, id: &str, score: u64) -> Delivery {
    let body = format!(r#"{{"agent_id":"a","user_id":"u","score":{score},"id":"{id}"}}"#);
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    let rating = request.into_rating(Poster::new("p").unwrap(), 1_800_000_000_000_000).unwrap();
    Delivery { partition: Partition(0), offset, rating }
}

fn fold(agents: &mut Agents, deliveries: &[Delivery]) -> (Option<Change>, Folded) {
    let log: Arc<str> = "s/0".into();
    let folding =
        |delivery| Folding { delivery, log: Arc::clone(&log), fresh: false, weight: None };
    let mut ratings: Vec<Folding<'_>> = deliveries.iter().map(folding).collect();
    agents.fold(&agent(), &mut ratings, &mut judge(&Config::default()), EPOCH, true)
}

/// Returns what the store would hold after `change`.
fn stored(change: &Change, rev: u64) -> Record {
    let mut record = Record::default();
    record.rev = rev;
    record.limits = Some(change.limits);
    record.state.clone_from(&change.state);
    record.applied.clone_from(&change.applied);
    record.seen.clone_from(&change.seen);
    record
}

#[test]
fn a_rating_at_or_below_the_applied_offset_is_skipped_however_the_batches_fall() {
    let all: Vec<Delivery> =
        (0..10).map(|at| delivery(at, &format!("i{at}"), 1 + at % 5)).collect();
    let mut once = Agents::new(AGENTS);
    once.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
    let (whole, _) = fold(&mut once, &all);

    let mut crashed = Agents::new(AGENTS);
    crashed.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
    let (first, _) = fold(&mut crashed, &all[..4]);
    let mut restarted = Agents::new(AGENTS);
    restarted.load(&agent(), stored(&first.unwrap(), 1), &policy(), EPOCH).unwrap();
    let (rest, folded) = fold(&mut restarted, &all);
    assert_eq!((folded.skipped, folded.counted), (4, 6));
    assert_eq!(rest.unwrap().state, whole.unwrap().state);
    assert_eq!(fold(&mut restarted, &all).0.map(|change| change.rev), None);
}

#[test]
fn a_repeated_id_counts_once_across_a_restart_and_another_body_under_it_not_at_all() {
    let mut agents = Agents::new(AGENTS);
    agents.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
    let (change, _) = fold(&mut agents, &[delivery(0, "same", 5)]);
    let change = change.unwrap();
    assert_eq!(change.limits.refill().to_string(), "20.2");

    let mut restarted = Agents::new(AGENTS);
    restarted.load(&agent(), stored(&change, 1), &policy(), EPOCH).unwrap();
    let repeats = [delivery(1, "same", 5), delivery(2, "same", 1)];
    let (change, folded) = fold(&mut restarted, &repeats);
    assert_eq!((folded.counted, folded.repeats, folded.conflicts), (0, 1, 1));
    let change = change.unwrap();
    assert_eq!(change.limits.refill().to_string(), "20.2");
    assert_eq!(change.applied, [("s/0".to_owned(), 2)], "a repeat must be applied all the same");
}

#[test]
fn an_operators_limits_are_the_new_start_and_their_ratio_the_new_burst() {
    let mut agents = Agents::new(AGENTS);
    let mut record = Record::default();
    record.limits = Some(Limits::per_second(1.0, 6).unwrap());
    record.operator = true;
    agents.load(&agent(), record, &policy(), EPOCH).unwrap();
    let (change, _) = fold(&mut agents, &[delivery(0, "i", 5)]);
    let change = change.unwrap();
    assert_eq!(change.adopts, Some(Limits::per_second(1.0, 6).unwrap()));
    assert_eq!(change.limits, Limits::per_second(1.2, 7).unwrap());
}

#[test]
fn a_state_of_another_policy_starts_from_the_limits_it_left_and_keeps_what_was_applied() {
    let mut agents = Agents::new(AGENTS);
    let mut record = Record::default();
    record.rev = 7;
    record.limits = Some(Limits::per_second(8.0, 16).unwrap());
    record.state = format!(r#"{{"epoch":"{EPOCH}","state":{{"policy":"oracle","depth":3}}}}"#);
    record.applied = vec![("s/0".to_owned(), 4)];
    agents.load(&agent(), record, &policy(), EPOCH).unwrap();
    let (change, folded) = fold(&mut agents, &[delivery(4, "i4", 5), delivery(5, "i5", 5)]);
    assert_eq!(folded.skipped, 1);
    assert_eq!(change.unwrap().limits.refill().to_string(), "8.2");
}

#[test]
fn a_record_from_before_a_rebuild_counts_for_nothing_but_its_revision() {
    let mut agents = Agents::new(AGENTS);
    agents.load(&agent(), Record::default(), &policy(), "e0").unwrap();
    let (change, _) = fold(&mut agents, &[delivery(9, "i9", 5)]);
    // The fold wrote epoch e1; this store is of another one.
    let mut rebuilt = Agents::new(AGENTS);
    rebuilt.load(&agent(), stored(&change.unwrap(), 3), &policy(), "e2").unwrap();
    let (change, folded) = fold(&mut rebuilt, &[delivery(0, "i0", 5)]);
    assert_eq!((folded.counted, folded.skipped), (1, 0));
    assert_eq!(change.unwrap().rev, 3);
}

#[test]
fn a_store_that_knows_less_than_it_did_is_noticed() {
    let mut agents = Agents::new(AGENTS);
    let mut record = Record::default();
    record.rev = 5;
    agents.load(&agent(), record, &policy(), EPOCH).unwrap();
    let mut older = Record::default();
    older.rev = 4;
    let went_back = agents.load(&agent(), older, &policy(), EPOCH);
    assert_eq!(went_back, Err(WentBack::Older));
    let gone = agents.load(&agent(), Record::default(), &policy(), EPOCH);
    assert_eq!(gone, Err(WentBack::Gone));
}

#[test]
fn named_buckets_move_with_the_default_one() {
    let writes = BucketName::new("writes").unwrap();
    let start = Limits::per_second(20.0, 40).unwrap();
    let earned = vec![(writes.clone(), Limits::per_second(2.0, 10).unwrap())];
    let aim = Aim { earned, ..Aim::new(Config::default(), start) };
    let mut judge = Judge::new(aim, Unproved::All);
    let mut agents = Agents::new(AGENTS);
    agents.load(&agent(), Record::default(), judge.policy(), EPOCH).unwrap();
    let deliveries = [delivery(0, "i", 5)];
    let mut ratings =
        [Folding { delivery: &deliveries[0], log: "s/0".into(), fresh: false, weight: None }];
    let (change, _) = agents.fold(&agent(), &mut ratings, &mut judge, EPOCH, true);
    // From 20 to 20.2 is one per cent more.
    assert_eq!(change.unwrap().named, [(writes, Limits::per_second(2.02, 10).unwrap())]);
}

#[test]
fn an_agent_is_looked_at_once_a_tick_and_moved_only_by_more_than_one_per_cent() {
    let config = Config {
        kind: Kind::Price,
        service_capacity: Some(100.0),
        trust: false,
        ..Config::default()
    };
    let mut judge = judge(&config);
    let (tick, start) = (Duration::from_secs(1), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut agents = Agents::new(AGENTS);
    agents.load(&agent(), Record::default(), judge.policy(), EPOCH).unwrap();
    let deliveries = [delivery(0, "i", 5)];
    let mut ratings =
        [Folding { delivery: &deliveries[0], log: "s/0".into(), fresh: false, weight: None }];
    let (change, folded) = agents.fold(&agent(), &mut ratings, &mut judge, EPOCH, true);
    let rate = change.unwrap().limits.refill().tokens();
    assert!((15.0..=25.05).contains(&rate), "one step from 20: {rate}");
    assert_eq!(folded.decision.unwrap().held, None);
    agents.written(&agent(), 1, rate);

    let demand = |admitted, denied| Demand { admitted, denied, left: 7 };
    assert_eq!(agents.due(9, start, tick), [], "it was loaded just now");
    assert_eq!(agents.due(9, at(2), tick), [agent()]);
    // It asks for half as much again: from 24 to 35 tokens a second in steps of more than one per cent.
    let mut looks = 0;
    let mut writes = 0;
    for second in 2..120 {
        let count = 30 * second;
        match agents.look(&agent(), demand(count, 0), at(second), &judge, EPOCH, false) {
            Look::Begun | Look::Early { .. } => panic!("it was loaded with its counts"),
            Look::Ticked { change, .. } => {
                looks += 1;
                if let Some(change) = change {
                    writes += 1;
                    agents.written(&agent(), 1, change.limits.refill().tokens());
                }
            }
        }
        assert_eq!(agents.due(9, at(second), tick), []);
    }
    assert!(looks == 118 && (5..40).contains(&writes), "{looks} looks, {writes} writes");
    // Between two ticks there is nothing to decide, whoever looks; what waits is written.
    let before = agents.state(&agent()).unwrap().clone();
    let soon = at(119) + Duration::from_millis(200);
    let early = agents.look(&agent(), demand(9_999, 0), soon, &judge, EPOCH, false);
    assert!(matches!(early, Look::Early { change: None }));
    assert_eq!(agents.state(&agent()), Some(&before));
    agents.written(&agent(), 1, 1.0);
    let early = agents.look(&agent(), demand(9_999, 0), soon, &judge, EPOCH, false);
    assert!(matches!(early, Look::Early { change: Some(_) }));
    assert_eq!(agents.state(&agent()), Some(&before));
    // Counts that went back are another bucket's: from there on they count anew.
    let back = agents.look(&agent(), demand(5, 0), at(200), &judge, EPOCH, false);
    assert!(matches!(back, Look::Begun));
    let on = agents.look(&agent(), demand(25, 0), at(201), &judge, EPOCH, false);
    assert!(matches!(on, Look::Ticked { .. }));
}

#[test]
fn everybody_has_a_turn_before_anybody_has_another_and_the_forgotten_have_none() {
    let mut agents = Agents::new(4);
    let name = |number: u32| AgentId::new(&format!("a{number}")).unwrap();
    for number in 0..5 {
        agents.load(&name(number), Record::default(), &policy(), EPOCH).unwrap();
    }
    // a0 was pushed out; loading a1 anew keeps its place.
    agents.load(&name(1), Record::default(), &policy(), EPOCH).unwrap();
    let later = Instant::now() + Duration::from_secs(60);
    let mut due = |most| agents.due(most, later, Duration::from_secs(1));
    assert_eq!(due(3), [name(1), name(2), name(3)]);
    assert_eq!(due(2), [name(4), name(1)]);
    assert_eq!(due(9).len(), 4, "nobody twice in one look around");
    agents.forget(&name(2));
    assert_eq!(agents.due(9, later, Duration::from_secs(1)).len(), 3);
    // Places are bounded although nobody is looked at.
    for number in 0..10_000 {
        agents.load(&name(number), Record::default(), &policy(), EPOCH).unwrap();
    }
    assert!(agents.turns.len() <= 2 * 4 + TURNS_SLACK + 1, "{}", agents.turns.len());
    assert_eq!(agents.due(9, later + Duration::from_secs(60), Duration::from_secs(1)).len(), 4);
}

#[test]
fn a_full_memory_makes_room_without_pushing_out_the_batch_at_hand() {
    let mut agents = Agents::new(3);
    let name = |number: u32| AgentId::new(&format!("a{number}")).unwrap();
    for number in 0..3 {
        agents.load(&name(number), Record::default(), &policy(), EPOCH).unwrap();
    }
    // The batch names the one that was rated longest ago, and two new ones.
    let batch = [name(0), name(7), name(8)];
    for agent in agents.unknown(batch.iter()) {
        agents.load(&agent, Record::default(), &policy(), EPOCH).unwrap();
    }
    assert!(agents.unknown(batch.iter()).is_empty());
    assert_eq!(agents.len(), 3);
}

#[test]
fn a_half_that_no_operator_set_is_what_the_state_was_before_the_batch() {
    let mut agents = Agents::new(AGENTS);
    agents.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
    agents.adopt(&agent(), Some(Tokens::new(10).unwrap()), None, &policy());
    let (change, _) = fold(&mut agents, &[delivery(0, "i", 5)]);
    assert_eq!(change.unwrap().limits, Limits::per_second(20.2, 10).unwrap());
}
