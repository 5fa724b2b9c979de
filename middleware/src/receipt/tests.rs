use proptest::prelude::*;

use super::*;

const OLD: (&str, &str) = ("2026-10", "the old secret of the receipts' tests");
const NEW: (&str, &str) = ("2026-11", "the new secret of the receipts' tests");

fn keys<const N: usize>(keys: [(&str, &str); N]) -> ReceiptKeys {
    ReceiptKeys::new(keys).unwrap()
}

fn agent() -> AgentId {
    AgentId::new("a1").unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

const NOW: u64 = 1_800_000_000;
const REQUEST_7: RequestId = RequestId(7);

fn receipt(keys: &ReceiptKeys) -> String {
    keys.sign(&agent(), "u1", REQUEST_7, at(NOW)).unwrap()
}

#[test]
fn the_form_is_the_one_that_is_out_in_the_world_already() {
    // Computed apart from this code, with Python's hmac, struct and base64.
    assert_eq!(
        receipt(&keys([NEW])),
        "1.2026-11.AAAAAGtJ0gAAAAAAAAAAAAAAAAAAAAAHAmExdTE.\
         A0D_onrpepyXpMqoUmvX56kgt5AmJHFfKcKdtjrS1PI"
    );
}

#[test]
fn what_was_signed_is_what_is_read() {
    let keys = keys([NEW]);
    let said = keys.verify(&receipt(&keys), at(NOW)).unwrap();
    let expected =
        Receipt { agent: agent(), rater: "u1".into(), request: REQUEST_7, issued_at: at(NOW) };
    assert_eq!(said, expected);
}

#[test]
fn the_first_key_signs_and_all_verify() {
    let rotated = keys([NEW, OLD]);
    assert!(rotated.verify(&receipt(&keys([OLD])), at(NOW)).is_ok());
    assert!(receipt(&rotated).starts_with("1.2026-11."));
    let unknown = keys([OLD]).verify(&receipt(&rotated), at(NOW));
    assert_eq!(unknown, Err(ReceiptError::UnknownKey));
}

#[test]
fn a_key_of_the_same_id_and_another_secret_does_not_verify() {
    let forged = receipt(&keys([(NEW.0, OLD.1)]));
    assert_eq!(keys([NEW]).verify(&forged, at(NOW)), Err(ReceiptError::BadSignature));
}

#[test]
fn it_is_valid_for_seven_days_and_not_before_it_was_issued() {
    let keys = keys([NEW]);
    let receipt = receipt(&keys);
    let week = VALID_FOR.as_secs();
    assert!(keys.verify(&receipt, at(NOW + week)).is_ok());
    assert_eq!(keys.verify(&receipt, at(NOW + week + 1)), Err(ReceiptError::Expired));
    assert!(keys.verify(&receipt, at(NOW - 60)).is_ok());
    assert_eq!(keys.verify(&receipt, at(NOW - 61)), Err(ReceiptError::FromTheFuture));
}

#[test]
fn a_time_at_the_end_of_time_is_no_receipt_and_no_panic() {
    let keys = keys([NEW]);
    let mut body = u64::MAX.to_be_bytes().to_vec();
    body.extend_from_slice(&[0; REQUEST]);
    body.extend_from_slice(b"\x02a1u1");
    let signed = format!("1.2026-11.{}", URL_SAFE_NO_PAD.encode(body));
    let mac = URL_SAFE_NO_PAD.encode(keys.keys[0].1.sign(signed.as_bytes()));
    let verified = keys.verify(&format!("{signed}.{mac}"), at(NOW));
    assert!(matches!(verified, Err(ReceiptError::Malformed | ReceiptError::FromTheFuture)));
}

#[test]
fn what_is_no_receipt_is_malformed() {
    let keys = keys([NEW]);
    let good = receipt(&keys);
    for bad in [
        "",
        ".",
        "...",
        "1.2026-11.",
        &good.replacen("1.", "2.", 1),
        &good.replacen("1.", "", 1),
        &format!("{good}="),
        &format!("{good}.x"),
        &format!(" {good}"),
        &"1.".repeat(RECEIPT_MAX),
        &"x".repeat(RECEIPT_MAX + 1),
    ] {
        let error = keys.verify(bad, at(NOW)).unwrap_err();
        assert_eq!(error, ReceiptError::Malformed, "{bad}");
    }
}

#[test]
fn a_rater_that_cannot_be_named_gets_no_receipt() {
    let keys = keys([NEW]);
    for rater in ["", "a\nb", &"x".repeat(RATER_MAX + 1)] {
        let length = rater.len();
        let refused = keys.sign(&agent(), rater, REQUEST_7, at(NOW));
        assert_eq!(refused, Err(IssueError::Rater { length }));
    }
}

#[test]
fn the_longest_names_stay_within_the_bound_and_are_read_back() {
    let id = "k".repeat(KEY_ID_MAX);
    let keys = ReceiptKeys::new([(id, NEW.1)]).unwrap();
    let longest = AgentId::new(&"a".repeat(AGENT_ID_MAX)).unwrap();
    let rater = "é".repeat(RATER_MAX / 2);
    let receipt = keys.sign(&longest, &rater, REQUEST_7, at(NOW)).unwrap();
    assert_eq!(receipt.len(), RECEIPT_MAX);
    let said = keys.verify(&receipt, at(NOW)).unwrap();
    assert_eq!((said.agent, &*said.rater), (longest, &*rater));
}

#[test]
fn keys_that_cannot_be_used_are_named_by_their_number_and_never_shown() {
    let long = "s".repeat(SECRET_MIN);
    for (text, error) in [
        ("", ReceiptKeysError::Count { count: 0 }),
        (&*long, ReceiptKeysError::Id { number: 1 }),
        (&*format!("a:{long},b c:{long}"), ReceiptKeysError::Id { number: 2 }),
        (&*format!("a:{long}\nb:short"), ReceiptKeysError::ShortSecret { number: 2, length: 5 }),
        (&*format!("a:{long},a:{long}x"), ReceiptKeysError::Repeated { number: 2 }),
    ] {
        let found = ReceiptKeys::parse(text).unwrap_err();
        assert_eq!(found, error, "{text}");
        assert!(!found.to_string().contains("sss") && !found.to_string().contains("short,"));
    }
    let many = (0..=KEYS_MAX).map(|n| (format!("k{n}"), &long));
    let count = KEYS_MAX + 1;
    assert_eq!(ReceiptKeys::new(many).unwrap_err(), ReceiptKeysError::Count { count });
}

#[test]
fn keys_are_separated_by_commas_or_lines_and_their_secrets_are_not_shown() {
    let text = format!(" a:{0}:x ,\n b:{0}\r\n\n", "s".repeat(SECRET_MIN));
    assert_eq!(format!("{:?}", ReceiptKeys::parse(&text).unwrap()), r#"["a", "b"]"#);
}

#[test]
fn two_requests_have_two_names() {
    let keys = keys([NEW]);
    let name = || {
        let field = keys.issue(&agent(), "u1").unwrap();
        keys.verify(field.to_str().unwrap(), SystemTime::now()).unwrap().request
    };
    assert_ne!(name(), name());
}

#[test]
fn a_request_is_shown_as_it_is_read() {
    assert_eq!(REQUEST_7.to_string().parse(), Ok(REQUEST_7));
    for text in [
        "",
        "7",
        &"g".repeat(32),
        &"A".repeat(32),
        &"0".repeat(33),
        "+0000000000000000000000000000007",
    ] {
        assert_eq!(text.parse::<RequestId>(), Err(RequestIdError), "{text}");
    }
}

proptest! {
    #[test]
    fn every_receipt_verifies_and_none_that_differs_by_one_character_does(
        agent in "[A-Za-z0-9]([A-Za-z0-9._:@-]{0,40}[A-Za-z0-9])?",
        rater in "\\PC{1,60}",
        request in any::<u128>(),
        at_character in any::<prop::sample::Index>(),
        other in "[A-Za-z0-9._=-]",
    ) {
        let keys = keys([NEW, OLD]);
        let agent = AgentId::new(&agent).unwrap();
        let receipt = keys.sign(&agent, &rater, RequestId(request), at(NOW)).unwrap();
        let said = keys.verify(&receipt, at(NOW)).unwrap();
        prop_assert_eq!((said.agent, &*said.rater, said.request), (agent, &*rater, RequestId(request)));

        let place = at_character.index(receipt.len());
        let mut changed = receipt.clone();
        changed.replace_range(place..=place, &other);
        prop_assert!(changed == receipt || keys.verify(&changed, at(NOW)).is_err(), "{}", changed);
    }

    #[test]
    fn no_text_whatever_panics_the_reader(text in "\\PC{0,80}", body in prop::collection::vec(any::<u8>(), 0..80)) {
        let keys = keys([NEW]);
        prop_assert!(keys.verify(&text, at(NOW)).is_err());
        // Signed by us, so that the body is read: whatever it holds.
        let signed = format!("1.2026-11.{}", URL_SAFE_NO_PAD.encode(body));
        let mac = URL_SAFE_NO_PAD.encode(keys.keys[0].1.sign(signed.as_bytes()));
        let _ = keys.verify(&format!("{signed}.{mac}"), at(NOW));
    }
}
