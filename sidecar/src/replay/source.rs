//! Where recorded ratings come from: a file or standard input, gzipped or not, line by line.
//!
//! A line has a bound, so that a file of another kind cannot fill the memory: a longer one is
//! skipped and told. Compression is told by the first two bytes, never by the name.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;

/// The longest line that is read, in bytes.
pub const LINE_MAX: usize = 64 * 1024;

/// How much is read at once, in bytes.
const BUFFER: usize = 256 * 1024;

/// The first bytes of a gzip stream (RFC 1952, section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The name that means standard input.
pub const STANDARD_INPUT: &str = "-";

/// Why a source gives no more lines.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading failed, or a compressed stream is damaged.
    #[error("cannot read {} beyond line {line}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The last line that was read whole.
        line: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One line, or what became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The line without its line break.
    Whole(&'a [u8]),
    /// It was longer than [`LINE_MAX`] and is skipped.
    TooLong,
}

/// The lines of a source, counted from 1.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    /// Opens `path` ([`STANDARD_INPUT`] for standard input). `bar` follows the bytes read from it.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or its first bytes cannot be read.
    pub fn open(path: &Path, bar: &ProgressBar) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Open { path: path.to_owned(), source };
        if path == Path::new(STANDARD_INPUT) {
            return Self::over(path, bar.wrap_read(io::stdin()));
        }
        let file = File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if about.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if about.is_file() {
            bar.set_length(about.len());
        }
        Self::over(path, bar.wrap_read(file))
    }

    /// Returns the lines of `bytes`, which errors call `path`.
    ///
    /// # Errors
    ///
    /// When the first bytes cannot be read.
    pub fn over(path: &Path, mut bytes: impl Read + 'static) -> Result<Self, SourceError> {
        let mut head = Vec::with_capacity(GZIP.len());
        let read = (&mut bytes).take(GZIP.len() as u64).read_to_end(&mut head);
        read.map_err(|source| SourceError::Open { path: path.to_owned(), source })?;
        let gzipped = head == GZIP;
        let bytes = Cursor::new(head).chain(bytes);
        let reader: Box<dyn BufRead> = if gzipped {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(bytes)))
        } else {
            Box::new(BufReader::with_capacity(BUFFER, bytes))
        };
        Ok(Self { path: path.to_owned(), reader, line: Vec::new(), number: 0 })
    }

    /// Returns the number of the line that [`Lines::next_line`] returned last, 0 before the first.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the next line, nothing at the end.
    ///
    /// # Errors
    ///
    /// When reading fails.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, SourceError> {
        self.line.clear();
        // One more for the line break.
        let mut bounded = (&mut self.reader).take(LINE_MAX as u64 + 1);
        let read = bounded.read_until(b'\n', &mut self.line);
        let failed = |line, source| SourceError::Read { path: self.path.clone(), line, source };
        if read.map_err(|source| failed(self.number, source))? == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() > LINE_MAX {
            let skipped = self.reader.skip_until(b'\n');
            skipped.map_err(|source| failed(self.number, source))?;
            self.number += 1;
            return Ok(Some(Line::TooLong));
        }
        self.number += 1;
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        // A byte order mark is no part of the first name.
        let start = if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        Ok(Some(Line::Whole(&self.line[start..])))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(bytes: Vec<u8>) -> Vec<String> {
        let mut lines = Lines::over(Path::new("test"), Cursor::new(bytes)).unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            all.push(match line {
                Line::Whole(text) => String::from_utf8(text.to_vec()).unwrap(),
                Line::TooLong => "(too long)".to_owned(),
            });
        }
        assert_eq!(lines.number(), all.len() as u64);
        all
    }

    #[test]
    fn line_breaks_of_either_kind_a_mark_and_a_missing_last_break_are_no_part_of_lines() {
        assert_eq!(lines(b"\xef\xbb\xbfa,b\r\n1,2\n\n3".to_vec()), ["a,b", "1,2", "", "3"]);
        assert_eq!(lines(Vec::new()), [""; 0]);
        assert_eq!(lines(b"x".to_vec()), ["x"]);
    }

    #[test]
    fn a_line_beyond_the_bound_is_skipped_and_the_next_one_is_read() {
        let fits = "f".repeat(LINE_MAX);
        let long = "l".repeat(3 * LINE_MAX);
        let text = format!("{fits}\n{long}\nshort\n{long}");
        assert_eq!(lines(text.into_bytes()), [&fits, "(too long)", "short", "(too long)"]);
    }

    #[test]
    fn gzip_is_told_by_its_first_bytes_and_damage_is_an_error() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"1,2\n3,4\n").unwrap();
        let mut bytes = gzip.finish().unwrap();
        assert_eq!(lines(bytes.clone()), ["1,2", "3,4"]);
        // Two members after each other are one stream (RFC 1952, section 2.2).
        assert_eq!(lines([bytes.clone(), bytes.clone()].concat()).len(), 4);
        bytes.truncate(bytes.len() - 6);
        let mut cut = Lines::over(Path::new("cut.gz"), Cursor::new(bytes)).unwrap();
        let error = loop {
            match cut.next_line() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a cut stream ended in order"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().starts_with("cannot read cut.gz beyond line"), "{error}");
    }
}
