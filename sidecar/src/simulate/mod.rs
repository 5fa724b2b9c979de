//! The simulated world: agents, users, attackers and capacity, and policies compared in it.
//!
//! 1. A world is made from a regime and a seed, and does not depend on the policy: all policies of
//!    one seed meet the same qualities, the same demand and the same capacity.
//! 2. Time goes in ticks; one tick stands for a second. Rates are tokens per tick, a request costs one.
//! 3. Everything is seeded and runs on one thread per world: the same request gives the same table,
//!    whatever the number of threads.
//! 4. What a policy is worth is the utility Σ served·(quality − 3) − κ·shed, in per cent of what the
//!    reference gets in the same world: the reference sees every agent's quality and mean demand.

mod regime;

mod stream;
mod world;

mod actors;

mod run;

mod recovery;

mod detection;

mod interval;

mod compare;

mod bars;

mod report;

mod plot;

mod train;

pub use actors::{Actor, Adapted, Asked, Believed, Found, PolicyName, Teach, Weigh};
pub use bars::{Bar, Criterion, JUDGED, Verdict};
pub use compare::{Comparison, Figure, Line, Request, Row, Seeds, compare};
pub use detection::{Delay, Detection};
pub use interval::{Interval, student_t};
pub use plot::PlotError;
pub use recovery::Recovery;
pub use regime::{Dip, REGIMES, Regime, Surge};
pub use report::{SimulateError, judge, simulate};
pub use run::{Outcome, Watched, run, run_actor};
pub use train::{Course, HELD_OUT, Judged, TrainError, train};
pub use world::{Ratings, World};

/// The score that is worth nothing, and the quality above which serving is worth something.
const NEUTRAL: f64 = 3.0;

/// What one request that was admitted and then shed costs, in utility (κ of the utility).
const SHED_COST: f64 = 1.0;

/// The least rate of an agent, in tokens per tick: nobody starves.
const RATE_MIN: f64 = 0.5;

/// The largest rate of an agent, in tokens per tick.
const RATE_MAX: f64 = 40.0;

/// The share of capacity that the prototype's policies aim at.
const USE_TARGET: f64 = 0.98;
