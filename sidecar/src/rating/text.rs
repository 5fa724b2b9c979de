//! The bounded texts of a rating: ids, names and receipts that cannot break out of a key or a log line.

use std::fmt;

/// The longest user id, item id and poster, in bytes of UTF-8.
pub const TEXT_MAX: usize = 256;
/// The longest rating id, in characters (all of them visible ASCII).
pub const RATING_ID_MAX: usize = 128;
/// The longest receipt, in characters (all of them visible ASCII).
pub const RECEIPT_MAX: usize = 2048;
/// The longest name of a receipt, in characters (all of them visible ASCII).
pub const RECEIPT_ID_MAX: usize = 64;
/// The longest key of a rating's context, in bytes of UTF-8.
pub const CONTEXT_KEY_MAX: usize = 64;

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Empty, or longer than the bound.
    #[error("must be 1 to {max} bytes long, has {length}")]
    Length {
        /// Length of the refused text in bytes.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// A character that this text may not hold.
    #[error("may hold {alphabet} only, has {character:?} at position {position}")]
    Character {
        /// What is allowed.
        alphabet: &'static str,
        /// The first character that is not.
        character: char,
        /// Its position in bytes, from 0.
        position: usize,
    },
}

struct Rule {
    max: usize,
    alphabet: &'static str,
    allowed: fn(char) -> bool,
}

const VISIBLE_ASCII: &str = "visible ASCII characters";
const NO_CONTROL: &str = "characters that are not control characters";

fn check(text: &str, rule: &Rule) -> Result<Box<str>, TextError> {
    if text.is_empty() || text.len() > rule.max {
        return Err(TextError::Length { length: text.len(), max: rule.max });
    }
    // Every rule allows these, and most texts have no others.
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.into());
    }
    match text.char_indices().find(|&(_, c)| !(rule.allowed)(c)) {
        Some((position, character)) => {
            Err(TextError::Character { alphabet: rule.alphabet, character, position })
        }
        None => Ok(text.into()),
    }
}

macro_rules! bounded_text {
    ($(#[$doc:meta])* $name:ident, $max:expr, $alphabet:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Returns `text` as this type.
            ///
            /// # Errors
            ///
            /// When `text` is empty, too long or holds a character that is not allowed.
            pub fn new(text: &str) -> Result<Self, TextError> {
                let rule = Rule { max: $max, alphabet: $alphabet, allowed: $allowed };
                check(text, &rule).map(Self)
            }

            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = TextError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }
    };
}

bounded_text!(
    /// Who rates: 1–256 bytes of UTF-8 without control characters.
    UserId, TEXT_MAX, NO_CONTROL, |c| !c.is_control()
);
bounded_text!(
    /// What is rated beside the agent: 1–256 bytes of UTF-8 without control characters.
    ItemId, TEXT_MAX, NO_CONTROL, |c| !c.is_control()
);
bounded_text!(
    /// The principal that posted a rating: 1–256 bytes of UTF-8 without control characters.
    Poster, TEXT_MAX, NO_CONTROL, |c| !c.is_control()
);
bounded_text!(
    /// A key of a rating's context: 1–64 bytes of UTF-8 without control characters.
    ContextKey, CONTEXT_KEY_MAX, NO_CONTROL, |c| !c.is_control()
);
bounded_text!(
    /// The name of a rating, unique per poster: 1–128 visible ASCII characters.
    RatingId, RATING_ID_MAX, VISIBLE_ASCII, |c| c.is_ascii_graphic()
);
bounded_text!(
    /// The request that a receipt proves, once verified: 1–64 visible ASCII characters.
    ReceiptId, RECEIPT_ID_MAX, VISIBLE_ASCII, |c| c.is_ascii_graphic()
);
bounded_text!(
    /// A proof of interaction as it came, unverified: 1–2048 visible ASCII characters.
    Receipt, RECEIPT_MAX, VISIBLE_ASCII, |c| c.is_ascii_graphic()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_may_be_any_language_but_hold_no_control_characters() {
        for text in ["u", "Zoë Müller", "用户", &"x".repeat(256)] {
            assert_eq!(UserId::new(text).unwrap().as_str(), text);
        }
        for text in ["", "a\nb", "a\u{7f}", "a\u{85}b", &"x".repeat(257), &"ä".repeat(129)] {
            assert!(UserId::new(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn rating_ids_are_visible_ascii_only() {
        assert!(RatingId::new(&"~!".repeat(64)).is_ok());
        for text in ["", "a b", "é", "a\t", &"x".repeat(129)] {
            assert!(RatingId::new(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn an_error_names_the_character_and_where_it_stands() {
        let error = RatingId::new("a b").unwrap_err().to_string();
        assert!(error.contains("' ' at position 1"), "{error}");
    }
}
