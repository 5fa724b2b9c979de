//! What is promised of the document of buckets, and to those who only look at a record.

use super::*;
use crate::store::{DOCUMENT_MAX, Document, Kept, StoreError};

pub(super) async fn run<H: Harness>(harness: &H) {
    a_document_is_replaced_by_whoever_read_the_last_one(harness).await;
    of_writers_at_once_one_replaces_the_document(harness).await;
    a_document_of_no_length_or_too_much_is_refused(harness).await;
    who_looks_sees_what_a_tuner_loads(harness).await;
}

fn document(rev: u64, text: Option<&str>) -> Document {
    Document { rev, text: text.map(str::to_owned) }
}

async fn a_document_is_replaced_by_whoever_read_the_last_one<H: Harness>(harness: &H) {
    let [(_, store), (_, other)] = harness.nodes().await;
    assert_eq!(store.document().await.unwrap(), Document::default());
    assert_eq!(store.keep_document(1, Some("a")).await.unwrap(), Kept::Stale { rev: 0 });
    assert_eq!(store.keep_document(0, Some("{\"ü\":\n1}")).await.unwrap(), Kept::Done { rev: 1 });
    assert_eq!(other.document().await.unwrap(), document(1, Some("{\"ü\":\n1}")));
    assert_eq!(other.keep_document(0, Some("b")).await.unwrap(), Kept::Stale { rev: 1 });
    assert_eq!(other.keep_document(1, Some("b")).await.unwrap(), Kept::Done { rev: 2 });
    // No revision comes twice: who read the second one cannot replace what came after a removal.
    assert_eq!(store.keep_document(2, None).await.unwrap(), Kept::Done { rev: 3 });
    assert_eq!(other.document().await.unwrap(), document(3, None));
    assert_eq!(store.keep_document(2, Some("c")).await.unwrap(), Kept::Stale { rev: 3 });
    assert_eq!(store.keep_document(3, Some("c")).await.unwrap(), Kept::Done { rev: 4 });
    assert_eq!(harness.store().document().await.unwrap(), document(4, Some("c")));
}

async fn of_writers_at_once_one_replaces_the_document<H: Harness>(harness: &H) {
    let [(_, store), (_, other)] = harness.nodes().await;
    let Document { rev, .. } = store.document().await.unwrap();
    let (one, two) =
        tokio::join!(store.keep_document(rev, Some("one")), other.keep_document(rev, Some("two")));
    let kept = [one.unwrap(), two.unwrap()];
    let text = store.document().await.unwrap().text.unwrap();
    let (done, stale) = (Kept::Done { rev: rev + 1 }, Kept::Stale { rev: rev + 1 });
    match kept {
        [first, second] if first == done && second == stale => assert_eq!(text, "one"),
        [first, second] if first == stale && second == done => assert_eq!(text, "two"),
        kept => panic!("{kept:?}"),
    }
}

async fn a_document_of_no_length_or_too_much_is_refused<H: Harness>(harness: &H) {
    let store = harness.store();
    let before = store.document().await.unwrap();
    for text in [String::new(), "x".repeat(DOCUMENT_MAX + 1)] {
        let refused = store.keep_document(before.rev, Some(&text)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Document { bytes } if bytes == text.len()));
    }
    assert_eq!(store.document().await.unwrap(), before);
    let longest = "ü".repeat(DOCUMENT_MAX / 2);
    let kept = store.keep_document(before.rev, Some(&longest)).await.unwrap();
    assert_eq!(kept, Kept::Done { rev: before.rev + 1 });
    assert_eq!(store.document().await.unwrap(), document(before.rev + 1, Some(&longest)));
}

async fn who_looks_sees_what_a_tuner_loads<H: Harness>(harness: &H) {
    let (store, [rated, set, stranger]) =
        (harness.store(), ["look-rated", "look-set", "look-stranger"].map(agent));
    ask(store, &rated, &[(&bucket("default", slow(9)), 2)]).await;
    write_one(store, change(&rated, 0, slow(7))).await;
    harness.operator_sets(&set, slow(3)).await;
    for agent in [&rated, &set, &stranger] {
        assert_eq!(store.look(agent).await.unwrap(), load_one(store, agent).await, "{agent}");
    }
    assert_eq!(store.look(&rated).await.unwrap().state, "state 0");
}
