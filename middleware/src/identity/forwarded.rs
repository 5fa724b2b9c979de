//! The addresses that proxies wrote into `X-Forwarded-For` or `Forwarded` (RFC 7239).
//!
//! Read from the right, where our own proxies wrote: what stands left of the first address that is
//! not theirs is the caller's invention. Whatever is no address ends the reading.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};

/// The most addresses that are read, from the right: no chain of proxies is that long.
pub(super) const HOPS_MAX: usize = 32;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Returns the addresses of `X-Forwarded-For`, the last one first; nothing in the place of what is
/// none.
pub(super) fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let fields = headers.get_all(X_FORWARDED_FOR).into_iter().rev();
    let entries = fields.flat_map(|field| field.to_str().unwrap_or_default().rsplit(','));
    entries.map(|entry| address(entry.trim())).take(HOPS_MAX)
}

/// Returns the addresses in the `for` parameters of `Forwarded`, the last one first; nothing in the
/// place of an element without one, or of what is no address.
pub(super) fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let fields = headers.get_all(header::FORWARDED).into_iter().rev();
    let elements = fields.flat_map(|field| {
        let mut elements = split(field.to_str().unwrap_or_default(), ',');
        elements.reverse();
        elements
    });
    elements.map(for_parameter).take(HOPS_MAX)
}

/// Splits at `mark` where it stands outside of quotes. A quote that does not end swallows the rest:
/// it can only hide what is left of it from the right, never make an address up.
fn split(text: &str, mark: char) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == mark && !quoted => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Reads the `for` of one element; two of them are none.
fn for_parameter(element: &str) -> Option<IpAddr> {
    let pairs = split(element, ';').into_iter().filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = named.next()?;
    if named.next().is_some() {
        return None;
    }
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    address(unquoted.unwrap_or(value))
}

/// Reads an address, alone or with a port, IPv6 with or without brackets. Names, `unknown`,
/// obfuscated identifiers and zone ids are none.
fn address(text: &str) -> Option<IpAddr> {
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
    use super::*;

    fn read(name: &str, fields: &[&str]) -> Vec<Option<String>> {
        let mut headers = HeaderMap::new();
        for field in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, field.parse().unwrap());
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
    fn a_chain_without_end_is_read_so_far() {
        let long = vec!["1.1.1.1"; 1000].join(",");
        assert_eq!(read("x-forwarded-for", &[&long]).len(), HOPS_MAX);
    }
}
