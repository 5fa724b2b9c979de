//! How a file of recorded ratings is laid out: its format, its columns and the scale of its scores.
//!
//! Nothing is guessed from values: a score outside 1 to 5 is a bad row until `--scale` says what it
//! means, and a column is found by the name or the place that was given, or by Merit's own names.

use std::{path::Path, str::FromStr};

use crate::rating::{SCORE_MAX, SCORE_MIN};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated, quotes as in RFC 4180, one row a line.
    Csv,
    /// Tab-separated, without quotes.
    Tsv,
    /// One JSON object a line.
    Ndjson,
}

impl Format {
    /// Returns the format that the name of a file says; a closing `.gz` says nothing.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match name.rsplit_once('.')?.1 {
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "ndjson" | "jsonl" => Some(Self::Ndjson),
            _ => None,
        }
    }
}

/// Which column is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// The one of this name.
    Named(String),
    /// The one at this place, counted from 0.
    At(usize),
}

/// The columns that were named; those that were not go by Merit's own names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Who rates.
    pub user: Option<Column>,
    /// Who is rated.
    pub agent: Option<Column>,
    /// The score.
    pub score: Option<Column>,
    /// When.
    pub time: Option<Column>,
    /// True when rows have no time (`time=none`): the order of the file is the order of time.
    pub timeless: bool,
}

/// The most that a place may be: further columns are not looked at.
pub const FIELDS_MAX: usize = 256;

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = Self::default();
        for part in text.split(',') {
            let Some((field, column)) = part.split_once('=') else {
                return Err(format!(
                    "`{part}`: write field=column, like user=userId or score=3; fields are user, \
                     agent, score and time"
                ));
            };
            let column = column.trim();
            if column.is_empty() {
                return Err(format!("{field}: the column has no name"));
            }
            let column = match column.parse::<usize>() {
                Ok(place) if (1..=FIELDS_MAX).contains(&place) => Column::At(place - 1),
                Ok(place) => {
                    return Err(format!("{field}: place must be 1 to {FIELDS_MAX}, is {place}"));
                }
                Err(_) => Column::Named(column.to_owned()),
            };
            let slot = match field.trim() {
                "user" => &mut columns.user,
                "agent" => &mut columns.agent,
                "score" => &mut columns.score,
                "time" if column == Column::Named("none".to_owned()) => {
                    columns.timeless = true;
                    continue;
                }
                "time" => &mut columns.time,
                other => {
                    return Err(format!(
                        "`{other}`: there is no such field; fields are user, agent, score and time"
                    ));
                }
            };
            if slot.replace(column).is_some() {
                return Err(format!("{field}: is given twice; name one column"));
            }
        }
        if columns.timeless && columns.time.is_some() {
            return Err("time: is given twice; name one column or `none`".to_owned());
        }
        Ok(columns)
    }
}

impl Columns {
    /// Returns these, and what they do not name as `others` say.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        let timed = self.timeless || self.time.is_some();
        Self {
            user: self.user.or(others.user),
            agent: self.agent.or(others.agent),
            score: self.score.or(others.score),
            time: if timed { self.time } else { others.time },
            timeless: if timed { self.timeless } else { others.timeless },
        }
    }

    /// Returns true when every column is given by its place: then nothing needs a header.
    #[must_use]
    pub fn all_by_place(&self) -> bool {
        let placed = |column: &Option<Column>| matches!(column, Some(Column::At(_)));
        [&self.user, &self.agent, &self.score].into_iter().all(placed)
            && (self.timeless || placed(&self.time))
    }
}

/// The range that a file's scores have, mapped linearly onto 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self { low: SCORE_MIN, high: SCORE_MAX }
    }
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let remedy = "write LOW..HIGH, like 0.5..5 or 0..100";
        let (low, high) =
            text.split_once("..").ok_or_else(|| format!("`{text}` is no scale; {remedy}"))?;
        let number = |text: &str| {
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| format!("`{text}` is no finite number; {remedy}"))
        };
        let (low, high) = (number(low)?, number(high)?);
        if !(low < high && (high - low).is_finite()) {
            return Err(format!("{low} is not below {high}; {remedy}"));
        }
        Ok(Self { low, high })
    }
}

impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.low, self.high)
    }
}

impl Scale {
    /// Returns the width of this scale by that of 1 to 5: what an error on 1 to 5 is multiplied by.
    #[must_use]
    pub fn by_1_to_5(self) -> f64 {
        (self.high - self.low) / (SCORE_MAX - SCORE_MIN)
    }

    /// Returns what `score` is on the scale of 1 to 5: 1 + 4·(score − low)/(high − low); nothing
    /// when it is outside this scale. A score that is on 1 to 5 already stays bit for bit.
    #[must_use]
    pub fn onto_1_to_5(self, score: f64) -> Option<f64> {
        if !(self.low..=self.high).contains(&score) {
            return None;
        }
        if self == Self::default() {
            return Some(score);
        }
        let share = (score - self.low) / (self.high - self.low);
        Some((SCORE_MIN + (SCORE_MAX - SCORE_MIN) * share).clamp(SCORE_MIN, SCORE_MAX))
    }
}

/// A layout under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// MovieLens `ratings.csv`: userId,movieId,rating,timestamp with a header, scores 0.5..5
    Movielens,
    /// MovieLens 100K `u.data`: user, item, rating, timestamp, tabs, no header, scores 1..5
    #[value(name = "movielens-100k")]
    Movielens100k,
}

/// How to read a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// How rows are written.
    pub format: Format,
    /// Where the fields stand.
    pub columns: Columns,
    /// True when the first row names the columns; NDJSON has none.
    pub header: bool,
    /// What scores mean.
    pub scale: Scale,
}

impl Preset {
    /// Returns what the name stands for.
    #[must_use]
    pub fn layout(self) -> Layout {
        let columns = |text: &str| text.parse().expect("a preset names its columns rightly");
        match self {
            Self::Movielens => Layout {
                format: Format::Csv,
                columns: columns("user=userId,agent=movieId,score=rating,time=timestamp"),
                header: true,
                scale: Scale { low: 0.5, high: 5.0 },
            },
            Self::Movielens100k => Layout {
                format: Format::Tsv,
                columns: columns("user=1,agent=2,score=3,time=4"),
                header: false,
                scale: Scale::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_stars_are_mapped_only_when_their_scale_is_given() {
        let half_stars: Scale = "0.5..5".parse().unwrap();
        assert_eq!(half_stars.onto_1_to_5(0.5), Some(1.0));
        assert_eq!(half_stars.onto_1_to_5(2.75), Some(3.0));
        assert_eq!(half_stars.onto_1_to_5(5.0), Some(5.0));
        assert_eq!(Scale::default().onto_1_to_5(0.5), None);
        let percent: Scale = "0..100".parse().unwrap();
        assert_eq!([0.0, 25.0, 100.0].map(|s| percent.onto_1_to_5(s).unwrap()), [1.0, 2.0, 5.0]);
        assert_eq!([-1.0, 101.0, f64::NAN].map(|s| percent.onto_1_to_5(s)), [None; 3]);
    }

    #[test]
    fn a_score_of_1_to_5_is_not_touched() {
        for score in [1.0, 1.1, 2.3, 4.7, 4.999_999_9, 5.0] {
            assert_eq!(Scale::default().onto_1_to_5(score), Some(score));
        }
    }

    #[test]
    fn a_scale_that_is_none_is_refused_with_an_example() {
        for text in ["5", "5..1", "1..1", "a..5", "0..inf", "NaN..5", "", "..", "-1e308..1e308"] {
            let error = text.parse::<Scale>().unwrap_err();
            assert!(error.contains("0.5..5"), "{text}: {error}");
        }
        assert_eq!("-2..2".parse::<Scale>().unwrap().onto_1_to_5(0.0), Some(3.0));
    }

    #[test]
    fn columns_are_names_or_places_and_a_mistake_is_named() {
        let columns: Columns = "user=userId,agent=2,score=rating,time=none".parse().unwrap();
        assert_eq!(columns.user, Some(Column::Named("userId".to_owned())));
        assert_eq!(columns.agent, Some(Column::At(1)));
        assert!(columns.timeless && !columns.all_by_place());
        for (text, said) in [
            ("user", "write field=column"),
            ("who=1", "no such field"),
            ("user=1,user=2", "given twice"),
            ("time=none,time=4", "given twice"),
            ("user=0", "1 to 256"),
            ("user=", "has no name"),
        ] {
            let error = text.parse::<Columns>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_given_goes_before_the_preset() {
        let preset = Preset::Movielens.layout().columns;
        let columns = "agent=2".parse::<Columns>().unwrap().or(preset.clone());
        assert_eq!(columns.agent, Some(Column::At(1)));
        assert_eq!(columns.user, preset.user);
        let timeless = "time=none".parse::<Columns>().unwrap().or(preset);
        assert!(timeless.timeless && timeless.time.is_none());
    }

    #[test]
    fn the_format_is_what_the_name_says() {
        for (name, format) in [
            ("a/ratings.csv", Some(Format::Csv)),
            ("ratings.CSV.gz", Some(Format::Csv)),
            ("x.tsv", Some(Format::Tsv)),
            ("x.jsonl.gz", Some(Format::Ndjson)),
            ("u.data", None),
            ("-", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }
}
