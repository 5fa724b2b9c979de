//! The routes as a client and a cache see them.

use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;
use tower_merit::JwtIdentity;

use super::*;
use crate::clock::unix_time;
use crate::personalize::model::{Config as ModelConfig, Model};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
/// An id that would break out of HTML, JSON, a header and a line, where it was not escaped.
const HOSTILE: &str = "<script>\"'&\u{202e}/..%0a\u{2028}</script>";

fn token(claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

fn of(subject: &str, scope: &str) -> String {
    let exp = unix_time().as_secs() + 3600;
    token(&serde_json::json!({"sub": subject, "scope": scope, "exp": exp}))
}

fn routes() -> (Personalized, Router) {
    let mut model = Model::new(ModelConfig::default());
    for (user, item, score) in [("ann", "tea", 5.0), ("bob", "tea", 4.0), ("ann", HOSTILE, 1.0)] {
        model.learn(Key::user(user), Key::item(item), &[], score);
    }
    let personalized = Personalized::with(model, &crate::personalize::events::Config::default());
    let verifier = JwtIdentity::hs256(SECRET).build().unwrap();
    let config = Config { batch_max: 3, ..Config::default() };
    let router = personalized.router(&config, Viewers::new(Some(verifier)));
    (personalized, router)
}

async fn get_with(router: &Router, path: &str, fields: &[(&str, &str)]) -> Response {
    let mut request = Request::get(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn get_as(router: &Router, path: &str, token: &str) -> Response {
    get_with(router, path, &[("authorization", &format!("Bearer {token}"))]).await
}

async fn json(response: Response) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[tokio::test]
async fn a_score_is_private_short_lived_and_not_sent_again_to_who_has_it() {
    let (personalized, router) = routes();
    let ann = of("ann", "");
    let response = get_as(&router, "/v1/rating/tea?user_id=ann", &ann).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["cache-control"], "private, max-age=5");
    assert_eq!(response.headers()["vary"], "authorization");
    let tag = response.headers()["etag"].to_str().unwrap().to_owned();
    let score = json(response).await;
    let expected = told(personalized.model().predict(Key::user("ann"), Key::item("tea")));
    assert_eq!((&score["user_id"], &score["item_id"]), (&"ann".into(), &"tea".into()));
    assert_eq!(score["rating"], expected);
    assert!(score["timestamp"].as_u64().unwrap() > 1_600_000_000_000);

    let bearer = format!("Bearer {ann}");
    for tags in [tag.clone(), format!("\"x\", {tag}"), tag.replace("W/", ""), "*".to_owned()] {
        let fields = [("authorization", &*bearer), ("if-none-match", &*tags)];
        let again = get_with(&router, "/v1/rating/tea", &fields).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{tags}");
        assert_eq!(again.headers()["etag"], tag);
        assert_eq!(again.headers()["cache-control"], "private, max-age=5");
        assert!(again.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    let (user, item) = (Key::user("ann"), Key::item("tea"));
    personalized.change(|model| {
        model.learn(user, item, &[], 1.0);
    });
    let fields = [("authorization", &*bearer), ("if-none-match", &*tag)];
    let changed = get_with(&router, "/v1/rating/tea", &fields).await;
    assert_eq!(changed.status(), StatusCode::OK, "another score is another tag");
}

#[tokio::test]
async fn only_the_user_or_who_may_read_any_sees_a_users_scores() {
    let (_, router) = routes();
    let any = of("shop", "openid ratings:read:any");
    for (path, token, status) in [
        ("/v1/rating/tea?user_id=ann", of("ann", ""), 200),
        ("/v1/rating/tea", of("ann", ""), 200),
        ("/v1/rating/tea?user_id=ann", of("bob", ""), 403),
        ("/v1/rating/tea?user_id=ann", of("bob", "ratings:write:any"), 403),
        ("/v1/ratings?user_id=ann&item_id=tea", of("bob", ""), 403),
        ("/v1/rating/tea?user_id=ann", any, 200),
        ("/v1/rating/tea?user_id=ann", "x.y.z".to_owned(), 401),
    ] {
        let response = get_as(&router, path, &token).await;
        assert_eq!(response.status(), status, "{path}");
        if status != 200 {
            assert!(response.headers().contains_key("www-authenticate"), "{path}");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
        }
    }
    let anonymous = get_with(&router, "/v1/rating/tea", &[]).await;
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    let nobody = token(&serde_json::json!({"exp": unix_time().as_secs() + 60}));
    assert_eq!(get_as(&router, "/v1/rating/tea", &nobody).await.status(), 400);
}

#[tokio::test]
async fn a_batch_is_in_the_order_asked_and_bounded() {
    let (_, router) = routes();
    let ann = of("ann", "");
    let path = format!("/v1/ratings?item_id=tea&item_id={}&item_id=new", encoded(HOSTILE));
    let response = get_as(&router, &path, &ann).await;
    assert_eq!(response.headers()["vary"], "authorization");
    let list = json(response).await;
    let items: Vec<&str> = list["ratings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["item_id"].as_str().unwrap())
        .collect();
    assert_eq!(items, ["tea", HOSTILE, "new"]);
    let rating = |n: usize| list["ratings"][n]["rating"].as_f64().unwrap();
    assert!(rating(0) > rating(1), "{list}");
    for (query, field) in [
        ("", "item_id"),
        ("?user_id=ann", "item_id"),
        ("?item_id=a&item_id=b&item_id=c&item_id=d", "item_id"),
        ("?item_id=", "item_id"),
        ("?user_id=ann&user_id=ann&item_id=a", "user_id"),
        ("?user_id=a%0Ab&item_id=a", "user_id"),
    ] {
        let response = get_as(&router, &format!("/v1/ratings{query}"), &ann).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
        assert_eq!(json(response).await["field"], field, "{query}");
    }
}

#[tokio::test]
async fn an_items_popularity_is_public_and_long_lived() {
    let (_, router) = routes();
    let response = get_with(&router, "/v1/items/tea", &[]).await;
    assert_eq!(response.headers()["cache-control"], "public, max-age=3600");
    assert!(!response.headers().contains_key("vary"));
    let tag = response.headers()["etag"].clone();
    let item = json(response).await;
    assert_eq!((&item["ratings"], &item["mean"]), (&2.into(), &4.5.into()));
    assert!(item["rating"].as_f64().unwrap() < 4.5, "it is shrunk: {item}");
    let fields = [("if-none-match", tag.to_str().unwrap())];
    let again = get_with(&router, "/v1/items/tea", &fields).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let unknown = json(get_with(&router, "/v1/items/none", &[]).await).await;
    assert_eq!((&unknown["ratings"], &unknown["mean"]), (&0.into(), &Value::Null));
}

#[tokio::test]
async fn a_hostile_id_comes_back_as_text() {
    let (_, router) = routes();
    let path = format!("/v1/rating/{}", encoded(HOSTILE));
    let response = get_as(&router, &path, &of("ann", "")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert_eq!(json(response).await["item_id"], HOSTILE);
    let response = get_as(&router, "/v1/rating/a%0Ab", &of("ann", "")).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}
