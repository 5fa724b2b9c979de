//! Closed-loop load on a service in this process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::task::JoinSet;

use crate::{crowd::Crowd, figures::Samples, wear::Worn};

/// What a run of load saw.
pub(crate) struct Run {
    pub(crate) samples: Samples,
    pub(crate) refused: u64,
    pub(crate) lasted: Duration,
}

impl Run {
    #[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
    pub(crate) fn per_second(&self) -> f64 {
        self.samples.len() as f64 / self.lasted.as_secs_f64()
    }
}

/// Asks `concurrent` at a time for `duration`, each asking again as soon as it is answered.
pub(crate) async fn closed(
    service: &Worn,
    crowd: &Arc<Crowd>,
    concurrent: u64,
    duration: Duration,
) -> Run {
    let begun = Instant::now();
    let ends = begun + duration;
    let mut askers = JoinSet::new();
    for asker in 0..concurrent {
        let (mut service, crowd) = (service.clone(), Arc::clone(crowd));
        askers.spawn(async move {
            let mut random = SmallRng::seed_from_u64(asker);
            let (mut samples, mut refused) = (Samples::default(), 0);
            let mut now = Instant::now();
            while now < ends {
                let answer = service.ask(crowd.fields(crowd.pick(&mut random))).await;
                refused += u64::from(!answer.status().is_success());
                let answered = Instant::now();
                samples.push(answered - now);
                now = answered;
                // A service that is always ready would otherwise keep the thread from the others.
                tokio::task::consume_budget().await;
            }
            (samples, refused)
        });
    }
    let mut run = Run { samples: Samples::default(), refused: 0, lasted: duration };
    for (samples, refused) in askers.join_all().await {
        run.samples.append(samples);
        run.refused += refused;
    }
    run.lasted = begun.elapsed();
    run
}
