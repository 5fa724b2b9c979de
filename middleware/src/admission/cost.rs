//! What a request costs: a constant, what a field of the request says, or what a closure says.

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderName, Request};

use crate::{
    bucket::{CAPACITY_MAX, Tokens},
    identity::RequestHead,
};

/// What a request costs, in tokens; `0` only looks.
///
/// A cost above what a bucket holds passes when that bucket is full, and leaves debt. Costs above
/// [`CAPACITY_MAX`] are refused where they are configured, and taken for [`CAPACITY_MAX`] where a
/// field or a closure says so.
///
/// ```
/// use tower_merit::{Cost, Route};
///
/// let export = Route::path("/v1/export").cost(50);
/// let batch = Route::path("/v1/batch").cost(Cost::from_header("x-batch-size", 1, 500)?);
/// let search = Route::path("/v1/search").cost(Cost::by(|head| {
///     if head.uri.query().is_some_and(|query| query.contains("deep=1")) { 10 } else { 1 }
/// }));
/// # let _ = (export, batch, search);
/// # Ok::<(), tower_merit::BuildError>(())
/// ```
#[derive(Clone)]
pub struct Cost(pub(super) Kind);

#[derive(Clone)]
pub(super) enum Kind {
    Constant(u64),
    Header(CostHeader),
    Closure(Closure),
}

type Closure = Arc<dyn Fn(&RequestHead<'_>) -> u64 + Send + Sync>;

/// A field that says what its request costs, within bounds.
#[derive(Clone, Debug)]
pub(super) struct CostHeader {
    name: HeaderName,
    min: Tokens,
    max: Tokens,
    /// What a request costs without the field.
    absent: Tokens,
}

impl Cost {
    /// Returns the cost `tokens` for every request.
    #[must_use]
    pub fn tokens(tokens: u64) -> Self {
        Self(Kind::Constant(tokens))
    }

    /// Returns the cost that the request's field `name` states as a decimal, raised to `min` and cut
    /// to `max`.
    ///
    /// Without the field a request costs `min`: whoever may write it could have written that; where
    /// the true cost is settled afterwards, `max`. A
    /// field that is there twice or is no decimal number costs `max`: garbage buys nothing. The
    /// caller chooses the value unless a proxy in front overwrites it, so let `min` be what a
    /// request costs at least, or settle what it really cost afterwards
    /// ([`Route::settle_from`](super::Route::settle_from)).
    ///
    /// # Errors
    ///
    /// When `name` is no field name, `max` is above [`CAPACITY_MAX`], or `min` is above `max`.
    pub fn from_header(name: &str, min: u64, max: u64) -> Result<Self, super::BuildError> {
        let field = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| super::BuildError::Field { name: name.to_owned() })?;
        if min > max {
            return Err(super::BuildError::CostBounds { min, max });
        }
        let bound = |count| Tokens::new(count).map_err(super::BuildError::Cost);
        let (min, max) = (bound(min)?, bound(max)?);
        Ok(Self(Kind::Header(CostHeader { name: field, min, max, absent: min })))
    }

    /// Returns the cost that `cost` computes from a request's head. It runs for every request, so
    /// it should neither block nor compute much.
    #[must_use]
    pub fn by(cost: impl Fn(&RequestHead<'_>) -> u64 + Send + Sync + 'static) -> Self {
        Self(Kind::Closure(Arc::new(cost)))
    }

    /// Returns this cost for requests whose true cost comes later: what they do not state is reserved
    /// whole, because the caller can see to it that nothing comes.
    pub(super) fn until_settled(mut self) -> Self {
        if let Kind::Header(header) = &mut self.0 {
            header.absent = header.max;
        }
        self
    }

    /// Returns the most that a caller can be made to pay by a field of its own.
    pub(super) fn most(&self) -> Option<Tokens> {
        match &self.0 {
            Kind::Header(header) => Some(header.max),
            Kind::Constant(_) | Kind::Closure(_) => None,
        }
    }

    /// Returns the field that says what a request costs, if one does.
    pub(super) fn field(&self) -> Option<&HeaderName> {
        match &self.0 {
            Kind::Header(header) => Some(&header.name),
            Kind::Constant(_) | Kind::Closure(_) => None,
        }
    }

    /// Returns what `request` costs.
    pub(super) fn of<B>(&self, request: &Request<B>) -> Tokens {
        match &self.0 {
            Kind::Constant(tokens) => clamped(*tokens),
            Kind::Header(header) => header.read(request.headers()),
            Kind::Closure(cost) => clamped(cost(&RequestHead {
                method: request.method(),
                uri: request.uri(),
                headers: request.headers(),
                extensions: request.extensions(),
            })),
        }
    }
}

impl From<u64> for Cost {
    fn from(tokens: u64) -> Self {
        Self::tokens(tokens)
    }
}

impl fmt::Debug for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Constant(tokens) => write!(f, "Cost({tokens})"),
            Kind::Header(CostHeader { name, min, max, .. }) => {
                write!(f, "Cost({name}, {min}..={max})")
            }
            Kind::Closure(_) => f.write_str("Cost(closure)"),
        }
    }
}

impl CostHeader {
    fn read(&self, headers: &HeaderMap) -> Tokens {
        let mut values = headers.get_all(&self.name).iter();
        match (values.next(), values.next()) {
            (None, _) => self.absent,
            (Some(value), None) => match decimal(value.as_bytes()) {
                Some(tokens) => clamped(tokens).clamp(self.min, self.max),
                None => self.max,
            },
            (Some(_), Some(_)) => self.max,
        }
    }
}

/// Returns `tokens`, at most [`CAPACITY_MAX`].
pub(super) fn clamped(tokens: u64) -> Tokens {
    Tokens::new(tokens.min(CAPACITY_MAX)).expect("clamped to the largest capacity")
}

/// Reads a decimal number without sign; one that does not fit is the largest there is.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit =
        |value: u64, digit: &u8| value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(text.iter().fold(0, digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cost: &Cost, values: &[&str]) -> u64 {
        let mut request = Request::builder();
        for value in values {
            request = request.header("x-cost", *value);
        }
        cost.of(&request.body(()).unwrap()).get()
    }

    #[test]
    fn a_field_is_kept_within_bounds_and_garbage_costs_most() {
        let cost = Cost::from_header("X-Cost", 2, 50).unwrap();
        for (values, tokens) in [
            (&[][..], 2),
            (&["7"], 7),
            (&[" 7 "], 7),
            (&["0"], 2),
            (&["51"], 50),
            (&["99999999999999999999999"], 50),
            (&[""], 50),
            (&["-1"], 50),
            (&["1.5"], 50),
            (&["1e3"], 50),
            (&["+3"], 50),
            (&["3", "3"], 50),
        ] {
            assert_eq!(read(&cost, values), tokens, "{values:?}");
        }
    }

    #[test]
    fn bounds_that_cannot_be_are_refused() {
        assert!(Cost::from_header("x cost", 1, 2).is_err());
        assert!(Cost::from_header("x-cost", 3, 2).is_err());
        assert!(Cost::from_header("x-cost", 1, CAPACITY_MAX + 1).is_err());
    }

    #[test]
    fn a_closure_that_asks_for_more_than_a_bucket_can_hold_gets_that_much() {
        let cost = Cost::by(|head| u64::MAX - head.headers.len() as u64);
        assert_eq!(read(&cost, &["1"]), CAPACITY_MAX);
    }
}
