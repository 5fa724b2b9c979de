//! What became of traced ratings, as spans below those that they were published in.

use std::time::SystemTime;

use tower_merit::AgentId;

use super::agents::Folding;
use crate::trace::{self, Kind, Span};

/// When a batch was folded and written.
pub(super) struct Times {
    pub(super) began: SystemTime,
    pub(super) writing: SystemTime,
    pub(super) written: SystemTime,
}

/// Tells of those of `ratings` that are traced, whose limits are in force now. All of a batch have its times:
/// they were folded and written together.
pub(super) fn told(agent: &AgentId, rate: f64, ratings: &[Folding<'_>], times: &Times) {
    if !trace::is_on() {
        return;
    }
    for Folding { delivery, log, fresh, weight } in ratings {
        let Some(parent) = delivery.rating.trace().filter(|_| *fresh) else { continue };
        let Some(mut span) = Span::below(parent, Kind::Consumer, "process ratings", times.began)
        else {
            continue;
        };
        span.set("messaging.operation.type", "process");
        span.set("messaging.destination.partition.id", delivery.partition.to_string());
        span.set("merit.log", log.to_string());
        span.set("merit.offset", i64::try_from(delivery.offset).unwrap_or(i64::MAX));
        span.set("merit.agent", agent.to_string());
        span.set("merit.refill_rate", rate);
        // Without a weight it was a repeat, and moved nothing.
        span.set("merit.weight", weight.unwrap_or(0.0));
        if let Some(write) =
            Span::below(span.context(), Kind::Client, "write limits", times.writing)
        {
            write.end_at(times.written);
        }
        span.end_at(times.written);
    }
}
