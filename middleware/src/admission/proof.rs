//! Receipts on answers: who gets one, and counting them.

use http::{HeaderMap, header::Entry};
use metrics::{Counter, counter};

use crate::{
    identity::Caller,
    receipt::{RECEIPT_FIELD, ReceiptKeys},
};

/// Issues receipts. Its handles are taken once.
pub(super) struct Receipts {
    keys: ReceiptKeys,
    issued: Counter,
    unnameable: Counter,
}

impl Receipts {
    pub(super) fn new(keys: ReceiptKeys) -> Self {
        let receipts =
            |outcome: &'static str| counter!("merit_receipts_issued_total", "outcome" => outcome);
        Self { keys, issued: receipts("issued"), unnameable: receipts("unnameable_rater") }
    }

    /// Returns the caller when its answer is to carry a receipt: when it acts for somebody else. In
    /// the hands of an agent that acts for itself a receipt would prove nothing.
    pub(super) fn due(&self, caller: &Caller) -> Option<Box<Caller>> {
        let other = caller.rater.as_deref().is_some_and(|rater| rater != caller.agent.as_str());
        other.then(|| Box::new(caller.clone()))
    }

    /// Puts the receipt for `caller` on the answer to a request that passed; one that the service
    /// behind has sent gives way.
    pub(super) fn attach(&self, caller: &Caller, headers: &mut HeaderMap) {
        let Some(rater) = &caller.rater else { return };
        match self.keys.issue(&caller.agent, rater) {
            Ok(receipt) => {
                self.issued.increment(1);
                // A full header map drops the receipt, not the answer.
                match headers.try_entry(RECEIPT_FIELD) {
                    Ok(Entry::Occupied(mut sent)) => drop(sent.insert(receipt)),
                    Ok(Entry::Vacant(free)) => drop(free.try_insert(receipt)),
                    Err(_) => {}
                }
            }
            Err(_) => self.unnameable.increment(1),
        }
    }
}
