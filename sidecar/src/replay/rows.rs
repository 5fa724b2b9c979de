//! Rows into ratings: fields found, texts bounded, scores scaled, times read; what is wrong is named.
//!
//! A row is good as a whole or a [`Fault`] with the field, the value and the remedy. Agents and users
//! are numbered as they appear, so that a rating takes 24 bytes however long their names are.

use std::collections::HashMap;

use csv_core::ReadRecordResult;
use foldhash::fast::RandomState;
use serde::Serialize;
use tower_merit::AgentId;

use super::{
    json_rows,
    layout::{Column, FIELDS_MAX, Format, Layout},
};
use crate::rating::{UserId, timestamp_from_text};

/// The longest value that a fault repeats, in characters.
const SHOWN_MAX: usize = 40;

/// The names that a field has when no column is given for it; the first that is there counts.
pub(super) const USER: &[&str] = &["user_id", "userId", "user"];
pub(super) const AGENT: &[&str] = &["agent_id", "agentId", "agent", "item_id", "itemId", "item"];
pub(super) const SCORE: &[&str] = &["score", "rating"];
pub(super) const TIME: &[&str] = &["timestamp", "time"];

/// What the fields are called in faults, in the order of [`Reader::places`].
const FIELDS: [&str; 4] = ["user", "agent", "score", "time"];

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The line, from 1.
    pub line: u64,
    /// `user`, `agent`, `score`, `time` or `row`.
    pub field: &'static str,
    /// The value, shortened.
    pub value: String,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {} {:?} {}", self.line, self.field, self.value, self.problem)
    }
}

/// One recorded rating.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Unix milliseconds; 0 when rows have no time.
    pub at_ms: u64,
    /// 1 to 5.
    pub score: f64,
    /// The agent's number.
    pub agent: u32,
    /// The user's number.
    pub user: u32,
}

/// Names by number, numbers by name.
#[derive(Debug)]
pub struct Names<T> {
    numbers: HashMap<Box<str>, u32, RandomState>,
    names: Vec<T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { numbers: HashMap::default(), names: Vec::new() }
    }
}

impl<T> Names<T> {
    /// Returns the names in the order of their numbers.
    #[must_use]
    pub fn all(&self) -> &[T] {
        &self.names
    }

    /// Returns the number of `text`, if it has one.
    #[must_use]
    pub fn get(&self, text: &str) -> Option<u32> {
        self.numbers.get(text).copied()
    }

    fn number<E>(&mut self, text: &str, name: impl Fn(&str) -> Result<T, E>) -> Result<u32, E> {
        if let Some(number) = self.numbers.get(text) {
            return Ok(*number);
        }
        let name = name(text)?;
        let number = u32::try_from(self.names.len()).expect("fewer names than memory holds");
        self.names.push(name);
        self.numbers.insert(text.into(), number);
        Ok(number)
    }
}

/// Who appears in a file.
#[derive(Debug, Default)]
pub struct Cast {
    /// Those who are rated.
    pub agents: Names<AgentId>,
    /// Those who rate.
    pub users: Names<UserId>,
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The header does not name a column.
    #[error(
        "no column for {field}: the header has {header}; name one with --columns {field}=…, by \
         name or by place (from 1)"
    )]
    NoColumn {
        /// The field that has none.
        field: &'static str,
        /// What the header has.
        header: String,
    },
    /// Columns are to be found by name where no row names them.
    #[error(
        "--columns {field}=… names a column and the file has no header: give its place, from 1"
    )]
    NoHeader {
        /// The field.
        field: &'static str,
    },
    /// Columns are to be found by place in objects.
    #[error("--columns {field}=… gives a place and objects have none: give a name")]
    NoPlaces {
        /// The field.
        field: &'static str,
    },
}

/// Reads rows of one layout.
#[derive(Debug)]
pub struct Reader {
    layout: Layout,
    csv: csv_core::Reader,
    unquoted: Vec<u8>,
    ends: [usize; FIELDS_MAX],
    /// Where user, agent, score and time stand, once that is known; NDJSON has no places.
    places: Option<[Option<usize>; 4]>,
}

impl Reader {
    /// Returns a reader of rows laid out so.
    ///
    /// # Errors
    ///
    /// When columns are given by name and there is no header to find them in.
    pub fn new(layout: Layout) -> Result<Self, LayoutError> {
        let (delimiter, quoting) = match layout.format {
            Format::Csv => (b',', true),
            Format::Tsv | Format::Ndjson => (b'\t', false),
        };
        let csv = csv_core::ReaderBuilder::new().delimiter(delimiter).quoting(quoting).build();
        let mut reader =
            Self { layout, csv, unquoted: Vec::new(), ends: [0; FIELDS_MAX], places: None };
        let placed = |(column, _): &(Option<&Column>, _)| matches!(column, Some(Column::At(_)));
        if reader.layout.format != Format::Ndjson {
            if !reader.layout.header {
                reader.places = Some(reader.without_header()?);
            }
        } else if let Some(number) = reader.columns().iter().position(placed) {
            return Err(LayoutError::NoPlaces { field: FIELDS[number] });
        }
        Ok(reader)
    }

    fn columns(&self) -> [(Option<&Column>, &'static [&'static str]); 4] {
        let columns = &self.layout.columns;
        [
            (columns.user.as_ref(), USER),
            (columns.agent.as_ref(), AGENT),
            (columns.score.as_ref(), SCORE),
            (columns.time.as_ref(), TIME),
        ]
    }

    /// Returns how many of the fields rows have: the time is the last, and may be none.
    fn fields(&self) -> usize {
        if self.layout.columns.timeless { 3 } else { 4 }
    }

    fn without_header(&self) -> Result<[Option<usize>; 4], LayoutError> {
        let mut places = [None; 4];
        for (number, (column, _)) in self.columns().into_iter().enumerate().take(self.fields()) {
            match column {
                Some(Column::At(place)) => places[number] = Some(*place),
                _ => return Err(LayoutError::NoHeader { field: FIELDS[number] }),
            }
        }
        Ok(places)
    }

    /// Returns true while the next line is the header.
    #[must_use]
    pub fn wants_header(&self) -> bool {
        self.layout.format != Format::Ndjson && self.places.is_none()
    }

    /// Finds the columns in the header.
    ///
    /// # Errors
    ///
    /// When one is not there; with what is there instead.
    pub fn read_header(&mut self, line: &[u8]) -> Result<(), LayoutError> {
        let count = self.split(line).unwrap_or(0);
        let names: Vec<String> = (0..count)
            .map(|place| String::from_utf8_lossy(self.field(place)).trim().to_owned())
            .collect();
        let mut places = [None; 4];
        for (number, (column, known)) in self.columns().into_iter().enumerate().take(self.fields())
        {
            let position = |name: &str| names.iter().position(|found| found == name);
            let place = match column {
                Some(Column::At(place)) => Some(*place),
                Some(Column::Named(name)) => position(name),
                None => known.iter().find_map(|name| position(name)),
            };
            if place.is_none() {
                let shown: Vec<String> = names.iter().take(20).map(|name| shown(name)).collect();
                let header = shown.join(", ");
                return Err(LayoutError::NoColumn { field: FIELDS[number], header });
            }
            places[number] = place;
        }
        self.places = Some(places);
        Ok(())
    }

    /// Reads a row into an event, numbering whom it names in `cast`.
    ///
    /// # Errors
    ///
    /// With the first thing that is wrong with the row; `line` is its number.
    pub fn read(&mut self, line: u64, text: &[u8], cast: &mut Cast) -> Result<Event, Fault> {
        let at_line = |mut fault: Fault| {
            fault.line = line;
            fault
        };
        if self.layout.format == Format::Ndjson {
            return json_rows::row(text, &self.layout.columns)
                .and_then(|row| {
                    let texts = [&*row.user, &*row.agent, row.score];
                    event(&self.layout, texts, row.time.as_deref(), cast)
                })
                .map_err(at_line);
        }
        let places = self.places.expect("the header was read");
        let count = self.split(text).map_err(at_line)?;
        let field = |number: usize| -> Result<&str, Fault> {
            let place = places[number].expect("a field that rows have has a place");
            if place >= count {
                let problem = format!("has no field {}: it has {count}", place + 1);
                return Err(fault(FIELDS[number], &String::from_utf8_lossy(text), problem));
            }
            let bytes = self.field(place);
            std::str::from_utf8(bytes).map(str::trim_ascii).map_err(|_| {
                let value = String::from_utf8_lossy(bytes);
                fault(FIELDS[number], &value, "is not UTF-8: convert the file".to_owned())
            })
        };
        let mut fields = || {
            let time = if self.layout.columns.timeless { None } else { Some(field(3)?) };
            event(&self.layout, [field(0)?, field(1)?, field(2)?], time, cast)
        };
        fields().map_err(at_line)
    }

    /// Splits a line into fields; returns how many there are.
    fn split(&mut self, line: &[u8]) -> Result<usize, Fault> {
        if line.is_empty() {
            return Err(fault("row", "", "is empty".to_owned()));
        }
        self.csv.reset();
        self.unquoted.resize(line.len() + 1, 0);
        let (mut written, mut count) = (0, 0);
        // The line break that was cut off ends the record; one that is still open has an open quote.
        for input in [line, b"\n"] {
            let mut read = 0;
            loop {
                let (result, nin, nout, nend) = self.csv.read_record(
                    &input[read..],
                    &mut self.unquoted[written..],
                    &mut self.ends[count..],
                );
                read += nin;
                written += nout;
                count += nend;
                match result {
                    ReadRecordResult::Record => return Ok(count),
                    ReadRecordResult::InputEmpty if read >= input.len() => break,
                    ReadRecordResult::InputEmpty => {}
                    ReadRecordResult::OutputEndsFull => {
                        let problem = format!("has more than {FIELDS_MAX} fields");
                        return Err(fault("row", &String::from_utf8_lossy(line), problem));
                    }
                    ReadRecordResult::OutputFull | ReadRecordResult::End => {
                        unreachable!("the output is as long as the line, which has a line break")
                    }
                }
            }
        }
        let problem = "has a quote that is not closed on its line".to_owned();
        Err(fault("row", &String::from_utf8_lossy(line), problem))
    }

    fn field(&self, place: usize) -> &[u8] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.unquoted[start..self.ends[place]]
    }
}

/// Returns a fault whose line is not known here.
pub(super) fn fault(field: &'static str, value: &str, problem: String) -> Fault {
    Fault { line: 0, field, value: shown(value), problem }
}

/// Returns `text` without control characters and at most [`SHOWN_MAX`] characters long.
pub(super) fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(SHOWN_MAX).map(clean).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn event(
    layout: &Layout,
    [user, agent, score]: [&str; 3],
    time: Option<&str>,
    cast: &mut Cast,
) -> Result<Event, Fault> {
    let number: f64 = score.parse().map_err(|_| {
        fault("score", score, format!("is no number: send one within {}", layout.scale))
    })?;
    let mapped = layout.scale.onto_1_to_5(number).ok_or_else(|| {
        let problem = format!(
            "is outside {}: say with --scale LOW..HIGH what the least and the best score are",
            layout.scale
        );
        fault("score", score, problem)
    })?;
    let at_ms = match time {
        None => 0,
        Some(text) => timestamp_from_text(text).map_err(|_| {
            let remedy = "is no time: send Unix seconds, milliseconds or RFC 3339";
            fault("time", text, remedy.to_owned())
        })?,
    };
    // Last, so that only those whose row is good are numbered.
    let agent = cast
        .agents
        .number(agent, AgentId::new)
        .map_err(|error| fault("agent", agent, error.to_string()))?;
    let user = cast
        .users
        .number(user, UserId::new)
        .map_err(|error| fault("user", user, error.to_string()))?;
    Ok(Event { at_ms, score: mapped, agent, user })
}

#[cfg(test)]
mod tests;
