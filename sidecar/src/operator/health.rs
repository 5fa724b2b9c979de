//! `merit health`: whether a process is ready, for people, scripts and containers without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::{Method, StatusCode};
use serde_json::Value;

use super::{
    OperatorError,
    answers::Readiness,
    args::{Health, Reach},
    client::Client,
    place::Place,
    print,
    show::{Cell, Hue, Paint, Table, visible},
};

/// The route that says it.
const READY: &str = "/readyz";

/// A listener of this machine that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    url: String,
    shows_token: bool,
}

impl Probe {
    /// Returns the listener to ask: the metrics listener, which wants no token, or else the admin one.
    ///
    /// # Errors
    ///
    /// When both are off.
    pub fn of(metrics: Option<SocketAddr>, admin: Option<SocketAddr>) -> Result<Self, String> {
        let url = |listen: SocketAddr| format!("http://{}", reachable(listen));
        match (metrics, admin) {
            (Some(metrics), _) => Ok(Self { url: url(metrics), shows_token: false }),
            (None, Some(admin)) => Ok(Self { url: url(admin), shows_token: true }),
            (None, None) => Err("metrics.listen and admin.listen are both off: name one of them, \
                                 so that somebody answers for the process"
                .to_owned()),
        }
    }
}

/// Returns where a listener at `listen` is reached from its own machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Asks whether a process is ready.
pub(super) async fn run(options: Health, probe: Option<Probe>) -> Result<(), OperatorError> {
    let Health { url, reach, look, .. } = options;
    let client = match (url, probe) {
        (Some(url), _) => {
            Client::without_token(Place::parse("--url", &url)?.without(READY), &reach)?
        }
        (None, Some(probe)) if !probe.shows_token => {
            Client::without_token(Place::parse("--config", &probe.url)?, &reach)?
        }
        (None, Some(probe)) => Client::new(&Reach { admin: probe.url, ..reach })?,
        (None, None) => Client::new(&reach)?,
    };
    let (status, body) = client.ask(Method::GET, READY, None).await?;
    if !matches!(status, StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE) {
        return Err(client.refusal(status, READY, &body));
    }
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let readiness: Readiness = client.read(READY, &value)?;
    print(look, &value, |paint| shown(&readiness, paint))?;
    match status == StatusCode::OK && readiness.ready {
        true => Ok(()),
        false => Err(OperatorError::NotReady(reason(&readiness, client.place()))),
    }
}

fn shown(readiness: &Readiness, paint: Paint) -> String {
    let mut table = Table::new(&["PART", "STATE"]);
    let whole = match (readiness.ready, readiness.draining) {
        (true, _) => Cell::new("ready", Hue::Good),
        (false, true) => Cell::new("drains: finishes what it has", Hue::Held),
        (false, false) => Cell::new("not ready", Hue::Bad),
    };
    table.row(["merit".into(), whole]);
    for part in &readiness.parts {
        let error = part.error.as_deref().unwrap_or("not ready");
        let state = match (part.ok, part.spared) {
            (true, _) => Cell::new("ready", Hue::Good),
            (false, true) => Cell::new(format!("done without: {error}"), Hue::Held),
            (false, false) => Cell::new(error, Hue::Bad),
        };
        table.row([part.name.as_str().into(), state]);
    }
    table.text(paint)
}

fn reason(readiness: &Readiness, place: &Place) -> String {
    let faulty = readiness.parts.iter().filter(|part| !part.ok && !part.spared);
    let names: Vec<String> = faulty.map(|part| visible(&part.name)).collect();
    match (names.is_empty(), readiness.draining) {
        (false, _) => format!("{place} is not ready: {}", names.join(", ")),
        (true, true) => format!("{place} is not ready: it drains"),
        (true, false) => format!("{place} is not ready"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_asks_metrics_before_admin_and_on_loopback_what_listens_everywhere() {
        let at = |text: &str| Some(text.parse().unwrap());
        let probe = Probe::of(at("0.0.0.0:9901"), at("127.0.0.1:9900")).unwrap();
        assert_eq!(probe, Probe { url: "http://127.0.0.1:9901".into(), shows_token: false });
        let probe = Probe::of(None, at("[::]:9900")).unwrap();
        assert_eq!(probe, Probe { url: "http://[::1]:9900".into(), shows_token: true });
        let probe = Probe::of(at("192.0.2.1:9901"), None).unwrap();
        assert_eq!(probe.url, "http://192.0.2.1:9901");
        assert!(Probe::of(None, None).unwrap_err().starts_with("metrics.listen"));
    }

    #[test]
    fn what_is_not_ready_is_named_with_its_reason() {
        let readiness: Readiness = serde_json::from_value(serde_json::json!({
            "ready": false, "draining": false,
            "parts": [{"name": "bus", "ok": true}, {"name": "store", "ok": false, "error": "redis is away\u{1b}[2J"},
                      {"name": "feed", "ok": false, "spared": true, "error": "gone"}]
        }))
        .unwrap();
        let text = "PART   STATE\nmerit  not ready\nbus    ready\nstore  redis is away\\u{1b}[2J\nfeed   done without: gone\n";
        assert_eq!(shown(&readiness, Paint(false)), text);
        let place = Place::parse("--url", "http://h:1").unwrap();
        assert_eq!(reason(&readiness, &place), "http://h:1 is not ready: store");
    }
}
