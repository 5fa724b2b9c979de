//! The command line: `merit <command>`.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed,
//! 2 wrong usage or configuration.

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    bus::duration,
    config::Role,
    operator::args,
    replay::{
        SORT_MAX,
        layout::{Columns, Format, Preset, Scale},
    },
    simulate::{PolicyName, REGIMES, Regime, Seeds},
};

/// Rate limits that AI agents earn.
#[derive(Debug, Parser)]
#[command(name = "merit", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows the whole loop in one process, with no server installed
    #[command(after_help = "Example:\n  merit demo --duration 30s --agents 50 --seed 1")]
    Demo(Demo),
    /// Runs the sidecar
    #[command(after_help = "Example:\n  merit run --config merit.toml --role all")]
    Run(Run),
    /// Checks a configuration: every fault at once, then what is in force
    #[command(after_help = "Example:\n  merit check-config --config merit.toml")]
    CheckConfig(CheckConfig),
    /// Compares policies in a simulated world: a table with 95 % intervals
    #[command(after_help = simulate_help())]
    Simulate(Simulate),
    /// Trains the residual of `ppo` in simulated worlds, and judges it in others
    #[command(
        after_help = "Examples:\n  merit train --seed 1 --out model.chkpt\n  merit train --seed 7 --updates 500 --out model.chkpt --evaluate 40..60 --json"
    )]
    Train(Train),
    /// Makes a development token from the configured secret (HS256, HS384 or HS512)
    #[command(
        after_help = "Examples:\n  merit token --config merit.toml --agent a1\n  merit token --config merit.toml --sub u1 --scope ratings:write"
    )]
    Token(Token),
    /// Makes an API key and the line for `[identity] api_keys_file`
    #[command(after_help = "Example:\n  merit api-key partner --line-to keys.txt")]
    ApiKey(ApiKey),
    /// Runs recorded ratings through policies, or judges a policy by logged decisions
    #[command(after_help = "Examples:
  merit replay ratings.csv --policy additive --against additive:alpha=1
  merit replay ratings.csv --layout movielens --policy additive --per-agent rates.csv
  zcat u.data.gz | merit replay - --layout movielens-100k --policy additive --json
  merit replay ratings.csv --layout movielens --personalize
  merit replay --evaluate decisions.ndjson --policy uniform --against base")]
    Replay(Box<Replay>),
    /// Lists agents, shows one, and sets, freezes, bans or resets it
    #[command(
        after_help = "Examples:\n  merit agents list --sort=-denied\n  merit agents ban alice --for 1h"
    )]
    Agents(Box<args::Agents>),
    /// Lists buckets and routes, and changes them on every node at once
    #[command(
        after_help = "Examples:\n  merit buckets list\n  merit buckets set writes --rate 5 --capacity 20"
    )]
    Buckets(Box<args::Buckets>),
    /// Says why an agent has the rate it has
    #[command(after_help = "Example:\n  merit explain alice")]
    Explain(args::Explain),
    /// Shows the policy in force and its settings
    #[command(after_help = "Example:\n  merit policy --json")]
    Policy(args::Policy),
    /// Says whether a process is ready: exit code 0, or 1 with the reason
    #[command(
        after_help = "Examples:\n  merit health\n  merit health --url http://127.0.0.1:9901\n  HEALTHCHECK CMD [\"merit\", \"health\", \"--config\", \"/etc/merit/merit.toml\"]"
    )]
    Health(args::Health),
    /// Watches agents, limits and the loop on a terminal
    #[command(
        after_help = "Examples:\n  merit top\n  merit top --once --sort=-denied\n\nKeys: arrows move, enter shows an agent, s sorts, r reverses, / searches, q quits"
    )]
    Top(args::Top),
    /// Prints what a shell needs to complete merit's commands
    #[command(
        after_help = "Examples:\n  merit completions bash > /etc/bash_completion.d/merit\n  merit completions zsh > \"${fpath[1]}/_merit\"\n  merit completions fish > ~/.config/fish/completions/merit.fish"
    )]
    Completions(Completions),
    /// Prints the manual page, or writes those of all commands into a folder
    #[command(
        after_help = "Examples:\n  merit man | man -l -\n  merit man /usr/local/share/man/man1"
    )]
    Man(Man),
}

/// `merit completions`.
#[derive(Clone, Debug, clap::Args)]
pub struct Completions {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// `merit man`.
#[derive(Clone, Debug, clap::Args)]
pub struct Man {
    /// Write `merit.1` and a page for every command into this folder, which is made where it is missing
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// Writes what `shell` needs to complete the commands to `out`.
///
/// # Errors
///
/// When `out` takes no more.
pub fn completions(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    // The generator panics where its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "merit", &mut script);
    out.write_all(&script)?;
    out.flush()
}

/// Writes the manual page to `out`.
///
/// # Errors
///
/// When `out` takes no more.
pub fn man_page(out: &mut impl Write) -> io::Result<()> {
    clap_mangen::Man::new(Cli::command()).render(out)?;
    out.flush()
}

/// Writes the manual pages of all commands into `folder`.
///
/// # Errors
///
/// When it cannot be made or written to.
pub fn man_pages(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

/// `merit replay`.
#[derive(Clone, Debug, clap::Args)]
pub struct Replay {
    /// Recorded ratings: CSV, TSV or NDJSON, gzipped or not; `-` is standard input
    #[arg(required_unless_present = "evaluate")]
    pub file: Option<PathBuf>,
    /// The policy, `KIND[:KEY=VALUE,…]`, keys as in `[policy]`; with --evaluate also `base`,
    /// `uniform`, `arm=N`, `change=X` or a name that the log tells of
    #[arg(long, value_name = "NAME", required_unless_present = "personalize")]
    pub policy: Option<String>,
    /// Another policy to compare it with; may be given again
    #[arg(long, value_name = "NAME", requires = "policy")]
    pub against: Vec<String>,
    /// Learn personalised ratings, and say how far off each was predicted before it was learned
    #[arg(long, conflicts_with = "evaluate")]
    pub personalize: bool,
    /// Configuration file to take `[policy]`, `[personalize.model]` and the default bucket from
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Refill rate of agents that nobody rated yet, tokens per second [default: the bucket's, or 20]
    #[arg(long, value_name = "RATE")]
    pub start_rate: Option<f64>,
    /// Capacity of agents that nobody rated yet, tokens [default: the bucket's, or 40]
    #[arg(long, value_name = "TOKENS")]
    pub start_capacity: Option<u64>,
    /// How the rows are written [default: what the file's name says]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// A known layout: format, columns and scale at once
    #[arg(long, value_enum)]
    pub layout: Option<Preset>,
    /// Where the fields stand, by name or place: `user=userId,agent=movieId,score=3,time=none`
    #[arg(long)]
    pub columns: Option<Columns>,
    /// Whether the first row names the columns [default: unless all columns are places]
    #[arg(long)]
    pub header: Option<bool>,
    /// The least and the best score, mapped onto 1 to 5, like `0.5..5` [default: 1..5]
    #[arg(long, value_name = "LOW..HIGH", allow_hyphen_values = true)]
    pub scale: Option<Scale>,
    /// Stop at the first bad row
    #[arg(long)]
    pub strict: bool,
    /// How many ratings may be held back to sort them, 24 bytes each
    #[arg(long, value_name = "RATINGS", default_value_t = SORT_MAX, value_parser = sort_max)]
    pub sort_max: usize,
    /// How many of the agents that differ most are shown
    #[arg(long, value_name = "AGENTS", default_value_t = 10)]
    pub top: usize,
    /// Write one row per agent to this file: .csv, .ndjson or .json
    #[arg(long, value_name = "FILE", conflicts_with = "evaluate", requires = "policy")]
    pub per_agent: Option<PathBuf>,
    /// Draw the rates, and the way of the agent that differs most, into this folder as SVG and PNG
    #[arg(long, value_name = "DIR", conflicts_with = "evaluate", requires = "policy")]
    pub plot: Option<PathBuf>,
    /// Judge the policies by this decision log instead: IPS, SNIPS and doubly robust estimates
    #[arg(long, value_name = "LOG")]
    pub evaluate: Option<PathBuf>,
    /// Half the width of the kernel around a policy's one change [default: Silverman's rule]
    #[arg(long, requires = "evaluate", value_parser = bandwidth)]
    pub bandwidth: Option<f64>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

fn sort_max(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&max| max >= 2).ok_or_else(|| "write a number from 2 on".to_owned())
}

fn bandwidth(text: &str) -> Result<f64, String> {
    let width = text.parse::<f64>().ok().filter(|width| *width > 0.0 && width.is_finite());
    width.ok_or_else(|| "write a number above 0, like 0.05".to_owned())
}

/// `merit api-key`.
#[derive(Clone, Debug, clap::Args)]
pub struct ApiKey {
    /// The key's name: the agent is `key-<name>`
    pub name: String,
    /// Append the line to this file, and print the key alone
    #[arg(long, value_name = "FILE")]
    pub line_to: Option<PathBuf>,
    /// Print the key, the agent and the line as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `merit demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Demo {
    /// How long to run, like `30s`
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How many agents, 2 to 1000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub agents: u32,
    /// Seed of the agents' qualities and the raters' moods
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Rate an agent drawn at random instead of the one that served: what the ratings carry is lost
    #[arg(long)]
    pub shuffle_ratings: bool,
    /// Where the dashboard is served, on loopback; any free port by default
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", hide_default_value = true, value_parser = loopback)]
    pub admin: SocketAddr,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback());
    address.ok_or_else(|| "write an address and port of loopback, like 127.0.0.1:9900".to_owned())
}

/// `merit run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which part of the system this process is
    #[arg(long, value_enum, default_value_t = Role::All)]
    pub role: Role,
}

/// `merit check-config`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckConfig {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which part of the system it is for
    #[arg(long, value_enum, default_value_t = Role::All)]
    pub role: Role,
    /// Print the effective configuration on one line
    #[arg(long)]
    pub json: bool,
}

/// `merit simulate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Simulate {
    /// Which policies, separated by commas: static, static-max, `additive[:ALPHA]`, additive:best,
    /// price, price-page-hinkley, bandit, ppo; of the prototype price-kalman, price-trust, greedy, thompson; and
    /// reference, clairvoyant, which see the world; all but the reference by default
    #[arg(long, visible_alias = "policy", value_delimiter = ',')]
    pub policies: Vec<PolicyName>,
    /// Which regimes, separated by commas, as listed below; all by default
    #[arg(long, visible_alias = "regime", value_delimiter = ',', default_values_t = REGIMES.to_vec(), hide_default_value = true)]
    pub regimes: Vec<Regime>,
    /// How many seeds (10), or the first and the last (1..10)
    #[arg(long, default_value = "10")]
    pub seeds: Seeds,
    /// How many ticks a run has; a tick stands for a second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub ticks: u32,
    /// How many agents a world has
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub agents: u32,
    /// How many worlds are simulated at once; as many as there are processors by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Show how much better each policy is than this one, in pairs of the same world
    #[arg(long, value_name = "POLICY")]
    pub versus: Option<PolicyName>,
    /// On which seeds `additive:best` chooses its α for each regime
    #[arg(long, value_name = "SEEDS", default_value = "100..109")]
    pub tuning_seeds: Seeds,
    /// Judge the policies by what a good one must reach, in the regimes that takes; by default price,
    /// price-page-hinkley and bandit
    #[arg(long, conflicts_with_all = ["regimes", "versus", "plot"])]
    pub bars: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Draw utility over time, one agent through a change, and rates, as SVG and PNG into this folder
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

/// `merit train`.
#[derive(Clone, Debug, clap::Args)]
pub struct Train {
    /// Where the checkpoint goes; the one that was there is kept beside it as `.good`
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What all chance comes from: the same seed gives the same bytes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..1 << 31))]
    pub seed: u64,
    /// How many updates are made
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub updates: u64,
    /// The seeds of the worlds that it is judged in, below 1000: how many, or the first and the last
    #[arg(long, value_name = "SEEDS", default_value = "40..60")]
    pub evaluate: Seeds,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

fn simulate_help() -> String {
    let mut help = "Regimes:\n".to_owned();
    for regime in REGIMES {
        help.push_str(&format!("  {:14} {}\n", regime.name, regime.about));
    }
    help.push_str(
        "\nExamples:\n  merit simulate --regimes base,attack --policies additive:5,price\n  \
         merit simulate --seeds 1..20 --plot figures\n  \
         merit simulate --policies additive:5,price --versus additive:5 --json\n  \
         merit simulate --bars --seeds 200..229",
    );
    help
}

/// `merit token`.
#[derive(Clone, Debug, clap::Args)]
pub struct Token {
    /// The configuration file: it names the secret, the issuer, the audience and the claim
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The agent that the token is for
    #[arg(long, required_unless_present = "sub")]
    pub agent: Option<String>,
    /// The subject: who rates
    #[arg(long)]
    pub sub: Option<String>,
    /// Scopes, separated by spaces: `ratings:write`, `ratings:write:any`
    #[arg(long)]
    pub scope: Option<String>,
    /// How long it is valid, like `1h`
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub ttl: Duration,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "write a number and a unit, like 500ms, 30s, 5m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn leaves(command: &clap::Command) -> Vec<clap::Command> {
        let below: Vec<_> = command.get_subcommands().flat_map(leaves).collect();
        if below.is_empty() { vec![command.clone()] } else { below }
    }

    #[test]
    fn every_command_shows_an_example_that_it_takes() {
        let mut tried = 0;
        let mut command = Cli::command();
        command.build();
        for leaf in leaves(&command) {
            let path = leaf.get_bin_name().unwrap_or_default().to_owned();
            if path.split(' ').any(|word| word == "help") {
                continue;
            }
            let help = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help
                .lines()
                .flat_map(|line| line.split(" | "))
                .map(str::trim)
                .filter(|line| line.starts_with("merit "))
                .collect();
            assert!(!examples.is_empty(), "{path} has no example");
            for example in examples {
                let words = example.split(" > ").next().unwrap_or_default();
                let words = words.split_whitespace().map(|word| word.trim_matches('\''));
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
                tried += 1;
            }
        }
        assert!(tried > 30, "only {tried} examples");
    }

    #[test]
    fn completions_of_every_shell_and_the_manual_know_every_command() {
        let names: Vec<String> =
            Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            completions(*shell, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for name in &names {
                assert!(script.contains(name.as_str()), "{shell} does not know {name}");
            }
        }
        let folder = std::env::temp_dir().join(format!("merit-man-{}", std::process::id()));
        man_pages(&folder.join("man1")).unwrap();
        for name in &names {
            let page = folder.join(format!("man1/merit-{name}.1"));
            assert!(fs::read_to_string(page).unwrap().contains("merit"), "{name}");
        }
        assert!(folder.join("man1/merit-agents-ban.1").exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
