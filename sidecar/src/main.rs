//! `merit`: the sidecar's one binary.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use clap::Parser;
use merit_sidecar::{
    app,
    cli::{
        self, ApiKey, CheckConfig, Cli, Command, Completions, Demo, Man, Replay, Run, Simulate,
        Token, Train,
    },
    clock::unix_time,
    config::{Config, ConfigError},
    operator::{self, Asked},
    personalize::model,
    policy,
    replay::{self, ReplayError, candidate::Candidate, evaluate, report::AgentsFormat},
    simulate::{self, PolicyName, SimulateError},
    telemetry, trace, tuner,
};
use mimalloc::MiMalloc;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tower_merit::{
    AgentId,
    bucket::Limits,
    identity::{ClaimPath, api_key::line},
};
use tracing::{info, warn};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A mistake of whoever called: exit code 2.
#[derive(Debug)]
struct Usage(anyhow::Error);

enum Failure {
    Usage(anyhow::Error),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Usage> for Failure {
    fn from(Usage(error): Usage) -> Self {
        Self::Usage(error)
    }
}

fn main() -> ExitCode {
    // clap itself exits with 2 on wrong usage, and with 0 after --help.
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Demo(options) => demo(options),
        Command::Run(options) => run(&options),
        Command::CheckConfig(options) => check_config(&options),
        Command::Simulate(options) => simulate(options),
        Command::Train(options) => train(&options),
        Command::Token(options) => token(&options),
        Command::ApiKey(options) => api_key(&options),
        Command::Replay(options) => replay(&options),
        Command::Agents(options) => operate(Asked::Agents(*options)),
        Command::Buckets(options) => operate(Asked::Buckets(*options)),
        Command::Explain(options) => operate(Asked::Explain(options)),
        Command::Policy(options) => operate(Asked::Policy(options)),
        Command::Health(options) => health(options),
        Command::Top(options) => operate(Asked::Top(options)),
        Command::Completions(options) => completions(&options),
        Command::Man(options) => man(&options),
    };
    let (error, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (error, 2),
        Err(Failure::Failed(error)) => (error, 1),
    };
    let mut message = format!("merit: {error}");
    for cause in error.chain().skip(1) {
        message.push_str(&format!(": {cause}"));
    }
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "{message}");
    ExitCode::from(code)
}

fn usage(error: ConfigError) -> Usage {
    Usage(error.into())
}

/// Puts aws-lc in place for every TLS connection of the process.
fn install_tls() -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("another TLS provider is already installed"))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")
}

fn run(options: &Run) -> Result<(), Failure> {
    let config = Config::load(&options.config, options.role).map_err(usage)?;
    telemetry::init_logs(config.log.format, &config.log.filter, config.log.lines_per_place)
        .map_err(|error| Usage(error.into()))?;
    install_tls()?;
    runtime()?.block_on(async {
        let metrics = telemetry::install_metrics().map_err(anyhow::Error::from)?;
        let config = &config;
        let exporting = trace::install(&config.trace).map_err(|error| Usage(error.into()))?;
        for warning in config.warnings(options.role) {
            warn!(warning, "configuration is legal and odd");
        }
        let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
        let running =
            app::start(config, options.role, metrics).await.map_err(|error| match error {
                app::AppError::Config(_) => Failure::Usage(error.into()),
                other => Failure::Failed(other.into()),
            })?;
        info!(role = ?options.role, version = env!("CARGO_PKG_VERSION"), "merit runs");
        let hangup = signal(SignalKind::hangup()).context("no signal handler")?;
        tokio::spawn(reload(hangup, options.clone(), running.aims()));
        let told = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let ended = running.until(told).await.map_err(anyhow::Error::from);
        if let Some(exporting) = exporting {
            exporting.finish().await;
        }
        ended?;
        Ok(())
    })
}

/// Reads the configuration again at every hangup; of it, `[policy]` is put in force. One with a fault
/// changes nothing.
async fn reload(mut hangup: Signal, options: Run, aims: watch::Sender<tuner::Aim>) {
    while hangup.recv().await.is_some() {
        match Config::load(&options.config, options.role) {
            Ok(config) => {
                info!("[policy] was read again; other tables need a restart");
                // Also when it is the same: what a policy reads from files is read again.
                aims.send_modify(|aim| aim.policy = config.policy);
            }
            Err(error) => warn!(%error, "the old policy stays in force"),
        }
    }
}

fn demo(options: Demo) -> Result<(), Failure> {
    telemetry::init_logs(telemetry::LogFormat::default(), "warn", telemetry::LINES_PER_PLACE)
        .map_err(|error| Usage(error.into()))?;
    install_tls()?;
    runtime()?.block_on(async {
        let metrics = telemetry::install_metrics().map_err(anyhow::Error::from)?;
        let options = app::DemoOptions {
            duration: options.duration,
            agents: options.agents,
            seed: options.seed,
            json: options.json,
            shuffle_ratings: options.shuffle_ratings,
            admin: options.admin,
        };
        app::demo(options, metrics).await.map_err(anyhow::Error::from)?;
        Ok(())
    })
}

fn check_config(options: &CheckConfig) -> Result<(), Failure> {
    let config = Config::load(&options.config, options.role).map_err(usage)?;
    for warning in config.warnings(options.role) {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    let shown = if options.json {
        serde_json::to_string(&config)
    } else {
        serde_json::to_string_pretty(&config)
    };
    print(&shown.context("configuration cannot be shown")?)?;
    Ok(())
}

fn simulate(options: Simulate) -> Result<(), Failure> {
    let whole = |number: u32| usize::try_from(number).expect("clap holds it below 2^31");
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    let request = simulate::Request {
        regimes: options.regimes,
        policies: match (options.policies, options.bars) {
            (named, _) if !named.is_empty() => named,
            (_, true) => simulate::JUDGED.to_vec(),
            (_, false) => PolicyName::DEFAULT.to_vec(),
        },
        seeds: options.seeds,
        agents: whole(options.agents),
        ticks: whole(options.ticks),
        jobs: options.jobs.map_or_else(available, usize::from),
        versus: options.versus,
        tuning: options.tuning_seeds,
        figures: false,
    };
    let shown = if options.bars {
        simulate::judge(&request, options.json)
    } else {
        simulate::simulate(request, options.json, options.plot)
    };
    shown.map_err(|error: SimulateError| {
        if error.is_usage() { Failure::Usage(error.into()) } else { Failure::Failed(error.into()) }
    })
}

fn train(options: &Train) -> Result<(), Failure> {
    let course = simulate::Course { seed: options.seed, updates: options.updates };
    let trained = simulate::train(course, &options.out, options.evaluate, options.json);
    trained.map_err(|error| {
        if error.is_usage() { Failure::Usage(error.into()) } else { Failure::Failed(error.into()) }
    })
}

fn token(options: &Token) -> Result<(), Failure> {
    let mistake = |text: String| Usage(anyhow!(text));
    let config = Config::load(&options.config, merit_sidecar::config::Role::All).map_err(usage)?;
    let (algorithm, secret) = config.identity.signing_secret().map_err(mistake)?;
    let claim = config.claim().map_err(mistake)?;
    if let Some(agent) = &options.agent {
        AgentId::claimed(agent).map_err(|error| mistake(format!("--agent: {error}")))?;
    }
    let claims = claims_of(&config, options, &claim, (unix_time() + options.ttl).as_secs());
    let key = jsonwebtoken::EncodingKey::from_secret(&secret);
    let header = jsonwebtoken::Header::new(algorithm);
    let token = jsonwebtoken::encode(&header, &claims, &key).context("token not signed")?;
    print(&token)?;
    Ok(())
}

fn claims_of(config: &Config, options: &Token, claim: &ClaimPath, exp: u64) -> serde_json::Value {
    let mut claims = serde_json::json!({ "exp": exp });
    for (name, value) in [
        ("iss", &config.identity.issuer),
        ("aud", &config.identity.audience),
        ("sub", &options.sub),
        ("scope", &options.scope),
    ] {
        if let Some(value) = value {
            claims[name] = value.as_str().into();
        }
    }
    if let Some(agent) = &options.agent {
        // A path reaches into objects: the last name holds the id.
        let place = claim.names().fold(&mut claims, |place, name| &mut place[name]);
        *place = agent.as_str().into();
    }
    claims
}

/// How many random bytes an API key has.
const API_KEY_BYTES: usize = 32;

fn api_key(options: &ApiKey) -> Result<(), Failure> {
    let mut random = [0; API_KEY_BYTES];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow!("the system has no randomness"))?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = line(&options.name, &secret).map_err(|error| Usage(error.into()))?;
    if let Some(path) = &options.line_to {
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        opened
            .and_then(|mut file| writeln!(file, "{line}"))
            .with_context(|| format!("cannot append to {}", path.display()))?;
    }
    let agent = format!("key-{}", options.name);
    let shown = match (options.json, &options.line_to) {
        (true, _) => {
            serde_json::json!({"key": secret, "agent_id": agent, "line": line}).to_string()
        }
        (false, Some(_)) => secret,
        (false, None) => format!("key:  {secret}\nline: {line}"),
    };
    print(&shown)?;
    Ok(())
}

fn replay(options: &Replay) -> Result<(), Failure> {
    let bar = replay::bar();
    let done = match &options.evaluate {
        None => replay_ratings(options, &bar),
        Some(log) => evaluate_log(options, log, &bar),
    };
    bar.finish_and_clear();
    print(done?.trim_end())?;
    Ok(())
}

fn mistake(text: impl Into<String>) -> Usage {
    Usage(anyhow!(text.into()))
}

/// Returns what was printed to be replayed: the file, and the policies named `labels`.
fn ratings_of(options: &Replay, file: &Path, labels: &[&str]) -> Result<replay::Options, Failure> {
    let Replay { layout, format, columns, header, scale, .. } = options.clone();
    let layout = replay::layout_of(file, layout, format, columns, header, scale);
    let (base, model, start) = match &options.config {
        Some(path) => Config::load_policy(path).map_err(usage)?,
        None => {
            let start = Limits::per_second(20.0, 40).context("20 and 40")?;
            (policy::Config::default(), model::Config::default(), start)
        }
    };
    let rate = options.start_rate.unwrap_or(start.refill().tokens());
    let capacity = options.start_capacity.unwrap_or(start.capacity().get());
    let start = Limits::per_second(rate, capacity)
        .map_err(|error| mistake(format!("--start-rate, --start-capacity: {error}")))?;
    let candidates: Result<Vec<Candidate>, _> =
        labels.iter().map(|label| Candidate::new(label, &base, start)).collect();
    let agents_to = match &options.per_agent {
        None => None,
        Some(path) => {
            let format = AgentsFormat::of(path).ok_or_else(|| {
                mistake(format!("--per-agent {}: end it in .csv, .ndjson or .json", path.display()))
            })?;
            Some((path.clone(), format))
        }
    };
    Ok(replay::Options {
        file: file.to_owned(),
        layout: layout.map_err(mistake)?,
        candidates: candidates.map_err(|error| Usage(error.into()))?,
        personalize: options.personalize.then_some(model),
        strict: options.strict,
        sort_max: options.sort_max,
        top: options.top,
        agents_to,
        plot_to: options.plot.clone(),
    })
}

/// Returns the policies by name, each once.
fn labels(options: &Replay) -> Result<Vec<&str>, Usage> {
    let mut labels: Vec<&str> = Vec::new();
    for label in options.policy.iter().chain(&options.against) {
        if labels.contains(&label.as_str()) {
            return Err(mistake(format!("--against {label}: is named twice")));
        }
        labels.push(label);
    }
    Ok(labels)
}

fn replay_ratings(options: &Replay, bar: &indicatif::ProgressBar) -> Result<String, Failure> {
    let file = options.file.as_deref().context("there is a file or a log")?;
    let ratings = ratings_of(options, file, &labels(options)?)?;
    let report = replay::replay(&ratings, bar).map_err(|error| match error {
        ReplayError::Layout(error) => Failure::Usage(error.into()),
        error @ ReplayError::Timeless { .. } => Failure::Usage(error.into()),
        error => Failure::Failed(error.into()),
    })?;
    Ok(if options.json {
        serde_json::to_string(&report).context("result cannot be shown")?
    } else {
        report.text()
    })
}

fn evaluate_log(
    options: &Replay,
    log: &Path,
    bar: &indicatif::ProgressBar,
) -> Result<String, Failure> {
    let names = labels(options)?;
    let mut targets = Vec::new();
    for name in &names {
        let target = name.parse::<evaluate::Target>();
        let target = target.map_err(|error| mistake(format!("policy `{name}`: {error}")))?;
        targets.push(((*name).to_owned(), target));
    }
    let ratings = match &options.file {
        None => None,
        Some(file) => {
            let named =
                targets.iter().filter(|(_, target)| matches!(target, evaluate::Target::Named(_)));
            let labels: Vec<&str> = named.map(|(name, _)| &**name).collect();
            Some(ratings_of(options, file, &labels)?)
        }
    };
    let (strict, bandwidth) = (options.strict, options.bandwidth);
    let asked = evaluate::Options { log: log.to_owned(), targets, ratings, strict, bandwidth };
    let evaluation = evaluate::evaluate(&asked, bar).map_err(anyhow::Error::from)?;
    Ok(if options.json {
        serde_json::to_string(&evaluation).context("result cannot be shown")?
    } else {
        evaluation.text()
    })
}

/// Asks a running process. One thread is enough: a command is one question.
fn operate(asked: Asked) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("no async runtime")?;
    runtime.block_on(operator::run(asked)).map_err(|error| {
        if error.is_usage() { Failure::Usage(error.into()) } else { Failure::Failed(error.into()) }
    })
}

fn health(mut options: operator::args::Health) -> Result<(), Failure> {
    let probe = match &options.config {
        None => None,
        Some(path) => {
            let (metrics, admin) = Config::load_listeners(path).map_err(usage)?;
            if options.reach.token_env.is_none() {
                options.reach.token_env =
                    admin.token_env.map(|variable| variable.name().to_owned());
            }
            let probe = operator::Probe::of(metrics.listen, admin.listen);
            Some(probe.map_err(|why| mistake(format!("{}: {why}", path.display())))?)
        }
    };
    operate(Asked::Health(options, probe))
}

fn completions(options: &Completions) -> Result<(), Failure> {
    cli::completions(options.shell, &mut io::stdout()).context("standard output is closed")?;
    Ok(())
}

fn man(options: &Man) -> Result<(), Failure> {
    match &options.folder {
        None => cli::man_page(&mut io::stdout()).context("standard output is closed")?,
        Some(folder) => cli::man_pages(folder)
            .with_context(|| format!("cannot write manual pages into {}", folder.display()))?,
    }
    Ok(())
}

fn print(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("standard output is closed")
}
