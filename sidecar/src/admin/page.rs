//! The dashboard: a page and its parts, compiled in, without a build step.
//!
//! 1. They hold no data and no secret, so they are served without a token; what they show they ask for with one.
//! 2. [`POLICY`] lets the page load its own parts and ask its own listener, and nothing else: no script or style
//!    stands in the page itself, and no text becomes a part of it as HTML.
//! 3. A browser asks each time whether a part is still the same (by a digest of it), so a page is never made of
//!    parts of two versions for longer than one load.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    body::Body,
    extract::Path,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};

use super::refuse;

/// What the page may do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Where the parts are.
const FOLDER: &str = "/assets/";

struct Part {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    etag: String,
}

static PAGE: LazyLock<Part> =
    LazyLock::new(|| part("index.html", HTML, include_str!("page/index.html")));

static PARTS: LazyLock<Vec<Part>> = LazyLock::new(|| {
    vec![
        part("style.css", CSS, include_str!("page/style.css")),
        part("icon.svg", SVG, include_str!("page/icon.svg")),
        part("theme.js", SCRIPT, include_str!("page/theme.js")),
        part("app.js", SCRIPT, include_str!("page/app.js")),
        part("state.js", SCRIPT, include_str!("page/state.js")),
        part("api.js", SCRIPT, include_str!("page/api.js")),
        part("dom.js", SCRIPT, include_str!("page/dom.js")),
        part("chart.js", SCRIPT, include_str!("page/chart.js")),
        part("dialog.js", SCRIPT, include_str!("page/dialog.js")),
        part("overview.js", SCRIPT, include_str!("page/overview.js")),
        part("agents.js", SCRIPT, include_str!("page/agents.js")),
        part("agent.js", SCRIPT, include_str!("page/agent.js")),
        part("actions.js", SCRIPT, include_str!("page/actions.js")),
        part("buckets.js", SCRIPT, include_str!("page/buckets.js")),
        part("draft.js", SCRIPT, include_str!("page/draft.js")),
        part("audit.js", SCRIPT, include_str!("page/audit.js")),
    ]
});

fn part(name: &'static str, kind: &'static str, text: &'static str) -> Part {
    let digest = digest(&SHA256, text.as_bytes());
    let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    Part { name, kind, text, etag: format!("\"{hex}\"") }
}

/// Returns true when everybody who knows the listener's name may read `path`.
pub(super) fn is_open(path: &str) -> bool {
    path == "/" || path.starts_with(FOLDER)
}

/// Returns `/`, which is the page for browsers and `index` for all others, and the parts of the page.
pub(super) fn routes(index: &'static str) -> Router {
    let page = async move |headers: HeaderMap| {
        let mut response = match wants_html(&headers) {
            true => PAGE.answer(&headers),
            false => index.into_response(),
        };
        response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("accept"));
        response
    };
    let parts = async |Path(name): Path<String>, headers: HeaderMap| match PARTS
        .iter()
        .find(|part| part.name == name)
    {
        Some(part) => part.answer(&headers),
        None => refuse(StatusCode::NOT_FOUND, "the page has no such part"),
    };
    Router::new().route("/", get(page)).route("/assets/{part}", get(parts))
}

/// Browsers name the type when they load a page; `curl` takes anything, and gets plain text.
fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|list| list.split(',')).any(|kind| {
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
    })
}

impl Part {
    fn answer(&self, asked: &HeaderMap) -> Response {
        let known = asked.get_all(header::IF_NONE_MATCH).iter();
        let known = known.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
        // RFC 9110 section 13.1.2: a weak comparison.
        let is_this = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag;
        let fresh = known.map(str::trim).any(is_this);
        let status = if fresh { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let body = if fresh { Body::empty() } else { Body::from(self.text) };
        let headers = [
            (header::CONTENT_TYPE, self.kind),
            (header::ETAG, &*self.etag),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // For browsers that know no `frame-ancestors`.
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (header::HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"),
            (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        (status, headers, body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn get(path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, String) {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response =
            routes("plain\n").oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Returns what stands between `before` and the next quote, wherever that is in `text`.
    fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[tokio::test]
    async fn browsers_get_the_page_and_terminals_plain_text() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let (status, headers, body) = get("/", &[("accept", browser)]).await;
        assert_eq!((status, &headers["content-type"]), (200, &HTML.parse().unwrap()));
        assert!(body.starts_with("<!doctype html>"));
        for headers in [&[][..], &[("accept", "*/*")], &[("accept", "application/json")]] {
            let (status, _, body) = get("/", headers).await;
            assert_eq!((status, &*body), (200, "plain\n"), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn every_part_that_is_named_is_there_under_the_same_policy_and_by_its_digest() {
        let named = quoted(PAGE.text, "assets/").into_iter();
        let imported = PARTS.iter().flat_map(|part| quoted(part.text, "from \"./"));
        let named: std::collections::BTreeSet<&str> = named.chain(imported).collect();
        let there: std::collections::BTreeSet<&str> = PARTS.iter().map(|part| part.name).collect();
        assert_eq!(named, there);
        for name in there {
            let path = format!("{FOLDER}{name}");
            assert!(is_open(&path));
            let (status, headers, body) = get(&path, &[]).await;
            assert_eq!((status, body.is_empty()), (200, false), "{name}");
            assert_eq!(headers["content-security-policy"], POLICY);
            assert_eq!(headers["x-content-type-options"], "nosniff");
            let etag = headers["etag"].to_str().unwrap();
            for tag in [etag.to_owned(), format!("W/{etag}"), format!("\"x\", {etag}")] {
                let (status, headers, body) = get(&path, &[("if-none-match", &tag)]).await;
                assert_eq!((status, &*body), (304, ""), "{tag}");
                assert_eq!(headers["etag"], etag);
            }
            assert_eq!(get(&path, &[("if-none-match", "\"x\"")]).await.0, 200);
        }
        assert_eq!(get("/assets/page.rs", &[]).await.0, 404);
        assert_eq!(get("/assets/..%2fpage.rs", &[]).await.0, 404);
    }

    #[test]
    fn nothing_in_the_page_needs_what_the_policy_forbids() {
        for part in PARTS.iter().chain([&*PAGE]) {
            let Part { name, text, .. } = part;
            for forbidden in [
                "innerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "<style",
                "url(",
            ] {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http://") && !outside.contains("https://"), "{name}");
        }
        for script in PAGE.text.split("<script").skip(1) {
            assert!(
                script.trim_start().starts_with("src=") || script.contains("src=\"assets/"),
                "{script}"
            );
            assert!(script.split('>').nth(1).unwrap().starts_with("</script"), "{script}");
        }
        assert!(!PAGE.text.contains(" on"), "no listener stands in the page");
    }
}
