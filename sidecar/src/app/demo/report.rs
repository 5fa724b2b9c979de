//! What the demo prints: where to look while it runs, and what each agent ended up with.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::Serialize;
use tower_merit::{AgentId, store::Quote};

use super::{
    Options,
    world::{BOMBERS, VISITOR, World},
};
use crate::{
    admin,
    policy::{self, Explained, Mode},
};

/// The environment variable with which the dashboard may act, not only show.
const ADMIN_TOKEN_ENV: &str = "MERIT_ADMIN_TOKEN";

/// Returns the table of the admin listener at `listen`; only who has set a token may act.
pub(super) fn dashboard(listen: SocketAddr) -> admin::Config {
    let token_env = std::env::var_os(ADMIN_TOKEN_ENV).map(|_| ADMIN_TOKEN_ENV.into());
    admin::Config { listen: Some(listen), token_env, ..admin::Config::default() }
}

pub(super) fn welcome(
    options: &Options,
    world: &World,
    [gateway, ingest, feed, metrics, admin]: [SocketAddr; 5],
    may_act: bool,
) -> String {
    let World { visitor_token, visitor_rating_token, demand, start_rate, capacity, .. } = world;
    format!(
        "Merit demo: {agents} agents of hidden quality for {seconds} s, seed {seed}, on loopback only.
Each asks {demand:.1} times a second and may {start_rate:.1} at first; the service can serve {capacity:.0}.
Policy ppo: a price on capacity, and a learned residual{shadow}.{bombing}

  gateway  http://{gateway}   a stand-in OpenClaw API behind it
  ingest   http://{ingest}
  feed     ws://{feed}   what users think; the bridge reads it
  metrics  http://{metrics}/metrics

Watch it in a browser: http://{admin}/   {may}

See a 429 in full (your own agent, asked for more than it holds):
  curl -i -H 'Authorization: Bearer {visitor_token}' 'http://{gateway}/v1/items/[1-30]'
Rate your agent up, then ask again and read RateLimit-Policy:
  curl -i -H 'Authorization: Bearer {visitor_rating_token}' -H 'Content-Type: application/json' \\
    -d '{{\"agent_id\":\"{VISITOR}\",\"user_id\":\"curl\",\"score\":5}}' http://{ingest}/v1/rating
",
        may = match may_act {
            true => "(actions need the token in MERIT_ADMIN_TOKEN)",
            false => "(to act on agents, set MERIT_ADMIN_TOKEN before)",
        },
        shadow = match policy::shipped_mode() {
            Mode::Shadow => " in shadow (shown, not applied)",
            _ => "",
        },
        bombing = match options.shuffle_ratings {
            true => String::new(),
            false => format!(
                " {} and {} serve alike; {BOMBERS} users will rate the first down.",
                world.agents[0].id, world.agents[1].id
            ),
        },
        agents = options.agents,
        seconds = options.duration.as_secs(),
        seed = options.seed,
    )
}

/// What became of one agent.
pub(super) struct End {
    pub(super) rate: f64,
    pub(super) explained: Option<Explained>,
}

/// The agent that was rated down, and its twin.
#[derive(Debug, Serialize)]
struct Bombing {
    agent_id: AgentId,
    twin_id: AgentId,
    /// Ratings of 1 beside the honest ones.
    ratings: u64,
    /// Its mean rate from the first of them on, as a share of its twin's.
    rate_to_twin: f64,
    /// Its rate at the end, as a share of its twin's.
    rate_to_twin_at_the_end: f64,
}

/// The result.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    agents: Vec<Row>,
    /// Rank correlation (Spearman) of hidden quality and the rate at the end.
    rank_correlation: Option<f64>,
    /// Absent when ratings are shuffled.
    bombing: Option<Bombing>,
    /// What a token cost at the end, in points of score above 3, and use as a share of capacity.
    price: Option<f64>,
    use_share: Option<f64>,
    seed: u64,
    duration_seconds: f64,
    shuffled: bool,
    requests: u64,
    ratings: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    agent_id: AgentId,
    quality: f64,
    mean_rating: Option<f64>,
    rate_start: f64,
    /// What the base law asks for at the end.
    rate_base: Option<f64>,
    /// What the residual adds to the logarithm of that, or would add in shadow mode.
    residual: Option<f64>,
    rate_end: f64,
    admitted: u64,
    denied: u64,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        world: &World,
        ends: &BTreeMap<&AgentId, End>,
        quote: Option<Quote>,
    ) -> Self {
        let rate = |agent: &AgentId| ends.get(agent).map_or(world.start_rate, |end| end.rate);
        let explained = |agent: &AgentId| ends.get(agent).and_then(|end| end.explained);
        let row = |agent: &super::world::SimulatedAgent| Row {
            agent_id: agent.id.clone(),
            quality: agent.quality,
            mean_rating: agent.mean_rating(),
            rate_start: world.start_rate,
            rate_base: explained(&agent.id).map(|explained| explained.base),
            residual: explained(&agent.id).map(|explained| explained.residual),
            rate_end: rate(&agent.id),
            admitted: agent.admitted.load(Ordering::Relaxed),
            denied: agent.denied.load(Ordering::Relaxed),
        };
        let mut agents: Vec<Row> = world.agents.iter().map(row).collect();
        agents.sort_by(|a, b| b.rate_end.total_cmp(&a.rate_end));
        let column = |of: fn(&Row) -> f64| agents.iter().map(of).collect::<Vec<f64>>();
        let rank_correlation = spearman(&column(|row| row.quality), &column(|row| row.rate_end));
        let tally = world.tally();
        let bombing = match &world.agents[..] {
            [bombed, twin, ..] if !options.shuffle_ratings => Some(Bombing {
                agent_id: bombed.id.clone(),
                twin_id: twin.id.clone(),
                ratings: world.bombs.load(Ordering::Relaxed),
                rate_to_twin: mean_ratio(&world.twins_rates),
                rate_to_twin_at_the_end: rate(&bombed.id) / rate(&twin.id),
            }),
            _ => None,
        };
        Self {
            agents,
            rank_correlation,
            bombing,
            price: quote.map(|quote| quote.price),
            use_share: quote.map(|quote| quote.use_share),
            seed: options.seed,
            duration_seconds: options.duration.as_secs_f64(),
            shuffled: options.shuffle_ratings,
            requests: tally.admitted + tally.denied,
            ratings: tally.ratings,
        }
    }

    pub(super) fn print(&self, json: bool) -> io::Result<()> {
        let text = if json { serde_json::to_string(self)? } else { self.table() };
        writeln!(io::stdout(), "{}", text.trim_end())
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "agent         quality  mean rating  rate start  base law  residual  rate end  admitted  denied\n",
        );
        for row in &self.agents {
            let two = |number: f64| format!("{number:.2}");
            let mean = row.mean_rating.map_or_else(|| "-".to_owned(), two);
            let base = row.rate_base.map_or_else(|| "-".to_owned(), two);
            let residual = row.residual.map_or_else(|| "-".to_owned(), |one| format!("{one:+.2}"));
            let _ = writeln!(
                text,
                "{:<12} {:>8.2} {mean:>12} {:>11.2} {base:>9} {residual:>9} {:>9.2} {:>9} {:>7}",
                row.agent_id.as_str(),
                row.quality,
                row.rate_start,
                row.rate_end,
                row.admitted,
                row.denied,
            );
        }
        let Self { requests, ratings, .. } = self;
        let _ =
            writeln!(text, "\n{requests} requests through the gateway, {ratings} ratings taken.");
        if let (Some(price), Some(use_share)) = (self.price, self.use_share) {
            let _ = writeln!(
                text,
                "A token costs {price:.2} points of score above 3; {:.0} % of capacity is in use.",
                100.0 * use_share
            );
        }
        if let Some(bombing) = &self.bombing {
            let Bombing { agent_id, twin_id, ratings, .. } = bombing;
            let _ = writeln!(
                text,
                "{agent_id} got {ratings} ratings of 1 from {BOMBERS} users besides. It kept {:.0} % of the \
                 rate of its twin {twin_id} meanwhile, {:.0} % at the end.",
                100.0 * bombing.rate_to_twin,
                100.0 * bombing.rate_to_twin_at_the_end
            );
        }
        if let Some(rho) = self.rank_correlation {
            let _ = writeln!(text, "Rank correlation of hidden quality and final rate: {rho:.3}");
        }
        text
    }
}

#[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
fn mean_ratio([one, other]: &[AtomicU64; 2]) -> f64 {
    one.load(Ordering::Relaxed) as f64 / other.load(Ordering::Relaxed) as f64
}

/// Returns Spearman's rank correlation, ties sharing their mean rank; `None` when a column is
/// constant (Spearman, 1904: Pearson's correlation of the ranks).
fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    #[allow(clippy::cast_precision_loss, reason = "at most a thousand agents")]
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let moment = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    let scale = (moment(&a, &a) * moment(&b, &b)).sqrt();
    (scale > 0.0).then(|| moment(&a, &b) / scale)
}

#[allow(clippy::cast_precision_loss, reason = "at most a thousand agents")]
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |value: f64| values.iter().filter(|other| **other < value).count() as f64;
    let equal = |value: f64| values.iter().filter(|other| **other == value).count() as f64;
    values.iter().map(|&value| below(value) + (equal(value) + 1.0) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_is_1_for_one_order_minus_1_for_the_other_and_shares_ties() {
        let up = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(spearman(&up, &[10.0, 20.0, 30.0, 99.0]), Some(1.0));
        assert_eq!(spearman(&up, &[4.0, 3.0, 2.0, 1.0]), Some(-1.0));
        assert_eq!(spearman(&up, &[7.0; 4]), None);
        let tied = spearman(&up, &[1.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 0.948_683).abs() < 1e-6, "{tied}");
    }
}
