//! Lesson 7: a page whose cards show each viewer's own scores as they change.
//!
//! ```text
//! MERIT_JWT_SECRET='a development secret, known to all' cargo run --bin merit -- run --config examples/storefront/merit.toml
//! cargo run -p merit-examples --bin storefront                      # in another terminal
//! ```
//!
//! It prints the address to open and the `curl` line to rate with. The page and its client are in
//! `examples/storefront`; this serves them under a strict Content-Security-Policy, and plays the shop's
//! own servers: `/ask` passes the visitor's token on to the gateway, whose upstream is `/hello`.

use std::{
    future::ready,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use axum::{
    Router,
    body::Body,
    extract::State,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Parser;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jsonwebtoken::{EncodingKey, Header, encode};
use merit_examples::SECRET;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const PAGE: &str = include_str!("../../storefront/index.html");
const CLIENT: &str = include_str!("../../storefront/storefront.js");
const STYLE: &str = include_str!("../../storefront/storefront.css");
const ICON: &str = include_str!("../../storefront/favicon.svg");

/// The gateway that the page names unless told otherwise.
const GATEWAY: &str = "http://127.0.0.1:8080";
/// What closes the list of cards.
const END_OF_CARDS: &str = "  </ul>";
/// What the gateway says of the wait, passed on to the page.
const OF_THE_WAIT: [&str; 2] = ["content-type", "retry-after"];

/// A storefront, on loopback.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Where to listen on 127.0.0.1
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Where Merit's gateway is, http://host:port
    #[arg(long, default_value = GATEWAY, value_parser = origin)]
    gateway: String,
    /// One more card, of this item; may be given many times
    #[arg(long = "item")]
    items: Vec<String>,
}

/// Reads an origin; no character of it means anything in HTML or in a policy.
fn origin(text: &str) -> Result<String, String> {
    let fault = || format!("must be like {GATEWAY}, without a path");
    let uri: Uri = text.parse().map_err(|_| fault())?;
    let authority = uri.authority().ok_or_else(fault)?.as_str();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    let whole = text.trim_end_matches('/') == format!("http://{authority}");
    if whole && authority.bytes().all(plain) {
        Ok(format!("http://{authority}"))
    } else {
        Err(fault())
    }
}

/// The shop's server.
struct Shop {
    page: String,
    gateway: String,
    client: Client<HttpConnector, Body>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let taken = || format!("cannot listen on 127.0.0.1:{}: choose another --port", options.port);
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await.with_context(taken)?;
    let address = listener.local_addr()?;

    let viewer = json!({"sub": "ann", "agent_id": "agent-of-ann"});
    let rater = json!({"sub": "bob", "scope": "ratings:write"});
    println!("Open  http://{address}/#token={}", token(&viewer)?);
    println!("and rate; the card changes:");
    println!(
        "  curl -i -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' \\\n    \
         -d '{{\"item_id\":\"tea\",\"user_id\":\"bob\",\"rating\":5}}' http://127.0.0.1:8081/v1/rating",
        token(&rater)?
    );

    let policy = HeaderValue::from_str(&policy(&options.gateway))?;
    let shop = Arc::new(Shop {
        page: page(&options),
        gateway: options.gateway,
        client: Client::builder(TokioExecutor::new()).build_http(),
    });
    let file = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text))
    };
    let app = Router::new()
        .route("/", get(show))
        .route("/storefront.js", file("text/javascript; charset=utf-8", CLIENT))
        .route("/storefront.css", file("text/css; charset=utf-8", STYLE))
        .route("/favicon.svg", file("image/svg+xml", ICON))
        .route("/ask", get(ask))
        .route("/hello", get(hello))
        .with_state(shop)
        .layer(map_response(move |mut response: Response| {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_SECURITY_POLICY, policy.clone());
            let nosniff = HeaderValue::from_static("nosniff");
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            ready(response)
        }));
    axum::serve(listener, app).await?;
    Ok(())
}

/// Returns a token of the lesson, valid for an hour, as `merit.toml` beside the page asks for.
fn token(claims: &Value) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let mut claims = claims.clone();
    claims["iss"] = "https://id.example.com/".into();
    claims["aud"] = "openclaw".into();
    claims["exp"] = (now + 3600).into();
    Ok(encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET))?)
}

/// Returns what the page may load and whom it may talk to.
fn policy(gateway: &str) -> String {
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self' {gateway}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// Returns the page with its gateway, and a card for each further item.
fn page(options: &Options) -> String {
    let mut cards = String::new();
    for item in &options.items {
        let item = as_text(item);
        cards += &format!(
            "    <li class=\"card\" data-item=\"{item}\"><h2><bdi>{item}</bdi></h2>\
             <p>For you: <strong class=\"rating\">–</strong> of 5</p></li>\n"
        );
    }
    PAGE.replace(GATEWAY, &options.gateway).replace(END_OF_CARDS, &format!("{cards}{END_OF_CARDS}"))
}

/// Returns what shows as `text` between tags and in quoted attributes.
fn as_text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => shown += "&amp;",
            '<' => shown += "&lt;",
            '>' => shown += "&gt;",
            '"' => shown += "&quot;",
            '\'' => shown += "&#39;",
            other => shown.push(other),
        }
    }
    shown
}

async fn show(State(shop): State<Arc<Shop>>) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], shop.page.clone()).into_response()
}

/// The service that is protected. What calls it comes through the gateway, which says who it is.
async fn hello(head: HeaderMap) -> String {
    let agent = head.get("x-merit-agent").and_then(|agent| agent.to_str().ok());
    format!("Hello, {}.", agent.unwrap_or("nobody"))
}

/// Asks the service through the gateway, as the visitor's agent, and passes the answer on.
async fn ask(State(shop): State<Arc<Shop>>, head: HeaderMap) -> Response {
    let mut request = Request::get(format!("{}/hello", shop.gateway));
    if let Some(token) = head.get(header::AUTHORIZATION) {
        request = request.header(header::AUTHORIZATION, token);
    }
    let request = request.body(Body::empty()).expect("an origin and a path are an address");
    let Ok(answer) = shop.client.request(request).await else {
        let problem = json!({"status": 502, "title": "Bad Gateway",
            "detail": "the gateway cannot be reached"});
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        return (StatusCode::BAD_GATEWAY, kind, problem.to_string()).into_response();
    };
    let (from, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = from.status;
    for name in OF_THE_WAIT {
        if let Some(value) = from.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_item_is_called_its_card_is_one_element() {
        let name = "\"><script>'&amp;</script>";
        let items = vec![name.to_owned()];
        let options = Options { port: 0, gateway: "http://10.0.0.1:8".to_owned(), items };
        let page = page(&options);
        assert!(!page.contains("<script>"), "{page}");
        let text = "&quot;&gt;&lt;script&gt;&#39;&amp;amp;&lt;/script&gt;";
        assert_eq!(page.matches(text).count(), 2, "{page}");
        assert!(page.contains("data-gateway=\"http://10.0.0.1:8\"") && !page.contains(GATEWAY));
    }

    #[test]
    fn a_gateway_that_could_end_a_policy_or_an_attribute_is_refused() {
        assert_eq!(origin("http://[::1]:8080/").unwrap(), "http://[::1]:8080");
        for wrong in ["", "10.0.0.1", "https://a", "http://a/b", "http://a;img-src", "http://a'b"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }
}
