//! Log lines that callers cannot multiply: of what one place in the code has to say, so many lines in ten
//! seconds are written and the rest is counted.
//!
//! It holds for `info` and graver: whoever turns on `debug` wants everything.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metrics::counter;
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier, warn};
use tracing_subscriber::layer::{Context, Filter};

/// How long a place's lines are counted together.
const WINDOW: Duration = Duration::from_secs(10);

/// What each place has said lately.
pub(super) struct Bounded {
    per_place: u32,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    known: HashMap<Identifier, Place>,
    left_out: u64,
    /// Where most of them came from.
    noisiest: Option<(u64, &'static Metadata<'static>)>,
}

struct Place {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Places {
    fn takes(&mut self, place: &'static Metadata<'static>, per_place: u32, now: Instant) -> bool {
        let fresh = || Place { since: now, lines: 0, left_out: 0 };
        let known = self.known.entry(place.callsite()).or_insert_with(fresh);
        if now.duration_since(known.since) >= WINDOW {
            *known = fresh();
        }
        if known.lines < per_place {
            known.lines += 1;
            return true;
        }
        known.left_out += 1;
        self.left_out += 1;
        if self.noisiest.as_ref().is_none_or(|(most, _)| *most < known.left_out) {
            self.noisiest = Some((known.left_out, place));
        }
        false
    }
}

impl Bounded {
    pub(super) fn new(per_place: u32) -> Self {
        Self { per_place, places: Mutex::default() }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how many lines were left out since it was told last, if any were.
    pub(super) fn tell(&self) {
        let (left_out, noisiest) = {
            let mut places = self.places();
            (std::mem::take(&mut places.left_out), places.noisiest.take())
        };
        if let Some((_, place)) = noisiest {
            let noisiest = format!("{}:{}", place.target(), place.line().unwrap_or_default());
            warn!(
                left_out,
                noisiest, "log lines were left out: a place has written too many of them"
            );
        }
    }
}

impl<S: Subscriber> Filter<S> for &'static Bounded {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let place = event.metadata();
        if *place.level() > Level::INFO || self.per_place == 0 {
            return true;
        }
        let taken = self.places().takes(place, self.per_place, Instant::now());
        if !taken {
            counter!("merit_log_lines_left_out_total").increment(1);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{debug, error, info};
    use tracing_subscriber::{EnvFilter, Layer as _, filter::FilterExt as _, fmt, prelude::*};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(per_place: u32, say: impl FnOnce(&Bounded)) -> Vec<String> {
        let bounded: &'static Bounded = Box::leak(Box::new(Bounded::new(per_place)));
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let layer = layer.with_filter(EnvFilter::new("debug").and(bounded));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || say(bounded));
        let text = written.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn one_place_is_bounded_and_the_others_are_heard() {
        let said = lines(3, |bounded| {
            for n in 0..1_000 {
                error!(n, "the same again");
                debug!(n, "whoever asks for these wants all");
            }
            info!("something else");
            bounded.tell();
            bounded.tell();
        });
        let count = |what: &str| said.iter().filter(|line| line.contains(what)).count();
        assert_eq!(count("the same again"), 3);
        assert_eq!(count("wants all"), 1_000);
        assert_eq!(count("something else"), 1);
        assert_eq!(count("left_out=997"), 1);
        assert_eq!(said.len(), 1_005);
    }

    #[test]
    fn a_place_speaks_again_after_a_while_and_zero_bounds_nothing() {
        let mut places = Places::default();
        let place = {
            struct Here;
            impl tracing::Callsite for Here {
                fn set_interest(&self, _: tracing::subscriber::Interest) {}
                fn metadata(&self) -> &Metadata<'_> {
                    &META
                }
            }
            static HERE: Here = Here;
            static META: Metadata<'static> = tracing::metadata! {
                name: "x", target: "t", level: Level::WARN, fields: &[], callsite: &HERE,
                kind: tracing::metadata::Kind::EVENT
            };
            &META
        };
        let now = Instant::now();
        assert!(places.takes(place, 1, now));
        assert!(!places.takes(place, 1, now + WINDOW - Duration::from_millis(1)));
        assert!(places.takes(place, 1, now + WINDOW));
        assert_eq!(places.left_out, 1);
        assert_eq!(lines(0, |_| (0..500).for_each(|n| info!(n, "x"))).len(), 500);
    }
}
