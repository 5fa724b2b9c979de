//! Which route a path belongs to, whoever reads it.
//!
//! 1. A pattern is segments between slashes: text matches itself, ignoring ASCII case (many routers
//!    do, and nobody tells two resources apart by it); `*` matches one segment; `*` at the end
//!    matches the path before it and everything below. A slash at the end of a path means nothing.
//! 2. Servers disagree about `%2F`, `\`, `//`, `/../` and `;x`. A path that holds one of them is read
//!    in every way that they might, and must lead to one and the same route in all of them: who asks
//!    for `/cheap/..%2Fdear` is neither charged for the one nor for the other, but refused.
//! 3. Percent-encoding is undone once. What a service makes of `%252F` is its own affair.

use std::borrow::Cow;

/// The longest path that is read in more than one way, in bytes; a longer one is refused.
pub(super) const TWO_WAY_PATH_MAX: usize = 8 * 1024;

/// The most segments of a path that is read in more than one way; one of more is refused.
const TWO_WAY_SEGMENTS_MAX: usize = 128;

/// A path pattern, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern {
    segments: Box<[Segment]>,
    /// Whether a `*` at the end takes whatever follows, nothing included.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(Box<[u8]>),
    Any,
}

/// A path that different servers would take to different routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TwoWays;

impl PathPattern {
    /// Returns the pattern that `text` describes, or what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(inside) = text.strip_prefix('/') else { return Err("must begin with `/`") };
        if inside.contains(['?', '#', '%', '\\', ';']) {
            return Err("is matched decoded: it may not hold `?`, `#`, `%`, `\\` or `;`");
        }
        let inside = inside.strip_suffix('/').unwrap_or(inside);
        if inside.is_empty() {
            return Ok(Self { segments: Box::default(), open: false });
        }
        let mut segments = Vec::new();
        for segment in inside.split('/') {
            segments.push(match segment {
                "" => return Err("has an empty segment"),
                "." | ".." => return Err("has a segment of dots"),
                "*" => Segment::Any,
                text if text.contains('*') => return Err("has `*` beside other characters"),
                text => Segment::Text(text.as_bytes().into()),
            });
        }
        let open = segments.last() == Some(&Segment::Any);
        if open {
            segments.pop();
        }
        Ok(Self { segments: segments.into(), open })
    }

    fn matches<'a>(&self, mut path: impl Iterator<Item = &'a [u8]>) -> bool {
        for segment in &self.segments {
            let fits = match (segment, path.next()) {
                (Segment::Any, Some(found)) => !found.is_empty(),
                (Segment::Text(text), Some(found)) => text.eq_ignore_ascii_case(found),
                (_, None) => false,
            };
            if !fits {
                return false;
            }
        }
        self.open || path.next().is_none()
    }
}

/// Returns the position of the first of `patterns` that `path` matches and that `also` takes.
///
/// # Errors
///
/// When the path can be read in two ways that lead to different ones.
pub(super) fn first_match<'p>(
    patterns: impl Iterator<Item = Option<&'p PathPattern>> + Clone,
    also: impl Fn(usize) -> bool,
    path: &str,
) -> Result<Option<usize>, TwoWays> {
    let of = |segments: &dyn Fn(&PathPattern) -> bool| {
        let fits = |&(index, pattern): &(usize, Option<&PathPattern>)| {
            also(index) && pattern.is_none_or(segments)
        };
        patterns.clone().enumerate().find(fits).map(|(index, _)| index)
    };
    if plain(path) {
        return Ok(of(&|pattern| pattern.matches(plain_segments(path))));
    }
    if path.len() > TWO_WAY_PATH_MAX {
        return Err(TwoWays);
    }
    let path = Raw::new(path);
    if path.segments() > TWO_WAY_SEGMENTS_MAX {
        return Err(TwoWays);
    }
    let mut found = None;
    for reading in path.readings() {
        let segments = path.read(reading);
        let this = of(&|pattern| pattern.matches(segments.iter().copied()));
        if *found.get_or_insert(this) != this {
            return Err(TwoWays);
        }
    }
    Ok(found.flatten())
}

/// Returns true when nobody reads `path` differently.
fn plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    !bytes.iter().any(|b| matches!(b, b'%' | b'\\' | b';'))
        && !bytes.windows(2).any(|pair| pair == b"//" || pair == b"/.")
}

fn plain_segments(path: &str) -> impl Iterator<Item = &[u8]> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').map(str::as_bytes).filter(move |_| !path.is_empty())
}

/// One way to read a path.
#[derive(Clone, Copy)]
struct Reading {
    /// `%2F`, `%5C` and `\` separate segments.
    separators: bool,
    /// Empty segments are none.
    merges: bool,
    /// `.` and `..` are steps.
    steps: bool,
    /// `;` and what follows it in a segment is a parameter.
    parameters: bool,
}

/// A path that has more than one reading.
struct Raw<'a> {
    /// Split at `/`, then decoded.
    outer: Vec<Cow<'a, [u8]>>,
    /// What separates its readings.
    differ: Reading,
}

impl<'a> Raw<'a> {
    fn new(path: &'a str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let decode = |segment: &'a str| -> Cow<'a, [u8]> {
            percent_encoding::percent_decode_str(segment).into()
        };
        let outer: Vec<_> = path.split('/').map(decode).collect();
        let any = |test: &dyn Fn(&[u8]) -> bool| outer.iter().any(|segment| test(segment));
        let within = |bytes: &[u8], byte| bytes.contains(&byte);
        let separators = any(&|s| within(s, b'/') || within(s, b'\\'));
        let parameters = any(&|s| within(s, b';'));
        // With separators inside, whatever they separate may be empty or dots.
        let merges = separators || parameters || any(&<[u8]>::is_empty);
        let steps = any(&|s| within(s, b'.'));
        Self { outer, differ: Reading { separators, merges, steps, parameters } }
    }

    /// Returns how many segments it has where it has most.
    fn segments(&self) -> usize {
        let inside = |s: &Cow<'_, [u8]>| s.iter().filter(|b| matches!(b, b'/' | b'\\')).count();
        self.outer.iter().map(|segment| 1 + inside(segment)).sum()
    }

    /// Returns every reading that may differ from the others.
    fn readings(&self) -> impl Iterator<Item = Reading> {
        let Reading { separators, merges, steps, parameters } = self.differ;
        (0..16_u8)
            .map(|bits| Reading {
                separators: bits & 1 > 0,
                merges: bits & 2 > 0,
                steps: bits & 4 > 0,
                parameters: bits & 8 > 0,
            })
            .filter(move |reading| {
                (separators || !reading.separators)
                    && (merges || !reading.merges)
                    && (steps || !reading.steps)
                    && (parameters || !reading.parameters)
            })
    }

    fn read(&self, how: Reading) -> Vec<&[u8]> {
        let mut segments: Vec<&[u8]> = Vec::new();
        let inner = self
            .outer
            .iter()
            .flat_map(|outer| outer.split(move |b| how.separators && matches!(b, b'/' | b'\\')));
        for segment in inner {
            let segment = match how.parameters {
                true => segment.split(|b| *b == b';').next().unwrap_or_default(),
                false => segment,
            };
            match segment {
                b"" if how.merges => {}
                b"." if how.steps => {}
                b".." if how.steps => drop(segments.pop()),
                segment => segments.push(segment),
            }
        }
        // A slash at the end means nothing.
        if segments.last().is_some_and(|last| last.is_empty()) {
            segments.pop();
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(patterns: &[&str], path: &str) -> Result<Option<usize>, TwoWays> {
        let patterns: Vec<_> =
            patterns.iter().map(|text| PathPattern::parse(text).unwrap()).collect();
        first_match(patterns.iter().map(Some), |_| true, path)
    }

    #[test]
    fn a_star_is_one_segment_inside_and_whatever_follows_at_the_end() {
        for (pattern, yes, no) in [
            ("/", &["/"][..], &["/a"][..]),
            ("/v1/orders", &["/v1/orders", "/v1/orders/", "/V1/Orders"], &["/v1/order", "/v1"]),
            ("/v1/*/items", &["/v1/7/items"], &["/v1/items", "/v1/7/8/items", "/v1/7/items/9"]),
            ("/v1/orders/*", &["/v1/orders", "/v1/orders/7", "/v1/orders/7/8/"], &["/v1/orders7"]),
            ("/*", &["/", "/a", "/a/b"], &[]),
            ("/é", &["/%C3%A9", "/%c3%a9"], &["/e"]),
        ] {
            for path in yes {
                assert_eq!(first(&[pattern], path), Ok(Some(0)), "{pattern} {path}");
            }
            for path in no {
                assert_eq!(first(&[pattern], path), Ok(None), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn the_first_match_wins() {
        assert_eq!(first(&["/v1/orders/mine", "/v1/orders/*"], "/v1/orders/mine"), Ok(Some(0)));
        assert_eq!(first(&["/v1/orders/*", "/v1/orders/mine"], "/v1/orders/mine"), Ok(Some(0)));
    }

    #[test]
    fn no_spelling_takes_a_request_from_one_route_to_another() {
        let routes = ["/cheap/*", "/dear/*"];
        for path in [
            "/cheap/../dear/x",
            "/cheap/%2e%2e/dear/x",
            "/cheap/..%2fdear/x",
            "/cheap/..%2Fdear/x",
            "/cheap/..\\dear/x",
            "/cheap%2f..%2fdear/x",
            "/cheap/..;a=1/dear/x",
            "/cheap/.%2e;/dear/x",
            "/dear/..//../cheap/",
            "/cheap/%5c../../dear",
            "/cheap//../dear/x",
            "/./cheap/../dear",
            "/dear;x/../cheap",
        ] {
            assert_eq!(first(&routes, path), Err(TwoWays), "{path}");
        }
        // Beside a route there is none, but the default bucket is charged less there.
        for path in
            ["//dear/x", "/dear%2fx", "/;/dear", "/x/../dear", "/dear;v=1", "/x%2f..%2fdear"]
        {
            assert_ne!(first(&["/dear/*"], path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_spelling_that_everybody_reads_alike_is_no_obstacle() {
        let routes = ["/cheap/*", "/dear/*"];
        for (path, route) in [
            ("/d%65ar/x", Some(1)),
            ("/dear/a%20b", Some(1)),
            ("/dear/a;v=1", Some(1)),
            ("/dear//a", Some(1)),
            ("/dear/a%2fb", Some(1)),
            ("/dear/.well-known", Some(1)),
            ("/.well-known/x", None),
            ("/other/a%2Fb", None),
            ("/100%", None),
        ] {
            assert_eq!(first(&routes, path), Ok(route), "{path}");
        }
    }

    #[test]
    fn a_path_too_long_to_be_read_in_every_way_is_refused() {
        let path = format!("/{}", "%2f".repeat(TWO_WAY_PATH_MAX / 3 + 1));
        assert_eq!(first(&["/*"], &path), Err(TwoWays));
        for (most, more) in [("a/", "a//"), ("a%2f", "a%2f/"), ("a\\", "a\\/")] {
            let most = format!("/{}", most.repeat(TWO_WAY_SEGMENTS_MAX - 2)) + ".%2f";
            assert_eq!(first(&["/*"], &most), Ok(Some(0)));
            let more = format!("/{}", more.repeat(TWO_WAY_SEGMENTS_MAX / 2)) + ".%2f";
            assert_eq!(first(&["/*"], &more), Err(TwoWays));
        }
        let plain = format!("/{}", "a".repeat(TWO_WAY_PATH_MAX * 2));
        assert_eq!(first(&["/*"], &plain), Ok(Some(0)));
    }

    #[test]
    fn a_pattern_that_could_never_match_is_refused() {
        for text in ["", "v1", "/a//b", "/a/../b", "/a*", "/a?b", "/a%20b", "/a;b", "/a\\b", "/./a"]
        {
            assert!(PathPattern::parse(text).is_err(), "{text:?}");
        }
    }

    /// What a server that undoes everything sees: its route must be charged, or nobody's.
    fn undone(path: &str) -> String {
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let mut kept: Vec<&str> = Vec::new();
        for segment in decoded.split(['/', '\\']) {
            match segment.split(';').next().unwrap_or_default() {
                "" | "." => {}
                ".." => drop(kept.pop()),
                text => kept.push(text),
            }
        }
        format!("/{}", kept.join("/"))
    }

    proptest! {
        #[test]
        fn whoever_undoes_everything_finds_the_route_that_was_charged(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "/", "/", "//", "%2f", "%2F", "\\", "%5c", "..", ".", "%2e", "%2e%2E", ";",
                    ";a=1", "%3b", "cheap", "dear", "d%65ar", "DEAR", "x", "%", "%zz", "%252f",
                ]),
                0..12,
            )
        ) {
            let path = format!("/{}", parts.concat());
            let routes = ["/cheap/*", "/dear/*", "/x"];
            let other = undone(&path);
            // A percent sign that was encoded is none of ours (rule 3).
            prop_assume!(!other.contains('%'));
            if let Ok(route) = first(&routes, &path) {
                prop_assert_eq!(first(&routes, &other), Ok(route), "{} is {}", path, other);
            }
        }
    }
}
