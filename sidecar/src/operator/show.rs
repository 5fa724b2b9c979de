//! How data becomes text on a terminal: nothing that a server says can move its cursor.
//!
//! 1. What comes from elsewhere passes [`visible`]: control characters, escape sequences, marks that turn
//!    the direction of text and all else that has no picture are spelled out, as `\u{1b}`.
//! 2. Columns are aligned by the width that terminals give characters, not by their number.
//! 3. Colours are asked for, never assumed ([`Paint::of`]).

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _},
};

use serde_json::{Serializer, Value, ser::Formatter};
use unicode_width::UnicodeWidthStr;

use super::args::Colour;

/// What stands where a process does not know a number.
pub(super) const UNKNOWN: &str = "-";

/// The heights of a line of bars.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Whether a terminal draws `c` and does nothing else with it.
fn is_drawn(c: char) -> bool {
    // `escape_debug` leaves what Unicode calls printable, and escapes what joins the character before.
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// Returns `text` with everything spelled out that a terminal would not draw.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_drawn(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// Writes strings so that what a terminal would not draw stands as `\uXXXX`: the same JSON.
struct Drawn;

impl Formatter for Drawn {
    fn write_string_fragment<W>(&mut self, to: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        for c in fragment.chars() {
            if is_drawn(c) {
                write!(to, "{c}")?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// Returns `value` as JSON on one line.
pub(super) fn one_line(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Drawn);
    serde::Serialize::serialize(value, &mut serializer).expect("a value is JSON, a Vec takes it");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// How a piece of text is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hue {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Headings.
    Bold,
    /// What matters less.
    Dim,
    /// What works.
    Good,
    /// What an operator did.
    Held,
    /// What is refused or broken.
    Bad,
}

/// Puts colours on, or does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    /// Returns what `colour` means for standard output.
    pub(super) fn of(colour: Colour) -> Self {
        let (no_color, term) = (std::env::var_os("NO_COLOR"), std::env::var_os("TERM"));
        Self(wanted(colour, no_color.as_deref(), term.as_deref(), io::stdout().is_terminal()))
    }

    pub(super) fn text(self, text: &str, hue: Hue) -> String {
        let code = match hue {
            _ if !self.0 => return text.to_owned(),
            Hue::Plain => return text.to_owned(),
            Hue::Bold => "1",
            Hue::Dim => "2",
            Hue::Good => "32",
            Hue::Held => "36",
            Hue::Bad => "31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

fn wanted(colour: Colour, no_color: Option<&OsStr>, term: Option<&OsStr>, terminal: bool) -> bool {
    match colour {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => {
            let refused = no_color.is_some_and(|value| !value.is_empty());
            terminal && !refused && term.is_none_or(|term| term != "dumb")
        }
    }
}

/// A cell of a table: its text is made visible when it is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    hue: Hue,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, hue: Hue) -> Self {
        Self { text: text.into(), hue }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Hue::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Hue::Plain)
    }
}

/// Rows under headings. A heading that begins with `>` stands over numbers: its column is aligned right.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        debug_assert_eq!(cells.len(), self.headings.len(), "a cell for each heading");
        self.rows.push(cells);
    }

    /// Returns the table, a line for each row; no line ends in spaces.
    pub(super) fn text(&self, paint: Paint) -> String {
        let right: Vec<bool> = self.headings.iter().map(|name| name.starts_with('>')).collect();
        let headings = self.headings.iter();
        let headings =
            headings.map(|name| Cell::new(name.trim_start_matches('>'), Hue::Bold)).collect();
        let lines: Vec<Vec<(String, Hue)>> = std::iter::once(&headings)
            .chain(&self.rows)
            .map(|row: &Vec<Cell>| row.iter().map(|cell| (visible(&cell.text), cell.hue)).collect())
            .collect();
        let width = |column: usize| lines.iter().map(|line| line[column].0.width()).max();
        let widths: Vec<usize> =
            (0..right.len()).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for line in &lines {
            let mut owed = 0;
            for (column, (cell, hue)) in line.iter().enumerate() {
                let space = widths[column] - cell.width();
                let (before, after) = if right[column] { (space, 0) } else { (0, space) };
                owed += before;
                if !cell.is_empty() {
                    text.extend(std::iter::repeat_n(' ', owed));
                    text.push_str(&paint.text(cell, *hue));
                    owed = 0;
                }
                owed += after + 2;
            }
            text.push('\n');
        }
        text
    }
}

/// Returns lines of a label and what stands for it, aligned.
pub(super) fn fields(lines: &[(&str, String, Hue)], paint: Paint) -> String {
    let width = lines.iter().map(|(label, ..)| label.width()).max().unwrap_or_default();
    let line = |(label, text, hue): &(&str, String, Hue)| {
        let space = " ".repeat(width - label.width() + 2);
        format!("{}{space}{}\n", paint.text(label, Hue::Dim), paint.text(&visible(text), *hue))
    };
    lines.iter().map(line).collect()
}

/// Returns `number` with at most three decimals and no zeros behind them.
pub(super) fn number(number: f64) -> String {
    let text = format!("{number:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Returns what `known` says of a number, or [`UNKNOWN`].
pub(super) fn known<T>(number: Option<T>, text: impl FnOnce(T) -> String) -> String {
    number.map_or_else(|| UNKNOWN.to_owned(), text)
}

/// Returns bars for `values` between their least and their most; where nothing is known, a gap.
pub(super) fn bars(values: &[Option<f64>]) -> String {
    let of = |pick: fn(f64, f64) -> f64| values.iter().flatten().copied().reduce(pick);
    let (Some(least), Some(most)) = (of(f64::min), of(f64::max)) else {
        return String::new();
    };
    let steps = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];
    let bar = |value: f64| {
        // What does not move is a line in the middle.
        let share = if most > least { (value - least) / (most - least) } else { 0.4 };
        BARS[steps.iter().filter(|step| share >= **step).count()]
    };
    values.iter().map(|value| value.map_or(' ', bar)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that has ever hidden or moved something on a terminal, and what must be left of it.
    const HOSTILE: [(&str, &str); 11] = [
        ("\u{1b}[2J\u{1b}[H", "\\u{1b}[2J\\u{1b}[H"),
        ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
        ("\u{1b}]52;c;cm0gLXJm\u{1b}\\", "\\u{1b}]52;c;cm0gLXJm\\u{1b}\\"),
        ("a\rb\nc\td\u{8}", "a\\rb\\nc\\td\\u{8}"),
        ("\u{9b}31m", "\\u{9b}31m"),
        ("a\u{202e}lave", "a\\u{202e}lave"),
        (
            "\u{2066}x\u{2069}\u{200e}\u{200f}\u{61c}",
            "\\u{2066}x\\u{2069}\\u{200e}\\u{200f}\\u{61c}",
        ),
        ("a\u{200b}\u{feff}\u{ad}b", "a\\u{200b}\\u{feff}\\u{ad}b"),
        ("\u{e0041}\u{2028}\u{7f}\0", "\\u{e0041}\\u{2028}\\u{7f}\\0"),
        ("e\u{301}", "e\\u{301}"),
        ("\u{a0}\u{3000}", "\\u{a0}\\u{3000}"),
    ];

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        for (text, shown) in HOSTILE {
            assert_eq!(visible(text), shown);
        }
        let harmless = "müller 日本 \"a\\b\" 'c' ±σ € 😀";
        assert_eq!(visible(harmless), harmless);
    }

    #[test]
    fn json_means_the_same_and_holds_nothing_that_a_terminal_obeys() {
        for (text, _) in HOSTILE {
            let value = serde_json::json!({ text: [text, 1.5, null, true] });
            let line = one_line(&value);
            assert!(line.chars().all(is_drawn), "{line:?}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
        }
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let mut table = Table::new(&["AGENT", ">RATE", "STATE"]);
        table.row(["日本".into(), "2".into(), Cell::new("frozen", Hue::Held)]);
        table.row(["a\u{1b}".into(), "23.5".into(), "".into()]);
        let plain = "AGENT    RATE  STATE\n日本        2  frozen\na\\u{1b}  23.5\n";
        assert_eq!(table.text(Paint(false)), plain);
        let coloured = table.text(Paint(true));
        assert!(coloured.contains("日本        2  \u{1b}[36mfrozen\u{1b}[0m\n"), "{coloured:?}");
    }

    #[test]
    fn colours_follow_no_color_the_terminal_and_the_flag() {
        let (set, empty) = (Some(OsStr::new("1")), Some(OsStr::new("")));
        let (xterm, dumb) = (Some(OsStr::new("xterm")), Some(OsStr::new("dumb")));
        assert!(wanted(Colour::Auto, None, xterm, true));
        assert!(wanted(Colour::Auto, empty, None, true), "an empty NO_COLOR says nothing");
        assert!(!wanted(Colour::Auto, set, xterm, true));
        assert!(!wanted(Colour::Auto, None, dumb, true));
        assert!(!wanted(Colour::Auto, None, xterm, false));
        assert!(wanted(Colour::Always, set, dumb, false));
        assert!(!wanted(Colour::Never, None, xterm, true));
    }

    #[test]
    fn numbers_are_short_and_bars_span_what_there_is() {
        for (value, text) in
            [(20.0, "20"), (0.1251, "0.125"), (23.5, "23.5"), (-0.0001, "0"), (1e6, "1000000")]
        {
            assert_eq!(number(value), text);
        }
        assert_eq!(bars(&[Some(1.0), None, Some(2.0), Some(1.5)]), "▁ █▅");
        assert_eq!(bars(&[Some(3.0), Some(3.0)]), "▄▄");
        assert_eq!(bars(&[None]), "");
        assert_eq!(known(None::<f64>, number), "-");
    }
}
