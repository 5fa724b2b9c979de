//! What the operator's commands take: `merit agents`, `buckets`, `explain`, `policy`, `health`, `top`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use tower_merit::AgentId;

use super::moment;
use crate::bus::duration;

/// Where the admin listener is unless said otherwise.
pub const ADMIN_URL: &str = "http://127.0.0.1:9900";
/// The variable with the admin token unless said otherwise.
pub const TOKEN_ENV: &str = "MERIT_ADMIN_TOKEN";

/// What an agent list may be sorted by.
pub(super) const SORTS: [&str; 7] =
    ["refill_rate", "quality", "ratings", "admitted", "denied", "capacity", "agent_id"];

/// How to reach an admin listener.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct Reach {
    /// The admin listener of a Merit process
    // The value is not shown: what stands in it by mistake may be a password.
    #[arg(long, value_name = "URL", env = "MERIT_ADMIN_URL", hide_env_values = true, default_value = ADMIN_URL, global = true)]
    pub admin: String,
    /// Environment variable with the admin token [default: MERIT_ADMIN_TOKEN, where it is set]
    #[arg(long, value_name = "NAME", global = true)]
    pub token_env: Option<String>,
    /// Certificate authorities to trust instead of the system's, in PEM
    #[arg(long, value_name = "FILE", global = true)]
    pub ca_file: Option<PathBuf>,
    /// How long to wait for an answer, like `5s`
    #[arg(long, default_value = "5s", value_parser = span, global = true)]
    pub timeout: Duration,
}

/// How answers are shown.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct Look {
    /// Print one JSON object on one line
    #[arg(long, global = true)]
    pub json: bool,
    /// Colours: on a terminal unless NO_COLOR is set, always, or never
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Colour::Auto, global = true)]
    pub color: Colour,
}

/// When there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
    Auto,
    /// Also into files and pipes, whatever `NO_COLOR` says.
    Always,
    /// Nowhere.
    Never,
}

/// `merit agents`.
#[derive(Clone, Debug, Args)]
pub struct Agents {
    /// What is asked of them.
    #[command(subcommand)]
    pub action: AgentsAction,
    /// The listener.
    #[command(flatten)]
    pub reach: Reach,
    /// The output.
    #[command(flatten)]
    pub look: Look,
}

/// What `merit agents` does.
#[derive(Clone, Debug, Subcommand)]
pub enum AgentsAction {
    /// Lists agents with their limits, a page at a time
    #[command(
        after_help = "Examples:\n  merit agents list --sort=-denied --page-size 20\n  merit agents list --query checkout --only frozen --json"
    )]
    List(List),
    /// Shows one agent as it is now
    #[command(after_help = "Example:\n  merit agents show alice")]
    Show(One),
    /// Gives an agent a new starting point; ratings move it on from there
    #[command(
        after_help = "Examples:\n  merit agents set alice --rate 30 --capacity 60\n  merit agents set alice --bucket writes --rate 2"
    )]
    Set(Set),
    /// Holds an agent's rate where it is; ratings are still learned
    #[command(after_help = "Example:\n  merit agents freeze alice")]
    Freeze(One),
    /// Lets ratings move a frozen agent again
    #[command(after_help = "Example:\n  merit agents unfreeze alice")]
    Unfreeze(One),
    /// Answers all requests of an agent with 403 for a time
    #[command(
        after_help = "Examples:\n  merit agents ban alice --for 1h\n  merit agents ban alice --until 2027-01-01T00:00:00Z"
    )]
    Ban(Ban),
    /// Ends a ban
    #[command(after_help = "Example:\n  merit agents unban alice")]
    Unban(One),
    /// Forgets what ratings said of an agent: it starts anew
    #[command(after_help = "Example:\n  merit agents reset alice")]
    Reset(One),
}

/// One agent.
#[derive(Clone, Debug, Args)]
pub struct One {
    /// The agent's id
    #[arg(value_name = "AGENT")]
    pub agent: AgentId,
}

/// `merit agents list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Only agents whose id holds this text; case does not matter
    #[arg(long, short, value_name = "TEXT")]
    pub query: Option<String>,
    /// Order: refill_rate, quality, ratings, admitted, denied, capacity or agent_id, with `-` in front descending
    #[arg(long, value_name = "FIELD", default_value = "-refill_rate", allow_hyphen_values = true, value_parser = sort)]
    pub sort: String,
    /// Only these
    #[arg(long, value_enum)]
    pub only: Option<Only>,
    /// Which page, from 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub page: u32,
    /// Agents on a page, 1 to 500
    #[arg(long, value_name = "AGENTS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub page_size: u32,
}

/// Which agents are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// Whose rate is held.
    Frozen,
    /// Who are answered 403.
    Banned,
    /// Whose limits an operator set, and no rating moved since.
    Operator,
}

impl Only {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Banned => "banned",
            Self::Operator => "operator",
        }
    }
}

/// `merit agents set`.
#[derive(Clone, Debug, Args)]
pub struct Set {
    /// The agent's id
    #[arg(value_name = "AGENT")]
    pub agent: AgentId,
    /// Refill rate, tokens per second; without it the rate stays
    #[arg(long, allow_negative_numbers = true, value_parser = rate, required_unless_present = "capacity")]
    pub rate: Option<f64>,
    /// Capacity, whole tokens; without it the capacity stays
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub capacity: Option<u64>,
    /// Another bucket than the default one
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,
}

/// `merit agents ban`.
#[derive(Clone, Debug, Args)]
pub struct Ban {
    /// The agent's id
    #[arg(value_name = "AGENT")]
    pub agent: AgentId,
    /// For how long, like `1h` or `7d`
    #[arg(long = "for", value_name = "TIME", value_parser = span, required_unless_present = "until", conflicts_with = "until")]
    pub span: Option<Duration>,
    /// Until when, RFC 3339 like `2027-01-01T00:00:00Z`
    #[arg(long, value_name = "MOMENT", value_parser = moment::parse_ms)]
    pub until: Option<u64>,
}

/// `merit buckets`.
#[derive(Clone, Debug, Args)]
pub struct Buckets {
    /// What is asked of them.
    #[command(subcommand)]
    pub action: BucketsAction,
    /// The listener.
    #[command(flatten)]
    pub reach: Reach,
    /// The output.
    #[command(flatten)]
    pub look: Look,
}

/// What `merit buckets` does.
#[derive(Clone, Debug, Subcommand)]
pub enum BucketsAction {
    /// Lists buckets and routes, and where they come from
    #[command(after_help = "Example:\n  merit buckets list")]
    List,
    /// Prints all buckets and routes as `apply` takes them, or one bucket as a bucket file
    #[command(
        after_help = "Examples:\n  merit buckets export > buckets.json\n  merit buckets export writes > writes.json"
    )]
    Export(Export),
    /// Changes a bucket's limits
    #[command(after_help = "Example:\n  merit buckets set writes --rate 5 --capacity 20")]
    Set(SetBucket),
    /// Adds a bucket; `bind` charges it
    #[command(after_help = "Example:\n  merit buckets add reports --rate 0.5 --capacity 5")]
    Add(AddBucket),
    /// Removes a bucket that no route charges
    #[command(after_help = "Example:\n  merit buckets remove reports")]
    Remove(RemoveBucket),
    /// Charges buckets for a path; the first route that matches a request counts
    #[command(
        after_help = "Examples:\n  merit buckets bind '/v1/orders/*' --methods POST,PUT --bucket writes\n  merit buckets bind /v1/report --bucket reports --cost 5 --first"
    )]
    Bind(Bind),
    /// Removes the route of a path
    #[command(after_help = "Example:\n  merit buckets unbind '/v1/orders/*' --methods POST,PUT")]
    Unbind(Unbind),
    /// Replaces all buckets and routes by a file's, or one bucket by a bucket file
    #[command(
        after_help = "Examples:\n  merit buckets apply buckets.json --dry-run\n  merit buckets export | jq '.buckets[0].capacity = 80' | merit buckets apply -\n\nA file with `rev` is applied only while the buckets are still that revision."
    )]
    Apply(Apply),
    /// Goes back to what the configuration file says
    #[command(after_help = "Example:\n  merit buckets clear")]
    Clear,
}

/// `merit buckets export`.
#[derive(Clone, Debug, Args)]
pub struct Export {
    /// One bucket, instead of everything
    pub name: Option<String>,
}

/// `merit buckets set`.
#[derive(Clone, Debug, Args)]
pub struct SetBucket {
    /// The bucket's name
    pub name: String,
    /// Refill rate, tokens per second; without it the rate stays
    #[arg(long, allow_negative_numbers = true, value_parser = rate, required_unless_present = "capacity")]
    pub rate: Option<f64>,
    /// Capacity, whole tokens; without it the capacity stays
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub capacity: Option<u64>,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `merit buckets add`.
#[derive(Clone, Debug, Args)]
pub struct AddBucket {
    /// The bucket's name
    pub name: String,
    /// Refill rate, tokens per second
    #[arg(long, allow_negative_numbers = true, value_parser = rate)]
    pub rate: f64,
    /// Capacity, whole tokens
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub capacity: u64,
    /// Scale its limits with what an agent earned
    #[arg(long)]
    pub earned: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `merit buckets remove`.
#[derive(Clone, Debug, Args)]
pub struct RemoveBucket {
    /// The bucket's name
    pub name: String,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `merit buckets bind`.
#[derive(Clone, Debug, Args)]
pub struct Bind {
    /// The path, with `*` as in `[[route]]`
    pub path: String,
    /// Only these methods, separated by commas; all of them by default
    #[arg(long, visible_alias = "method", value_delimiter = ',', value_parser = method)]
    pub methods: Vec<String>,
    /// A bucket that is charged beside the default one; may be given again
    #[arg(long = "bucket", value_name = "NAME", value_delimiter = ',', required = true)]
    pub buckets: Vec<String>,
    /// How many tokens a request takes [default: what the route has, or 1]
    #[arg(long, value_name = "TOKENS")]
    pub cost: Option<u64>,
    /// Put the route before all others, so that it counts where more than one matches
    #[arg(long)]
    pub first: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `merit buckets unbind`.
#[derive(Clone, Debug, Args)]
pub struct Unbind {
    /// The path, as the route has it
    pub path: String,
    /// The methods of the route; needed where more than one route has this path
    #[arg(long, visible_alias = "method", value_delimiter = ',', value_parser = method)]
    pub methods: Vec<String>,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `merit buckets apply`.
#[derive(Clone, Debug, Args)]
pub struct Apply {
    /// What `merit buckets export` printed; `-` is standard input
    pub file: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `merit explain`.
#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// The agent's id
    #[arg(value_name = "AGENT")]
    pub agent: AgentId,
    /// The listener.
    #[command(flatten)]
    pub reach: Reach,
    /// The output.
    #[command(flatten)]
    pub look: Look,
}

/// `merit policy`.
#[derive(Clone, Debug, Args)]
pub struct Policy {
    /// The listener.
    #[command(flatten)]
    pub reach: Reach,
    /// The output.
    #[command(flatten)]
    pub look: Look,
}

/// `merit health`.
#[derive(Clone, Debug, Args)]
pub struct Health {
    /// Ask the listener at this URL, metrics or admin; it is shown no token
    #[arg(long, conflicts_with = "config")]
    pub url: Option<String>,
    /// Ask the metrics listener of this configuration file, or else its admin listener
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The listener.
    #[command(flatten)]
    pub reach: Reach,
    /// The output.
    #[command(flatten)]
    pub look: Look,
}

/// `merit top`.
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// How often to ask, like `1s`; at least 200 ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Print one picture as plain text and end; it asks twice, so that there are rates
    #[arg(long)]
    pub once: bool,
    /// Only agents whose id holds this text
    #[arg(long, short, value_name = "TEXT")]
    pub query: Option<String>,
    /// Order of the agents, as for `merit agents list`
    #[arg(long, value_name = "FIELD", default_value = "-refill_rate", allow_hyphen_values = true, value_parser = sort)]
    pub sort: String,
    /// The listener.
    #[command(flatten)]
    pub reach: Reach,
    /// The output.
    #[command(flatten)]
    pub look: Look,
}

/// The shortest interval of `merit top`: the table itself is read anew about once a second.
const INTERVAL_MIN: Duration = Duration::from_millis(200);

fn span(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "write a number and a unit, like 500ms, 30s, 5m, 1h or 7d".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = span(text)?;
    match interval >= INTERVAL_MIN {
        true => Ok(interval),
        false => Err(format!("must be at least {} ms", INTERVAL_MIN.as_millis())),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "write tokens per second, like 30 or 0.5".to_owned())
}

fn sort(text: &str) -> Result<String, String> {
    match SORTS.contains(&text.strip_prefix('-').unwrap_or(text)) {
        true => Ok(text.to_owned()),
        false => Err(format!("write one of {}, with `-` in front to descend", SORTS.join(", "))),
    }
}

fn method(text: &str) -> Result<String, String> {
    let token =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    token
        .then(|| text.to_ascii_uppercase())
        .ok_or_else(|| "write methods like GET or POST".to_owned())
}
