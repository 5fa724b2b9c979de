//! Which messages a Protobuf schema declares at its top, in order.
//!
//! Registries give a schema as the text of a `.proto`, or as a `FileDescriptorProto` in base64. Of the text only
//! the outline is read: whether the rest is well formed is the registry's business.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;

/// What is needed of `google.protobuf.FileDescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, optional, tag = "2")]
    package: Option<String>,
    #[prost(message, repeated, tag = "4")]
    message_type: Vec<Declared>,
}

/// What is needed of `google.protobuf.DescriptorProto`.
#[derive(Clone, PartialEq, prost::Message)]
struct Declared {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
}

/// Returns the full names of the messages of `schema`.
///
/// # Errors
///
/// When it is neither form, as the end of a sentence that begins with the schema.
pub(super) fn messages(schema: &str) -> Result<Vec<String>, String> {
    let (package, names) = match schema.contains(['{', ';']) {
        true => of_text(schema)?,
        false => of_descriptor(schema)?,
    };
    let full = |name| if package.is_empty() { name } else { format!("{package}.{name}") };
    Ok(names.into_iter().map(full).collect())
}

fn of_descriptor(base64: &str) -> Result<(String, Vec<String>), String> {
    let no = "is neither a .proto nor a FileDescriptorProto in base64";
    let bytes = STANDARD.decode(base64.trim()).map_err(|_| no.to_owned())?;
    let file = File::decode(&bytes[..]).map_err(|_| no.to_owned())?;
    let names = file.message_type.into_iter().map(|declared| declared.name.unwrap_or_default());
    Ok((file.package.unwrap_or_default(), names.collect()))
}

fn of_text(text: &str) -> Result<(String, Vec<String>), String> {
    let (mut package, mut names) = (String::new(), Vec::new());
    let mut depth = 0_usize;
    // The words of the statement that is being read, outside of all braces.
    let mut words: Vec<&str> = Vec::new();
    for token in Tokens(text) {
        match token? {
            Token::Word(word) if depth == 0 => words.push(word),
            Token::Open => {
                // An edition may say before it who sees it.
                let visible = words.iter().position(|word| !["export", "local"].contains(word));
                match &words[visible.unwrap_or(0)..] {
                    ["message", name] if depth == 0 => names.push((*name).to_owned()),
                    _ => {}
                }
                words.clear();
                depth += 1;
            }
            Token::Close => {
                depth = depth.checked_sub(1).ok_or("closes a brace that it did not open")?;
                words.clear();
            }
            Token::End if depth == 0 => {
                if let ["package", name] = words[..] {
                    name.clone_into(&mut package);
                }
                words.clear();
            }
            Token::Word(_) | Token::End | Token::Other => {}
        }
    }
    if depth > 0 {
        return Err("does not close a brace that it opened".to_owned());
    }
    Ok((package, names))
}

enum Token<'a> {
    Word(&'a str),
    Open,
    Close,
    End,
    Other,
}

/// The rest of a `.proto`; white space, comments and strings are left out.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Result<Token<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.0 = self.0.trim_start();
            let comment = match self.0.get(..2) {
                Some("//") => Some("\n"),
                Some("/*") => Some("*/"),
                _ => None,
            };
            let Some(end) = comment else { break };
            // Also where `/*/` would end itself.
            let rest = &self.0[2..];
            match rest.find(end) {
                Some(at) => self.0 = &rest[at + end.len()..],
                None if end == "\n" => self.0 = "",
                None => return Some(Err("does not end a comment".to_owned())),
            }
        }
        let first = self.0.chars().next()?;
        let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if in_word(first) {
            let end = self.0.find(|c| !in_word(c)).unwrap_or(self.0.len());
            let (word, rest) = self.0.split_at(end);
            self.0 = rest;
            return Some(Ok(Token::Word(word)));
        }
        self.0 = &self.0[first.len_utf8()..];
        Some(Ok(match first {
            '{' => Token::Open,
            '}' => Token::Close,
            ';' => Token::End,
            '"' | '\'' => match end_of_string(self.0, first) {
                Some(end) => {
                    self.0 = &self.0[end..];
                    Token::Other
                }
                None => return Some(Err("does not end a string".to_owned())),
            },
            _ => Token::Other,
        }))
    }
}

/// Returns where the string that `quote` began is over.
fn end_of_string(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_at_the_top_alone() {
        let text = r#"
            // message Comment { }
            /* message Comment {} */
            syntax = "proto3"; package a . b; /* a point with spaces is not what we read */
            package a.b;
            import "message Import { }";
            option (my.option) = { message: "x" };
            enum E { message = 0; }
            service message { rpc message (message) returns (E) {} }
            message First { message Inner { string message = 1; } oneof message { string a = 2; } }
            extend First { string message = 1; }
            export message 'odd' Second {}
            local message Third { option x = '\'}'; }
            message Last{}"#;
        assert_eq!(messages(text).unwrap(), ["a.b.First", "a.b.Second", "a.b.Third", "a.b.Last"]);
        assert_eq!(messages("message M {}").unwrap(), ["M"]);
    }

    #[test]
    fn a_descriptor_in_base64_and_its_text_name_the_same_messages() {
        let of_text = messages(super::super::PROTO).unwrap();
        assert_eq!(of_text, messages(&super::super::DESCRIPTOR).unwrap());
        assert_eq!(of_text[0], super::super::MESSAGE);
        assert!(of_text.len() > 5);
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["", "hello", "AAA=", "message M {", "message M }", "/* {", "package \";"] {
            // Nothing at all is a descriptor of nothing.
            let found = messages(text);
            assert!(
                found.as_ref().is_ok_and(Vec::is_empty) == text.is_empty(),
                "{text}: {found:?}"
            );
        }
    }
}
