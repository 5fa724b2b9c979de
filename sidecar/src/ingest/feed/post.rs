//! Posts ratings to an endpoint: body and name as they are, repeated until it says yes or no.
//!
//! 1. 429 and `Retry-After` hold back every post (`tower_merit::retry_after` waits, with
//!    `share_pause`).
//! 2. What may pass is tried again with back-off, for as long as it takes: no answer, 5xx, 408, 425, and
//!    a 429 that names no time. So is what speaks of us or of where we post, not of the rating: 401, 403,
//!    404, 405, 407, 410 and redirects.
//! 3. Any other 4xx is a no to this rating. So is what goes on for [`Config::give_up_after`] while the endpoint
//!    takes other ratings between the tries ([`Trouble`]); an endpoint that takes nothing is no reason
//!    to give up, nor is a 429.
//! 4. At most `in_flight` posts are out. A rating that waits to be tried again leaves its place to others,
//!    unless everything has failed lately: then it keeps it, and an endpoint that is down is asked seldom.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::body::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tower::{Layer as _, Service, ServiceExt as _, service_fn, util::BoxCloneSyncService};
use tower_merit::RetryAfterLayer;
use tracing::{debug, error, info, warn};

use super::{
    backoff::Backoff,
    config::Config,
    frames::Item,
    meter::{Fault, Meter, To},
    plan::Forward,
    sink::Streak,
    status::Status,
};
use crate::{causes::with_causes, ingest::accept::IDEMPOTENCY_KEY};

/// Between tries, at least and at most.
pub(super) const RETRY_LEAST: Duration = Duration::from_millis(100);
pub(super) const RETRY_MOST: Duration = Duration::from_secs(30);
/// The longest that one `Retry-After` is waited out; a longer one counts as this.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a rating is sent before our own back-off takes over: 429s without `Retry-After` are
/// waited out for 1 s, 2 s … 16 s then.
const ATTEMPTS: NonZeroU32 = NonZeroU32::new(6).expect("6 is not 0");
/// After so many failures in a row the endpoint is down.
const DOWN: u32 = 8;
/// How often the endpoint must have taken others between two tries of a rating that is given up.
const PASSED_BY: u32 = 5;
/// The longest that a rating is tried again whose answer is 404 or the like, while others are taken.
const CLOSED_PATIENCE: Duration = Duration::from_secs(30);
/// After so many failures in a row an answer that may speak of one rating speaks of all.
const CLOSED: u32 = 3;
/// What is read of an answer, in bytes, and what of it a reason repeats, in characters.
const ANSWER_MAX: usize = 64 << 10;
const REASON_MAX: usize = 300;
/// Connections that nothing was posted on for so long are closed.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Why a post has no answer.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error("no answer")]
    Request(#[from] hyper_util::client::legacy::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
}

type Post = Request<Full<Bytes>>;
type Polite<B, E> = BoxCloneSyncService<Post, Response<B>, E>;

/// Where ratings are posted.
pub(super) struct Endpoint {
    uri: Uri,
    authorization: Option<HeaderValue>,
    client: Polite<Incoming, PostError>,
    timeout: Duration,
    meter: Arc<Meter>,
    status: Status,
    give_up_after: Duration,
    places: Semaphore,
    /// Ratings that were taken.
    taken: AtomicU64,
    /// Failures since something was answered with a yes or a no.
    failures: AtomicU32,
    /// Whether it says that it takes nothing from us.
    locked_out: Streak,
}

/// What an answer means for a rating.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Refused(String),
    /// It asks for patience.
    Wait(String),
    Again(String),
    /// It takes nothing from us; unless `certain`, one answer does not tell.
    Closed {
        why: String,
        remedy: &'static str,
        certain: bool,
    },
}

/// What is known of a rating that the endpoint does not take.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    tries: u32,
    /// Tries since the one before which the endpoint had taken another rating.
    passed_by: u32,
    /// What it had taken by the last try.
    taken: u64,
}

impl Trouble {
    fn new(now: Instant, taken: u64) -> Self {
        Self { since: now, tries: 0, passed_by: 0, taken }
    }

    /// Notes a try that failed, when the endpoint had taken `taken` ratings in all. Returns true when
    /// it is the rating's own trouble: for `patience` at least, others have passed it by again and again,
    /// the last one since the last try.
    fn is_its_own(&mut self, now: Instant, taken: u64, patience: Duration) -> bool {
        let others_pass = taken != self.taken;
        self.taken = taken;
        self.tries = self.tries.saturating_add(1);
        self.passed_by = self.passed_by.saturating_add(u32::from(others_pass));
        others_pass && self.passed_by >= PASSED_BY && now - self.since >= patience
    }
}

impl Endpoint {
    pub(super) fn new(
        forward: Forward,
        config: &Config,
        meter: &Arc<Meter>,
        status: &Status,
    ) -> Self {
        let limit = config.timeout;
        let tls = match &forward.remote.tls {
            Some(tls) => tls.as_ref().clone(),
            None => unencrypted(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        let counted = Arc::clone(meter);
        let post = service_fn(move |request: Post| {
            let (client, meter) = (client.clone(), Arc::clone(&counted));
            async move {
                let answer = timeout(limit, client.request(request)).await;
                let answer = answer.map_err(|_| PostError::Late(limit))??;
                if answer.status() == StatusCode::TOO_MANY_REQUESTS
                    || answer.headers().contains_key(header::RETRY_AFTER)
                {
                    meter.told_to_wait();
                }
                Ok(answer)
            }
        });
        Self {
            uri: forward.remote.uri,
            authorization: forward.authorization,
            client: polite(post),
            timeout: limit,
            meter: Arc::clone(meter),
            status: status.clone(),
            give_up_after: config.give_up_after,
            taken: AtomicU64::new(0),
            places: Semaphore::new(config.in_flight),
            failures: AtomicU32::new(0),
            locked_out: Streak::default(),
        }
    }

    /// Posts `item` until the endpoint takes it or refuses it, or takes all but this one.
    ///
    /// # Errors
    ///
    /// With the reason, when it is refused or given up.
    pub(super) async fn deliver(&self, item: &Item) -> Result<(), String> {
        let mut backoff = Backoff::new(RETRY_LEAST, RETRY_MOST);
        let (mut place, mut trouble) = (None, None);
        loop {
            let held = match place.take() {
                Some(held) => held,
                None => self.places.acquire().await.expect("the semaphore is never closed"),
            };
            let answer = self.post(item).await;
            let failures = match &answer {
                Answer::Taken | Answer::Refused(_) => 0,
                _ => self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            };
            let (why, patience) = match answer {
                Answer::Taken => {
                    self.taken.fetch_add(1, Ordering::Relaxed);
                    self.works();
                    self.meter.forwarded(To::Endpoint);
                    return Ok(());
                }
                Answer::Refused(reason) => {
                    self.works();
                    return Err(reason);
                }
                Answer::Wait(why) => (why, None),
                Answer::Again(why) => (why, Some(self.give_up_after)),
                Answer::Closed { why, remedy, certain } => {
                    if certain || failures >= CLOSED {
                        self.is_closed(&why, remedy);
                    }
                    (why, Some(self.give_up_after.min(CLOSED_PATIENCE)))
                }
            };
            if let Some(patience) = patience {
                let (now, taken) = (Instant::now(), self.taken.load(Ordering::Relaxed));
                let trouble = trouble.get_or_insert_with(|| Trouble::new(now, taken));
                if trouble.is_its_own(now, taken, patience) {
                    let (tries, seconds) = (trouble.tries, (now - trouble.since).as_secs());
                    return Err(format!(
                        "given up after {tries} tries in {seconds} s, in which others were taken: {why}"
                    ));
                }
            }
            debug!(why, "endpoint does not take a rating: it is tried again");
            if failures == DOWN {
                warn!(why, "endpoint takes no ratings: they wait");
            }
            place = (failures >= DOWN).then_some(held);
            sleep(backoff.next(fastrand::f64())).await;
        }
    }

    fn is_closed(&self, why: &str, remedy: &'static str) {
        if self.locked_out.begins() {
            error!(why, remedy, "endpoint takes no rating at all: they wait");
            self.status.endpoint_refuses(&format!("{why}; {remedy}"));
        }
    }

    fn works(&self) {
        if self.locked_out.ends() {
            self.status.endpoint_takes();
        }
        if self.failures.swap(0, Ordering::Relaxed) >= DOWN {
            info!("endpoint takes ratings again");
        }
    }

    async fn post(&self, item: &Item) -> Answer {
        let mut client = self.client.clone();
        let answer = match client.ready().await {
            Ok(client) => client.call(self.request(item)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => self.judge(answer).await,
            Err(error) => {
                self.meter.fault(Fault::EndpointAway);
                Answer::Again(with_causes(&error))
            }
        }
    }

    fn request(&self, item: &Item) -> Post {
        let agent = concat!("merit/", env!("CARGO_PKG_VERSION"));
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, agent)
            .header(IDEMPOTENCY_KEY, quoted(item.name.as_str()));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        request.body(Full::new(item.body.clone())).expect("address and fields were checked")
    }

    async fn judge(&self, answer: Response<Incoming>) -> Answer {
        let status = answer.status();
        let told = answer.headers().contains_key(header::RETRY_AFTER);
        // Read to its end, so that the connection serves the next post.
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect();
        let body = match timeout(self.timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => Bytes::new(),
        };
        let answer = meaning(status, &body);
        match answer {
            Answer::Taken | Answer::Refused(_) => return answer,
            _ => self.meter.fault(Fault::EndpointAnswer),
        }
        match answer {
            Answer::Again(why) if told => Answer::Wait(why),
            answer => answer,
        }
    }
}

/// Makes `post` wait as it is told, and all posts with the one that is told.
fn polite<S, B>(post: S) -> Polite<B, S::Error>
where
    S: Service<Post, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: 'static,
{
    // A wait beyond the layer's budget is not begun, and the post would go out at once.
    let capped = post.map_response(|mut answer: Response<B>| {
        cap_wait(answer.headers_mut(), SystemTime::now());
        answer
    });
    let polite = RetryAfterLayer::new().max_wait(WAIT_MAX).max_attempts(ATTEMPTS).share_pause();
    BoxCloneSyncService::new(polite.layer(capped))
}

/// Puts a `Retry-After` beyond [`WAIT_MAX`] down to it.
fn cap_wait(headers: &mut HeaderMap, now: SystemTime) {
    let Some(told) = headers.get(header::RETRY_AFTER).and_then(|told| told.to_str().ok()) else {
        return;
    };
    let told = told.trim();
    let is_beyond = match httpdate::parse_http_date(told) {
        Ok(until) => {
            // A date is measured by the clock that set it.
            let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
            let since = date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
            until.duration_since(since).is_ok_and(|wait| wait > WAIT_MAX)
        }
        Err(_) => {
            let is_number = !told.is_empty() && told.bytes().all(|byte| byte.is_ascii_digit());
            is_number && told.parse::<u64>().map_or(true, |seconds| seconds > WAIT_MAX.as_secs())
        }
    };
    if is_beyond {
        headers.insert(header::RETRY_AFTER, WAIT_MAX.as_secs().into());
    }
}

/// TLS that trusts nobody, for a connector that is only used without.
fn unencrypted() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc has the default versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

/// Returns `name` as a string of structured fields (RFC 9651 section 3.3.3).
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

fn meaning(status: StatusCode, body: &[u8]) -> Answer {
    let said = || {
        let text = String::from_utf8_lossy(body);
        let text: String = text.chars().take(REASON_MAX).flat_map(char::escape_debug).collect();
        format!("endpoint answered {status}: {text}")
    };
    let closed = |remedy, certain| Answer::Closed { why: said(), remedy, certain };
    match status {
        _ if status.is_success() => Answer::Taken,
        _ if status.is_redirection() => closed("set feed.forward_to to where it redirects", true),
        StatusCode::UNAUTHORIZED => {
            closed("check the token in feed.api_key_env or feed.api_key_file", true)
        }
        StatusCode::FORBIDDEN => {
            closed("check what the token in feed.api_key_env or feed.api_key_file may do", false)
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            closed("check the path in feed.forward_to, and what stands before the endpoint", false)
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            closed("check the path in feed.forward_to: it takes no POST", true)
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            closed("a proxy answers: set feed.forward_to to the endpoint itself", true)
        }
        StatusCode::TOO_MANY_REQUESTS => Answer::Wait(said()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Answer::Again(said()),
        _ if status.is_client_error() => Answer::Refused(said()),
        _ => Answer::Again(said()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::time::Instant;

    use super::*;

    /// A wait of more than a day was once no wait at all: the post was repeated at once.
    #[tokio::test(start_paused = true)]
    async fn who_is_told_to_wait_longer_than_a_day_waits_a_day_and_so_do_all_others() {
        for told in ["86401", "172800", "99999999999999999999", "Tue, 31 Dec 2199 23:59:59 GMT"] {
            let (began, asked) = (Instant::now(), Arc::new(AtomicU32::new(0)));
            let post = service_fn(move |_: Post| {
                let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    let answer = match first {
                        true => Response::builder().status(429).header("retry-after", told),
                        false => Response::builder().status(202),
                    };
                    Ok::<_, Infallible>(answer.body(()).unwrap())
                }
            });
            let post = polite(post);
            let request = || {
                let request = Request::post("http://localhost/v1/rating");
                request.body(Full::new(Bytes::new())).unwrap()
            };
            let waits = tokio::spawn(post.clone().oneshot(request()));
            // The second goes out once the first was told.
            tokio::task::yield_now().await;
            let other = post.oneshot(request()).await.unwrap();
            assert_eq!(
                (other.status(), waits.await.unwrap().unwrap().status().as_u16()),
                (StatusCode::ACCEPTED, 202)
            );
            let waited = began.elapsed();
            assert!(waited >= WAIT_MAX && waited < WAIT_MAX * 5 / 4, "{told}: {waited:?}");
        }
    }

    #[test]
    fn a_wait_within_a_day_is_left_as_it_was_told() {
        let sent = "Sun, 06 Nov 1994 08:49:37 GMT";
        for told in ["0", "86400", "soon", "", "-1", "Mon, 07 Nov 1994 08:49:37 GMT"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, told.parse().unwrap());
            headers.insert(header::DATE, sent.parse().unwrap());
            cap_wait(&mut headers, SystemTime::UNIX_EPOCH);
            assert_eq!(headers[header::RETRY_AFTER], told);
        }
    }

    #[test]
    fn a_rating_is_refused_by_a_4xx_about_it_and_by_nothing_else() {
        let meaning = |status| meaning(StatusCode::from_u16(status).unwrap(), b"{\"a\":\n1}");
        for status in [200, 201, 202, 204] {
            assert_eq!(meaning(status), Answer::Taken);
        }
        for status in [400, 402, 406, 409, 411, 413, 415, 422, 451] {
            assert!(matches!(meaning(status), Answer::Refused(_)), "{status}");
        }
        // A revoked key or an ingress without the service speaks of no rating.
        for (status, all) in [
            (301, true),
            (401, true),
            (403, false),
            (404, false),
            (405, true),
            (407, true),
            (410, false),
        ] {
            let Answer::Closed { certain, .. } = meaning(status) else { panic!("{status}") };
            assert_eq!(certain, all, "{status}");
        }
        assert!(matches!(meaning(429), Answer::Wait(_)));
        for status in [408, 425, 500, 502, 503, 504] {
            assert!(matches!(meaning(status), Answer::Again(_)), "{status}");
        }
        let Answer::Refused(reason) = meaning(422) else { panic!("refused") };
        assert!(reason.starts_with("endpoint answered 422") && !reason.contains('\n'), "{reason}");
    }

    #[test]
    fn a_rating_is_given_up_only_while_others_pass_it_by() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        // The endpoint is down, for however long: it took some before, and none since.
        let mut down = Trouble::new(began, 1000);
        assert!((0..1000).all(|n| !down.is_its_own(after(n * 30), 1000, PATIENCE)));
        // Nor does it count when one was taken a long time ago.
        assert!(!down.is_its_own(after(40_000), 1001, PATIENCE));
        // Others pass it by all the time: once it was tried long enough, and often enough.
        let mut alone = Trouble::new(began, 0);
        assert!((0..60).all(|n| !alone.is_its_own(after(n), n, PATIENCE)));
        // Not at a try since which none was taken: the endpoint may have gone down since.
        assert!(!alone.is_its_own(after(61), 59, PATIENCE));
        assert!(alone.is_its_own(after(62), 60, PATIENCE));
        let mut seldom = Trouble::new(began, 0);
        assert!((0..=4).all(|n| !seldom.is_its_own(after(100 * n), n, PATIENCE)));
        assert!(seldom.is_its_own(after(500), 5, PATIENCE));
    }

    #[test]
    fn the_key_is_a_string_in_quotes() {
        assert_eq!(quoted("f-00"), "\"f-00\"");
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
