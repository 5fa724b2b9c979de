//! A store by somebody else: everything that it needs is public.

use std::{
    collections::HashMap,
    future::{Ready, ready},
    sync::{Arc, Mutex},
};

use http::StatusCode;
use tower_merit::{
    AgentId, Spend,
    bucket::Tokens,
    store::{
        Charge, Cursor, Decision, Direction, Held, Lend, Loan, Settlement, StoreError, Verdict,
    },
};

use crate::support::{ask, builder, get};

/// Lets each agent spend its capacity, and never refills.
#[derive(Clone, Default)]
struct Once(Arc<Mutex<HashMap<AgentId, u64>>>);

impl Once {
    fn decide(&self, charge: &Charge) -> Result<Verdict, StoreError> {
        let mut spent = self.0.lock().unwrap();
        let spent = spent.entry(charge.agent.clone()).or_default();
        if *spent > 1_000 {
            let source = Arc::new(std::io::Error::other("the disk is full"));
            return Err(StoreError::Full { address: "once".to_owned(), source });
        }
        let cost: u64 = charge.takes.iter().map(|take| take.cost.get()).sum();
        let capacity = charge.takes[0].bucket.limits.capacity().get();
        let short = *spent + cost > capacity;
        if !short {
            *spent += cost;
        }
        let decision = match short {
            true => Decision::Denied { wait_ms: None },
            false => Decision::Admitted,
        };
        let mut held = charge.takes.iter().map(|take| Held {
            limits: take.bucket.limits,
            tokens: Tokens::new(capacity - *spent).unwrap().nano(),
            short,
        });
        let first = held.next().unwrap();
        Ok(Verdict::new(decision, first, held.collect()))
    }
}

impl Spend for Once {
    type Future = Ready<Result<Verdict, StoreError>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        ready(self.decide(&charge))
    }

    fn settle(&self, settlement: Settlement) {
        let mut spent = self.0.lock().unwrap();
        let spent = spent.entry(settlement.agent).or_default();
        let cost: u64 = settlement.takes.iter().map(|take| take.cost.get()).sum();
        match settlement.direction {
            Direction::GiveBack => *spent = spent.saturating_sub(cost),
            Direction::TakeMore => *spent += cost,
            Direction::Refused => {}
        }
    }
}

impl Lend for Once {
    type Loan = Ready<Result<Loan, StoreError>>;

    fn lend(&self, charge: Charge, _most: u32) -> Self::Loan {
        ready(self.decide(&charge).map(|verdict| Loan::new(verdict, 0)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_ones_own_decides() {
    let layer = builder(Once::default()).build().unwrap();
    for left in (0..10).rev() {
        let answer = ask(&layer, get("/")).await;
        assert_eq!((answer.status, answer.left("requests")), (StatusCode::OK, left));
    }
    let refused = ask(&layer, get("/")).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(Cursor::new(0, 0), Cursor::START);
    let place = Cursor::new(2, 7);
    assert_eq!((place.part(), place.at()), (2, 7));
}

#[tokio::test(start_paused = true)]
async fn what_a_store_of_ones_own_has_met_is_told_with_its_cause() {
    let store = Once::default();
    store.0.lock().unwrap().insert("a1".parse().unwrap(), 2_000);
    let charge = Charge { agent: "a1".parse().unwrap(), takes: Arc::new([]) };
    let error = store.spend(charge).await.unwrap_err();
    assert!(error.is_full() && error.is_transient());
    assert_eq!(error.to_string(), "bucket store at once has no memory left");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "the disk is full");
}
