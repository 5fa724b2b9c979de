//! The addresses that proxies wrote into `X-Forwarded-For` or `Forwarded` (RFC 7239).
//!
//! Read from the right, where our own proxies wrote: what stands left of the first address that is
//! not theirs is the caller's invention, and nothing in it changes what is read right of it. Whatever
//! is no address ends the reading.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};

/// The most addresses that are read, from the right: no chain of proxies is that long.
pub(super) const HOPS_MAX: usize = 32;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Returns the addresses of `X-Forwarded-For`, the last one first; nothing in the place of what is
/// none.
pub(super) fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let fields = headers.get_all(X_FORWARDED_FOR).into_iter().rev();
    // Bytes, not text: a stranger's one odd byte must not spoil what our proxies put behind it.
    let entries = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
    entries.map(address).take(HOPS_MAX)
}

/// Returns the addresses in the `for` parameters of `Forwarded`, the last one first; nothing in the
/// place of an element without one, or of what is no address.
pub(super) fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let fields = headers.get_all(header::FORWARDED).into_iter().rev();
    let elements = fields.flat_map(|field| split_from_right(field.as_bytes(), b','));
    elements.map(|element| for_parameter(element?)).take(HOPS_MAX)
}

/// Splits at `mark` where it stands outside of quotes, the last part first.
///
/// What stands further left, a stranger wrote: nothing there changes a part that was given already.
/// Quotes that do not pair, read this way, make all that is left of them one part that is none.
fn split_from_right(text: &[u8], mark: u8) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let part = match cut(text, mark) {
            Ok(Some(at)) => {
                rest = Some(&text[..at]);
                Some(&text[at + 1..])
            }
            Ok(None) => Some(text),
            Err(Unpaired) => None,
        };
        Some(part)
    })
}

/// A quote without its other half.
struct Unpaired;

/// Returns where the last `mark` outside of quotes is.
fn cut(text: &[u8], mark: u8) -> Result<Option<usize>, Unpaired> {
    let mut quoted = false;
    for (at, byte) in text.iter().enumerate().rev() {
        match byte {
            b'"' => {
                let slashes = text[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                match (quoted, slashes % 2 == 1) {
                    (true, true) => {}
                    // Only within quotes is anything escaped, and there is no closing one here.
                    (false, true) => return Err(Unpaired),
                    (_, false) => quoted = !quoted,
                }
            }
            byte if *byte == mark && !quoted => return Ok(Some(at)),
            _ => {}
        }
    }
    if quoted { Err(Unpaired) } else { Ok(None) }
}

/// Reads the `for` of one element; two of them are none.
fn for_parameter(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_from_right(element, b';') {
        let pair = pair?;
        let Some(at) = pair.iter().position(|byte| *byte == b'=') else { continue };
        let (name, value) = (&pair[..at], &pair[at + 1..]);
        if name.trim_ascii().eq_ignore_ascii_case(b"for") && found.replace(value).is_some() {
            return None;
        }
    }
    let value = found?.trim_ascii();
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    address(unquoted.unwrap_or(value))
}

/// Reads an address, alone or with a port, IPv6 with or without brackets. Names, `unknown`,
/// obfuscated identifiers and zone ids are none.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return inside.parse().ok().map(IpAddr::V6);
    }
    match text.parse::<SocketAddr>().ok()? {
        SocketAddr::V6(address) if address.scope_id() != 0 => None,
        address => Some(address.ip()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(name: &str, fields: &[impl AsRef<[u8]>]) -> Vec<Option<String>> {
        let mut headers = HeaderMap::new();
        for field in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(field.as_ref()).unwrap());
        }
        let show = |address: Option<IpAddr>| address.map(|address| address.to_string());
        match name {
            "forwarded" => forwarded(&headers).map(show).collect(),
            _ => x_forwarded_for(&headers).map(show).collect(),
        }
    }

    fn some(addresses: &[&str]) -> Vec<Option<String>> {
        addresses.iter().map(|address| Some((*address).to_owned())).collect()
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right_over_all_fields() {
        let fields = ["1.1.1.1, 2.2.2.2:80", "[2001:db8::1]:443 ,2001:db8::2,[2001:db8::3]"];
        let expected = ["2001:db8::3", "2001:db8::2", "2001:db8::1", "2.2.2.2", "1.1.1.1"];
        assert_eq!(read("x-forwarded-for", &fields), some(&expected));
    }

    #[test]
    fn forwarded_is_read_from_the_right_with_quotes_and_other_parameters() {
        let fields = [
            r#"For="[2001:db8:cafe::17]:4711""#,
            r#"for=192.0.2.60;proto=http;by=203.0.113.43, proto="a,b;for=6.6.6.6"; FOR="192.0.2.61:80""#,
        ];
        let expected = ["192.0.2.61", "192.0.2.60", "2001:db8:cafe::17"];
        assert_eq!(read("forwarded", &fields), some(&expected));
    }

    #[test]
    fn what_is_no_address_stands_as_none() {
        for text in [
            "",
            "unknown",
            "_hidden",
            "example.com",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "01.2.3.4",
            "fe80::1%eth0",
            "[fe80::1%1]:80",
            "[fe80::1%eth0]",
            "[1.2.3.4]",
            "1.2.3.4:",
            "1.2.3.4:x",
            "[::1",
            "::1]",
            "\"1.2.3.4\"",
        ] {
            assert_eq!(read("x-forwarded-for", &[text]), [None], "{text}");
        }
        for text in [
            "",
            "for",
            "for=",
            "by=1.2.3.4",
            "for=unknown",
            "for=\"_gazonk\"",
            "for=1.2.3.4;for=1.2.3.5",
            "for=\"1.2.3.4",
            "fo r=1.2.3.4",
        ] {
            assert_eq!(read("forwarded", &[text]), [None], "{text}");
        }
    }

    #[test]
    fn quotes_of_a_stranger_hide_his_own_words_only() {
        for invented in [
            r#"for=1.2.3.4;x=""#,
            r#"for=1.2.3.4;x="\"#,
            r#"for=1.2.3.4;x="\""#,
            r#"for="1.2.3.4"#,
            r#"for=1.2.3.4;x="a" ""#,
            r#"""#,
        ] {
            for (ours, address) in [
                ("for=203.0.113.9", "203.0.113.9"),
                (r#"for="[2001:db8::9]:80";proto=http"#, "2001:db8::9"),
                (r#"host="\", for=6.6.6.6;x=\\";for=203.0.113.9"#, "203.0.113.9"),
            ] {
                let field = format!("{invented}, {ours}");
                let read = read("forwarded", &[&field]);
                assert_eq!(read[0].as_deref(), Some(address), "{field}");
                assert!(read[1..].iter().all(Option::is_none), "{field}: {read:?}");
            }
        }
        assert_eq!(
            read("forwarded", &[r#"for=1.2.3.4, x\", for=5.6.7.8"#]),
            [Some("5.6.7.8".to_owned()), None]
        );
    }

    #[test]
    fn a_byte_that_is_no_text_spoils_its_own_entry_only() {
        let expected = [Some("203.0.113.9".to_owned()), None, Some("1.1.1.1".to_owned())];
        assert_eq!(read("x-forwarded-for", &[b"1.1.1.1,\xE9 , 203.0.113.9"]), expected);
        assert_eq!(read("forwarded", &[b"for=1.1.1.1,for=\xE9,for=203.0.113.9"]), expected);
    }

    #[test]
    fn a_chain_without_end_is_read_so_far() {
        let long = vec!["1.1.1.1"; 1000].join(",");
        assert_eq!(read("x-forwarded-for", &[&long]).len(), HOPS_MAX);
    }
}
